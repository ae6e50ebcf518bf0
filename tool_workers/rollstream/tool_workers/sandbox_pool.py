"""The open sandboxes of this worker, bounded in number.

One per incarnation of a session, one per call for tools that keep no state.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

from rollstream.tool_workers.sandbox.sandbox import Sandbox

logger = logging.getLogger(__name__)

RECLAIM_INTERVAL_S = 1.0


class ClosableSandbox(Sandbox, Protocol):
    """A sandbox its owner ends."""

    async def close(self) -> None:
        """Kill everything in it and free it."""
        ...


Preparation = Callable[[Sandbox], Awaitable[None]]
"""What is done in a sandbox before its session's first call."""


class SandboxOpener(Protocol):
    """Starts sandboxes."""

    async def open(self) -> ClosableSandbox:
        """A fresh one. Raises IsolationError."""
        ...


class _Entry:
    """A session's sandbox; siblings that come first together wait for one another."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.sandbox: ClosableSandbox | None = None
        self.is_closed = False


class SandboxPool:
    """At most ``max_open`` sandboxes at once. Whoever waits longest for a place is given the next one.

    Args:
        opener: starts sandboxes.
        max_open: when they are all taken, new ones wait.
        reclaim: asked for the sandbox of a session that may be closed to make room; None: there is none.
        reclaim_interval_s: how often it is asked while somebody waits.
    """

    def __init__(
        self,
        opener: SandboxOpener,
        *,
        max_open: int,
        reclaim: Callable[[], str | None],
        reclaim_interval_s: float = RECLAIM_INTERVAL_S,
    ) -> None:
        self._opener = opener
        self._free = max_open
        self._queue: deque[asyncio.Future[None]] = deque()
        """Who waits for a place; a place is given by settling the first one."""
        self._reclaim = reclaim
        self._reclaim_interval_s = reclaim_interval_s
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return sum(entry.sandbox is not None for entry in self._entries.values())

    def is_full_for(self, incarnation: str | None) -> bool:
        """Whether a call has to wait for a place. None: one without a session."""
        entry = self._entries.get(incarnation) if incarnation is not None else None
        return self._free == 0 and (entry is None or entry.sandbox is None)

    async def of_session(self, incarnation: str, prepare: Preparation | None = None) -> ClosableSandbox:
        """The session's sandbox; opened, and prepared, by its first call. Waits for a place without a limit of its own.

        Raises:
            IsolationError: it does not start.
            TransientError: it cannot be prepared.
        """
        entry = self._entries.setdefault(incarnation, _Entry())
        async with entry.lock:
            if entry.sandbox is None:
                sandbox = await self._open()
                if prepare is not None:
                    await self._prepared(sandbox, prepare)
                if entry.is_closed:
                    await self.discard(sandbox)
                else:
                    entry.sandbox = sandbox
                return sandbox
            return entry.sandbox

    async def _prepared(self, sandbox: ClosableSandbox, prepare: Preparation) -> None:
        try:
            await prepare(sandbox)
        except BaseException:
            await self.discard(sandbox)
            raise

    async def for_one_call(self) -> ClosableSandbox:
        """A sandbox of nobody's session; give it back with ``discard``. Raises like ``of_session``."""
        return await self._open()

    async def discard(self, sandbox: ClosableSandbox) -> None:
        """Close a sandbox and give its place back."""
        try:
            await sandbox.close()
        finally:
            self._give_place()

    async def close(self, incarnation: str) -> None:
        """Close a session's sandbox, whatever it is doing. Safe to repeat."""
        entry = self._entries.pop(incarnation, None)
        if entry is None:
            return
        entry.is_closed = True
        if entry.sandbox is not None:
            await self.discard(entry.sandbox)

    async def close_all(self) -> None:
        """Close every session's sandbox."""
        async with asyncio.TaskGroup() as group:
            for incarnation in list(self._entries):
                group.create_task(self.close(incarnation))

    async def _open(self) -> ClosableSandbox:
        await self._take_place()
        try:
            return await self._opener.open()
        except BaseException:
            self._give_place()
            raise

    async def _take_place(self) -> None:
        if self._free > 0:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            while not place.done():
                if self._queue[0] is place:
                    await self._make_room()
                await asyncio.wait([place], timeout=self._reclaim_interval_s)
        except BaseException:
            if place.done():
                self._give_place()
            else:
                self._queue.remove(place)
            raise

    def _give_place(self) -> None:
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1

    async def _make_room(self) -> None:
        """For all who wait, as far as there are sessions that may be closed."""
        async with asyncio.TaskGroup() as group:
            for _ in range(len(self._queue)):
                incarnation = self._reclaim()
                if incarnation is None:
                    return
                logger.info("all sandboxes are taken, closing idle sandbox %s", incarnation)
                group.create_task(self.close(incarnation))
