from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.sessions import Join, Refuse, Replay, Run, SessionLedger

NOW = 1000.0


def new_ledger(remembered_results: int = 100) -> SessionLedger:
    names = (f"incarnation-{n}" for n in itertools.count())
    return SessionLedger(new_incarnation=lambda: next(names), remembered_results=remembered_results)


def call(
    call_id: str,
    *,
    session_id: str | None = "s",
    turn: int = 0,
    token: str | None = None,
    deadline: float = NOW + 60,
    is_first: bool = True,
) -> ToolCall:
    return ToolCall(
        call_id=call_id,
        session_id=session_id,
        turn=turn,
        token=token,
        tool="bash",
        arguments="{}",
        deadline=deadline,
        timeout_s=10,
        reply_topic="tool-results",
        reply_partition=0,
        is_first=is_first,
    )


def ok(call_id: str) -> ToolResult:
    return ToolResult(call_id=call_id, session_id=None, status="ok", content=f"result of {call_id}")


def run(ledger: SessionLedger, each: ToolCall) -> ToolResult:
    assert ledger.admit(each, now=NOW) == Run()
    return ledger.complete(each, ok(each.call_id), now=NOW)


def status(admission: object) -> str | None:
    return admission.status if isinstance(admission, Refuse) else None


def test_a_first_call_opens_a_session_and_its_result_carries_the_token() -> None:
    result = run(new_ledger(), call("a"))
    assert result.incarnation == "incarnation-0"
    assert result.token == ids.session_token("incarnation-0", ["a"])


def test_a_known_call_is_answered_with_the_stored_result() -> None:
    ledger = new_ledger()
    result = run(ledger, call("a"))
    assert ledger.admit(call("a", is_first=False), now=NOW) == Replay(result)


def test_a_running_call_is_joined() -> None:
    ledger = new_ledger()
    ledger.admit(call("a"), now=NOW)
    assert ledger.admit(call("a"), now=NOW) == Join()


def test_siblings_of_a_turn_run_in_one_session_and_their_tokens_cover_both() -> None:
    ledger = new_ledger()
    assert ledger.admit(call("a"), now=NOW) == Run()
    assert ledger.admit(call("b"), now=NOW) == Run()
    ledger.complete(call("b"), ok("b"), now=NOW)
    assert ledger.complete(call("a"), ok("a"), now=NOW).token == ids.session_token("incarnation-0", ["a", "b"])


def test_the_next_turn_runs_from_the_present_state_and_forgets_older_results() -> None:
    ledger = new_ledger()
    first = run(ledger, call("a"))
    run(ledger, call("b", turn=1, token=first.token))
    assert status(ledger.admit(call("a"), now=NOW)) == "session_lost"


def test_a_late_sibling_of_the_present_turn_is_run() -> None:
    ledger = new_ledger()
    first = run(ledger, call("a"))
    run(ledger, call("b", turn=1, token=first.token))
    assert ledger.admit(call("c", turn=1, token=first.token), now=NOW) == Run()


def test_another_state_than_the_present_one_is_lost() -> None:
    ledger = new_ledger()
    run(ledger, call("a"))
    assert status(ledger.admit(call("b", turn=1, token="another"), now=NOW)) == "session_lost"
    assert status(ledger.admit(call("b", turn=1, token=None), now=NOW)) == "session_lost"


def test_a_token_for_a_session_that_is_not_here_is_lost() -> None:
    assert status(new_ledger().admit(call("b", turn=1, token="token"), now=NOW)) == "session_lost"


def test_an_expired_call_is_refused_but_its_known_result_is_given() -> None:
    ledger = new_ledger()
    result = run(ledger, call("a"))
    assert ledger.admit(call("a", deadline=NOW), now=NOW) == Replay(result)
    assert status(ledger.admit(call("b", deadline=NOW), now=NOW)) == "expired"
    assert status(new_ledger().admit(call("a", deadline=NOW), now=NOW)) == "expired"


def test_an_expired_first_call_opens_no_session() -> None:
    ledger = new_ledger()
    ledger.admit(call("a", deadline=NOW), now=NOW)
    assert len(ledger) == 0


