"""One request of a scripted engine: what it will say, how far it has come, and who drew which token. Pure."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rollstream.rollout_workers.engine import FinishReason, PolicyRef
from rollstream.schemas.trajectories import VersionSpan

CLOCK_RESOLUTION_S = 1e-9


@dataclass(eq=False)
class ScriptedRequest:
    """Its times are seconds of the engine."""

    request_id: str
    turn: list[int]
    finish_reason: FinishReason
    work_s: float
    """Engine seconds from its first slot to its last token."""
    prefill_s: float
    done_s: float = 0.0
    running_since: float | None = None
    has_slot: bool = False
    is_aborted: bool = False
    policy: PolicyRef | None = None
    """The only one that may draw it."""
    spans: list[VersionSpan] = field(default_factory=list[VersionSpan])
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_complete(self) -> bool:
        """Whether everything is sampled."""
        return self.sampled == len(self.turn)

    @property
    def sampled(self) -> int:
        """Tokens so far."""
        return self.spans[-1].end if self.spans else 0

    def advance(self, now: float, policy: PolicyRef) -> None:
        """Account for the time since it ran last: the tokens due by now were drawn by ``policy``."""
        if self.running_since is None:
            return
        self.done_s += now - self.running_since
        self.running_since = None
        decoded_s = self.done_s - self.prefill_s
        if self.done_s >= self.work_s - CLOCK_RESOLUTION_S:
            due = len(self.turn)
        elif decoded_s > 0:
            due = int(len(self.turn) * decoded_s / (self.work_s - self.prefill_s))
        else:
            due = 0
        if due > self.sampled:
            self.spans.append(VersionSpan(self.sampled, due, policy.version, policy.lineage))
