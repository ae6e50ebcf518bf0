"""`rollstream atropos serve` as trainers of Atropos meet it, beside Atropos' own server, and killed in the middle."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.adapters.atropos.pusher import PushOptions, run_pusher
from rollstream.trainers.adapters.atropos.server import ServeOptions, run_server
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]
Until = Callable[..., Awaitable[Any]]
Server = Any
"""Of `conftest`, which cannot be imported."""
TrainerOf = Callable[[str], Server]
Start = Callable[[], Awaitable[tuple[Server, asyncio.subprocess.Process]]]

BATCH_SIZE = 4


def groups_of(make: Make, *indices: int) -> list[Trajectory]:
    return [make(group, member) for group in indices for member in range(2)]


def indices(batch: list[dict[str, Any]]) -> list[int]:
    return [group["group_overrides"]["group_index"] for group in batch]


@pytest_asyncio.fixture
async def start(kafka: KafkaSettings, tmp_path: Path, trainer_of: TrainerOf) -> AsyncIterator[Start]:
    """Starts `rollstream atropos serve` on the same state file; what still runs is killed in the end."""
    async with AsyncExitStack() as stack:

        async def start() -> tuple[Server, asyncio.subprocess.Process]:
            return await stack.enter_async_context(_serving(kafka, tmp_path / "serve.json", trainer_of))

        yield start


@asynccontextmanager
async def _serving(
    kafka: KafkaSettings, state_file: Path, trainer_of: TrainerOf
) -> AsyncGenerator[tuple[Server, asyncio.subprocess.Process]]:
    command = [sys.executable, "-m", "rollstream.cli.main", "atropos", "serve", "--port", "0"]
    command += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--state-file", str(state_file)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        yield trainer_of(line.removeprefix("listening on ").strip()), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def shape(value: Any) -> Any:
    """Keys and types, without what the values are."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] (JSON)
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] (JSON)
    return type(value).__name__


async def answers_before_any_batch(server: Server) -> list[Any]:
    """What a trainer sees that registers, with the mistakes that it may make."""
    paths = ["/info", "/wandb_info", "/status", "/batch", "/latest_example"]
    seen = [await server.get(path) for path in paths]
    async with server.session.post(f"{server.url}/register", json={"batch_size": 4}) as response:
        seen.append((response.status, list(await response.json())))
    registered = await server.register(starting_step=3)
    seen += [list(registered), type(registered["uuid"]).__name__]
    return seen + [await server.get(path) for path in ("/info", "/wandb_info", "/status", "/batch")]


async def test_a_trainer_cannot_tell_it_from_atropos_own_server(
    kafka: KafkaSettings,
    make_trajectory: Make,
    send: Send,
    emitted: Emitted,
    server: Server,
    start: Start,
    tmp_path: Path,
    until: Until,
) -> None:
    ours, _ = await start()
    assert await answers_before_any_batch(ours) == await answers_before_any_batch(server)
    await send(groups_of(make_trajectory, *range(4)))
    await emitted(4, is_finished=True)
    options = PushOptions(url=server.url, state_file=tmp_path / "push.json", poll_s=0.05)
    async with asyncio.timeout(60):
        from_ours = [await ours.batch(), await ours.batch()]
        await run_pusher(kafka, TrainerSettings(is_observer=True, trainer_id="pusher"), options, asyncio.Event())
        theirs = [await server.batch(), await server.batch()]
    assert [shape(group) for batch in from_ours for group in batch] == [
        {**shape(group), "env_id": "NoneType"} for batch in theirs for group in batch
    ]
    for batches in (from_ours, theirs):
        assert [sum(len(group["tokens"]) for group in batch) for batch in batches] == [BATCH_SIZE, BATCH_SIZE]
    by_index = {group["group_overrides"]["group_index"]: group for batch in theirs for group in batch}
    for group in (group for batch in from_ours for group in batch):
        assert group == {**by_index.pop(group["group_overrides"]["group_index"]), "env_id": None}
    assert not by_index
    assert await ours.get("/status") == await server.get("/status") == {"current_step": 5, "queue_size": 0}
    assert await ours.ask_for_batch() == await server.ask_for_batch() is None
    assert shape(await ours.get("/latest_example")) == {
        **shape(await server.get("/latest_example")),
        "env_id": "NoneType",
    }


