"""Tasks that may kill their worker run one at a time, so that their neighbours are not charged for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class SuspectGate:
    """Lets any number of others through, but one suspect at a time."""

    def __init__(self) -> None:
        self._taken = asyncio.Lock()

    @asynccontextmanager
    async def passed(self, *, is_suspect: bool) -> AsyncGenerator[Callable[[], None]]:
        """Wait for the gate; yields what clears the suspect early. Leaving the block clears it too."""
        if not is_suspect:
            yield _nobody_waits
            return
        await self._taken.acquire()
        is_cleared = False

        def clear() -> None:
            nonlocal is_cleared
            if not is_cleared:
                is_cleared = True
                self._taken.release()

        try:
            yield clear
        finally:
            clear()


def _nobody_waits() -> None:
    pass
