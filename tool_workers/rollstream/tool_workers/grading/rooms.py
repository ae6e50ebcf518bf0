"""Fresh sandboxes for gradings. Nothing but a grading's own has ever run in one.

They are not places of the house where sessions live: a house full of sessions that want to be graded could never
grade any. How many gradings run at once is bounded instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import ArtefactError, Artefacts
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
            ArtefactError: with what the agent has left, the files do not fit.
            ToolError: they do not fit even so.
        """
        sandbox = await self._opener.open()
        self._stack.push_async_callback(sandbox.close)
        given = (artefacts or Artefacts()).with_files({path: text.encode() for path, text in (files or {}).items()})
        if given.files:
            done = await unpack(sandbox, given.archive(), timeout_s=UNPACK_TIMEOUT_S)
            are_agents = artefacts is not None and bool(artefacts.files)
            if done.cause == "failed_to_start" or (done.cause == "timeout" and not are_agents):
                raise SandboxLostError(f"the files cannot be unpacked: {done.cause} {done.output[-200:]}")
            if done.cause is not None or done.exit_code != 0 or done.output:
                kind = ArtefactError if are_agents else ToolError
                raise kind(f"the files do not fit into a workspace: {done.cause or done.output[-200:]}")
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
