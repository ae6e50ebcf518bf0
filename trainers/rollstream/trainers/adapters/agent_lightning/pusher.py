"""Pushes finished trajectories to an agent-lightning server.

Duty: every member of a complete group becomes a rollout there, ``succeeded`` with its events or ``failed``, and no more
than a bound of unfetched rollouts wait in the server's memory.

Invariants: a reader sees a rollout's events only whole and once. They are posted under an attempt of their own, and the
request that ends the rollout names that attempt; ended rollouts never change. So pushing again is harmless, however
far it had got before.

Crash: groups behind the state file are pushed again, and change nothing, unless the trainer has fetched and deleted
their rollouts by then: those are made anew. Crash of the server: it forgets everything; what its trainer had not
fetched is lost with it, later groups are pushed as soon as it is back.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.adapters.agent_lightning.rollouts import events, failure, rollout, rollout_id
from rollstream.trainers.adapters.checkpoints import SETTLE_S, CheckpointWatch
from rollstream.trainers.adapters.group_source import GroupSource
from rollstream.trainers.adapters.progress_file import ProgressFile
from rollstream.trainers.batches import TrajectoryGroup
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 60.0
ENDED = ("succeeded", "failed")


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How rollouts are pushed.

    Attributes:
        url: of the server, without ``/api``.
        state_file: where the stream's state is kept.
        key: the server's API key; None: it has none.
        max_waiting_rollouts: ended rollouts that may wait in the server until its trainer fetches and deletes them.
        checkpoints: directory in which the trainer saves ``global_step_<n>``, to be published; None: not watched.
        settle_s: a checkpoint is whole when nothing in it has changed for this long.
        poll_s: time between two looks at a server that is full or does not answer.
    """

    url: str
    state_file: Path
    key: str | None = None
    max_waiting_rollouts: int = 256
    checkpoints: Path | None = None
    settle_s: float = SETTLE_S
    poll_s: float = 1.0


class AgentLightningServer:
    """An async context manager: the server's routes that a runner of rollouts needs."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._api = f"{url.rstrip('/')}/api"
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AgentLightningServer:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def waiting_rollouts(self, limit: int) -> int:
        """Ended rollouts that nobody has deleted yet, at most ``limit``.

        Raises:
            TransientError: the server does not answer.
        """
        states = "&".join(f"state_in={state}" for state in ENDED)
        return len(await self._ask("GET", f"/rollouts?{states}&limit={limit}"))

    async def push(self, trajectory: Trajectory) -> None:
        """Make the trajectory an ended rollout; returns when it is one. Safe to repeat.

        Raises:
            InvalidMessageError: the server refuses it, and will again.
            TransientError: it does not answer; how much of it the server has does not matter.
        """
        place = f"/rollouts/{quote(rollout_id(trajectory), safe='')}"
        await self._ask("POST", "/rollouts", [rollout(trajectory)])
        known = await self._ask("GET", place)
        state = known["rollout"]["status"]["state"]
        if state in ENDED:
            return
        if state == "queuing":
            await self._ask("PATCH", place, {"status": {"state": "running"}})
        reason = failure(trajectory)
        if reason is not None:
            await self._ask("PATCH", place, {"status": {"state": "failed", "error_message": reason}})
            return
        attempt = f"rollstream-{len(known['attempts'])}"
        for event in events(trajectory):
            await self._ask("POST", f"{place}/attempt/{attempt}/events", event)
        await self._ask("PATCH", place, {"status": {"state": "succeeded", "last_attempt_id": attempt}})

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        assert self._session is not None
        try:
            async with self._session.request(method, self._api + path, json=body) as response:
                text = await response.text()
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise SettingsError(f"{self._api!r} is no address of a server: name it as http://host:8080") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientError(f"{self._api}{path}: no answer ({type(error).__name__}: {error})") from error
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status == HTTPStatus.NOT_FOUND:
            # Not found: the server was restarted between two requests and has forgotten the rollout.
            raise TransientError(f"{self._api}{path} answers {response.status}: {text[:500]}")
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise InvalidMessageError(f"{self._api}{path} answers {response.status}: {text[:500]}")
        return json.loads(text)


async def run_pusher(kafka: KafkaSettings, trainer: TrainerSettings, options: PushOptions, stop: asyncio.Event) -> int:
    """Push until ``stop`` is set or the stream ends; returns how many trajectories were pushed.

    Raises:
        SettingsError: the state file is unusable.
        DataLossError: records that were still needed are gone.
        InvalidMessageError: the server refuses a rollout, or the key.
    """
    progress = ProgressFile(options.state_file)
    restored = await asyncio.to_thread(progress.load)
    watch = CheckpointWatch(options.settle_s)
    pushed = 0
    async with (
        GroupSource(kafka, trainer, restored=restored, checkpoints=options.checkpoints, watch=watch) as source,
        AgentLightningServer(options.url, options.key) as server,
    ):
        while not stop.is_set():
            group = await source.next_group()
            if group is not None:
                if not await _deliver(_members(group), source, server, options, stop):
                    break
                pushed += len(_members(group))
                await asyncio.to_thread(progress.save, source.state())
                await source.show_progress()
            elif source.has_ended:
                break
    return pushed


def _members(group: TrajectoryGroup) -> list[Trajectory]:
    """Those that failed too: a trainer that waits for their rollouts must hear of it."""
    return sorted([*group.trajectories, *group.excluded], key=lambda trajectory: trajectory.member_index)


async def _deliver(
    trajectories: Iterable[Trajectory],
    source: GroupSource,
    server: AgentLightningServer,
    options: PushOptions,
    stop: asyncio.Event,
) -> bool:
    """Push them when there is room; False: stopped before that."""
    while not stop.is_set():
        try:
            limit = options.max_waiting_rollouts
            if await server.waiting_rollouts(limit) < limit:
                for trajectory in trajectories:
                    await server.push(trajectory)
                return True
        except TransientError as error:
            logger.warning("%s; pushing again", error)
        await source.publish_checkpoint()
        try:
            async with asyncio.timeout(options.poll_s):
                await stop.wait()
        except TimeoutError:
            continue
    return False
