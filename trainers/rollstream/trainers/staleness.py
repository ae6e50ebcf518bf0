"""How old a trajectory is, in policy versions, across restarts of the trainer. Pure.

Every start of a trainer opens a lineage of versions. A restored one goes on from (lineage, version) of its checkpoint,
so histories form a tree; the age of a token is the distance from its version to the trainer's along that tree.
"""

from __future__ import annotations

from dataclasses import dataclass

from rollstream.schemas.control import TrainerStart
from rollstream.schemas.trajectories import Trajectory

BASE_LINEAGE = 0
"""Workers that have not loaded a published policy yet draw from version 0 of this lineage: the model as it came."""


@dataclass(frozen=True, slots=True)
class Ancestry:
    """Where a trainer's versions come from.

    Attributes:
        lineage: the trainer's own.
        forks: (lineage, version) at which each earlier lineage was left, oldest first; empty for a fresh start.
            One that was rolled back altogether has the version that was gone back to.
    """

    lineage: int
    forks: tuple[tuple[int, int], ...] = ()

    def distance(self, version: int, token_lineage: int, token_version: int) -> int | None:
        """Versions between a token's policy and ``version`` of this lineage; None for an unknown lineage."""
        if token_lineage == self.lineage:
            return max(0, version - token_version)
        for fork_lineage, fork_version in reversed(self.forks):
            if fork_lineage == token_lineage:
                beyond = max(0, token_version - fork_version)
                return version - min(token_version, fork_version) + beyond
        if token_lineage == BASE_LINEAGE and token_version == 0:
            return version
        return None

    def at(self, version: int) -> tuple[int, int]:
        """(lineage, version) of what was ``version`` in this history: of the own lineage, or of the one left for it."""
        for fork_lineage, fork_version in self.forks:
            if version <= fork_version:
                return fork_lineage, version
        return self.lineage, version

    def rolled_back(self, lineage: int, version: int) -> Ancestry:
        """The ancestry of versions that go on under ``lineage`` from an older ``version`` of this history.

        Lineages that began beyond it keep their place: their tokens are as far away as they went beyond.
        """
        forks = tuple((fork_lineage, min(fork_version, version)) for fork_lineage, fork_version in self.forks)
        return Ancestry(lineage, (*forks, (self.lineage, version)))

    def restored(self, lineage: int, version: int) -> Ancestry:
        """The ancestry of a trainer that goes on under ``lineage`` from a checkpoint at ``version``."""
        return Ancestry(lineage, (*self.forks, (self.lineage, version)))

    def succeeded(self, lineage: int, start: TrainerStart) -> Ancestry:
        """The ancestry of the trainer that began with ``start``, as far as a follower of this lineage knows it."""
        if start.parent_lineage is None or start.parent_version is None:
            return Ancestry(lineage)
        forks = self.forks if start.parent_lineage == self.lineage else ()
        return Ancestry(lineage, (*forks, (start.parent_lineage, start.parent_version)))


def staleness(trajectory: Trajectory, ancestry: Ancestry, version: int) -> int | None:
    """The age of the oldest sampled token; 0 without tokens, None if a token is of an unknown lineage."""
    oldest = 0
    for sample in trajectory.samples:
        for span in sample.version_spans:
            distance = ancestry.distance(version, span.lineage, span.version)
            if distance is None:
                return None
            oldest = max(oldest, distance)
    return oldest
