"""Which calls are run, answered from memory, or refused. Pure and synchronous; knows no Kafka, sandbox or clock.

A session is the sandbox of one attempt of an episode. Its state is named by a token: its incarnation and the set of
all calls it has run. A call is run only in the state its episode knows, so that a session is never continued from
another past than the one in the episode's journal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.result_memory import ResultMemory

DEFAULT_REMEMBERED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Run:
    """Run the call. ``commits_first``: only after its record can never be delivered again."""

    incarnation: str | None = None
    """The sandbox to run it in; None for a call without a session."""
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
    """What is remembered of one session: its state and its present turn."""

    incarnation: str
    turn: int
    base: str | None
    """The token that the present turn's calls carry."""
    last_used: float
    opened_at: float = 0.0
    ran: set[str] = field(default_factory=set[str])
    """All calls ever begun, the running ones among them."""
    running: set[str] = field(default_factory=set[str])
    answered: set[str] = field(default_factory=set[str])
    """Calls of the present turn whose results are kept."""
    is_over: bool = False
    """Its attempt has ended: nothing new is run in it."""

    @property
    def token(self) -> str:
        """The present state."""
        return ids.session_token(self.incarnation, self.ran)

    def continues(self, call: ToolCall) -> bool:
        """Whether the call belongs to the present turn."""
        return call.turn == self.turn and call.token == self.base


