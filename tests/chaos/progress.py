"""How far a run is, and how long its parts may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos_workload import EngineKind
from evidence_reading import Record

from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.records import decode_record


class StuckError(RuntimeError):
    """The cluster did not come to rest; says what it was waiting for, and the last words of everybody."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, in seconds.

    Attributes:
        before_s: undisturbed work that sets the rate to compare with.
        after_s: undisturbed work after the last fault.
        start_s: until the first trajectory.
        calm_between_s: before a fault that is to be alone.
        silence_s: without anything new while work is left, the run is stuck.
    """

    before_s: float
    after_s: float
    start_s: float
    silence_s: float
    calm_between_s: float = 8.0

    @property
    def calm_s(self) -> float:
        """Undisturbed work in all."""
        return self.before_s + self.after_s

    @classmethod
    def of(cls, engine: EngineKind, *, is_quick: bool) -> Timing:
        """Suited to an engine."""
        if engine == "vllm":
            return cls(before_s=5.0, after_s=10.0, start_s=180.0, silence_s=120.0, calm_between_s=12.0)
        if is_quick:
            return cls(before_s=3.0, after_s=3.0, start_s=60.0, silence_s=60.0)
        return cls(before_s=20.0, after_s=30.0, start_s=60.0, silence_s=120.0)


@dataclass
class Progress:
    """Counted live, for the view and to know when all is done; the verdict counts anew."""

    tasks: set[bytes] = field(default_factory=set[bytes])
    trajectories: set[bytes] = field(default_factory=set[bytes])
    last_news: float = field(default_factory=time.monotonic)

    def count(self, short: str, records: Sequence[Record]) -> None:
        """Take note of records; a trajectory and its task have the same id."""
        seen = self.tasks if short == "tasks" else self.trajectories
        before = len(seen)
        seen.update(place for record in records if (place := record_id(record)) is not None)
        if len(seen) > before:
            self.last_news = time.monotonic()

    @property
    def is_done(self) -> bool:
        """Whether every task has its trajectory."""
        return self.tasks <= self.trajectories


def record_id(record: Record) -> bytes | None:
    """The trajectory id of a task or a trajectory."""
    return decode_record(record, RolloutTask, Trajectory).trajectory_id.encode()
