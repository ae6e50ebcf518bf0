"""One connection to one server: opened, asked, closed.

The library's session must be entered and left in one task, so each connection is owned by one. Whatever ends it ends
with it: whoever waits for an answer hears at once that the server is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, cast

import anyio
from mcp.client.session import ClientSession
from mcp.shared.exceptions import MCPError
from mcp.types import (
    CONNECTION_CLOSED,
    CallToolRequest,
    CallToolRequestParams,
    ClientRequest,
    Implementation,
    ListToolsRequest,
    PaginatedRequestParams,
)
from pydantic import BaseModel, ConfigDict, ValidationError

from rollstream.schemas.errors import single_errors
from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.mcp_servers.wires import McpServerLostError, Wire
from rollstream.tool_workers.output_text import clean

logger = logging.getLogger(__name__)

MAX_PAGES = 16
CLOSE_TIMEOUT_S = 10.0
MAX_REASON_CHARS = 300


class _Answer(BaseModel):
    """Any object; what it must be the library has checked before."""

    model_config = ConfigDict(extra="allow")


class McpConnection:
    """A server that is connected, or was.

    Args:
        name: of the server, for messages.
        wire: how it is reached.
    """

    def __init__(self, name: str, wire: Wire) -> None:
        self._name = name
        self._wire = wire
        self._session: ClientSession | None = None
        self._is_open = asyncio.Event()
        self._closing = asyncio.Event()
        self._failure: str | None = None
        self._owner: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether it can never be asked again."""
        return self._closing.is_set()

    def start(self, group: asyncio.TaskGroup, places: asyncio.Semaphore | None = None) -> None:
        """Connect, in a task of the group, as soon as there is a place."""
        self._owner = group.create_task(self._own(places), name=f"MCP server {self._name}")

    async def _own(self, places: asyncio.Semaphore | None) -> None:
        """Hold the connection until it is closed or lost."""
        try:
            async with places or nullcontext(), self._wire.streams() as (read, write):
                client = Implementation(name="rollstream", version=version("rollstream"))
                async with ClientSession(read, write, client_info=client) as session:
                    await session.initialize()
                    self._session = session
                    self._is_open.set()
                    await self._closing.wait()
                    self._session = None
        except Exception as error:
            self._failure = self._told(error)
            logger.log(logging.DEBUG if self._closing.is_set() else logging.INFO, "%s", self._failure)
        finally:
            self._session = None
            self._closing.set()
            self._is_open.set()

    async def wait_until_open(self, timeout_s: float) -> None:
        """Return when it can be asked.

        Raises:
            McpServerLostError: it cannot be reached, or not in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_open.wait()
        except TimeoutError as error:
            raise McpServerLostError(
                f"MCP server {self._name!r} has not introduced itself within {timeout_s:g} s{self._complaint()}"
            ) from error
        if self._session is None or self.is_over:
            raise self._lost()

    def close_soon(self) -> None:
        """End it; its task does the rest."""
        self._closing.set()
        if self._owner is not None and not self._is_open.is_set():
            self._owner.cancel()

    async def close(self) -> None:
        """End it. Safe to repeat; returns when everything is freed."""
        self.close_soon()
        if self._owner is None:
            return
        _, late = await asyncio.wait([self._owner], timeout=CLOSE_TIMEOUT_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CLOSE_TIMEOUT_S)

    async def list_tools(self) -> list[Mapping[str, Any]]:
        """What the server says it offers; untrusted.

        Raises:
            McpServerLostError: it says nothing, or nothing that is a list of tools.
        """
        listed: list[Mapping[str, Any]] = []
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            params = None if cursor is None else PaginatedRequestParams(cursor=cursor)
            try:
                page = await self._ask(ListToolsRequest(params=params))
            except ToolError as error:
                raise McpServerLostError(f"MCP server {self._name!r} does not list its tools: {error}") from error
            listed += cast("list[Mapping[str, Any]]", page["tools"])
            cursor = page.get("nextCursor")
            if not cursor:
                return listed
        raise McpServerLostError(f"MCP server {self._name!r} lists its tools on more than {MAX_PAGES} pages")

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The server's result. If the caller is cancelled, the server is told that nobody waits any more.

        Raises:
            ToolError: the server refuses the call, for the model to read.
            McpServerLostError: there is no result.
        """
        return await self._ask(CallToolRequest(params=CallToolRequestParams(name=tool, arguments=dict(arguments))))

    async def _ask(self, request: ClientRequest) -> dict[str, Any]:
        session = self._session
        if session is None or self.is_over:
            raise self._lost()
        self._wire.call_begins()
        try:
            return dict((await session.send_request(request, _Answer)).model_extra or {})
        except MCPError as error:
            if error.code == CONNECTION_CLOSED or self.is_over:
                await self.close()
                raise self._lost() from error
            raise ToolError(f"{clean(str(error.message))} (code {error.code})") from error
        except ValidationError as error:
            await self.close()
            raise McpServerLostError(
                f"MCP server {self._name!r} answered {request.method} with what is no result of it"
            ) from error
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            await self.close()
            raise self._lost() from error

    def _lost(self) -> McpServerLostError:
        return McpServerLostError(self._failure or f"the connection to MCP server {self._name!r} is closed")

    def _told(self, error: Exception) -> str:
        first: BaseException = error
        if isinstance(error, ExceptionGroup):
            first = next(single_errors(cast("ExceptionGroup[Exception]", error)))
        reason = clean(str(first) or type(first).__name__)[:MAX_REASON_CHARS]
        return f"MCP server {self._name!r} is lost: {reason}{self._complaint()}"

    def _complaint(self) -> str:
        complaint = self._wire.complaint
        return f"; it wrote: {complaint}" if complaint else ""
