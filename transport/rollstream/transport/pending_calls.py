"""Who waits for the answer to which tool call."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rollstream.schemas.tools import ToolResult


@dataclass
class _Waiting:
    answer: asyncio.Future[ToolResult]
    callers: int = 0


@dataclass
class PendingCalls:
    """Calls that wait for their answer, by id. Two callers of one id get the same answer."""

    _waiting: dict[str, _Waiting] = field(default_factory=dict[str, _Waiting])

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._waiting

    def expect(self, call_id: str) -> asyncio.Future[ToolResult]:
        """The answer to come; give it back with ``forget``."""
        waiting = self._waiting.get(call_id)
        if waiting is None:
            waiting = self._waiting[call_id] = _Waiting(asyncio.get_running_loop().create_future())
        waiting.callers += 1
        return waiting.answer

    def expected(self, call_id: str) -> asyncio.Future[ToolResult]:
        """The answer, come or to come, of a call that is expected."""
        return self._waiting[call_id].answer

    def expect_another(self, call_id: str, than: asyncio.Future[ToolResult]) -> asyncio.Future[ToolResult]:
        """The answer after one that does not count; another caller may have asked for it before."""
        waiting = self._waiting[call_id]
        if waiting.answer is than:
            waiting.answer = asyncio.get_running_loop().create_future()
        return waiting.answer

    def forget(self, call_id: str) -> None:
        """One caller no longer waits."""
        waiting = self._waiting[call_id]
        waiting.callers -= 1
        if waiting.callers == 0:
            del self._waiting[call_id]

    def answer(self, result: ToolResult) -> bool:
        """Hand an answer over. False: nobody waits for it."""
        waiting = self._waiting.get(result.call_id)
        if waiting is None or waiting.answer.done():
            return False
        waiting.answer.set_result(result)
        return True
