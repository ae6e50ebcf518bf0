"""Admitted calls, from their admission to their result."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from rollstream.schemas.tools import ToolCall, ToolStatus
from rollstream.tool_workers.sessions import Run


class NotBegunError(Exception):
    """The call has not been run, and will not be."""

    def __init__(self, status: ToolStatus, reason: str) -> None:
        super().__init__(reason)
        self.status: ToolStatus = status


@dataclass
class RunningCall:
    """One of them."""

    call: ToolCall
    """With the latest of its copies' deadlines."""
    admission: Run
    requesters: set[tuple[str, int]]
    """The (topic, partition) of everybody who wants its answer."""
    waiting: asyncio.Timeout | None = None
    """Until when it waits for a sandbox; None: it does not."""

    def wait_until(self, deadline: float, now: float) -> None:
        """Another copy came while it waits. Both in Unix seconds."""
        self.call = msgspec.structs.replace(self.call, deadline=max(self.call.deadline, deadline))
        self._end_waiting_in(self.call.deadline - now)

    def give_up_waiting(self) -> None:
        """It need not wait any longer."""
        self._end_waiting_in(0.0)

    def _end_waiting_in(self, seconds: float) -> None:
        if self.waiting is not None and not self.waiting.expired():
            self.waiting.reschedule(asyncio.get_running_loop().time() + seconds)
