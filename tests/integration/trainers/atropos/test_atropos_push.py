"""The pusher against Atropos' own server, in a process of its own that is killed in the middle."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.trajectories import Trajectory, VersionSpan
from rollstream.trainers.adapters.atropos.pusher import PushCounts, PushOptions, run_pusher
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]

Until = Callable[..., Awaitable[Any]]
Server = Any
"""Atropos' own, of `conftest`, which cannot be imported."""

BATCH_SIZE = 4


def options(server: Server, directory: Path, **changes: Any) -> PushOptions:
    return PushOptions(url=server.url, state_file=directory / "push.json", poll_s=0.05, **changes)


def groups_of(make: Make, *indices: int) -> list[Trajectory]:
    return [make(group, member) for group in indices for member in range(2)]


def with_tool_result(trajectory: Trajectory) -> Trajectory:
    """Two of its eight response tokens were not sampled."""
    [sample] = trajectory.samples
    mask = np.array([1, 1, 1, 0, 0, 1, 1, 1], dtype=np.uint8)
    spans = [VersionSpan(0, 3, 0, 0), VersionSpan(5, 8, 0, 0)]
    logprobs = np.where(mask, sample.response_logprobs, 0).astype(np.float32)
    observed = msgspec.structs.replace(sample, response_mask=mask, response_logprobs=logprobs, version_spans=spans)
    return msgspec.structs.replace(trajectory, samples=[observed])


def pushing(kafka: KafkaSettings, options: PushOptions, stop: asyncio.Event) -> asyncio.Task[PushCounts]:
    return asyncio.ensure_future(run_pusher(kafka, TrainerSettings(), options, stop))


def pushed_indices(batches: Iterable[list[dict[str, Any]]]) -> list[int]:
    return [group["group_overrides"]["group_index"] for batch in batches for group in batch]


async def test_a_trainer_of_atropos_gets_every_token_mask_logprob_and_score_of_the_log(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, server: Server, tmp_path: Path
) -> None:
    log = [with_tool_result(trajectory) for trajectory in groups_of(make_trajectory, *range(4))]
    await send(log)
    await emitted(4, is_finished=True)
    async with asyncio.timeout(60):
        push = pushing(kafka, options(server, tmp_path), asyncio.Event())
        await server.register()
        batches = [await server.batch(), await server.batch()]
        counts = await push
    assert (counts.pushed, counts.registrations, dict(counts.refused)) == (4, 1, {})
    assert [sum(len(group["tokens"]) for group in batch) for batch in batches] == [BATCH_SIZE, BATCH_SIZE]
    by_id = {t.trajectory_id: t for t in log}
    for group in (group for batch in batches for group in batch):
        assert group["generation_params"]["temperature"] == 1.0
        for place, facts in enumerate(group["overrides"]):
            trajectory = by_id.pop(facts["trajectory_id"])
            [sample] = trajectory.samples
            prompt, response = sample.prompt_ids.tolist(), sample.response_ids.tolist()
            sampled = sample.response_mask.tolist()
            assert group["tokens"][place] == prompt + response
            expected = [token if s else -100 for token, s in zip(response, sampled, strict=True)]
            assert group["masks"][place] == [-100] * len(prompt) + expected
            logprobs = [lp if s else 1.0 for lp, s in zip(sample.response_logprobs.tolist(), sampled, strict=True)]
            assert group["inference_logprobs"][place] == [1.0] * len(prompt) + logprobs
            assert group["scores"][place] == trajectory.reward
    assert not by_id


async def test_a_server_that_is_killed_gets_the_groups_it_has_not_answered_for_after_it_is_back(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, server: Server, tmp_path: Path
) -> None:
    await send(groups_of(make_trajectory, *range(8)))
    await emitted(8, is_finished=True)
    async with asyncio.timeout(90):
        push = pushing(kafka, options(server, tmp_path, max_queued_batches=1), asyncio.Event())
        await server.register()
        before = [await server.batch()]
        await server.kill()
        await server.start()
        await server.register()
        after: list[list[dict[str, Any]]] = []
        while not push.done():
            after += [batch] if (batch := await server.ask_for_batch()) is not None else []
            await asyncio.sleep(0.05)
        while (batch := await server.ask_for_batch()) is not None:
            after.append(batch)
        counts = await push
    assert counts.pushed == 8
    assert counts.registrations == 2
    trained = pushed_indices(before + after)
    assert len(trained) == len(set(trained)), "nothing comes twice where every answer was seen"
    assert 7 in trained


async def test_a_pusher_that_is_started_again_goes_on_behind_the_last_answered_group(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, server: Server, tmp_path: Path
) -> None:
    await send(groups_of(make_trajectory, *range(2)))
    stop = asyncio.Event()
    async with asyncio.timeout(60):
        push = pushing(kafka, options(server, tmp_path), stop)
        await server.register()
        first = await server.batch()
        stop.set()
        await push
        await send(groups_of(make_trajectory, 2, 3))
        await emitted(4, is_finished=True)
        push = pushing(kafka, options(server, tmp_path), asyncio.Event())
        second = await server.batch()
        counts = await push
    assert sorted(pushed_indices([first])) == [0, 1]
    assert sorted(pushed_indices([second])) == [2, 3]
    assert counts.pushed == 2


async def test_the_server_never_holds_more_groups_than_allowed(
    kafka: KafkaSettings,
    make_trajectory: Make,
    send: Send,
    emitted: Emitted,
    server: Server,
    tmp_path: Path,
    until: Until,
) -> None:
    await send(groups_of(make_trajectory, *range(8)))
    await emitted(8, is_finished=True)
    most = 0

    async def two_are_queued() -> bool:
        nonlocal most
        most = max(most, (await server.get("/status"))["queue_size"])
        return most >= 2

    async with asyncio.timeout(60):
        push = pushing(kafka, options(server, tmp_path, max_queued_batches=1), asyncio.Event())
        await server.register()
        assert await server.ask_for_batch() is None
        for _ in range(4):
            await until(two_are_queued)
            await server.batch()
        await push
    assert most == 2


async def test_a_checkpoint_of_the_trainer_becomes_a_policy(
    kafka: KafkaSettings, server: Server, tmp_path: Path, until: Until
) -> None:
    checkpoint = tmp_path / "checkpoints" / "step_3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    stop = asyncio.Event()
    async with asyncio.timeout(60), ControlFollower(kafka) as control:
        push = pushing(kafka, options(server, tmp_path, checkpoints=checkpoint.parent, settle_s=0.0), stop)

        async def published() -> tuple[PolicyVersion, int] | None:
            return control.latest(PolicyVersion)

        policy, _ = await until(published)
        stop.set()
        await push
    assert policy.version == 3
    assert Path(policy.uri) == checkpoint


async def test_the_command_pushes_until_the_run_ends_and_says_what_it_left_out(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, server: Server, tmp_path: Path
) -> None:
    equal = [msgspec.structs.replace(trajectory, reward=1.0) for trajectory in groups_of(make_trajectory, 2)]
    await send([*groups_of(make_trajectory, 0, 1), *equal])
    await emitted(3, is_finished=True)
    command = [sys.executable, "-m", "rollstream.cli.main", "atropos", "push", server.url]
    command += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--state-file", str(tmp_path / "push.json")]
    async with asyncio.timeout(60):
        await server.register()
        assert await server.ask_for_batch() is None
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        batch = await server.batch()
    assert (process.returncode, out.decode().strip()) == (0, "2 groups pushed; left out: 1 equal_scores")
    assert sorted(pushed_indices([batch])) == [0, 1]
