"""Which groups wait, which batch the trainer has, which are trained on. Pure: every moment can be saved and restored.

A batch is trained on when the trainer asks for the next one; asking does not tell that apart from collecting several
batches for one step. So, with ``pauses``, the request after a batch is answered with "none yet" once, on which such
trainers begin their step, and the request after that finishes the batch.

Invariants: a group is in no two batches, unless a trainer registers anew that had not finished its batch; groups wait
in the order of the stream; what is saved restores to the same, whichever groups were trained on out of order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rollstream.schemas.errors import SettingsError

FORMAT = 1
POLICY_KEYS = ("lineage", "version", "forks", "policy")
"""What of a stream's state says which policies there are; the rest says what has been read."""

GroupKey = tuple[str, int]
"""Run and index of a group."""


@dataclass(frozen=True, slots=True)
class WaitingGroup:
    """A group that a trainer may get.

    Attributes:
        size: its sequences.
        data: ``ScoredData``.
        staleness: age in policy versions when it came; None: of no ancestor of the trainer's policies.
        version: the newest policy version then.
        state_before: the stream's state before it was asked for.
    """

    key: GroupKey
    size: int
    data: Mapping[str, Any]
    staleness: int | None
    version: int
    state_before: Mapping[str, Any]


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """What a state file of a server holds."""

    format: int
    step: int
    stream: dict[str, Any] | None
    done: list[GroupKey]
    outstanding: list[GroupKey]
    registration: dict[str, Any] | None
    trained: int | None = None


