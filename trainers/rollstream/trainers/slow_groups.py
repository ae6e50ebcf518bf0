"""Groups under way that the next batch may have to wait for: which they are, and how long they can wait. Pure.

Put together from what was emitted when (`emission`), what has arrived of each group, and the schedule (`holding`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rollstream.trainers.batches import TrajectoryGroup
from rollstream.trainers.emission import EmissionHistory
from rollstream.trainers.group_filters import age, training_group
from rollstream.trainers.groups import ArrivingGroup, GroupAssembler, GroupKey
from rollstream.trainers.holding import AwaitedGroup, held_for
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.staleness import Ancestry
from rollstream.trainers.stream_state import StreamState


class SlowGroups:
    """Told of everything that changes the answer; its public fields belong into a checkpoint."""

    def __init__(self, settings: TrainerSettings, groups: GroupAssembler, state: StreamState | None) -> None:
        self._settings = settings
        self._groups = groups
        self.emission = EmissionHistory(state.limit_marks, state.heard_marks) if state else EmissionHistory()
        self.version_step = state.version_step if state else 1
        """By how much the last policy raised the version."""
        self.version_groups = max(settings.groups_per_batch, state.version_groups if state else 0)
        """Groups that were delivered while the version rose by that."""
        self.groups_since = state.groups_since if state else 0
        """Groups delivered since a policy was published."""
        self._delivered_at = state.version if state and state.groups_since else None
        """The version at which the newest batch was delivered, if no policy was published since."""
        self._last_versions: dict[GroupKey, tuple[int, float]] = {}
        """Of open groups: records looked at, and the last version at which the oldest of them can be delivered."""

    def delivered(self, groups: int, version: int) -> None:
        """A batch of so many groups was delivered at ``version``."""
        self._delivered_at = version
        self.groups_since += groups
        self.emission.forget_below(self._groups.lowest_unclosed())

    def published(self, version: int) -> None:
        """A new policy is out."""
        if self._delivered_at is not None and version > self._delivered_at:
            self.version_step = version - self._delivered_at
            self.version_groups = max(self._settings.groups_per_batch, self.groups_since)
        self._delivered_at, self.groups_since = None, 0

    def rolled_back(self, version: int) -> None:
        """The trainer counts from an older version again."""
        self.emission.rolled_back(version)
        self._delivered_at, self.groups_since = None, 0

    def aged(self, version: int) -> None:
        """The trainer's version or lineage has changed."""
        self.emission.note_version(version)
        self._last_versions.clear()

    def forget(self, key: GroupKey) -> None:
        """The group is closed."""
        self._last_versions.pop(key, None)

    def to_wait_for(self, batch: Sequence[TrajectoryGroup], ancestry: Ancestry, version: int) -> list[AwaitedGroup]:
        """The groups that ``batch`` has to wait for, the most urgent first; empty: deliver it."""
        limit = self._settings.max_staleness
        if limit is None or self._settings.stale == "drop" or self._settings.is_observer:
            return []
        return held_for(
            [version + limit - age(group) for group in batch],
            self._awaited(limit, ancestry, version),
            version=version,
            version_step=self.version_step,
            groups_per_step=self.version_groups,
        )

    def _awaited(self, limit: int, ancestry: Ancestry, version: int) -> list[AwaitedGroup]:
        """Training groups that are emitted and not ready, as far as it is known when they can have begun."""
        arriving = {group.key: group for group in self._groups.open() if group.is_train}
        awaited: list[AwaitedGroup] = []
        for key in arriving.keys() | self._groups.unmet(self.emission.allowed):
            begun_at = self.emission.start_version(key.run_id, key.group_index)
            last_version = float("inf") if begun_at is None else begun_at + limit
            if key in arriving:
                last_version = min(last_version, self._last_version(arriving[key], limit, ancestry, version))
            if version <= last_version < float("inf"):
                awaited.append(AwaitedGroup(key, int(last_version)))
        return awaited

    def _last_version(self, group: ArrivingGroup, limit: int, ancestry: Ancestry, version: int) -> float:
        """By what has arrived of it; infinite if that says nothing."""
        looked_at, last_version = self._last_versions.get(group.key, (0, float("inf")))
        if looked_at != len(group.met):
            arrived = training_group(group, self._settings, ancestry, version)
            last_version = version + limit - age(arrived) if arrived.trajectories else float("inf")
            self._last_versions[group.key] = len(group.met), last_version
        return last_version
