from __future__ import annotations

import itertools

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.result_memory import ResultMemory
from rollstream.tool_workers.sessions import Join, Refuse, Replay, Run, SessionLedger

NOW = 1000.0


def new_ledger(remembered_results: int = 100, remembered_bytes: int = 10**6) -> SessionLedger:
    names = (f"incarnation-{n}" for n in itertools.count())
    return SessionLedger(
        new_incarnation=lambda: next(names),
        remembered_results=remembered_results,
        remembered_bytes=remembered_bytes,
    )


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
    admission = ledger.admit(each, now=NOW)
    assert isinstance(admission, Run)
    return ledger.complete(each, admission, ok(each.call_id), now=NOW)


def begin(ledger: SessionLedger, each: ToolCall, *, is_idempotent: bool = True) -> Run:
    admission = ledger.admit(each, now=NOW, is_idempotent=is_idempotent)
    assert isinstance(admission, Run)
    return admission


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
    first, second = begin(ledger, call("a")), begin(ledger, call("b"))
    ledger.complete(call("b"), second, ok("b"), now=NOW)
    assert ledger.complete(call("a"), first, ok("a"), now=NOW).token == ids.session_token("incarnation-0", ["a", "b"])


def test_the_next_turn_runs_from_the_present_state_and_forgets_older_results() -> None:
    ledger = new_ledger()
    first = run(ledger, call("a"))
    run(ledger, call("b", turn=1, token=first.token))
    assert status(ledger.admit(call("a"), now=NOW)) == "session_lost"


def test_a_late_sibling_of_the_present_turn_is_run() -> None:
    ledger = new_ledger()
    first = run(ledger, call("a"))
    run(ledger, call("b", turn=1, token=first.token))
    assert begin(ledger, call("c", turn=1, token=first.token)).incarnation == first.incarnation


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
    admission = begin(ledger, call("a"))
    assert ledger.close("s") == admission.incarnation
    assert ledger.complete(call("a"), admission, ok("a"), now=NOW).status == "session_lost"


def test_a_call_of_a_closed_session_has_nothing_to_do_with_the_next_one_of_that_name() -> None:
    ledger = new_ledger()
    old = begin(ledger, call("a"))
    ledger.close("s")
    new = begin(ledger, call("a"))
    assert ledger.complete(call("a"), old, ok("a"), now=NOW).status == "session_lost"
    ledger.withdraw(call("a"), old)
    assert ledger.close("s", old.incarnation) is None
    assert ledger.complete(call("a"), new, ok("a"), now=NOW).incarnation == new.incarnation != old.incarnation


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
        admission = ledger.admit(each, now=now)
        if session_id != "s3":
            assert isinstance(admission, Run)
            ledger.complete(each, admission, ok("a"), now=now)
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
    result = ledger.complete(first, Run(commits_first=True), ok("a"), now=NOW)
    assert ledger.admit(again, now=NOW, is_idempotent=False) == Replay(result)


def test_a_harmful_call_that_may_have_opened_a_session_elsewhere_is_of_unknown_outcome() -> None:
    ledger = new_ledger()
    for each in (call("a", is_first=False), call("a", is_first=False, token="elsewhere", turn=1)):
        assert status(ledger.admit(each, now=NOW, is_idempotent=False)) == "outcome_unknown"
        assert len(ledger) == 0
    late = call("a", is_first=False, deadline=NOW)
    assert status(ledger.admit(late, now=NOW, is_idempotent=False)) == "outcome_unknown"


def test_a_harmful_call_that_a_session_knows_not_to_have_run_is_run_however_often_it_was_sent() -> None:
    ledger = new_ledger()
    first = run(ledger, call("a"))
    again = call("b", turn=1, token=first.token, is_first=False)
    admission = begin(ledger, again, is_idempotent=False)
    assert admission == Run(first.incarnation, commits_first=True)
    ledger.withdraw(again, admission)
    assert begin(ledger, again, is_idempotent=False) == admission


def test_a_result_that_had_to_be_forgotten_is_not_run_for_again() -> None:
    ledger = new_ledger(remembered_bytes=1)
    first = run(ledger, call("a"))
    assert ledger.admit(call("a"), now=NOW) == Replay(first)
    run(ledger, call("a", session_id="another"))
    assert status(ledger.admit(call("a"), now=NOW)) == "session_lost"
    assert begin(ledger, call("b", turn=1, token=first.token)).incarnation == first.incarnation


def test_results_are_kept_up_to_a_number_and_up_to_a_size() -> None:
    few = ResultMemory(max_results=2, max_bytes=10**9)
    small = ResultMemory(max_results=None, max_bytes=10_000)
    for memory in (few, small):
        for number in range(1, 4):
            memory.keep(("s", str(number)), ok("x" * 3000))
        assert [memory.get(("s", str(number))) is not None for number in range(1, 4)] == [False, True, True]
        memory.forget([("s", "2"), ("s", "3"), ("s", "4")])
        assert (len(memory), memory.size_bytes) == (0, 0)


def test_a_withdrawn_call_without_a_session_may_run_again() -> None:
    ledger = new_ledger()
    each = call("a", session_id=None)
    ledger.withdraw(each, begin(ledger, each))
    assert ledger.admit(call("a", session_id=None), now=NOW) == Run()


def test_a_withdrawn_first_call_leaves_no_session_and_may_come_again() -> None:
    ledger = new_ledger()
    withdrawn = begin(ledger, call("a"))
    assert ledger.withdraw(call("a"), withdrawn) == withdrawn.incarnation
    assert "s" not in ledger
    assert begin(ledger, call("a")).incarnation != withdrawn.incarnation


def test_a_session_stays_for_the_siblings_of_a_withdrawn_call() -> None:
    ledger = new_ledger()
    withdrawn = begin(ledger, call("a"))
    sibling = run(ledger, call("b"))
    assert ledger.withdraw(call("a"), withdrawn) is None
    assert sibling.token == ids.session_token("incarnation-0", ["a", "b"])
    again = run(ledger, call("a"))
    assert again.token == ids.session_token("incarnation-0", ["a", "b"])


def test_an_ended_session_is_forgotten_with_its_results() -> None:
    ledger = new_ledger()
    result = run(ledger, call("a"))
    assert ledger.end("s") == result.incarnation
    assert ledger.end("s") is None
    assert len(ledger) == 0
    assert isinstance(ledger.admit(call("b", turn=1, token=result.token), now=NOW), Refuse)


def test_a_session_that_ends_while_a_call_runs_goes_with_the_last_one_and_takes_no_other() -> None:
    ledger = new_ledger()
    first, second = begin(ledger, call("a")), begin(ledger, call("b"))
    assert ledger.end("s") is None
    assert ledger.admit(call("a"), now=NOW) == Join()
    assert isinstance(ledger.admit(call("c"), now=NOW), Refuse)
    assert ledger.complete(call("a"), first, ok("a"), now=NOW).status == "ok"
    assert ledger.close_if_over("s") is None
    ledger.complete(call("b"), second, ok("b"), now=NOW)
    assert ledger.close_if_over("s") == first.incarnation
    assert ledger.close_if_over("s") is None


def test_only_an_ended_session_is_closed_when_its_calls_have_ended() -> None:
    ledger = new_ledger()
    run(ledger, call("a"))
    assert ledger.close_if_over("s") is None
    assert ledger.end("another") is None
    assert "s" in ledger
