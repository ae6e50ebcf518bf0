"""Which connection a call of a mounted server goes to.

Per session: a connection of its own, opened by the session's first call and closed with the session; it is never
opened twice, for what the first one knew is lost with it. Per worker: one for all, opened again when it is lost, at
growing intervals.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rollstream.tool_workers.mcp_servers.connection import McpConnection
from rollstream.tool_workers.mcp_servers.wires import McpServerLostError
from rollstream.tool_workers.sandbox.replies import SandboxLostError

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 60.0
REMEMBERED_ENDS = 4096


class Mount(Protocol):
    """A server, for callers."""

    async def call(
        self, session: str | None, tool: str, arguments: Mapping[str, Any], *, start_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """The server's result.

        Args:
            session: incarnation of the session; None: the call belongs to none.
            tool: name of the tool at the server.
            arguments: of the call.
            start_s: how long the server may take to be there.
            timeout_s: how long it may take to answer then.

        Raises:
            ToolError: the server refuses the call.
            TimeoutError: it does not answer in time.
            SandboxLostError: what the session's server knew is lost.
            McpServerLostError: there is no answer, for another reason.
        """
        ...

    def end_session(self, session: str) -> None:
        """The session is over. Harmless if it never had a server."""
        ...

    async def close(self) -> None:
        """End all connections."""
        ...


class SharedMount:
    """One connection for all sessions.

    Args:
        group: owns the connections' tasks.
        connect: makes a connection that is not started yet.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        connect: Callable[[], McpConnection],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._connect = connect
        self._clock = clock
        self._current: McpConnection | None = None
        self._delay_s = FIRST_DELAY_S
        self._next_start = float("-inf")

    async def call(
        self, session: str | None, tool: str, arguments: Mapping[str, Any], *, start_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Ask the one server there is."""
        connection = self._connection()
        try:
            await connection.wait_until_open(start_s)
        except McpServerLostError:
            connection.close_soon()
            raise
        async with asyncio.timeout(timeout_s):
            result = await connection.call(tool, arguments)
        self._delay_s, self._next_start = FIRST_DELAY_S, float("-inf")
        return result

    def _connection(self) -> McpConnection:
        if self._current is None or self._current.is_over:
            wait_s = self._next_start - self._clock()
            if wait_s > 0:
                raise McpServerLostError(f"the MCP server is down; it is tried again in {wait_s:.1f} s")
            self._next_start = self._clock() + self._delay_s
            self._delay_s = min(MAX_DELAY_S, 2 * self._delay_s)
            self._current = self._connect()
            self._current.start(self._group)
        return self._current

    def end_session(self, session: str) -> None:
        """Nothing is kept for it."""

    async def close(self) -> None:
        """End the connection."""
        if self._current is not None:
            await self._current.close()


class SessionMount:
    """A connection for each session, at most ``max_sessions`` at once; further ones wait for a place.

    Args:
        group: owns the connections' tasks.
        connect: makes a connection that is not started yet.
        max_sessions: places.
    """

    def __init__(self, group: asyncio.TaskGroup, connect: Callable[[], McpConnection], *, max_sessions: int) -> None:
        self._group = group
        self._connect = connect
        self._places = asyncio.Semaphore(max_sessions)
        self._connections: dict[str, McpConnection] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._connections)

    async def call(
        self, session: str | None, tool: str, arguments: Mapping[str, Any], *, start_s: float, timeout_s: float
    ) -> dict[str, Any]:
        """Ask the session's server; a call without a session has one for itself."""
        if session is not None:
            return await self._call(session, tool, arguments, start_s, timeout_s)
        name = f"one call {next(self._numbers)}"
        try:
            return await self._call(name, tool, arguments, start_s, timeout_s)
        finally:
            self.end_session(name)

    async def _call(
        self, session: str, tool: str, arguments: Mapping[str, Any], start_s: float, timeout_s: float
    ) -> dict[str, Any]:
        if session in self._ended:
            raise SandboxLostError("the session was closed before the call")
        connection = self._connections.get(session)
        if connection is None:
            connection = self._connections[session] = self._connect()
            connection.start(self._group, self._places)
        try:
            await connection.wait_until_open(start_s)
            async with asyncio.timeout(timeout_s):
                return await connection.call(tool, arguments)
        except McpServerLostError as error:
            raise SandboxLostError(str(error)) from error

    def end_session(self, session: str) -> None:
        """End its connection, and open none for it again."""
        self._ended[session] = None
        if len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        connection = self._connections.pop(session, None)
        if connection is not None:
            connection.close_soon()

    async def close(self) -> None:
        """End all connections."""
        connections = list(self._connections.values())
        self._connections.clear()
        async with asyncio.TaskGroup() as group:
            for connection in connections:
                group.create_task(connection.close())
