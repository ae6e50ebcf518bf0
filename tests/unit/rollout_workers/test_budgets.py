"""Budgets: infrastructure, data and deadly failures are counted apart, and each ends; the journal says what is next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.budgets import (
    Abandon,
    AttemptBudgets,
    Begin,
    FailureKind,
    Finished,
    GiveUp,
    Publish,
    failure_kind,
    next_step,
    pause_s,
    stop_reason,
)
from rollstream.schemas.errors import DataError, EngineError, SessionLostError, TransientError
from rollstream.schemas.journal import AttemptFailure, TerminalRecord
from rollstream.transport.journal.task_state import StartKey, TaskState


@pytest.mark.parametrize("error", [TransientError("x"), EngineError("x"), SessionLostError("x")])
def test_infrastructure_says_so_by_its_type(error: Exception) -> None:
    assert failure_kind(error) == "infrastructure"


@pytest.mark.parametrize("error", [DataError("x"), ValueError("x"), KeyError("x")])
def test_whatever_else_escapes_an_agent_is_its_own_doing(error: Exception) -> None:
    assert failure_kind(error) == "data"


def state(*, infra: int = 0, data: int = 0, unclean: int = 0, is_begun: bool = True) -> TaskState:
    """A task after some failures and some starts of which nothing was heard."""
    failure = AttemptFailure(kind="data" if data else "infrastructure", type="X", message="x") if infra + data else None
    attempt = infra + data + 1
    return TaskState(
        first_offset=0,
        task_offset=0,
        attempt=attempt,
        births={attempt: 9} if is_begun else {},
        starts={StartKey(attempt, n + 1, "w") for n in range(unclean)},
        infra=infra,
        data=data,
        failure=failure,
    )


@given(st.integers(0, 4), st.integers(0, 1), st.integers(0, 4))
def test_a_task_within_its_budgets_is_begun_and_one_that_kills_is_a_suspect(
    infra: int, data: int, unclean: int
) -> None:
    step = next_step(state(infra=infra, data=data, unclean=unclean), AttemptBudgets())
    assert isinstance(step, Begin)
    assert step.attempt == infra + data + 1
    assert step.is_suspect == (unclean >= 2)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_spent_budget_ends_the_task(infra: int, data: int, unclean: int) -> None:
    step = next_step(state(infra=infra, data=data, unclean=unclean), AttemptBudgets())
    is_spent = infra >= 5 or data >= 2
    assert isinstance(step, Begin) == (not is_spent and unclean < 5)
    assert isinstance(step, Abandon) == (unclean >= 8)
    assert isinstance(step, GiveUp) == (unclean < 8 and (unclean >= 5 or is_spent))


def test_a_task_nobody_has_heard_of_is_begun() -> None:
    assert next_step(None, AttemptBudgets()) == Begin(attempt=1, is_suspect=False, pause_s=0.0)


def test_a_task_whose_end_is_decided_is_published_whatever_its_budgets_say() -> None:
    decided = state(infra=9, unclean=9)
    decided.end = TerminalRecord(value=b"v", headers=[], key="k", partition=0, status="completed")
    assert next_step(decided, AttemptBudgets()) == Publish(decided.end)
    decided.is_done = True
    assert next_step(decided, AttemptBudgets()) == Finished()


def test_the_pause_doubles_with_infrastructure_failures_and_is_bounded() -> None:
    pauses = [pause_s(infra) for infra in range(12)]
    assert pauses[:4] == [0.0, 0.25, 0.5, 1.0]
    assert max(pauses) == 15.0


def test_there_is_a_pause_before_a_fresh_attempt_and_none_before_going_on() -> None:
    fresh, going_on = state(infra=2, is_begun=False), state(infra=2)
    assert [getattr(next_step(s, AttemptBudgets()), "pause_s", None) for s in (fresh, going_on)] == [0.5, 0.0]


def test_a_data_failure_is_retried_at_once() -> None:
    step = next_step(state(data=1, is_begun=False), AttemptBudgets())
    assert isinstance(step, Begin)
    assert step.pause_s == 0.0


@pytest.mark.parametrize(
    ("kind", "type_", "reason"),
    [
        ("infrastructure", "EngineError", "infrastructure"),
        ("data", "DataError", "invalid_task"),
        ("data", "ValueError", "agent_error"),
        ("data", "NondeterministicAgentError", "agent_error"),
    ],
)
def test_a_failed_task_says_whose_fault_it_was(kind: FailureKind, type_: str, reason: str) -> None:
    assert stop_reason(AttemptFailure(kind=kind, type=type_, message="")) == reason
