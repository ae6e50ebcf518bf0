"""How much memory a trajectory takes. Pure, and the same for the same record, so that decisions may depend on it."""

from __future__ import annotations

from typing import Final

from rollstream.schemas.trajectories import Sample, Trajectory

TRAJECTORY_BYTES: Final = 4096
"""Of a trajectory without its arrays: the object, its strings, metrics and sampling parameters."""
SAMPLE_BYTES: Final = 1024
"""Of a sample without its arrays."""
SPAN_BYTES: Final = 128
"""Of a version span or a turn."""


def trajectory_bytes(trajectory: Trajectory) -> int:
    """An estimate: the arrays exactly, everything else by the piece."""
    return TRAJECTORY_BYTES + sum(_sample_bytes(sample) for sample in trajectory.samples)


def _sample_bytes(sample: Sample) -> int:
    arrays = (sample.prompt_ids, sample.response_ids, sample.response_mask, sample.response_logprobs)
    pieces = len(sample.version_spans) + len(sample.turns)
    return SAMPLE_BYTES + SPAN_BYTES * pieces + sum(array.nbytes for array in arrays)
