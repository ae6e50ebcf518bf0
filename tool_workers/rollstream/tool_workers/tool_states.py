"""State of one's own that a tool keeps per session: made at the session's first call, taken down when it is over.

A state belongs to one incarnation of a session and is never handed to another. What its set-up cannot do is
infrastructure; what its taking down cannot do is logged and counted, and troubles nobody.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TypeVar, cast

from rollstream.schemas.errors import TransientError
from rollstream.tool_workers import metrics

logger = logging.getLogger(__name__)

MAX_ENDING = 100_000
"""Sessions whose states wait to be taken down."""


@dataclass(frozen=True)
class SessionInfo:
    """Whose state it is. An incarnation is never used twice."""

    session_id: str
    trajectory_id: str
    incarnation: str


class ToolState:
    """Subclass it, and annotate a parameter of a tool with the subclass: calls of one session share one instance.

    All tools that name the same subclass share it too. It runs in the worker: keep model-written code out of it.
    """

    async def setup(self, session: SessionInfo) -> None:
        """Before the first call that needs it. What it raises makes the call a ``worker_error``."""

    async def teardown(self) -> None:
        """After the last call, when the session is over, lost or idle, or the worker leaves."""


S = TypeVar("S", bound=ToolState)


@dataclass
class _Entry:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    state: ToolState | None = None
    is_over: bool = False


class ToolStates:
    """The states of all sessions of a worker.

    Args:
        timeout_s: what a set-up or a taking down may take.
    """

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._entries: dict[str, dict[type[ToolState], _Entry]] = {}
        self._ending: asyncio.Queue[str | None] = asyncio.Queue(MAX_ENDING)

    def __len__(self) -> int:
        return sum(entry.state is not None for entries in self._entries.values() for entry in entries.values())

    async def of(self, kind: type[S], session: SessionInfo) -> S:
        """The session's state of this kind; siblings that come first together share one set-up.

        Raises:
            TransientError: it cannot be set up.
        """
        entry = self._entries.setdefault(session.incarnation, {}).setdefault(kind, _Entry())
        async with entry.lock:
            if entry.is_over:
                raise _ended(kind, session)
            if entry.state is None:
                try:
                    state = kind()
                    async with asyncio.timeout(self._timeout_s):
                        await state.setup(session)
                except Exception as error:
                    raise TransientError(f"state {kind.__name__!r} cannot be set up: {error!r}") from error
                if entry.is_over:
                    await self._take_down(state)
                    raise _ended(kind, session)
                entry.state = state
            return cast("S", entry.state)

    def end_session(self, incarnation: str) -> None:
        """The session is over: its states are taken down soon. Returns at once; safe to repeat."""
        for entry in self._entries.get(incarnation, {}).values():
            entry.is_over = True
        if incarnation in self._entries and not self._ending.full():
            self._ending.put_nowait(incarnation)

    async def run(self) -> None:
        """Take down what is over, each session beside the others, until ``stop`` and what was begun is done."""
        async with asyncio.TaskGroup() as group:
            while (incarnation := await self._ending.get()) is not None:
                group.create_task(self._end(incarnation))

    async def stop(self) -> None:
        """Have ``run`` end after what it has been told of so far."""
        await self._ending.put(None)

    async def close(self) -> None:
        """Take down everything."""
        async with asyncio.TaskGroup() as group:
            for incarnation in list(self._entries):
                group.create_task(self._end(incarnation))

    async def _end(self, incarnation: str) -> None:
        for entry in self._entries.pop(incarnation, {}).values():
            entry.is_over = True
            state, entry.state = entry.state, None
            if state is not None:
                await self._take_down(state)

    async def _take_down(self, state: ToolState) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await state.teardown()
        except Exception:
            metrics.FAILED_TEARDOWNS.labels(type(state).__name__).inc()
            logger.warning("state %s was not taken down", type(state).__name__, exc_info=True)


def _ended(kind: type[ToolState], session: SessionInfo) -> TransientError:
    return TransientError(f"session {session.session_id!r} is over, it is given no state {kind.__name__!r}")
