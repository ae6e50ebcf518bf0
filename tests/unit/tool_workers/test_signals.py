from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.signals import MAX_SIGNALS, NAME, bounded, signals_of


def execution(**changed: Any) -> Execution:
    plain: dict[str, Any] = {"exit_code": 0, "cause": None, "head": "", "tail": "", "total_bytes": 0, "run_s": 0.0}
    return Execution(**(plain | changed))


def test_an_honest_program_gives_no_signal() -> None:
    assert signals_of(execution()) == {}
    assert signals_of(execution(exit_code=1)) == {}


def test_refusals_network_and_limits_are_signals() -> None:
    found = signals_of(execution(cause="memory", denied={"ptrace": 2, "unshare": 1, "internet_socket": 3}))
    assert found == {
        "denied": 3.0,
        "denied_ptrace": 2.0,
        "denied_unshare": 1.0,
        "network_attempts": 3.0,
        "killed_memory": 1.0,
    }


@given(st.dictionaries(st.text(max_size=50), st.floats(), max_size=100))
def test_signals_are_few_finite_and_plainly_named(given_: dict[str, float]) -> None:
    kept = bounded(given_)
    assert len(kept) <= MAX_SIGNALS
    assert all(NAME.fullmatch(name) and 0 <= value <= 1e9 for name, value in kept.items())


def test_totals_come_before_details() -> None:
    kept = bounded({f"denied_{n:03}": 1.0 for n in range(100)} | {"denied": 100.0, "killed_cpu": 1.0})
    assert {"denied", "killed_cpu"} <= kept.keys()
