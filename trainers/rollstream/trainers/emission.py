"""At which policy version a group can have been emitted, and so have begun, at the earliest. Pure.

Group ``i`` of a run cannot be emitted before producers were allowed more than ``i`` groups, so the versions at which
that allowance grew are remembered. They follow from what was delivered and dropped, and therefore are the same whenever
the trainer is killed. Where several training runs share the allowance, it says nothing about one of them. What their
producers have reported counts instead: the last version at which a group was not among those heard to be emitted.
Reports come half a second late, so of a trainer with faster steps this may be a version too late.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping

Mark = tuple[int, int]
"""(number of groups, policy version); the numbers ascend."""


class EmissionHistory:
    """Marks of the allowance and of what was heard; only what open groups still need is kept."""

    def __init__(self, limits: Iterable[Mark] = (), heard: Mapping[str, Iterable[Mark]] | None = None) -> None:
        self._limits: list[Mark] = [(groups, version) for groups, version in limits]
        self._heard: dict[str, list[Mark]] = {
            run_id: [(groups, version) for groups, version in marks] for run_id, marks in (heard or {}).items()
        }

    def note_limit(self, groups: int, version: int) -> None:
        """From ``version`` on, ``groups`` groups may have been emitted."""
        if not self._limits or groups > self._limits[-1][0]:
            self._limits.append((groups, version))

    def note_heard(self, run_id: str, groups_emitted: int, version: int) -> None:
        """At ``version`` a producer of training tasks was heard to have emitted so many."""
        marks = self._heard.setdefault(run_id, [])
        if not marks or groups_emitted > marks[-1][0]:
            marks.append((groups_emitted, version))

    def note_version(self, version: int) -> None:
        """The trainer has come to ``version``, and no more is heard to be emitted than before."""
        for marks in self._heard.values():
            marks[-1] = (marks[-1][0], version)

    def rolled_back(self, version: int) -> None:
        """The trainer counts from ``version`` again. What began later is as far from it as it was beyond."""

        def mirrored(marks: list[Mark]) -> list[Mark]:
            return [(groups, begun if begun <= version else 2 * version - begun) for groups, begun in marks]

        self._limits = mirrored(self._limits)
        self._heard = {run_id: mirrored(marks) for run_id, marks in self._heard.items()}

    def start_version(self, run_id: str, group_index: int) -> int | None:
        """The earliest version at which the group can have begun; None: that cannot be told."""
        if len(self._heard) <= 1:
            place = bisect_right(self._limits, group_index, key=lambda mark: mark[0])
            return self._limits[place][1] if place < len(self._limits) else None
        marks = self._heard.get(run_id, [])
        place = bisect_right(marks, group_index, key=lambda mark: mark[0])
        if place == len(marks):
            return None
        return marks[place - 1][1] if place > 0 else 0

    def allowed(self, run_id: str) -> int:
        """Groups of the run, from the first, whose start can be told."""
        marks = self._limits if len(self._heard) <= 1 else self._heard.get(run_id, [])
        return marks[-1][0] if marks else 0

    def forget_below(self, lowest: Mapping[str, int]) -> None:
        """All groups of each run below these indices are closed."""
        if len(self._heard) <= 1:
            floor = min(lowest.values(), default=0)
            self._limits = [mark for mark in self._limits if mark[0] > floor] or self._limits[-1:]
        else:
            del self._limits[:-1]
        for run_id, marks in self._heard.items():
            place = bisect_right(marks, lowest.get(run_id, 0), key=lambda mark: mark[0])
            del marks[: max(0, place - 1)]

    def limits(self) -> list[Mark]:
        """For a checkpoint."""
        return list(self._limits)

    def heard(self) -> dict[str, list[Mark]]:
        """For a checkpoint, by run."""
        return {run_id: list(marks) for run_id, marks in self._heard.items()}
