"""A judge's or reward model's HTTP service: JSON in, JSON out, a bounded number of requests at once.

What may pass (no connection, no answer in time, 408, 425, 429, 5xx) is sent again a few times, after what the service
says in ``Retry-After`` or after growing pauses. A request keeps its place while it pauses: a service that is overloaded
is asked less. Keys are sent and never shown.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_random_exponential

from rollstream.schemas.errors import DataError, SettingsError, TransientError
from rollstream.scorers import metrics
from rollstream.scorers.settings import EndpointSettings

MAY_PASS = frozenset({408, 409, 425, 429})
MISCONFIGURED = frozenset({401, 403, 404, 405})
MAX_RETRY_AFTER_S = 60.0
MAX_BODY_CHARS = 300
MAX_ANSWER_BYTES = 16 * 1024 * 1024


class _UnavailableError(TransientError):
    """Carries how long the service wants to be left alone; None: it did not say."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Endpoint:
    """One address of a service. Safe for many tasks at once."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, settings: EndpointSettings, *, first_pause_s: float = 1.0
    ) -> None:
        """Sends nothing yet.

        Raises:
            SettingsError: the variable that should hold the key is empty.
        """
        self._session = session
        self._url = url
        self._host = urlsplit(url).netloc.rpartition("@")[2]
        self._key = key_of(settings, os.environ)
        self._timeout = aiohttp.ClientTimeout(total=settings.request_timeout_s)
        self._tries = settings.request_tries
        self._places = asyncio.Semaphore(settings.max_requests)
        self._pause = wait_random_exponential(multiplier=first_pause_s, max=MAX_RETRY_AFTER_S)

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The decoded answer.

        Raises:
            TransientError: the service cannot be had now.
            DataError: it refuses this request (4xx), or its answer is no JSON.
            SettingsError: address or key are wrong (401, 403, 404, 405, a redirection).
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._tries),
            wait=self._wait,
            retry=retry_if_exception_type(_UnavailableError),
            reraise=True,
        )
        async with self._places:
            return await retrying(self._send, msgspec.json.encode(body))

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, _UnavailableError) else None
        return self._pause(state) if asked_s is None else asked_s

    async def _send(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                content = await self._read(response)
                status, retry_after = response.status, response.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            metrics.REQUESTS.labels(self._host, "no answer").inc()
            raise _UnavailableError(f"{self._host} does not answer: {type(error).__name__} {error}") from error
        metrics.REQUESTS.labels(self._host, str(status)).inc()
        if status != 200:
            raise self._refusal(status, content, retry_after)
        try:
            return msgspec.json.decode(content)
        except msgspec.DecodeError as error:
            raise DataError(f"{self._host} answered what is no JSON: {self._shown(content)}") from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = bytearray()
        async for part in response.content.iter_any():
            content += part
            if len(content) > MAX_ANSWER_BYTES:
                raise DataError(f"{self._host} answered more than {MAX_ANSWER_BYTES} bytes")
        return bytes(content)

    def _refusal(self, status: int, content: bytes, retry_after: str | None) -> Exception:
        text = f"{self._host} answered {status}: {self._shown(content)}"
        if status >= 500 or status in MAY_PASS:
            return _UnavailableError(text, seconds(retry_after))
        if status in MISCONFIGURED or 300 <= status < 400:
            return SettingsError(f"{text}; check url, model and key_variable of the scorer")
        return DataError(text)

    def _shown(self, content: bytes) -> str:
        text = content[:MAX_BODY_CHARS].decode(errors="replace")
        return repr(text.replace(self._key, "[key]") if self._key else text)


def key_of(settings: EndpointSettings, environment: Mapping[str, str]) -> str:
    """The key, empty where none is needed.

    Raises:
        SettingsError: it is needed and not there.
    """
    if settings.key_variable is None:
        return ""
    if not (key := environment.get(settings.key_variable, "")):
        raise SettingsError(
            f"key_variable = {settings.key_variable!r}: that environment variable is not set; it must hold the key of "
            f"{settings.url!r}"
        )
    return key


def seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds, within bounds; None where it is missing or a date."""
    try:
        return None if retry_after is None else min(MAX_RETRY_AFTER_S, max(0.0, float(retry_after)))
    except ValueError:
        return None
