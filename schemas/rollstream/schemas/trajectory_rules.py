"""What every trajectory keeps: aligned arrays, honest masks and logprobs, a policy version for every sampled token.

A sample that is not trainable (data mixed up or missing) keeps the first only. Vectorised: some 30 µs for a sample of
5,000 tokens.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.trajectories import Sample, Trajectory, Turn, VersionSpan
from rollstream.schemas.violations import Violation

_INT32, _FLOAT32, _UINT8 = np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.uint8)
MAX_LOGPROB = 1e-6
"""A little above 0 for rounding in float32 softmaxes."""


def check_trajectory(trajectory: Trajectory) -> None:
    """Raise `Violation` for the first rule the trajectory breaks."""
    _check_status(trajectory)
    if trajectory.reward is not None and not isfinite(trajectory.reward):
        raise Violation("reward", trajectory.reward, "must be finite or null")
    for name, reward in trajectory.rewards.items():
        if not isfinite(reward):
            raise Violation(f"rewards[{name!r}]", reward, "must be finite")
    if trajectory.policy_version_min > trajectory.policy_version_max:
        raise Violation(
            "policy_version_min",
            trajectory.policy_version_min,
            f"must not exceed policy_version_max={trajectory.policy_version_max}",
        )
    for index, sample in enumerate(trajectory.samples):
        _check_sample(sample, f"samples[{index}]")
        _check_versions(trajectory, sample, f"samples[{index}].version_spans")
        if sample.parent_sample is not None and not 0 <= sample.parent_sample < index:
            raise Violation(f"samples[{index}].parent_sample", sample.parent_sample, "must be an earlier sample")


def _check_status(trajectory: Trajectory) -> None:
    status, samples = trajectory.status, len(trajectory.samples)
    if status == "failed":
        if samples:
            raise Violation("samples", f"{samples} samples", "must be empty when status is 'failed'")
        if trajectory.error is None:
            raise Violation("error", None, "must say why when status is 'failed'")
        if trajectory.reward is not None:
            raise Violation("reward", trajectory.reward, "must be null when status is 'failed'")
    elif status == "completed" and not samples:
        raise Violation("samples", [], "must not be empty when status is 'completed'")


def _check_versions(trajectory: Trajectory, sample: Sample, field: str) -> None:
    lowest, highest = trajectory.policy_version_min, trajectory.policy_version_max
    for index, span in enumerate(sample.version_spans):
        if span.lineage == trajectory.lineage and not lowest <= span.version <= highest:
            raise Violation(
                f"{field}[{index}].version",
                span.version,
                f"must lie within [policy_version_min, policy_version_max] = [{lowest}, {highest}]",
            )


def _check_sample(sample: Sample, field: str) -> None:
    _check_arrays(sample, field)
    highest = np.maximum.reduce(sample.response_mask)
    if highest > 1:
        raise Violation(f"{field}.response_mask", int(highest), "must hold only 0 and 1")
    _check_turns(sample.turns, len(sample.response_ids), f"{field}.turns")
    if sample.is_trainable:
        _check_logprobs(sample, field)
        _check_spans(sample.version_spans, sample.response_mask, f"{field}.version_spans")


def _check_logprobs(sample: Sample, field: str) -> None:
    mask, logprobs = sample.response_mask, sample.response_logprobs
    # A maximum over NaN is NaN, and no comparison with NaN holds.
    if not (np.maximum.reduce(logprobs) <= MAX_LOGPROB and np.minimum.reduce(logprobs) > -np.inf):
        at = int(np.argmin((logprobs <= MAX_LOGPROB) & (logprobs > -np.inf)))
        raise Violation(f"{field}.response_logprobs[{at}]", float(logprobs[at]), "must be finite and <= 1e-6")
    misplaced = (logprobs != 0.0) > mask.view(np.bool_)
    if np.logical_or.reduce(misplaced):
        at = int(np.argmax(misplaced))
        raise Violation(f"{field}.response_logprobs[{at}]", float(logprobs[at]), "must be 0.0 where response_mask is 0")


def _check_arrays(sample: Sample, field: str) -> None:
    _check_array(sample.prompt_ids, _INT32, field, "prompt_ids")
    _check_array(sample.response_ids, _INT32, field, "response_ids")
    _check_array(sample.response_mask, _UINT8, field, "response_mask")
    _check_array(sample.response_logprobs, _FLOAT32, field, "response_logprobs")
    length = len(sample.response_ids)
    for name, array in (("response_mask", sample.response_mask), ("response_logprobs", sample.response_logprobs)):
        if len(array) != length:
            raise Violation(f"{field}.{name}", f"{len(array)} items", f"must have as many as response_ids ({length})")
    for name, array in (("prompt_ids", sample.prompt_ids), ("response_ids", sample.response_ids)):
        lowest = np.minimum.reduce(array)
        if lowest < 0:
            raise Violation(f"{field}.{name}", int(lowest), "must be >= 0")


def _check_array(value: Any, dtype: np.dtype[Any], field: str, name: str) -> None:
    if not isinstance(value, np.ndarray):
        raise Violation(f"{field}.{name}", type(value).__name__, f"must be a numpy array of {dtype.name}")
    array = cast("NDArray[Any]", value)
    if array.dtype != dtype or array.ndim != 1:
        raise Violation(f"{field}.{name}", f"{array.dtype.name}{list(array.shape)}", f"must be {dtype.name} [n]")
    if not len(array):
        raise Violation(f"{field}.{name}", "empty", "must have at least one item")


def _check_spans(spans: list[VersionSpan], mask: NDArray[np.uint8], field: str) -> None:
    length, end = len(mask), 0
    covered = bytearray(length)
    for index, span in enumerate(spans):
        if not end <= span.start < span.end <= length:
            raise Violation(f"{field}[{index}]", span, f"must be non-empty, in order and within [{end}, {length}]")
        if span.version < 0 or span.lineage < 0:
            raise Violation(f"{field}[{index}]", span, "must have version and lineage >= 0")
        covered[span.start : span.end] = b"\x01" * (span.end - span.start)
        end = span.end
    if bytes(covered) != mask.tobytes():
        at = int(np.argmax(np.frombuffer(covered, dtype=np.uint8) != mask))
        raise Violation(
            field,
            f"{'covering' if covered[at] else 'not covering'} token {at} with response_mask {int(mask[at])}",
            "must cover exactly the tokens with response_mask 1",
        )


def _check_turns(turns: list[Turn], length: int, field: str) -> None:
    end = 0
    for index, turn in enumerate(turns):
        is_within = turn.end <= length or turn.start == turn.end
        if not (end <= turn.start <= turn.end and is_within):
            raise Violation(
                f"{field}[{index}]", f"[{turn.start}, {turn.end})", f"must be in order and within [{end}, {length}]"
            )
        end = turn.end