class SessionLedger:
    """All sessions of this worker and the latest results of tools without state.

    Args:
        new_incarnation: a name no sandbox ever had.
        remembered_results: results of calls without a session that are kept.
        remembered_bytes: memory for those results, and as much again for results in sessions. A session's result that
            had to be forgotten is lost: the call is not run again there.
        on_close: told of every incarnation that is over; may only take note.
    """

    def __init__(
        self,
        *,
        new_incarnation: Callable[[], str],
        remembered_results: int,
        remembered_bytes: int = DEFAULT_REMEMBERED_BYTES,
        on_close: Callable[[str], None] | None = None,
    ) -> None:
        self._on_close = on_close
        self._new_incarnation = new_incarnation
        self._sessions: dict[str, Session] = {}
        self._session_results = ResultMemory(max_results=None, max_bytes=remembered_bytes)
        self._results = ResultMemory(max_results=remembered_results, max_bytes=remembered_bytes)
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
        if session is not None and call.call_id in session.ran:
            return self._known(session, call, now)
        # With a token the call can have run in the session it names only, and there it has not.
        if not is_idempotent and not call.is_first and (session is None or call.token is None):
            return _outcome_unknown(call)
        if now >= call.deadline:
            return _expired(call, now)
        if session is None:
            if call.token is not None:
                return Refuse("session_lost", f"session {call.session_id!r} is not open on this worker")
            session = self._sessions[call.session_id] = Session(self._new_incarnation(), call.turn, None, now, now)
        elif not self._takes(session, call):
            return Refuse("session_lost", f"session {call.session_id!r} is in another state than the episode's")
        session.last_used = now
        session.ran.add(call.call_id)
        session.running.add(call.call_id)
        return Run(session.incarnation, commits_first=not is_idempotent)

    def complete(self, call: ToolCall, run: Run, result: ToolResult, *, now: float) -> ToolResult:
        """The call has run: remember its result, stamped with the session's incarnation and token."""
        if call.session_id is None:
            self._running.discard(call.call_id)
            self._results.keep(("", call.call_id), result)
            return result
        session = self._open(call.session_id, run.incarnation)
        if session is None:
            return msgspec.structs.replace(
                result, status="session_lost", content=f"session {call.session_id!r} was closed during the call"
            )
        session.running.discard(call.call_id)
        session.last_used = now
        result = msgspec.structs.replace(result, incarnation=session.incarnation, token=session.token)
        if session.continues(call):
            session.answered.add(call.call_id)
            self._session_results.keep((session.incarnation, call.call_id), result)
        return result

    def withdraw(self, call: ToolCall, run: Run) -> str | None:
        """The call was not run, or (without a session) its result is not worth keeping: as if it had never come.

        Returns the sandbox that has no session now, because no call but this one was ever meant for it.
        """
        if call.session_id is None:
            self._running.discard(call.call_id)
            return None
        session = self._open(call.session_id, run.incarnation)
        if session is None:
            return None
        session.running.discard(call.call_id)
        session.ran.discard(call.call_id)
        return None if session.ran else self.close(call.session_id)

    def is_open(self, session_id: str, incarnation: str | None) -> bool:
        """Whether the session still is the one with this sandbox."""
        return self._open(session_id, incarnation) is not None

    def close(self, session_id: str, incarnation: str | None = None) -> str | None:
        """Forget a session; later calls with a token are answered ``session_lost``.

        With ``incarnation``: only if it is the one with this sandbox. Returns the sandbox that has no session now.
        """
        session = self._sessions.get(session_id)
        if session is None or incarnation not in (None, session.incarnation):
            return None
        del self._sessions[session_id]
        self._forget_results(session)
        if self._on_close is not None:
            self._on_close(session.incarnation)
        return session.incarnation

    def end(self, session_id: str) -> str | None:
        """The session's attempt is over: close it, once no call of it runs. Returns as ``close``."""
        session = self._sessions.get(session_id)
        if session is None:
            return None
        session.is_over = True
        return self.close_if_over(session_id)

    def close_if_over(self, session_id: str) -> str | None:
        """Close a session that was ended while a call of it ran, if none does now. Returns as ``close``."""
        session = self._sessions.get(session_id)
        return self.close(session_id) if session is not None and session.is_over and not session.running else None

    def idle_since(self, moment: float) -> list[str]:
        """Sessions without a running call and unused since ``moment``, the one idle longest first."""
        idle = [
            (session.last_used, session_id)
            for session_id, session in self._sessions.items()
            if not session.running and session.last_used <= moment
        ]
        return [session_id for _, session_id in sorted(idle)]

    def opened_before(self, moment: float) -> list[str]:
        """Sessions opened before ``moment``, whatever runs in them."""
        return [session_id for session_id, session in self._sessions.items() if session.opened_at < moment]

    def _known(self, session: Session, call: ToolCall, now: float) -> Admission:
        if call.call_id in session.running:
            return Join()
        result = self._session_results.get((session.incarnation, call.call_id))
        if result is None:
            return Refuse("session_lost", f"call {call.call_id!r} has run and its result is no longer kept")
        session.last_used = now
        return Replay(result)

    def _takes(self, session: Session, call: ToolCall) -> bool:
        """Whether the call belongs to the present turn or begins the next one from the present state."""
        if session.is_over:
            return False
        if session.continues(call):
            return True
        if call.token != session.token:
            return False
        session.base, session.turn = call.token, call.turn
        self._forget_results(session)
        return True

    def _forget_results(self, session: Session) -> None:
        self._session_results.forget((session.incarnation, call_id) for call_id in session.answered)
        session.answered.clear()

    def _open(self, session_id: str, incarnation: str | None) -> Session | None:
        session = self._sessions.get(session_id)
        return session if session is not None and session.incarnation == incarnation else None

    def _admit_without_session(self, call: ToolCall, now: float, is_idempotent: bool) -> Admission:
        if call.call_id in self._running:
            return Join()
        if (known := self._results.get(("", call.call_id))) is not None:
            return Replay(known)
        if not is_idempotent and not call.is_first:
            return _outcome_unknown(call)
        if now >= call.deadline:
            return _expired(call, now)
        self._running.add(call.call_id)
        return Run(commits_first=not is_idempotent)


def _outcome_unknown(call: ToolCall) -> Refuse:
    return Refuse("outcome_unknown", f"call {call.call_id!r} of {call.tool!r} may have been run before")


def _expired(call: ToolCall, now: float) -> Refuse:
    return Refuse("expired", f"call {call.call_id!r} arrived {now - call.deadline:.1f} s after its deadline")