class ServedBatches:
    """The ledger of one server."""

    def __init__(self, saved: Mapping[str, Any] | None = None, *, pauses: bool = True) -> None:
        """Begin, or go on from what ``saved()`` returned.

        Raises:
            SettingsError: it is something else.
        """
        restored = _restored(saved)
        self.step = restored.step
        """Batches formed since the trainer's ``starting_step``."""
        self._trained = restored.step - bool(restored.outstanding) if restored.trained is None else restored.trained
        """The trainer's step, as it counts them: where it began, and one more for each batch finished since."""
        self.registration = restored.registration
        self.stale_dropped = 0
        self._pauses = pauses
        self._has_paused = False
        self._numbers = 0
        self._stream_state: Mapping[str, Any] | None = restored.stream
        self._waiting: list[tuple[int, WaitingGroup]] = []
        self._outstanding: dict[GroupKey, tuple[int, WaitingGroup] | None] = dict.fromkeys(restored.outstanding)
        """The trainer's batch. None: handed out before a restart, and not met again since."""
        self._done: dict[GroupKey, int] = {}
        """Trained on though older groups wait."""
        self._done_before: set[GroupKey] = set(restored.done)
        """Those of before a restart that the stream has not brought again yet."""

    @property
    def stream_state(self) -> Mapping[str, Any] | None:
        """Where the stream goes on after a restart; None: at its beginning."""
        return None if self._stream_state is None else self._resumable(self._stream_state)

    @property
    def has_batch_out(self) -> bool:
        """Whether the trainer has a batch that is not finished."""
        return bool(self._outstanding)

    @property
    def waiting_groups(self) -> int:
        """Groups that no batch has yet."""
        return len(self._waiting)

    @property
    def waiting_sequences(self) -> int:
        """Their sequences."""
        return sum(group.size for _, group in self._waiting)

    def note_state(self, state: Mapping[str, Any]) -> None:
        """The stream's state now that all it has brought so far is in here, and nothing is asked for yet."""
        self._stream_state = state

    def add(self, group: WaitingGroup) -> bool:
        """The stream has brought a group; False: it was trained on before a restart."""
        self._numbers += 1
        if group.key in self._done_before:
            self._done_before.discard(group.key)
            self._done[group.key] = self._numbers
            return False
        if group.key in self._outstanding:
            self._outstanding[group.key] = (self._numbers, group)
            return True
        self._waiting.append((self._numbers, group))
        return True

    def register(self, registration: Mapping[str, Any], starting_step: int) -> None:
        """A trainer begins, or begins again.

        One that begins behind the step before the batch that it had has saved its weights after it, so the batch is
        finished; any other has lost that step. It is the trainer's own count of steps that tells: batches that were
        handed out again have raised ``step`` twice.
        """
        self.registration = dict(registration)
        if starting_step > self._trained:
            self._finish()
        else:
            self.take_back()
        self._trained = starting_step
        self.step = max(self.step, starting_step)

    def take_back(self) -> None:
        """The batch did not reach the trainer, or not its weights: it will be in a batch again."""
        self._waiting = sorted([*self._waiting, *(entry for entry in self._outstanding.values() if entry is not None)])
        self._outstanding = {}
        self._has_paused = False

    def asked(self) -> bool:
        """The trainer asks for a batch. False: answer that there is none yet, it may be collecting."""
        if self._outstanding and self._pauses and not self._has_paused:
            self._has_paused = True
            return False
        self._finish()
        return True

    def next_batch(self, batch_size: int, *, version: int, max_staleness: int | None) -> list[Mapping[str, Any]] | None:
        """Form a batch of exactly ``batch_size`` sequences of the oldest groups that make it up.

        Groups that have become too old while they waited are dropped.
        """
        for number, group in self._waiting:
            if max_staleness is not None and _age(group, version) > max_staleness:
                self._done[group.key] = number
                self.stale_dropped += 1
        self._waiting = [entry for entry in self._waiting if entry[1].key not in self._done]
        places = exact_places([group.size for _, group in self._waiting], batch_size)
        if places is None:
            return None
        chosen = [self._waiting[place] for place in places]
        self._outstanding = {group.key: (number, group) for number, group in chosen}
        self._waiting = [entry for entry in self._waiting if entry[1].key not in self._outstanding]
        self.step += 1
        return [group.data for _, group in chosen]

    def can_form(self, batch_size: int) -> bool:
        """Whether there is a batch, if none of it grows too old."""
        return exact_places([group.size for _, group in self._waiting], batch_size) is not None

    def saved(self, *, has_left: bool = True) -> dict[str, Any]:
        """Everything that a restart needs, as plain data; ``has_left``: the trainer has its batch."""
        unfinished = [*self._waiting, *(entry for entry in self._outstanding.values() if entry is not None)]
        oldest = min(unfinished, default=None, key=lambda entry: entry[0])
        limit, state = (self._numbers, self._stream_state) if oldest is None else (oldest[0], oldest[1].state_before)
        self._done = {key: number for key, number in self._done.items() if number > limit}
        saved = Saved(
            format=FORMAT,
            step=self.step,
            stream=None if state is None else self._resumable(state),
            done=sorted([*self._done, *self._done_before]),
            outstanding=sorted(self._outstanding) if has_left else [],
            registration=self.registration,
            trained=self._trained,
        )
        return msgspec.to_builtins(saved)

    def _finish(self) -> None:
        self._trained += bool(self._outstanding)
        for key, entry in self._outstanding.items():
            if entry is None:
                self._done_before.add(key)
            else:
                self._done[key] = entry[0]
        self._outstanding = {}
        self._has_paused = False

    def _resumable(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """What had been read then, with the policies of now."""
        now = self._stream_state or {}
        return {**state, **{key: now[key] for key in POLICY_KEYS if key in now}}


def exact_places(sizes: Sequence[int], total: int) -> list[int] | None:
    """Places of elements that add up to ``total``, the earliest ones possible; None: there are none.

    Walks from the front and takes an element whenever the rest can still be made of those behind it; which sums those
    can make is a bit set per place.
    """
    reachable = [1] * (len(sizes) + 1)
    limit = (1 << (total + 1)) - 1
    for place in range(len(sizes) - 1, -1, -1):
        reachable[place] = (reachable[place + 1] | reachable[place + 1] << sizes[place]) & limit
    if total <= 0 or not reachable[0] >> total & 1:
        return None
    places: list[int] = []
    missing = total
    for place, size in enumerate(sizes):
        if size <= missing and reachable[place + 1] >> (missing - size) & 1:
            places.append(place)
            missing -= size
    return places


def _age(group: WaitingGroup, version: int) -> float:
    return float("inf") if group.staleness is None else group.staleness + max(0, version - group.version)


def _restored(saved: Mapping[str, Any] | None) -> Saved:
    if saved is None:
        return Saved(format=FORMAT, step=0, stream=None, done=[], outstanding=[], registration=None)
    try:
        restored = msgspec.convert(dict(saved), Saved)
    except msgspec.ValidationError as error:
        raise SettingsError(f"this is no state file of `rollstream atropos serve`: {error}; name another") from error
    if restored.format != FORMAT:
        raise SettingsError(f"the state file has format {restored.format}, this version reads {FORMAT}; name another")
    return restored
