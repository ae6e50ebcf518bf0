"""The fold of `dead-letters`: one letter for each record, however often it was buried, and its state. Pure.

Burials may be given in any order. Resolutions must be given in the order of their offsets: all lie in one partition, so
everybody comes to the same state. Nothing is ever deleted; a letter is gone when Kafka's retention takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import msgspec

from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.errors import InvalidMessageError

LetterState = Literal["open", "replaying", "replayed", "dropped"]
"""``replaying``: it is decided how it is sent again, but not known to be done; repeat the replay."""
UNDECIDED: tuple[LetterState, ...] = ("open", "replaying")


class LetterId(NamedTuple):
    """Names a letter: the place of the original record, with the full name of its topic."""

    topic: str
    partition: int
    offset: int

    @property
    def text(self) -> str:
        """``rollstream.tasks/3/1204``."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    def short(self, prefix: str) -> str:
        """For people: ``tasks/3/1204``."""
        return self.text.removeprefix(prefix)

    @classmethod
    def parse(cls, text: str) -> LetterId:
        """The inverse of ``text``.

        Raises:
            InvalidMessageError: it is no place of a record.
        """
        topic, _, place = text.partition("/")
        partition, _, offset = place.partition("/")
        if not (topic and partition.isdecimal() and offset.isdecimal()):
            raise InvalidMessageError(f"{text!r} names no record: expected TOPIC/PARTITION/OFFSET, as tasks/3/1204")
        return cls(topic, int(partition), int(offset))

    @classmethod
    def of(cls, letter: DeadLetter) -> LetterId:
        """The id of the letter for this letter's record."""
        return cls(letter.origin_topic, letter.origin_partition, letter.origin_offset)


@dataclass(frozen=True, slots=True)
class BuriedLetter:
    """All burials of one record.

    Attributes:
        head: the best copy, without its value and stack: the most complete, then the newest.
        value_bytes: size of that copy's value; None: a tombstone.
        place: (partition, offset) of that copy in `dead-letters`.
        burials: how often the record was buried.
        first_failed_at, last_failed_at: unix seconds.
        is_wanted: whether any burial fits what the box was asked for.
    """

    id: LetterId
    head: DeadLetter
    value_bytes: int | None
    place: tuple[int, int]
    burials: int
    first_failed_at: float
    last_failed_at: float
    is_wanted: bool

    def with_another(self, other: BuriedLetter) -> BuriedLetter:
        """Both together. Commutative and associative."""
        return replace(
            max(self, other, key=_quality),
            burials=self.burials + other.burials,
            first_failed_at=min(self.first_failed_at, other.first_failed_at),
            last_failed_at=max(self.last_failed_at, other.last_failed_at),
            is_wanted=self.is_wanted or other.is_wanted,
        )


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """How tasks are sent again: letter number i becomes member ``i % group_size`` of group ``i // group_size``."""

    run_id: str
    letters: tuple[LetterId, ...]
    group_size: int
    planned_at: float

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.letters) // self.group_size


class DeadLetterBox:
    """Letters and their states.

    Args:
        wants: which letters are asked for; looks at each burial, value included.
    """

    def __init__(self, wants: Callable[[DeadLetter], bool] = lambda _: True) -> None:
        self.resolved_to = 0
        """All resolutions below this offset are known."""
        self._wants = wants
        self._letters: dict[LetterId, BuriedLetter] = {}
        self._plans: dict[str, ReplayPlan] = {}
        self._plan_of: dict[LetterId, ReplayPlan] = {}
        self._resolutions: dict[LetterId, DeadLetterResolution] = {}
        """The one that gave each letter its state."""

    def bury(self, letter: DeadLetter, partition: int, offset: int) -> None:
        """Take in one burial, found at this place in `dead-letters`."""
        found = BuriedLetter(
            id=LetterId.of(letter),
            head=msgspec.structs.replace(letter, value=None, stack=""),
            value_bytes=None if letter.value is None else len(letter.value),
            place=(partition, offset),
            burials=1,
            first_failed_at=letter.failed_at,
            last_failed_at=letter.failed_at,
            is_wanted=self._wants(letter),
        )
        known = self._letters.get(found.id)
        self._letters[found.id] = found if known is None else known.with_another(found)

    def resolve(self, resolution: DeadLetterResolution) -> None:
        """Take in one resolution. What has been sent again stays so; the first plan for a letter holds, and all of it.

        Raises:
            InvalidMessageError: it names something that is no place of a record; nothing has changed.
        """
        letters = tuple(map(LetterId.parse, resolution.letters))
        match resolution.state:
            case "dropped":
                self._set(resolution, (id_ for id_ in letters if self.state(id_) not in ("replaying", "replayed")))
            case "replayed":
                self._set(resolution, letters)
            case "replaying":
                is_late = any(self.state(id_) in ("replaying", "replayed") for id_ in letters)
                if not is_late and resolution.run_id not in self._plans:
                    plan = ReplayPlan(
                        resolution.run_id, letters, resolution.group_size, planned_at=resolution.resolved_at
                    )
                    self._plans[plan.run_id] = plan
                    self._plan_of.update(dict.fromkeys(letters, plan))
                    self._set(resolution, letters)

    def state(self, letter_id: LetterId) -> LetterState:
        """The state of a letter, whether or not the box holds it."""
        resolution = self._resolutions.get(letter_id)
        return "open" if resolution is None else resolution.state

    def resolution(self, letter_id: LetterId) -> DeadLetterResolution | None:
        """Who gave the letter its state, and when."""
        return self._resolutions.get(letter_id)

    def plan_of(self, letter_id: LetterId) -> ReplayPlan | None:
        """The plan by which the letter was or is to be sent again."""
        return self._plan_of.get(letter_id)

    def get(self, letter_id: LetterId) -> BuriedLetter | None:
        """One letter."""
        return self._letters.get(letter_id)

    def wanted(self, states: Iterable[LetterState]) -> list[BuriedLetter]:
        """Letters that were asked for and are in one of the states, the one that failed last first."""
        allowed = frozenset(states)
        found = [each for each in self._letters.values() if each.is_wanted and self.state(each.id) in allowed]
        return sorted(found, key=lambda each: (-each.last_failed_at, each.id))

    def counts(self) -> Mapping[LetterState, int]:
        """Letters that were asked for, by state."""
        counts: dict[LetterState, int] = {"open": 0, "replaying": 0, "replayed": 0, "dropped": 0}
        for each in self._letters.values():
            counts[self.state(each.id)] += each.is_wanted
        return counts

    def _set(self, resolution: DeadLetterResolution, letters: Iterable[LetterId]) -> None:
        self._resolutions.update(dict.fromkeys(letters, resolution))


def _quality(letter: BuriedLetter) -> tuple[int, float, tuple[int, int]]:
    return -letter.head.bytes_missing, letter.head.failed_at, letter.place
