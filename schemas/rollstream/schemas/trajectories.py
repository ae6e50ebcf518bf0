"""`trajectories`: the finished product of one task, exactly as it was sampled.

Token ids are truth: what the engine sampled is never decoded and encoded again. For every sample, with
``R = len(response_ids)``: ``response_mask[i] = 1`` iff the policy sampled ``response_ids[i]``, and then
``response_logprobs[i]`` is the natural log of its probability under the distribution it was drawn from
(``sampling`` applied) and a ``VersionSpan`` says which policy drew it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from rollstream.schemas.messages import Float32Array, Int32Array, Message, UInt8Array
from rollstream.schemas.tasks import SamplingParams

Status = Literal["completed", "truncated", "aborted", "failed"]
StopReason = Literal[
    "stop",
    "max_turns",
    "max_tokens",
    "context_length",
    "wall_clock",
    "malformed",
    "infrastructure",
    "agent_error",
    "invalid_task",
    "cancelled",
]


class VersionSpan(msgspec.Struct, frozen=True, array_like=True):
    """``response_ids[start:end]`` (its sampled tokens) was drawn by policy ``version`` of ``lineage``."""

    start: int
    end: int
    version: int
    lineage: int = 0


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One generation: a half-open span of ``response_ids`` and the tool calls it led to."""

    start: int
    end: int
    finish_reason: Literal["stop", "length", "abort"]
    tool_calls: int = 0
    is_malformed: bool = False
    generate_s: float = 0.0
    tool_s: float = 0.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One training sequence.

    Attributes:
        prompt_ids: int32 [P], P >= 1; the whole initial context, no padding.
        response_ids: int32 [R], R >= 1; sampled and observed tokens interleaved.
        response_mask: uint8 [R]; 1 = sampled by the policy.
        response_logprobs: float32 [R]; <= 0 and finite where the mask is 1, exactly 0.0 elsewhere.
        version_spans: half-open spans that cover exactly the sampled tokens, in order.
        turns: one per generation, in order.
        is_trainable: False where data is mixed up or missing; such a sample is for people, not for a step.
    """

    prompt_ids: Int32Array
    response_ids: Int32Array
    response_mask: UInt8Array
    response_logprobs: Float32Array
    version_spans: list[VersionSpan]
    turns: list[Turn]
    is_trainable: bool = True
    parent_sample: int | None = None
    fork_reason: str | None = None

    @property
    def response_versions(self) -> Int32Array:
        """int32 [R]: the policy version per token, -1 where the mask is 0."""
        versions = np.full(len(self.response_ids), -1, dtype=np.int32)
        for span in self.version_spans:
            versions[span.start : span.end] = span.version
        versions[self.response_mask == 0] = -1
        return versions


class TrajectoryError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task failed, for people and dashboards."""

    type: str
    message: str


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Unix seconds, and seconds spent."""

    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    generate_s: float = 0.0
    tool_s: float = 0.0


class Trajectory(Message, frozen=True, kw_only=True):
    """The terminal record of one task: exactly one counts, the first with its ``trajectory_id``. Key: ``group_id``."""

    topic: ClassVar[str] = "trajectories"

    run_id: str
    trajectory_id: str
    group_id: str
    group_index: int
    group_size: int
    member_index: int
    status: Status
    stop_reason: StopReason
    samples: list[Sample]
    """Empty iff ``status == "failed"`` or nothing was sampled."""
    reward: float | None
    """None: not scored. Infrastructure failures are never reward 0."""
    rewards: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    error: TrajectoryError | None = None
    is_train: bool = True
    num_turns: int = 0
    """Generations in the episode."""
    attempt: int = 1
    birth: int = 0
    """Journal offset of the attempt's first start."""
    lineage: int = 0
    policy_version_min: int = 0
    policy_version_max: int = 0
    infra_failures: int = 0
    data_failures: int = 0
    model: str = ""
    tokenizer_hash: str = ""
    sampling: SamplingParams = SamplingParams()
    logprobs_mode: str = "processed_logprobs"
    agent: str = "react"
    data_source: str = ""
    data_index: str = ""
    timing: Timing = Timing()
    worker_id: str = ""
    extra: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    replacement: int = 0
    """That of its task."""
