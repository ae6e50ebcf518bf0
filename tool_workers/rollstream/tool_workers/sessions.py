"""Which calls are run, answered from memory, or refused. Pure and synchronous; knows no Kafka, sandbox or clock.

A session is the sandbox of one attempt of an episode. Its state is named by a token: its incarnation and the set of
all calls it has run. A call is run only in the state its episode knows, so that a session is never continued from
another past than the one in the episode's journal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall, ToolResult


@dataclass(frozen=True)
class Run:
    """Run the call. ``commits_first``: only after its record can never be delivered again."""

    commits_first: bool = False


@dataclass(frozen=True)
class Join:
    """The same call is running: its result is the answer to this one too."""


@dataclass(frozen=True)
class Replay:
    """The same call has run: this is its result."""

    result: ToolResult


@dataclass(frozen=True)
class Refuse:
    """Do not run it; infrastructure, never text for the model."""

    status: Literal["session_lost", "expired", "outcome_unknown"]
    reason: str


Admission = Run | Join | Replay | Refuse


@dataclass
class Session:
    """What is remembered of one session: its state, and the results of its present turn."""

    incarnation: str
    turn: int
    base: str | None
    """The token that the present turn's calls carry."""
    last_used: float
    ran: set[str] = field(default_factory=set[str])
    running: set[str] = field(default_factory=set[str])
    results: dict[str, ToolResult] = field(default_factory=dict[str, ToolResult])

    @property
    def token(self) -> str:
        """The present state."""
        return ids.session_token(self.incarnation, self.ran)

    def takes(self, call: ToolCall) -> bool:
        """Whether the call continues the present turn or begins the next one from the present state."""
        if call.turn == self.turn and call.token == self.base:
            return True
        if call.token != self.token:
            return False
        self.base, self.turn = call.token, call.turn
        self.results.clear()
        return True


class SessionLedger:
    """All sessions of this worker and the latest results of tools without state.

    Args:
        new_incarnation: a name no sandbox ever had.
        remembered_results: results of calls without a session that are kept.
    """

    def __init__(self, *, new_incarnation: Callable[[], str], remembered_results: int) -> None:
        self._new_incarnation = new_incarnation
        self._remembered_results = remembered_results
        self._sessions: dict[str, Session] = {}
        self._results: OrderedDict[str, ToolResult] = OrderedDict()
        self._running: set[str] = set()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def admit(self, call: ToolCall, *, now: float, is_idempotent: bool = True) -> Admission:
        """Decide about a call and, if it is to be run, take note that it runs. ``session_id`` None: no session."""
        if call.session_id is None:
            return self._admit_without_session(call, now, is_idempotent)
        session = self._sessions.get(call.session_id)
        if session is not None:
            if call.call_id in session.running:
                return Join()
            if (known := session.results.get(call.call_id)) is not None:
                session.last_used = now
                return Replay(known)
        if now >= call.deadline:
            return _expired(call, now)
        if session is None:
            if call.token is not None:
                return Refuse("session_lost", f"session {call.session_id!r} is not open on this worker")
            session = self._sessions[call.session_id] = Session(self._new_incarnation(), call.turn, None, now)
        elif not session.takes(call):
            return Refuse("session_lost", f"session {call.session_id!r} is in another state than the episode's")
        session.last_used = now
        session.ran.add(call.call_id)
        session.running.add(call.call_id)
        return Run()

    def complete(self, call: ToolCall, result: ToolResult, *, now: float) -> ToolResult:
        """The call has run: remember its result, stamped with the session's incarnation and token."""
        if call.session_id is None:
            self._running.discard(call.call_id)
            self._results[call.call_id] = result
            while len(self._results) > self._remembered_results:
                self._results.popitem(last=False)
            return result
        session = self._sessions.get(call.session_id)
        if session is None or call.call_id not in session.running:
            return msgspec.structs.replace(
                result, status="session_lost", content=f"session {call.session_id!r} was closed during the call"
            )
        session.running.discard(call.call_id)
        session.last_used = now
        result = msgspec.structs.replace(result, incarnation=session.incarnation, token=session.token)
        if call.turn == session.turn:
            session.results[call.call_id] = result
        return result

    def abandon(self, call: ToolCall) -> None:
        """The call has no result worth keeping (infrastructure failed): without a session it may be run again."""
        if call.session_id is None:
            self._running.discard(call.call_id)

    def close(self, session_id: str) -> None:
        """Forget a session; later calls with a token are answered ``session_lost``."""
        self._sessions.pop(session_id, None)

    def idle_since(self, moment: float) -> list[str]:
        """Sessions without a running call and unused since ``moment``, the one idle longest first."""
        idle = [
            (session.last_used, session_id)
            for session_id, session in self._sessions.items()
            if not session.running and session.last_used <= moment
        ]
        return [session_id for _, session_id in sorted(idle)]

    def _admit_without_session(self, call: ToolCall, now: float, is_idempotent: bool) -> Admission:
        if call.call_id in self._running:
            return Join()
        if (known := self._results.get(call.call_id)) is not None:
            return Replay(known)
        if now >= call.deadline:
            return _expired(call, now)
        if not is_idempotent and not call.is_first:
            return Refuse("outcome_unknown", f"call {call.call_id!r} of {call.tool!r} may have been run before")
        self._running.add(call.call_id)
        return Run(commits_first=not is_idempotent)


def _expired(call: ToolCall, now: float) -> Refuse:
    return Refuse("expired", f"call {call.call_id!r} arrived {now - call.deadline:.1f} s after its deadline")
