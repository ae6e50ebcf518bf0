from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.handed_out import HandedOut, HandedOutState, SampleKey


def key(number: int) -> SampleKey:
    return SampleKey(f"t{number}", 0)


class Log:
    """A stream over numbered batches of keys; its state is the number of the next one."""

    def __init__(self, batches: list[list[SampleKey]], state: dict[str, Any] | None = None) -> None:
        self._batches = batches
        self._next = state["next"] if state else 0

    def state(self) -> dict[str, Any]:
        return {"next": self._next, "version": self._next * 100}

    def __iter__(self) -> Iterator[tuple[dict[str, Any], list[SampleKey]]]:
        while self._next < len(self._batches):
            before = self.state()
            self._next += 1
            yield before, self._batches[self._next - 1]


def train(log: Log, handed: HandedOut, sizes: list[int], micro_batches: int) -> list[SampleKey]:
    """Read ahead by a micro-batch, as trainers do; returns what was trained on before the trainer is killed."""
    ready: list[SampleKey] = []
    packed: list[list[SampleKey]] = []
    trained: list[SampleKey] = []
    batches = iter(log)
    for size in sizes:
        while len(ready) < size:
            batch = next(batches, None)
            if batch is None:
                return trained
            ready += handed.add_batch(*batch)
        packed.append([ready.pop(0) for _ in range(size)])
        handed.packed(packed[-1])
        if len(packed) > 1 and micro_batches:
            micro_batches -= 1
            handed.trained()
            trained += packed.pop(0)
    return trained


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    micro_batch=st.integers(1, 4),
    kills=st.lists(st.integers(0, 4), max_size=5),
)
def test_whenever_it_is_killed_a_trainer_trains_on_every_sample_once_and_in_order(
    sizes: list[int], micro_batch: int, kills: list[int]
) -> None:
    numbers = iter(range(100))
    batches = [[key(next(numbers)) for _ in range(size)] for size in sizes]
    every = [sample for batch in batches for sample in batch]
    trained: list[SampleKey] = []
    log, handed = Log(batches), HandedOut()
    for steps in [*kills, 100]:
        trained += train(log, handed, [micro_batch] * 50, steps)
        saved = msgspec.json.decode(msgspec.json.encode(handed.state(log.state())), type=HandedOutState)
        log, handed = Log(batches, saved.stream), HandedOut(saved.finished)
    assert trained == every[: len(trained)]
    assert len(every) - len(trained) < 2 * micro_batch, "all but what does not fill a micro-batch and the one ahead"


def test_the_policy_of_a_checkpoint_is_the_newest_though_its_reading_begins_earlier() -> None:
    handed = HandedOut()
    handed.add_batch({"positions": {0: 5}, "version": 3, "policy": "old"}, [key(1), key(2)])
    handed.packed([key(1)])
    handed.trained()
    saved = handed.state({"positions": {0: 9}, "version": 4, "policy": "new"})
    assert saved.stream == {"positions": {0: 5}, "version": 4, "policy": "new"}
    assert saved.finished == [("t1", 0)]


def test_a_finished_batch_leaves_the_stream_as_it_is_now() -> None:
    handed = HandedOut()
    handed.add_batch({"next": 0}, [key(1)])
    handed.packed([key(1)])
    assert not handed.is_empty
    handed.trained()
    assert handed.is_empty
    assert handed.state({"next": 1}) == HandedOutState(stream={"next": 1}, finished=[])


def test_what_the_trainer_threw_away_is_finished_once_something_younger_is_trained_on() -> None:
    handed = HandedOut()
    handed.add_batch({"next": 0}, [key(1), key(2), key(3), key(4)])
    handed.packed([key(1)])
    handed.packed([key(3)])
    handed.trained()
    assert handed.state({"next": 1}).finished == [("t1", 0)]
    handed.trained()
    assert handed.state({"next": 1}).finished == [("t1", 0), ("t2", 0), ("t3", 0)]
    handed.add_filling(SampleKey("", 0))
    handed.packed([SampleKey("", 0)])
    handed.trained()
    assert handed.is_empty, "filling is the youngest of all"


def test_a_step_without_a_packed_micro_batch_is_an_error() -> None:
    with pytest.raises(SettingsError, match="does not pack its samples"):
        HandedOut().trained()
