"""Effects are numbered, recorded once, and answered from the record ever after."""

from __future__ import annotations

import pytest

from rollstream.rollout_workers.effects import EffectSequence, MemoryEffectLog, NondeterministicAgentError


class Counter:
    def __init__(self) -> None:
        self.runs: list[str] = []

    async def run(self, path: str) -> int:
        self.runs.append(path)
        return len(self.runs)


async def test_effects_are_numbered_in_the_order_they_are_asked_for() -> None:
    counter = Counter()
    sequence = EffectSequence(MemoryEffectLog())
    assert [await sequence.perform("count", i, int, counter.run) for i in range(3)] == [1, 2, 3]
    assert counter.runs == ["0", "1", "2"]


async def test_a_recorded_effect_is_not_performed_again() -> None:
    log, counter = MemoryEffectLog(), Counter()
    assert await EffectSequence(log).perform("count", "same", int, counter.run) == 1
    assert await EffectSequence(log).perform("count", "same", int, counter.run) == 1
    assert counter.runs == ["0"]


@pytest.mark.parametrize(("kind", "request_"), [("count", "other"), ("other", "same")])
async def test_another_request_at_the_same_place_is_refused(kind: str, request_: str) -> None:
    log, counter = MemoryEffectLog(), Counter()
    await EffectSequence(log).perform("count", "same", int, counter.run)
    with pytest.raises(NondeterministicAgentError, match="effect '0'"):
        await EffectSequence(log).perform(kind, request_, int, counter.run)


async def test_a_failed_effect_leaves_no_record() -> None:
    log, counter = MemoryEffectLog(), Counter()

    async def fail(_: str) -> int:
        raise OSError("no engine")

    with pytest.raises(OSError, match="no engine"):
        await EffectSequence(log).perform("count", None, int, fail)
    assert await EffectSequence(log).perform("count", None, int, counter.run) == 1


async def test_lanes_have_paths_of_their_own() -> None:
    log, counter = MemoryEffectLog(), Counter()
    await EffectSequence(log).perform("count", None, int, counter.run)
    await EffectSequence(log, "0.1.").perform("count", None, int, counter.run)
    assert counter.runs == ["0", "0.1.0"]
