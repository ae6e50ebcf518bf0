"""The pusher against a stand-in of agent-lightning's server, and against the real one where it is installed."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from rollstream.schemas.errors import InvalidMessageError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.adapters.agent_lightning.pusher import AgentLightningServer, PushOptions, run_pusher
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.settings import KafkaSettings

EXAMPLE = Path(__file__).parents[4] / "examples" / "agent_lightning_replay.py"
Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]

NEXT_STATES = {
    "queuing": {"running", "failed"},
    "running": {"succeeded", "failed"},
    "succeeded": set[str](),
    "failed": set[str](),
}


class StandIn:
    """Keeps rollouts and events as the server of version 1.0 does; ``dies_at`` cuts the connection of one request."""

    def __init__(self) -> None:
        self.rollouts: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.requests = 0
        self.keys: set[str | None] = set()
        self.dies_at: int | None = None
        self.applies_first = False
        """Whether the request that is cut off is carried out before."""
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._cut])
        app.add_routes(
            [
                web.post("/api/rollouts", self._create),
                web.get("/api/rollouts", self._list),
                web.get("/api/rollouts/{id}", self._get),
                web.patch("/api/rollouts/{id}", self._patch),
                web.post("/api/rollouts/{id}/attempt/{attempt}/events", self._event),
            ]
        )
        return app

    def seen(self, rollout_id: str) -> list[dict[str, Any]]:
        """The events of the attempt that counts."""
        return self.events[rollout_id].get(self.rollouts[rollout_id]["status"].get("last_attempt_id", "0"), [])

    @web.middleware
    async def _cut(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        number, self.requests = self.requests, self.requests + 1
        self.keys.add(request.headers.get("Authorization"))
        if number == self.dies_at:
            if self.applies_first:
                await handler(request)
            assert request.transport is not None
            request.transport.abort()
        return await handler(request) if number != self.dies_at else web.Response()

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        for new in body:
            self.rollouts.setdefault(new["rollout_id"], {**new, "status": {"state": "queuing"}})
            self.events.setdefault(new["rollout_id"], {})
        return web.json_response([self.rollouts[new["rollout_id"]] for new in body], status=201)

    async def _list(self, request: web.Request) -> web.Response:
        states, limit = request.query.getall("state_in"), int(request.query["limit"])
        return web.json_response([r for r in self.rollouts.values() if r["status"]["state"] in states][:limit])

    async def _get(self, request: web.Request) -> web.Response:
        rollout_id = request.match_info["id"]
        return web.json_response({"rollout": self.rollouts[rollout_id], "attempts": sorted(self.events[rollout_id])})

    async def _patch(self, request: web.Request) -> web.Response:
        status = self.rollouts[request.match_info["id"]]["status"]
        changes = (await request.json())["status"]
        if changes["state"] not in NEXT_STATES[status["state"]]:
            return web.json_response({"detail": f"{status['state']} -> {changes['state']}"}, status=409)
        status.update(changes)
        return web.json_response({})

    async def _event(self, request: web.Request) -> web.Response:
        attempts = self.events[request.match_info["id"]]
        attempts.setdefault(request.match_info["attempt"], []).append(await request.json())
        return web.json_response({})


@asynccontextmanager
async def standing_in() -> AsyncGenerator[StandIn]:
    stand_in = StandIn()
    runner = web.AppRunner(stand_in.app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield stand_in
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    async with standing_in() as stand_in:
        yield stand_in


@pytest.mark.parametrize("applies_first", [False, True], ids=["before", "after"])
async def test_a_push_that_is_cut_off_at_any_request_and_repeated_shows_its_events_once(
    make_trajectory: Make, applies_first: bool
) -> None:
    trajectory, dies_at = make_trajectory(0, 1), 0
    while True:
        async with standing_in() as stand_in, AgentLightningServer(stand_in.url) as server:
            stand_in.dies_at, stand_in.applies_first = dies_at, applies_first
            with suppress(TransientError):  # aiohttp itself repeats a GET
                await server.push(trajectory)
            first_push, stand_in.dies_at = stand_in.requests, None
            await server.push(trajectory)
            assert stand_in.rollouts[trajectory.trajectory_id]["status"]["state"] == "succeeded"
            seen = [event["event_type"] for event in stand_in.seen(trajectory.trajectory_id)]
            assert seen == ["model_request", "reward"]
        if first_push <= dies_at:
            break
        dies_at += 1
    assert dies_at == 6, "create, look, run, two events, end: each was cut off once"


async def test_a_refusal_names_the_route_and_the_answer(make_trajectory: Make) -> None:
    async with standing_in() as stand_in, AgentLightningServer(f"{stand_in.url}/api/rollouts/x/attempt") as server:
        with pytest.raises(TransientError, match="answers 404"):
            await server.push(make_trajectory(0, 0))
    async with standing_in() as stand_in, AgentLightningServer(stand_in.url) as server:
        stand_in.rollouts[make_trajectory(0, 0).trajectory_id] = {"status": {"state": "queuing"}}
        stand_in.events[make_trajectory(0, 0).trajectory_id] = {}
        NEXT_STATES["queuing"].discard("running")
        try:
            with pytest.raises(InvalidMessageError, match="answers 409"):
                await server.push(make_trajectory(0, 0))
        finally:
            NEXT_STATES["queuing"].add("running")


@pytest.mark.broker
async def test_groups_are_pushed_when_there_is_room_and_failed_members_end_as_failed(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, stand_in: StandIn, tmp_path: Path
) -> None:
    members = [
        make_trajectory(group, member, group_size=3, is_failed=member == 2) for group in range(3) for member in range(3)
    ]
    await send(members)
    await emitted(3, is_finished=True, group_size=3)
    options = PushOptions(stand_in.url, tmp_path / "push.json", max_waiting_rollouts=3, poll_s=0.02)
    most = 0
    async with asyncio.timeout(60):
        push = asyncio.ensure_future(run_pusher(kafka, TrainerSettings(), options, asyncio.Event()))
        fetched: dict[str, str] = {}
        while not push.done():
            ended = {
                i: r["status"]["state"]
                for i, r in stand_in.rollouts.items()
                if r["status"]["state"] in ("succeeded", "failed")
            }
            most = max(most, len(ended))
            if len(ended) == 3:
                fetched.update(ended)
                for rollout_id in ended:
                    del stand_in.rollouts[rollout_id]
            await asyncio.sleep(0.01)
        fetched.update({i: r["status"]["state"] for i, r in stand_in.rollouts.items()})
    assert await push == 9
    assert most <= 3
    assert fetched == {t.trajectory_id: "failed" if t.status == "failed" else "succeeded" for t in members}


@pytest.mark.broker
async def test_the_command_pushes_with_the_key_of_its_file(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, stand_in: StandIn, tmp_path: Path
) -> None:
    await send([make_trajectory(0, member) for member in range(2)])
    await emitted(1, is_finished=True)
    (tmp_path / "agl.key").write_text("secret\n")
    command = [sys.executable, "-m", "rollstream.cli.main", "agent-lightning", "push", stand_in.url]
    command += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--key-file", str(tmp_path / "agl.key")]
    command += ["--state-file", str(tmp_path / "push.json")]
    async with asyncio.timeout(60):
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
    assert (process.returncode, out.decode().strip()) == (0, "2 trajectories pushed")
    assert stand_in.keys == {"Bearer secret"}
    assert len(stand_in.rollouts) == 2


@pytest.mark.broker
async def test_the_example_pushes_old_trajectories_and_may_be_run_again(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, stand_in: StandIn
) -> None:
    await send(make_trajectory(group, member) for group in range(3) for member in range(2))
    await send([make_trajectory(9, 0, run_id="other")])
    command = [sys.executable, str(EXAMPLE), stand_in.url, "--run-id", "run"]
    command += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix]
    async with asyncio.timeout(90):
        for _ in range(2):
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
            assert process.returncode == 0
            assert out.decode().splitlines()[-1] == "6 trajectories pushed"
    assert len(stand_in.rollouts) == 6
    assert all(len(stand_in.seen(rollout_id)) == 2 for rollout_id in stand_in.rollouts)


def _is_real_server_here() -> bool:
    try:
        return int(version("agentlightning").split(".")[0]) >= 1
    except PackageNotFoundError:
        return False


@pytest.mark.broker
@pytest.mark.skipif(
    not _is_real_server_here(), reason="agentlightning >= 1 is not installed: it is on no package index"
)
async def test_the_real_server_shows_triplets_of_exactly_the_tokens_of_the_log(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Emitted, tmp_path: Path
) -> None:
    members = [make_trajectory(0, member) for member in range(2)]
    await send(members)
    await emitted(1, is_finished=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agentlightning.server", f"port={port}", cwd=tmp_path
    )
    try:
        options = PushOptions(f"http://127.0.0.1:{port}", tmp_path / "push.json", poll_s=0.2)
        async with asyncio.timeout(60):
            assert await run_pusher(kafka, TrainerSettings(), options, asyncio.Event()) == 2
        async with aiohttp.ClientSession() as session:
            for trajectory in members:
                address = f"{options.url}/api/rollouts/{trajectory.trajectory_id}/events?format=triplet"
                async with session.get(address) as response:
                    request, reward = [event["data"] for event in await response.json()]
                [sample] = trajectory.samples
                assert request["prompt_token_ids"] == sample.prompt_ids.tolist()
                assert request["response_token_ids"] == sample.response_ids.tolist()
                assert request["response_log_probs"] == sample.response_logprobs.tolist()
                assert reward["value"] == trajectory.reward
    finally:
        server.kill()
        await server.wait()