async def test_a_trainer_trains_on_each_group_once_though_the_server_is_killed_in_every_step(
    make_trajectory: Make, send: Send, emitted: Emitted, start: Start, until: Until, tmp_path: Path
) -> None:
    await send(groups_of(make_trajectory, *range(8)))
    await emitted(8, is_finished=True)
    trained: list[int] = []
    answered = 0

    async def is_known_to_have_left() -> bool:
        saved = json.loads((tmp_path / "serve.json").read_bytes())
        return saved["step"] == answered and bool(saved["outstanding"])

    ours, process = await start()
    await ours.register()
    for _ in range(4):
        trained += indices(await ours.batch())
        answered += 1
        await until(is_known_to_have_left)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        ours, process = await start()
        assert (await ours.get("/info"))["batch_size"] == BATCH_SIZE
        assert (await ours.get("/status"))["current_step"] == answered
    assert await ours.ask_for_batch() is None
    assert sorted(trained) == list(range(8))


async def test_a_trainer_that_dies_in_a_step_gets_the_same_batch_again(
    make_trajectory: Make, send: Send, emitted: Emitted, start: Start
) -> None:
    await send(groups_of(make_trajectory, *range(4)))
    await emitted(4, is_finished=True)
    ours, _ = await start()
    await ours.register()
    lost = indices(await ours.batch())
    await ours.register()
    assert indices(await ours.batch()) == lost
    assert sorted(lost + indices(await ours.batch())) == [0, 1, 2, 3]


async def has(server: Server, **status: int) -> bool:
    return status.items() <= (await server.get("/status")).items()


async def test_a_batch_that_could_not_be_noted_down_is_not_taken_for_trained_on(
    make_trajectory: Make, send: Send, emitted: Emitted, start: Start, until: Until, tmp_path: Path
) -> None:
    await send(groups_of(make_trajectory, *range(2)))
    await emitted(2, is_finished=True)
    ours, _ = await start()
    await ours.register()
    in_the_way = tmp_path / "serve.json.part"
    in_the_way.mkdir()

    async def fails() -> bool:
        async with ours.session.get(f"{ours.url}/batch") as response:
            return response.status == 500

    await until(fails)
    in_the_way.rmdir()
    assert indices(await ours.batch()) == [0, 1]


async def test_a_trainer_that_stops_reading_does_not_keep_the_next_one_waiting(
    kafka: KafkaSettings,
    make_trajectory: Make,
    send: Send,
    emitted: Emitted,
    trainer_of: TrainerOf,
    until: Until,
    tmp_path: Path,
) -> None:
    """The batch is more than the buffers of two sockets hold."""
    await send(make_trajectory(group, member, tokens=100_000) for group in range(2) for member in range(2))
    await emitted(2, is_finished=True)
    options = ServeOptions(state_file=tmp_path / "serve.json", port=0, answer_s=5.0)
    stop, listening = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(run_server(kafka, TrainerSettings(), options, stop, on_listening=listening.set_result))
        port = await listening
        ours = trainer_of(f"http://127.0.0.1:{port}")
        await ours.register(max_token_len=1_000_000)
        await until(lambda: has(ours, queue_size=2))
        deaf = socket.socket()
        with deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(b"GET /batch HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await until(lambda: has(ours, current_step=1))
            await ours.register(max_token_len=1_000_000)
            assert indices(await ours.batch()) == [0, 1]
        stop.set()


async def test_environments_are_told_that_they_have_no_place_here(start: Start) -> None:
    ours, _ = await start()
    await ours.register()
    async with ours.session.post(f"{ours.url}/scored_data", json={"tokens": [[1]]}) as response:
        assert response.status == 409
        assert "fed by RollStream" in (await response.json())["detail"]


async def test_sigterm_ends_the_server_at_once(start: Start) -> None:
    _, process = await start()
    process.terminate()
    async with asyncio.timeout(30):
        assert await process.wait() == 0
