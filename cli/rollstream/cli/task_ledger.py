"""Which tasks still lack their trajectory. Pure; fed from the topics ``tasks`` and ``trajectories`` in any order."""

from __future__ import annotations

from dataclasses import dataclass, field

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory


@dataclass
class TaskLedger:
    """Every task once, every trajectory once, however often either is in the log.

    Attributes:
        run_ids: runs that count; None: all.
    """

    run_ids: frozenset[str] | None = None
    _emitted: set[str] = field(default_factory=set[str])
    _ended: set[str] = field(default_factory=set[str])
    _replacements_ended: int = 0
    _progress: dict[str, ProducerProgress] = field(default_factory=dict[str, ProducerProgress])
    duplicates: int = 0
    """Trajectory records whose id had been seen before."""

    def see_task(self, task: RolloutTask) -> None:
        """Note an emitted task; a repetition changes nothing."""
        if self._counts(task.run_id):
            self._emitted.add(task.trajectory_id)

    def see_trajectory(self, trajectory: Trajectory) -> bool:
        """Note a terminal trajectory; True if it is the first with its id."""
        if not self._counts(trajectory.run_id):
            return False
        if trajectory.trajectory_id in self._ended:
            self.duplicates += 1
            return False
        self._ended.add(trajectory.trajectory_id)
        self._replacements_ended += trajectory.replacement > 0
        return True

    def see_progress(self, progress: ProducerProgress) -> None:
        """Note how far a producer is."""
        if self._counts(progress.run_id):
            self._progress[progress.run_id] = progress

    @property
    def emitted(self) -> int:
        """Tasks known to exist: read from ``tasks``, or proven by their trajectory."""
        return len(self._emitted | self._ended)

    @property
    def ended(self) -> int:
        """Tasks with a trajectory."""
        return len(self._ended)

    @property
    def group_size(self) -> int:
        """Tasks per group, as the producers say; 0 while none has spoken."""
        return max((run.group_size for run in self._progress.values()), default=0)

    def open_tasks(self) -> frozenset[str]:
        """Ids of tasks without a trajectory."""
        return frozenset(self._emitted - self._ended)

    def is_done(self) -> bool:
        """Whether every run has been emitted to its end and each of its tasks has its trajectory."""
        runs = self._progress.values()
        if not runs or (self.run_ids is not None and len(runs) < len(self.run_ids)):
            return False
        wanted = sum(run.groups_emitted * run.group_size for run in runs)
        return (
            all(run.is_finished for run in runs)
            and self.ended - self._replacements_ended >= wanted
            and not self.open_tasks()
        )

    def _counts(self, run_id: str) -> bool:
        return self.run_ids is None or run_id in self.run_ids
