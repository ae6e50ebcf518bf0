"""Atropos' own server in a process of its own, and what a trainer asks it."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
import pytest
import pytest_asyncio

T = TypeVar("T")

BATCH_SIZE = 4
REGISTRATION = {
    "wandb_group": "group",
    "wandb_project": "project",
    "batch_size": BATCH_SIZE,
    "max_token_len": 64,
    "checkpoint_dir": "checkpoints",
    "save_checkpoint_interval": 1,
    "starting_step": 0,
    "num_steps": 100,
}


async def there(look: Callable[[], Awaitable[T | None]], deadline_s: float = 60) -> T:
    """What ``look`` sees once it sees something."""
    async with asyncio.timeout(deadline_s):
        while True:
            if seen := await look():
                return seen
            await asyncio.sleep(0.03)


@pytest.fixture(scope="session")
def until() -> Callable[..., Awaitable[Any]]:
    return there


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class AtroposTrainer:
    """What a trainer of Atropos asks a server. Every request has a connection of its own, as those of its example."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def register(self, **changes: Any) -> dict[str, Any]:
        async with self.session.post(f"{self.url}/register", json={**REGISTRATION, **changes}) as response:
            return await response.json()

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as response:
            return await response.json()

    async def ask_for_batch(self) -> list[dict[str, Any]] | None:
        return (await self.get("/batch"))["batch"]

    async def batch(self) -> list[dict[str, Any]]:
        return await there(self.ask_for_batch)

    async def answers(self) -> bool:
        try:
            return bool(await self.get("/"))
        except aiohttp.ClientError:
            return False


class RealServer(AtroposTrainer):
    """`atroposlib.api.server` under uvicorn, seen by its trainer."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.port = free_port()
        super().__init__(f"http://127.0.0.1:{self.port}", session)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        command = (sys.executable, "-m", "uvicorn", "atroposlib.api.server:app", "--port", str(self.port))
        self._process = await asyncio.create_subprocess_exec(*command, "--log-level", "warning")
        await there(self.answers)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


@pytest_asyncio.fixture
async def server(session: aiohttp.ClientSession) -> AsyncIterator[RealServer]:
    server = RealServer(session)
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
def trainer_of(session: aiohttp.ClientSession) -> Callable[[str], AtroposTrainer]:
    """The same trainer for any server that speaks the API."""

    def trainer_of(url: str) -> AtroposTrainer:
        return AtroposTrainer(url, session)

    return trainer_of
