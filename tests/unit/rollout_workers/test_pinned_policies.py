"""Pinned episodes beside others on a scripted engine: whose tokens they get, who waits, and what ends the waiting."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from msgspec import UNSET

from rollstream.rollout_workers.effects import WorkerLeavingError
from rollstream.rollout_workers.engine import AS_IT_CAME, Generation, PolicyChangedError, PolicyRef, check_pinned
from rollstream.rollout_workers.policy_follower import PolicyFollower
from rollstream.rollout_workers.scripted_engine import LatencyProfile, ScriptedEngine
from rollstream.schemas.control import HeldPolicy, PolicyVersion
from rollstream.schemas.errors import DataError
from rollstream.schemas.tasks import PolicyPin, SamplingParams
from rollstream.schemas.trajectories import VersionSpan
from rollstream.transport.policy_files import seal_policy

MODEL = PolicyPin(lineage=0, version=0)
HOLD_S = 100.0


class Control:
    """What trainers announce; heard at once."""

    def __init__(self) -> None:
        self.newest: PolicyVersion | None = None
        self.changed = asyncio.Event()

    def latest(self, message_type: type[PolicyVersion], /) -> tuple[PolicyVersion, int] | None:
        return None if self.newest is None else (self.newest, 0)

    async def wait_for_change(self, timeout_s: float) -> bool:
        await self.changed.wait()
        self.changed.clear()
        return True


class Worker:
    """A follower that runs, on an engine that takes ten milliseconds per token and a clock that is set by hand."""

    def __init__(self, folder: Path, *, serves_adapters: bool = False) -> None:
        self.now_s = 0.0
        self.folder = folder
        self.kind: Literal["full", "lora"] = "lora" if serves_adapters else "full"
        self.engine = ScriptedEngine(
            lambda prompt: "x" * prompt.ids[0], serves_adapters=serves_adapters, latency=LatencyProfile(token_s=0.01)
        )
        self.control = Control()
        self.follower = PolicyFollower(
            self.engine, self.control, folder / "cache", pin_hold_s=HOLD_S, clock=lambda: self.now_s
        )

    def announce(self, version: int, *, lineage: int = 5) -> PolicyPin:
        """Publish a policy; returns a pin on it."""
        directory = self.folder / f"{lineage}-{version}"
        directory.mkdir()
        (directory / "weights").write_bytes(b"w")
        sha256 = seal_policy(directory)
        self.control.newest = PolicyVersion(
            version=version, lineage=lineage, uri=str(directory), manifest_sha256=sha256, kind=self.kind
        )
        self.control.changed.set()
        return PolicyPin(lineage=lineage, version=version, uri=str(directory), manifest_sha256=sha256, kind=self.kind)

    async def turn(self, pin: PolicyPin | None = None, tokens: int = 3) -> set[PolicyRef]:
        """Run an episode of one turn; returns whose tokens it has."""
        async with self.follower.serving(UNSET if pin is None else pin):
            return drawn_by(await self.generate(pin, tokens))

    async def generate(self, pin: PolicyPin | None, tokens: int) -> Generation:
        policy = None if pin is None else PolicyRef(pin.lineage, pin.version)
        return await self.engine.generate(
            [tokens], SamplingParams(), "turn", max_tokens=1000, stop_token_ids=[], policy=policy
        )

    async def serves(self, lineage: int, version: int) -> None:
        await until(lambda: self.engine.policy == PolicyRef(lineage, version))


def drawn_by(generation: Generation) -> set[PolicyRef]:
    return {PolicyRef(span.lineage, span.version) for span in generation.spans}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  -- an engine's state announces itself to nobody
            await asyncio.sleep(0.001)


@asynccontextmanager
async def running(worker: Worker) -> AsyncGenerator[asyncio.TaskGroup]:
    async with asyncio.TaskGroup() as group:
        following = group.create_task(worker.follower.run())
        yield group
        following.cancel()


async def test_a_pinned_episode_has_its_weights_and_the_newest_serve_again_when_it_has_ended(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker):
        old = worker.announce(1)
        await worker.serves(5, 1)
        worker.announce(2)
        await worker.serves(5, 2)
        assert await worker.turn(old) == {PolicyRef(5, 1)}
        await worker.serves(5, 2)
        assert await worker.turn(MODEL) == {AS_IT_CAME}
        await worker.serves(5, 2)
        assert await worker.turn() == {PolicyRef(5, 2)}


async def test_newer_weights_wait_for_a_pinned_episode_and_are_loaded_when_it_ends(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker) as group:
        pin = worker.announce(1)
        await worker.serves(5, 1)
        async with worker.follower.serving(pin):
            beside = group.create_task(worker.turn(tokens=30))
            worker.announce(2)
            assert drawn_by(await worker.generate(pin, 20)) == {PolicyRef(5, 1)}
            assert await beside == {PolicyRef(5, 1)}
            assert worker.follower.held == [HeldPolicy(lineage=5, version=1, manifest_sha256=pin.manifest_sha256)]
        await worker.serves(5, 2)
        assert worker.follower.held == []


async def test_a_pinned_episode_that_lasts_too_long_loses_its_turn_and_never_mixes_tokens(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker) as group:
        pin = worker.announce(1)
        await worker.serves(5, 1)
        async with worker.follower.serving(UNSET), worker.follower.serving(pin):
            generating = group.create_task(outcome(worker.generate(pin, 100)))
            await until(lambda: worker.engine.running == 1)
            worker.announce(2)
            await until(lambda: worker.follower.look_again_at_s == HOLD_S)
            worker.now_s = HOLD_S
            worker.control.changed.set()
            assert isinstance(await generating, PolicyChangedError)
            await worker.serves(5, 2)
            assert isinstance(await outcome(worker.generate(pin, 1)), PolicyChangedError)


async def test_two_pins_at_once_have_their_turns_one_after_the_other(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker) as group:
        pins = [worker.announce(version) for version in (1, 2)]
        episodes = [group.create_task(worker.turn(pins[number % 2], tokens=5)) for number in range(12)]
        async with asyncio.timeout(20):
            drawn = await asyncio.gather(*episodes)
        assert drawn == [{PolicyRef(5, 1 + number % 2)} for number in range(12)]
        assert worker.follower.waiting == 0
        assert worker.follower.loaded <= 6


async def test_a_pin_whose_files_are_gone_fails_its_episodes_at_once_and_disturbs_nobody(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker):
        gone = worker.announce(1)
        worker.announce(2)
        await worker.serves(5, 2)
        shutil.rmtree(gone.uri)
        with pytest.raises(DataError, match=r"policy 5:1, to which the task is pinned, cannot be had"):
            await worker.turn(gone)
        assert await worker.turn() == {PolicyRef(5, 2)}


async def test_a_pin_that_contradicts_what_was_announced_is_refused(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker):
        pin = worker.announce(1)
        await worker.serves(5, 1)
        with pytest.raises(DataError, match="pin it as it was announced"):
            await worker.turn(msgspec.structs.replace(pin, manifest_sha256="0" * 64))


@pytest.mark.parametrize("serves_adapters", [False, True])
async def test_a_pin_of_the_other_kind_is_refused_with_the_setting_to_change(
    tmp_path: Path, serves_adapters: bool
) -> None:
    worker = Worker(tmp_path, serves_adapters=serves_adapters)
    pin = worker.announce(1)
    other = msgspec.structs.replace(pin, kind="full" if serves_adapters else "lora")
    async with running(worker):
        with pytest.raises(DataError, match="max_lora_rank"):
            await worker.turn(other)


async def test_who_waits_for_a_policy_waits_no_longer_when_the_worker_leaves(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker) as group:
        first, second = worker.announce(1), worker.announce(2)
        await worker.serves(5, 2)
        async with worker.follower.serving(second):
            waiting = group.create_task(outcome(worker.turn(first)))
            await until(lambda: worker.follower.waiting == 1)
            worker.follower.leave()
            assert isinstance(await waiting, WorkerLeavingError)
            assert isinstance(await outcome(worker.turn(first)), WorkerLeavingError)


async def test_an_episode_that_is_cancelled_while_it_waits_leaves_the_queue(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker) as group:
        first, second = worker.announce(1), worker.announce(2)
        await worker.serves(5, 2)
        async with worker.follower.serving(second):
            waiting = group.create_task(worker.turn(first))
            await until(lambda: worker.follower.waiting == 1)
            waiting.cancel()
            await until(lambda: worker.follower.waiting == 0)
        assert worker.engine.policy == PolicyRef(5, 2)


async def test_pinned_adapters_run_beside_the_newest_and_nobody_waits(tmp_path: Path) -> None:
    worker = Worker(tmp_path, serves_adapters=True)
    async with running(worker) as group:
        old = worker.announce(1)
        await worker.serves(5, 1)
        running_turn = group.create_task(worker.turn(tokens=30))
        await until(lambda: worker.engine.running == 1)
        newest = worker.announce(2)
        await worker.serves(5, 2)
        async with worker.follower.serving(old), worker.follower.serving(MODEL):
            assert drawn_by(await worker.generate(old, 3)) == {PolicyRef(5, 1)}
            assert drawn_by(await worker.generate(MODEL, 3)) == {AS_IT_CAME}
            assert drawn_by(await worker.generate(None, 3)) == {PolicyRef(5, 2)}
            assert [held.version for held in worker.follower.held] == [1]
        assert await worker.turn(newest) == {PolicyRef(5, 2)}
        assert await running_turn == {PolicyRef(5, 1)}


async def test_a_rollback_is_a_greater_lineage_with_a_smaller_version_and_is_loaded(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker):
        worker.announce(9, lineage=5)
        await worker.serves(5, 9)
        worker.announce(3, lineage=8)
        await worker.serves(8, 3)
        assert await worker.turn() == {PolicyRef(8, 3)}


async def test_of_versions_that_come_faster_than_they_load_only_the_newest_are_loaded(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker):
        for version in range(1, 61):
            worker.announce(version)
            await asyncio.sleep(0)
        await worker.serves(5, 60)
        assert worker.follower.loaded < 60
        assert worker.follower.refused == 0


async def test_after_a_phase_the_last_version_that_could_be_loaded_serves_and_not_a_broken_one(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    async with running(worker):
        pin = worker.announce(1)
        worker.announce(2)
        await worker.serves(5, 2)
        broken = worker.announce(3)
        (Path(broken.uri) / "weights").write_bytes(b"torn off")
        await until(lambda: worker.follower.refused == 1)
        async with worker.follower.serving(pin):
            assert drawn_by(await worker.generate(pin, 3)) == {PolicyRef(5, 1)}
            assert [held.version for held in worker.follower.held] == [1, 2]
        await worker.serves(5, 2)
        worker.announce(4)
        await worker.serves(5, 4)


async def outcome(work: Awaitable[object]) -> object:
    """Its result or its error."""
    try:
        return await work
    except Exception as error:
        return error


def test_a_generation_with_a_single_foreign_token_is_refused_under_a_pin_and_named() -> None:
    pin, other = PolicyRef(5, 1), PolicyRef(5, 2)
    mixed = Generation([1, 2, 3], [-1.0] * 3, "stop", [VersionSpan(0, 2, 1, 5), VersionSpan(2, 3, 2, 5)])
    own = Generation([1, 2], [-1.0] * 2, "stop", [VersionSpan(0, 2, 1, 5)])
    assert check_pinned(own, pin, "turn") is own
    assert check_pinned(mixed, None, "turn") is mixed
    with pytest.raises(PolicyChangedError, match=f"pinned to policy {pin}, the engine serves {other}.*pin_hold_s"):
        check_pinned(mixed, pin, "turn")


async def test_a_request_pinned_to_what_is_not_there_is_refused_before_it_begins() -> None:
    for serves_adapters in (False, True):
        engine = ScriptedEngine(lambda _: "x", serves_adapters=serves_adapters)
        with pytest.raises(PolicyChangedError):
            await engine.generate(
                [1], SamplingParams(), "turn", max_tokens=9, stop_token_ids=[], policy=PolicyRef(5, 1)
            )
        assert engine.running == engine.waiting == 0
