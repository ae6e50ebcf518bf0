"""A trajectory as rows of verl's TransferQueue, and when a group is finished or a failure. Pure, in numpy.

One row per trainable sample, keyed ``{uid}_{session_id}_{index}``: session is the member, index the sample's place in
order. verl computes advantages of the last row of each session and gives them to its other rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.adapters.verl.prompts import VerlPrompt

GroupStatus = Literal["finished", "failure"]


@dataclass(frozen=True, slots=True)
class VerlRow:
    """One entry of the TransferQueue; arrays are ragged, without padding.

    With prompt length P and response length R, fields are: ``prompts`` int64 [P]; ``responses``, ``response_mask``,
    ``loss_mask`` int64 [R]; ``input_ids``, ``position_ids`` int64 [P + R]; ``rollout_log_probs`` float32 [R], 0.0 where
    the mask is 0; ``rm_scores`` float32 [R], the reward on the last token, else 0.0; and the fields of the prompt.
    """

    key: str
    fields: Mapping[str, Any]
    tag: Mapping[str, Any]


def session_rows(trajectory: Trajectory, prompt: VerlPrompt) -> list[VerlRow]:
    """The rows of one member; none if it cannot be trained on: it failed, has no reward, or no trainable sample."""
    if trajectory.status == "failed" or trajectory.reward is None:
        return []
    samples = [sample for sample in trajectory.samples if sample.is_trainable]
    return [_row(trajectory, sample, index, prompt) for index, sample in enumerate(samples)]


def _row(trajectory: Trajectory, sample: Sample, index: int, prompt: VerlPrompt) -> VerlRow:
    prompts, responses = sample.prompt_ids.astype(np.int64), sample.response_ids.astype(np.int64)
    mask = sample.response_mask.astype(np.int64)
    rm_scores = np.zeros(len(responses), dtype=np.float32)
    rm_scores[-1] = trajectory.reward
    steps = {
        "min_global_steps": int(trajectory.policy_version_min),
        "max_global_steps": int(trajectory.policy_version_max),
    }
    fields: dict[str, Any] = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": np.concatenate([prompts, responses]),
        "position_ids": np.arange(len(prompts) + len(responses), dtype=np.int64),
        "response_mask": mask,
        "loss_mask": mask,
        "rollout_log_probs": np.where(mask == 1, sample.response_logprobs, 0).astype(np.float32),
        "rm_scores": rm_scores,
        "num_turns": 2 * max(1, trajectory.num_turns),
        "metrics": {
            "generate_sequences": trajectory.timing.generate_s,
            "tool_calls": trajectory.timing.tool_s,
            "compute_score": 0.0,
            "num_preempted": -1,
        },
        "extra_fields": {
            **steps,
            "reward_extra_info": dict(trajectory.rewards),
            "trajectory_id": trajectory.trajectory_id,
            "status": trajectory.status,
            "stop_reason": trajectory.stop_reason,
        },
        "multi_modal_inputs": {},
        "session_id": trajectory.member_index,
        **prompt.fields,
    }
    tag = {
        "status": "success",
        "prompt_len": len(prompts),
        "response_len": len(responses),
        "seq_len": len(prompts) + len(responses),
        "global_steps": prompt.global_steps,
        **steps,
    }
    return VerlRow(key=f"{prompt.uid}_{trajectory.member_index}_{index}", fields=fields, tag=tag)


@dataclass(frozen=True, slots=True)
class SettledGroup:
    """A group of which nothing more is awaited.

    Attributes:
        status: ``failure`` if a member is missing or cannot be trained on, as verl has it.
        rows: of the members that can.
        reason: of the failure, for the log.
    """

    prompt: VerlPrompt
    status: GroupStatus
    rows: tuple[VerlRow, ...]
    reason: str = ""


@dataclass(slots=True)
class _Pending:
    prompt: VerlPrompt
    deadline_s: float
    members: dict[int, Trajectory] = field(default_factory=dict[int, Trajectory])


class PendingGroups:
    """The groups of one run that are being rolled out. The first record of a member counts."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._pending: dict[int, _Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, group_index: int, prompt: VerlPrompt, *, deadline_s: float) -> None:
        """Wait for a group until ``deadline_s``, on the clock of ``expire``."""
        self._pending[group_index] = _Pending(prompt, deadline_s)

    def take(self, trajectory: Trajectory) -> SettledGroup | None:
        """Take in one record; the group, if it is the last one of a group that was waited for."""
        pending = self._pending.get(trajectory.group_index)
        if trajectory.run_id != self._run_id or pending is None:
            return None
        pending.members.setdefault(trajectory.member_index, trajectory)
        if len(pending.members) < pending.prompt.members:
            return None
        return self._settle(trajectory.group_index)

    def expire(self, now_s: float) -> list[SettledGroup]:
        """The groups past their deadline."""
        late = [index for index, pending in self._pending.items() if pending.deadline_s <= now_s]
        return [self._settle(index) for index in late]

    def give_up(self) -> list[SettledGroup]:
        """All groups, as they are."""
        return [self._settle(index) for index in list(self._pending)]

    def _settle(self, group_index: int) -> SettledGroup:
        pending = self._pending.pop(group_index)
        rows = {index: session_rows(t, pending.prompt) for index, t in sorted(pending.members.items())}
        bad = [
            _why(index, pending.members.get(index)) for index in range(pending.prompt.members) if not rows.get(index)
        ]
        return SettledGroup(
            prompt=pending.prompt,
            status="failure" if bad else "finished",
            rows=tuple(_flat(rows.values())),
            reason="; ".join(bad),
        )


def _flat(rows: Iterable[list[VerlRow]]) -> list[VerlRow]:
    return [row for session in rows for row in session]


def _why(member: int, trajectory: Trajectory | None) -> str:
    if trajectory is None:
        return f"member {member} has not arrived"
    if trajectory.error is not None:
        return f"member {member}: {trajectory.error.type}: {trajectory.error.message}"
    return f"member {member} has no reward" if trajectory.reward is None else f"member {member} has no trainable sample"
