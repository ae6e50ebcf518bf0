"""`tool-calls.<toolset>` and `tool-results`: the request/reply pair between an episode and a tool worker.

The caller owns time-out and retry; ``call_id`` is the idempotency key; ``token`` is the state of the session that the
episode knows. A worker in any other state answers ``session_lost``. A session ends with its attempt.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import WorkspaceSpec

ToolStatus = Literal[
    "ok",
    "error",
    "timeout",
    "limit",
    "unknown_tool",
    "invalid_arguments",
    "session_lost",
    "expired",
    "busy",
    "outcome_unknown",
    "worker_error",
]
"""``ok error timeout limit unknown_tool invalid_arguments`` are answers the model reads (its own doing, or the
tool's); ``session_lost expired busy outcome_unknown worker_error`` are infrastructure and never become text the model
is trained on. ``busy`` settles nothing: the call has not begun, there is no place for it yet, and its caller asks again
under a later deadline."""

RESERVED_PREFIX = "rollstream."
"""Of tools that only rollout workers call; none of them can be in a task."""
GRADE_TOOL = "rollstream.grade"
"""Grades what an episode has left behind; answers with a `Grade` as JSON."""

GRADERS = ("unit_tests", "call_cases", "program_cases", "command_tests")
"""Rewards that every tool worker can grade."""
OWN_GRADER = "grader:"
"""Begins the name of a reward that one of its user's own graders grades."""

OBSERVABLE_STATUSES: frozenset[str] = frozenset(
    {"ok", "error", "timeout", "limit", "unknown_tool", "invalid_arguments"}
)


class ToolCall(Message, frozen=True, kw_only=True):
    """One call. Key: ``session_id`` (``call_id`` when the tool has no session)."""

    topic: ClassVar[str] = "tool-calls"

    call_id: str
    session_id: str | None
    """None for a tool without state."""
    turn: int
    """The turn of the episode; calls of one turn are siblings and run beside one another."""
    token: str | None
    """State of the session after the previous turn as the journal knows it; None while it has never answered."""
    tool: str
    arguments: str
    """The arguments object as JSON text, exactly as the episode recorded it."""
    deadline: float
    """Unix seconds; a worker refuses an expired call before running it."""
    timeout_s: float
    reply_topic: str
    reply_partition: int
    is_first: bool = True
    """True only if the caller sampled the call itself and has never sent it before (non-idempotent tools)."""
    trajectory_id: str = ""
    """For logs and traces only."""
    workspace: WorkspaceSpec | msgspec.UnsetType = msgspec.UNSET
    """What a session's sandbox holds before its first call."""


class Grade(msgspec.Struct, frozen=True):
    """What a grader found. ``report`` is for people, and never shown to a model."""

    reward: float
    components: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    report: str = ""


class SessionEnd(Message, frozen=True, kw_only=True):
    """A session is over for good: nobody will call in it any more. Key: ``session_id``, as that of its calls.

    Best effort and never answered; without it a session ends when it has been idle for long enough. It is written only
    after `end` or `attempt_end` of the attempt counts in the journal. A session id names the birth of its attempt, so
    whoever writes it, however late and often, a zombie included, ends no session that an attempt still uses.
    """

    topic: ClassVar[str] = "tool-calls"

    session_id: str


class ToolResult(Message, frozen=True, kw_only=True):
    """The answer to one call. Partition: the caller's ``reply_partition``. Key: ``call_id``."""

    topic: ClassVar[str] = "tool-results"

    call_id: str
    session_id: str | None
    status: ToolStatus
    content: str
    """What the model reads, already capped and cleaned of control characters."""
    incarnation: str | None = None
    """The sandbox that ran it; None for a tool without state."""
    token: str | None = None
    """State of the session after this call: digest of (incarnation, all call ids run)."""
    is_truncated: bool = False
    run_s: float = 0.0
    queue_s: float = 0.0
    worker_id: str = ""
    metrics: dict[str, float] = msgspec.field(default_factory=dict[str, float])