def test_a_call_that_ends_after_its_session_was_closed_is_lost() -> None:
    ledger = new_ledger()
    ledger.admit(call("a"), now=NOW)
    ledger.close("s")
    assert ledger.complete(call("a"), ok("a"), now=NOW).status == "session_lost"


def test_a_session_opened_anew_is_another_incarnation() -> None:
    ledger = new_ledger()
    first = run(ledger, call("a"))
    ledger.close("s")
    again = run(ledger, call("a"))
    assert again.token != first.token
    assert status(ledger.admit(call("b", turn=1, token=first.token), now=NOW)) == "session_lost"


def test_only_sessions_without_running_calls_are_idle_the_longest_first() -> None:
    ledger = new_ledger()
    for session_id, now in (("s1", NOW + 2), ("s2", NOW + 1), ("s3", NOW)):
        each = call("a", session_id=session_id)
        ledger.admit(each, now=now)
        if session_id != "s3":
            ledger.complete(each, ok("a"), now=now)
    assert ledger.idle_since(NOW + 2) == ["s2", "s1"]
    assert ledger.idle_since(NOW + 1) == ["s2"]


def test_calls_without_a_session_are_remembered_up_to_a_number() -> None:
    ledger = new_ledger(remembered_results=2)
    for call_id in ("a", "b", "c"):
        run(ledger, call(call_id, session_id=None))
    assert isinstance(ledger.admit(call("c", session_id=None), now=NOW), Replay)
    assert ledger.admit(call("a", session_id=None), now=NOW) == Run()


def test_a_harmful_call_runs_only_as_the_first_and_after_its_commit() -> None:
    ledger = new_ledger()
    first, again = call("a", session_id=None), call("a", session_id=None, is_first=False)
    assert status(ledger.admit(again, now=NOW, is_idempotent=False)) == "outcome_unknown"
    assert ledger.admit(first, now=NOW, is_idempotent=False) == Run(commits_first=True)
    assert ledger.admit(again, now=NOW, is_idempotent=False) == Join()
    result = ledger.complete(first, ok("a"), now=NOW)
    assert ledger.admit(again, now=NOW, is_idempotent=False) == Replay(result)


def test_an_abandoned_call_without_a_session_may_run_again() -> None:
    ledger = new_ledger()
    ledger.admit(call("a", session_id=None), now=NOW)
    ledger.abandon(call("a", session_id=None))
    assert ledger.admit(call("a", session_id=None), now=NOW) == Run()


@given(st.lists(st.sampled_from(["next turn", "sibling", "resend", "close", "stale"]), max_size=30))
def test_a_session_never_runs_a_call_twice_nor_one_from_another_past(steps: list[str]) -> None:
    ledger = new_ledger()
    ran: dict[str, list[str]] = {}  # incarnation -> calls in the order they ran
    known: list[str] = []  # what the caller has been answered by the present incarnation
    token: str | None = None
    turn, base, incarnation = 0, None, None
    last: ToolCall | None = None
    for number, step in enumerate(steps):
        if step == "close":
            ledger.close("s")
            continue
        if step == "resend" and last is not None:
            each = last
        elif step == "stale":
            each = call(f"stale-{number}", turn=turn + 1, token=ids.session_token("elsewhere", known))
        elif step == "sibling" and last is not None:
            each = call(f"call-{number}", turn=turn, token=base)
        else:
            turn, base = turn + 1, token
            each = call(f"call-{number}", turn=turn, token=base)
        admission = ledger.admit(each, now=NOW)
        if step == "stale":
            assert status(admission) == "session_lost"
        if isinstance(admission, Run):
            result = ledger.complete(each, ok(each.call_id), now=NOW)
            assert result.incarnation is not None
            ran.setdefault(result.incarnation, []).append(each.call_id)
            if each.token is not None:  # continued: by the sandbox that gave the token, after exactly these calls
                assert result.incarnation == incarnation
            if result.incarnation != incarnation:
                incarnation, known = result.incarnation, []
            known.append(each.call_id)
            token, last = result.token, each
    for calls in ran.values():
        assert len(calls) == len(set(calls))
