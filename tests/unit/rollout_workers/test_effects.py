"""Effects are numbered, journaled once, and answered from the journal ever after."""

from __future__ import annotations

import msgspec
import pytest

from rollstream.rollout_workers.effects import (
    AttemptIdentity,
    EffectLog,
    EffectSequence,
    NondeterministicAgentError,
    WorkerLeavingError,
)
from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.schemas.journal import AttemptFailure, JournalRecord, StartFacts
from rollstream.transport.journal.journal import MemoryJournal
from rollstream.transport.journal.task_state import AttemptOverError


class Counter:
    def __init__(self) -> None:
        self.runs: list[str] = []

    async def run(self, path: str) -> int:
        self.runs.append(path)
        return len(self.runs)


class Attempts:
    """Begins attempts of one task in one journal, as workers with names of their own."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.is_leaving = False
        self.progress = 0

    async def log(self, writer: str = "w", attempt: int = 1) -> EffectLog:
        payload = msgspec.msgpack.encode(StartFacts(started_at=1.0))
        state = await self.journal.append(
            JournalRecord(
                kind="start", trajectory_id="t", attempt=attempt, key=f"{attempt}/1/{writer}", writer=writer,
                payload=payload,
            )
        )  # fmt: skip
        identity = AttemptIdentity(attempt, state.births[attempt])
        return EffectLog(
            self.journal, "t", identity, writer=writer, is_leaving=lambda: self.is_leaving, on_progress=self.go_on
        )

    def go_on(self) -> None:
        self.progress += 1

    async def fail(self, attempt: int = 1, path: str = "") -> None:
        state = self.journal.state("t")
        assert state is not None
        failure = AttemptFailure(kind="infrastructure", type="X", message="x")
        await self.journal.append(
            JournalRecord(
                kind="attempt_end", trajectory_id="t", attempt=attempt, key=path, writer="w",
                birth=state.births[attempt], payload=msgspec.msgpack.encode(failure),
            )
        )  # fmt: skip


async def test_effects_are_numbered_in_the_order_they_are_asked_for() -> None:
    counter = Counter()
    sequence = EffectSequence(await Attempts().log())
    assert [await sequence.perform("count", i, int, counter.run) for i in range(3)] == [(1, True), (2, True), (3, True)]
    assert counter.runs == ["0", "1", "2"]


async def test_a_journaled_effect_is_not_performed_again_here_or_elsewhere() -> None:
    attempts, counter = Attempts(), Counter()
    assert await EffectSequence(await attempts.log()).perform("count", "same", int, counter.run) == (1, True)
    for writer in ("w", "another"):
        log = await attempts.log(writer)
        assert await EffectSequence(log).perform("count", "same", int, counter.run) == (1, False)
    assert counter.runs == ["0"]
    assert attempts.progress == 1


async def test_what_another_worker_journaled_first_is_adopted() -> None:
    attempts, counter = Attempts(), Counter()
    zombie, owner = await attempts.log("zombie"), await attempts.log("owner")

    async def slowly(path: str) -> int:
        assert await EffectSequence(owner).perform("count", None, int, counter.run) == (1, True)
        return 99

    assert await EffectSequence(zombie).perform("count", None, int, slowly) == (1, False)


@pytest.mark.parametrize(("kind", "request_"), [("count", "other"), ("other", "same")])
async def test_another_request_at_the_same_place_is_refused(kind: str, request_: str) -> None:
    attempts, counter = Attempts(), Counter()
    await EffectSequence(await attempts.log()).perform("count", "same", int, counter.run)
    with pytest.raises(NondeterministicAgentError, match="effect '0'"):
        await EffectSequence(await attempts.log("another")).perform(kind, request_, int, counter.run)


async def test_a_failed_effect_leaves_no_record_and_every_later_one_fails_alike() -> None:
    attempts, counter = Attempts(), Counter()

    async def fail(_: str) -> int:
        raise OSError("no engine")

    log = await attempts.log()
    sequence = EffectSequence(log)
    await sequence.perform("count", None, int, counter.run)
    for _ in range(2):
        with pytest.raises(OSError, match="no engine"):
            await sequence.perform("count", None, int, fail)
    assert log.failed_path == "1"
    again = EffectSequence(await attempts.log("another"))
    await again.perform("count", None, int, counter.run)
    assert await again.perform("count", None, int, counter.run) == (2, True)


async def test_of_two_lanes_the_one_that_failed_is_named_whichever_began_last() -> None:
    log, counter = await Attempts().log(), Counter()
    lanes = [EffectSequence(log, f"{n}.") for n in range(2)]

    async def fail_late(_: str) -> int:
        await lanes[1].perform("count", None, int, counter.run)
        raise OSError("no engine")

    with pytest.raises(OSError, match="no engine"):
        await lanes[0].perform("count", None, int, fail_late)
    assert log.failed_path == "0.0"


async def test_a_limit_is_no_failure() -> None:
    log, counter = await Attempts().log(), Counter()

    async def cut(_: str) -> int:
        raise EpisodeCut("wall_clock")

    with pytest.raises(EpisodeCut):
        await EffectSequence(log).perform("count", None, int, cut)
    assert await EffectSequence(log, "reward").perform("count", None, int, counter.run) == (1, True)


async def test_a_leaving_worker_replays_and_begins_nothing() -> None:
    attempts, counter = Attempts(), Counter()
    await EffectSequence(await attempts.log()).perform("count", None, int, counter.run)
    attempts.is_leaving = True
    sequence = EffectSequence(await attempts.log("another"))
    assert await sequence.perform("count", None, int, counter.run) == (1, False)
    with pytest.raises(WorkerLeavingError):
        await sequence.perform("count", None, int, counter.run)
    assert counter.runs == ["0"]


async def test_an_attempt_that_another_worker_has_ended_goes_no_further() -> None:
    attempts, counter = Attempts(), Counter()
    sequence = EffectSequence(await attempts.log())
    await attempts.fail()
    with pytest.raises(AttemptOverError):
        await sequence.perform("count", None, int, counter.run)
    assert counter.runs == []


async def test_an_attempt_that_ends_during_an_effect_loses_its_result() -> None:
    attempts = Attempts()

    async def run(path: str) -> int:
        await attempts.fail(path=path)
        return 1

    with pytest.raises(AttemptOverError, match="attempt 1 is over"):
        await EffectSequence(await attempts.log()).perform("count", None, int, run)


async def test_lanes_have_paths_of_their_own() -> None:
    log, counter = await Attempts().log(), Counter()
    trunk = EffectSequence(log)
    await trunk.perform("count", None, int, counter.run)
    lane = EffectSequence(log, f"{trunk.reserve()}.")
    await lane.perform("count", None, int, counter.run)
    await trunk.perform("count", None, int, counter.run)
    assert counter.runs == ["0", "1.0", "2"]
