"""How often a task is tried, and what is done for it next. Pure.

Infrastructure failures (engine, session, time-outs of ours), data failures (the agent raises, is not deterministic) and
starts after which the worker was never heard of again have budgets of their own: a bad task must not eat five tries, a
bad night must not fail a good task, a poisonous task must not kill workers for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rollstream.schemas.errors import DataError, RollstreamError, TransientError
from rollstream.schemas.journal import AttemptFailure, TerminalRecord
from rollstream.transport.journal.task_state import TaskState

FailureKind = Literal["infrastructure", "data"]

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
GIVE_UP_TRIES = 3
"""So often workers may die over saying that a task has failed, which means a look at its body."""


class PoisonousTaskError(RollstreamError):
    """The workers that began the task were never heard of again, too often."""


@dataclass(frozen=True, slots=True)
class AttemptBudgets:
    """How much of each a task may have before it ends as ``failed``."""

    infra: int = 5
    data: int = 2
    crashes: int = 5
    """Starts and resumptions in a row after which nothing more was heard."""
    suspect_after: int = 2
    """So many of them make a task a suspect: it runs when no other suspect does."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is left to do."""


@dataclass(frozen=True, slots=True)
class Publish:
    """It is decided how the task ends: let everybody know."""

    end: TerminalRecord


@dataclass(frozen=True, slots=True)
class Abandon:
    """Even saying that the task has failed has killed workers: leave it, without another look at its body."""

    failure: AttemptFailure


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A budget is spent: the task ends as ``failed``."""

    failure: AttemptFailure
    attempt: int
    is_suspect: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin an attempt, or go on with it, ``pause_s`` from now."""

    attempt: int
    is_suspect: bool
    pause_s: float


Step = Finished | Publish | Abandon | GiveUp | Begin


def next_step(state: TaskState | None, budgets: AttemptBudgets) -> Step:
    """What the journal says must be done for a task."""
    if state is None:
        return Begin(attempt=1, is_suspect=False, pause_s=0.0)
    if state.is_done:
        return Finished()
    if state.end is not None:
        return Publish(state.end)
    unclean = state.unclean
    if unclean >= budgets.crashes + GIVE_UP_TRIES:
        return Abandon(_poisonous(unclean))
    if unclean >= budgets.crashes:
        return GiveUp(_poisonous(unclean), state.attempt, is_suspect=True)
    is_suspect = unclean >= budgets.suspect_after
    if state.failure is not None and (state.infra >= budgets.infra or state.data >= budgets.data):
        return GiveUp(state.failure, state.attempt, is_suspect)
    return Begin(
        attempt=state.attempt,
        is_suspect=is_suspect,
        pause_s=pause_s(state.infra) if state.birth is None else 0.0,
    )


def _poisonous(unclean: int) -> AttemptFailure:
    return AttemptFailure(
        kind="infrastructure",
        type=PoisonousTaskError.__name__,
        message=f"{unclean} workers in a row began the task and were never heard of again: it kills them, or they "
        "were killed",
    )


def pause_s(infra: int) -> float:
    """How long to wait before a fresh attempt: doubles with every infrastructure failure."""
    return 0.0 if infra == 0 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (infra - 1))


def failure_kind(error: Exception) -> FailureKind:
    """Infrastructure says so by its type; whatever else an agent lets escape is its own doing."""
    return "infrastructure" if isinstance(error, TransientError) else "data"


def stop_reason(failure: AttemptFailure) -> Literal["infrastructure", "agent_error", "invalid_task"]:
    """Of a task that ends as ``failed``."""
    if failure.kind == "infrastructure":
        return "infrastructure"
    return "invalid_task" if failure.type in _TASK_ERRORS else "agent_error"


_TASK_ERRORS = frozenset({DataError.__name__})
