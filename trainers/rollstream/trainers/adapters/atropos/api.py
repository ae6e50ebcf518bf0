"""What is said to an Atropos server, and what it answers; over one connection, so that its restart is noticed."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any

import aiohttp

from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError

REQUEST_TIMEOUT_S = 60.0
COMPRESSED_ABOVE_BYTES = 1024
NOT_REGISTERED = -1


@dataclass(frozen=True, slots=True)
class TrainerInfo:
    """What the trainer registered: sequences per batch, and tokens that a sequence must stay below."""

    batch_size: int
    max_token_len: int


class AtroposServer:
    """An async context manager; used by one task at a time.

    Requests go over one kept connection and a POST is never repeated by the client: when the server dies between a
    look at its state and the push that follows it, the push fails instead of reaching the server that comes after it.
    """

    def __init__(self, url: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AtroposServer:
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1), timeout=timeout)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def trainer(self) -> TrainerInfo | None:
        """What the trainer has registered; None before it has.

        Raises:
            TransientError: the server does not answer.
        """
        info = await self._ask("GET", "/info")
        if info is None or info["batch_size"] == NOT_REGISTERED:
            return None
        return TrainerInfo(batch_size=int(info["batch_size"]), max_token_len=int(info["max_token_len"]))

    async def register_env(self, *, name: str, group_size: int, max_token_len: int, weight: float) -> int | None:
        """Register an environment; its number, or None while the trainer has not asked for its first batch.

        Raises:
            TransientError: the server does not answer.
        """
        answer = await self._ask(
            "POST",
            "/register-env",
            {
                "max_token_length": max_token_len,
                "desired_name": name,
                "weight": weight,
                "group_size": group_size,
                "min_batch_allocation": None,
            },
        )
        return int(answer["env_id"]) if answer is not None and answer["status"] == "success" else None

    async def queued_groups(self, env_id: int) -> int | None:
        """Groups that wait in the server; None: it does not know the environment (it has been restarted or reset).

        Raises:
            TransientError: the server does not answer.
        """
        answer = await self._ask("GET", "/status-env", {"env_id": env_id})
        return None if answer is None else int(answer["queue_size"])

    async def push(self, group: dict[str, Any]) -> None:
        """Hand over one group; returns when the server has it, in memory.

        Raises:
            InvalidMessageError: the server refuses the data, and will again.
            TransientError: it does not answer; it may have the group or not.
        """
        if await self._ask("POST", "/scored_data", group) is None:
            raise TransientError(f"{self.url}/scored_data failed inside the server")

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The answer; None if the server failed inside (5xx), as it does when its state is gone."""
        assert self._session is not None
        data, headers = (None, {}) if body is None else await asyncio.to_thread(_encoded, body)
        try:
            async with self._session.request(method, self.url + path, data=data, headers=headers) as response:
                text = await response.text()
                if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                    return None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise SettingsError(f"{self.url!r} is no address of a server: name it as http://host:8000") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise TransientError(f"{self.url}{path}: no answer ({type(error).__name__}: {error})") from error
        if response.status != HTTPStatus.OK:
            raise InvalidMessageError(f"{self.url}{path} answers {response.status}: {text[:500]}")
        return json.loads(text)


def _encoded(body: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    data = json.dumps(body, allow_nan=False).encode()
    headers = {"Content-Type": "application/json"}
    if len(data) > COMPRESSED_ABOVE_BYTES:
        return gzip.compress(data, compresslevel=1), {**headers, "Content-Encoding": "gzip"}
    return data, headers
