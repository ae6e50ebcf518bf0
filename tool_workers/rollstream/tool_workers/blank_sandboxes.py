"""Sandboxes opened before anybody needs them, so that the first call of an episode does not wait for one to start."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox_pool import ClosableSandbox

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 5.0
PAUSE_AFTER_FAILURE_S = 5.0


class BlankSandbox(ClosableSandbox, Protocol):
    """A sandbox that can tell whether it still lives."""

    @property
    def is_alive(self) -> bool:
        """Whether it may still answer."""
        ...


class BlankOpener(Protocol):
    """Starts sandboxes."""

    async def open(self) -> BlankSandbox:
        """A fresh one. Raises IsolationError."""
        ...


class BlankSandboxes:
    """Opens sandboxes, from its stock while there is one. Nothing has ever run in what it hands out.

    Args:
        opener: starts sandboxes.
        wanted: how many are kept in stock.
        max_age_s: older ones are replaced.
        clock: seconds, monotonic.
    """

    def __init__(
        self, opener: BlankOpener, *, wanted: int, max_age_s: float, clock: Callable[[], float] | None = None
    ) -> None:
        self._opener = opener
        self._wanted = wanted
        self._max_age_s = max_age_s
        self._clock = clock or asyncio.get_running_loop().time
        self._stock: deque[tuple[float, BlankSandbox]] = deque()
        self._is_short = asyncio.Event()
        self._is_short.set()

    def __len__(self) -> int:
        return len(self._stock)

    async def open(self) -> BlankSandbox:
        """One from the stock, else a new one. Raises IsolationError."""
        while self._stock:
            _, sandbox = self._stock.popleft()
            self._is_short.set()
            if sandbox.is_alive:
                return sandbox
            await sandbox.close()
        return await self._opener.open()

    async def keep_stocked(self) -> None:
        """Runs until cancelled; call ``close`` afterwards."""
        while True:
            await self._replace_old()
            while len(self._stock) < self._wanted:
                try:
                    sandbox = await self._opener.open()
                except IsolationError as error:
                    logger.warning("no sandbox can be opened in advance: %s", error)
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                else:
                    self._stock.append((self._clock(), sandbox))
            self._is_short.clear()
            try:
                async with asyncio.timeout(CHECK_INTERVAL_S):
                    await self._is_short.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Close the stock."""
        while self._stock:
            await self._stock.popleft()[1].close()

    async def _replace_old(self) -> None:
        """The oldest come first; the dead are found when they are wanted, or here."""
        now = self._clock()
        gone = [(at, each) for at, each in self._stock if now - at > self._max_age_s or not each.is_alive]
        for entry in gone:
            self._stock.remove(entry)
            await entry[1].close()


@asynccontextmanager
async def stocked(opener: BlankOpener, *, wanted: int, max_age_s: float) -> AsyncGenerator[BlankSandboxes]:
    """Opens sandboxes, some of them before they are needed; at the end the stock is closed."""
    blanks = BlankSandboxes(opener, wanted=wanted, max_age_s=max_age_s)
    async with asyncio.TaskGroup() as group:
        stocking = group.create_task(blanks.keep_stocked())
        try:
            yield blanks
        finally:
            stocking.cancel()
            await asyncio.wait([stocking])
            await blanks.close()
