"""Fresh sandboxes for gradings. Nothing but a grading's own has ever run in one.

They are not places of the house where sessions live: a house full of sessions that want to be graded could never
grade any. How many gradings run at once is bounded instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import Artefacts
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.sandbox.workspace_files import unpack
from rollstream.tool_workers.sandbox_pool import SandboxOpener

UNPACK_TIMEOUT_S = 30.0


class Room:
    """The sandboxes of one grading; they are closed when it is over."""

    def __init__(self, opener: SandboxOpener, stack: AsyncExitStack) -> None:
        self._opener = opener
        self._stack = stack

    async def open(self, artefacts: Artefacts | None = None, files: Mapping[str, str] | None = None) -> Sandbox:
        """A fresh sandbox with these artefacts, and these files laid over them.

        Raises:
            IsolationError, SandboxLostError: infrastructure.
            ToolError: the files do not fit.
        """
        sandbox = await self._opener.open()
        self._stack.push_async_callback(sandbox.close)
        given = (artefacts or Artefacts()).with_files({path: text.encode() for path, text in (files or {}).items()})
        if given.files:
            done = await unpack(sandbox, given.archive(), timeout_s=UNPACK_TIMEOUT_S)
            if done.cause is not None:
                raise SandboxLostError(f"the artefacts could not be unpacked: {done.cause}")
            if done.exit_code != 0 or done.output:
                raise ToolError(f"the artefacts do not fit into a workspace: {done.output[-200:]}")
        return sandbox


class GradingRooms:
    """Args: what opens sandboxes, and how many gradings may run at once."""

    def __init__(self, opener: SandboxOpener, *, max_gradings: int) -> None:
        self._opener = opener
        self._places = asyncio.Semaphore(max_gradings)

    @asynccontextmanager
    async def room(self) -> AsyncGenerator[Room]:
        """Wait for a place; everything opened in it is closed at the end."""
        async with self._places, AsyncExitStack() as stack:
            yield Room(self._opener, stack)
