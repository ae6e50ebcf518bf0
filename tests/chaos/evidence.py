"""What the witnesses of a run have seen; nothing here is concluded, only read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fault_plan import Kind, Role


@dataclass(frozen=True, slots=True)
class TaskSeen:
    """A record of `tasks`."""

    trajectory_id: str
    group_index: int
    group_size: int
    member_index: int


@dataclass(frozen=True, slots=True)
class TrajectorySeen:
    """A record of `trajectories`, in the order of its partition.

    Attributes:
        digest: of the record's bytes.
        fingerprint: of the message, however it was encoded.
        at: Unix seconds at which it was sent.
        broken_history: why its tool answers are not the history of its own calls; None: they are.
    """

    trajectory_id: str
    group_index: int
    group_size: int
    member_index: int
    status: str
    is_trainable: bool
    digest: str
    fingerprint: str
    at: float
    attempt: int = 1
    broken_history: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """One generation begun by an engine, as the worker wrote it down before."""

    trajectory_id: str
    attempt: int
    birth: int
    path: str
    worker: str
    pid: int
    at: float

    @property
    def process(self) -> tuple[str, int]:
        """Who ran it."""
        return self.worker, self.pid


@dataclass(frozen=True, slots=True)
class Trained:
    """One line of the trainer's ledger, as its last checkpoint holds it."""

    trajectory_id: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Injury:
    """A fault that has happened to a process; crashes that nobody planned are among them.

    Attributes:
        worker: its name in the generation log.
        at: Unix seconds at which it was hurt.
        until: Unix seconds at which everything was as before.
        killed: processes that ended by a kill -9 or a second SIGTERM.
        late_s: how much longer than allowed a process took to leave; 0: in time.
        said: last words of a process that ended by itself.
    """

    role: Role
    kind: Kind | str
    worker: str
    pid: int
    at: float
    until: float
    killed: int = 0
    late_s: float = 0.0
    said: str = ""


@dataclass(frozen=True, slots=True)
class Phases:
    """Unix seconds: measured before from ``began``, hurt from ``hurt`` to ``healed``, measured after to ``ended``."""

    began: float
    hurt: float
    healed: float
    ended: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the verdict rests on."""

    phases: Phases
    tasks: list[TaskSeen]
    trajectories: list[TrajectorySeen]
    ledger: list[Trained]
    begun: list[Begun] = field(default_factory=list[Begun])
    injuries: list[Injury] = field(default_factory=list[Injury])
    signs: Mapping[str, Sequence[float]] = field(default_factory=dict[str, Sequence[float]])
    """By trajectory id, when the journal says that somebody worked on it; ascending."""
    dead_letters: Mapping[str, int] = field(default_factory=dict[str, int])
    """Counted by their reason."""
    orphans: Sequence[str] = ()
    """Command lines of processes that outlived those that had started them."""
