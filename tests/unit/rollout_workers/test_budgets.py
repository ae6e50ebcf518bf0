"""Budgets: infrastructure and data failures are counted apart, and both end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.budgets import AttemptBudgets, AttemptHistory, FailureKind, failure_kind
from rollstream.schemas.errors import DataError, EngineError, SessionLostError, TransientError


@pytest.mark.parametrize("error", [TransientError("x"), EngineError("x"), SessionLostError("x")])
def test_infrastructure_says_so_by_its_type(error: Exception) -> None:
    assert failure_kind(error) == "infrastructure"


@pytest.mark.parametrize("error", [DataError("x"), ValueError("x"), KeyError("x")])
def test_whatever_else_escapes_an_agent_is_its_own_doing(error: Exception) -> None:
    assert failure_kind(error) == "data"


@given(st.lists(st.sampled_from(["infrastructure", "data"]), max_size=30))
def test_a_task_ends_within_its_budgets(failures: list[FailureKind]) -> None:
    budgets = AttemptBudgets(infra=5, data=2)
    history = AttemptHistory()
    for kind in failures:
        if history.is_spent(budgets):
            break
        history = history.after(kind)
    assert history.infra <= 5
    assert history.data <= 2
    assert history.next_attempt == history.infra + history.data + 1
    assert history.is_spent(budgets) == (history.infra == 5 or history.data == 2)


def test_the_pause_doubles_with_infrastructure_failures_and_is_bounded() -> None:
    pauses = [AttemptHistory(infra=n).pause_s for n in range(12)]
    assert pauses[:4] == [0.0, 0.25, 0.5, 1.0]
    assert max(pauses) == 15.0


def test_a_data_failure_is_retried_at_once() -> None:
    assert AttemptHistory(data=1).pause_s == 0.0
