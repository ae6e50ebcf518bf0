"""A server somewhere else, asked over streamable HTTP.

Only the configured endpoint is asked, redirects lead nowhere, the environment's proxies are not used, answers are
bounded and never compressed. The server is not listened to between calls.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx2
from mcp.client.streamable_http import streamable_http_client

from rollstream.tool_workers.mcp_servers.wires import MAX_BYTES_PER_CALL, MAX_MESSAGE_BYTES, McpServerLostError

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

CONNECT_TIMEOUT_S = 10.0
FAREWELL_TIMEOUT_S = 3.0
NOT_ALLOWED = 405


class HttpWire:
    """One connection.

    Args:
        url: the endpoint.
        headers: sent with everything.
        timeout_s: longest silence in an answer.
        transport: what carries the requests; by default the network.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url
        self._headers = dict(headers)
        self._timeout = httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        self._transport = transport

    def call_begins(self) -> None:
        """Answers are bounded one by one."""

    @property
    def complaint(self) -> str:
        """It has no other way to speak."""
        return ""

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[TransportStreams]:
        """Connect when the first message is sent."""
        guarded = GuardedTransport(self._transport or httpx2.AsyncHTTPTransport(trust_env=False))
        client = httpx2.AsyncClient(
            transport=guarded, headers=self._headers, timeout=self._timeout, trust_env=False, max_redirects=0
        )
        async with client, streamable_http_client(self._url, http_client=client) as streams:
            yield streams


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Refuses what an answer must not be."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request.

        Raises:
            McpServerLostError: the answer is a redirect, an error of the server or its gateway, or compressed.
        """
        if request.method == "GET":  # to be told things between calls
            return httpx2.Response(NOT_ALLOWED, request=request)
        if request.method == "DELETE":  # a farewell, which no drain waits long for
            request.extensions["timeout"] = httpx2.Timeout(FAREWELL_TIMEOUT_S).as_dict()
        request.headers["Accept-Encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        problem = _problem(response)
        if problem is not None:
            await response.aclose()
            raise McpServerLostError(problem)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        is_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        max_bytes = MAX_BYTES_PER_CALL if is_stream else MAX_MESSAGE_BYTES
        return httpx2.Response(
            response.status_code,
            headers=response.headers,
            stream=_BoundedStream(response.stream, max_bytes),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _problem(response: httpx2.Response) -> str | None:
    status = response.status_code
    if 300 <= status < 400:
        return f"it answered with a redirect ({status}), which is not followed"
    if status >= 500 or status in (401, 403, 404, 408, 421, 425, 429):
        return f"it answered with HTTP status {status}"
    if response.headers.get("content-encoding", "identity") != "identity":
        return "it compresses its answers, though asked not to"
    return None


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max_bytes
        async for chunk in self._inner:
            left -= len(chunk)
            if left < 0:
                raise McpServerLostError(f"its answer is more than {self._max_bytes} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()
