"""Several workers' ledgers under an adversary: calls come late, twice, in any order and anywhere; workers crash.

Every planted error is a ledger with one rule removed; the same histories have to expose it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.tool_workers.sessions import Admission, Join, Refuse, Replay, Run, Session, SessionLedger

WORKERS = 2
WORKER = st.sampled_from([0, 0, 0, 1])
PICK = st.integers(0, 10**6)


@dataclass
class Running:
    worker: int
    call: ToolCall
    run: Run
    content: str
    is_harmless: bool
    offset: int


class Histories(RuleBasedStateMachine):
    """One episode and its journal; ``records`` is the log of calls, ``answers`` what is on its way back."""

    ledger_type: type[SessionLedger] = SessionLedger

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self.ledgers = [self.new_ledger() for _ in range(WORKERS)]
        self.now = 0.0
        self.records: list[tuple[ToolCall, bool]] = []  # a call and whether it is harmless
        self.committed: set[int] = set()
        self.running: list[Running] = []
        self.answers: list[ToolResult] = []
        self.ran: dict[str, list[ToolCall]] = {}  # incarnation -> calls in the order they began
        self.results: dict[tuple[str | None, str], str] = {}
        self.harm: dict[str, int] = {}
        self.named: dict[str | None, tuple[str | None, frozenset[str]]] = {None: (None, frozenset())}
        self.begin_attempt()

    def new_ledger(self) -> SessionLedger:
        return self.ledger_type(
            new_incarnation=lambda: f"box-{next(self.numbers)}", remembered_results=3, remembered_bytes=4000
        )

    def begin_attempt(self) -> None:
        self.session_id = f"session-{next(self.numbers)}"
        self.turn = 0
        self.incarnation: str | None = None
        self.lineage: list[str] = []
        self.token: str | None = None
        self.waiting: dict[str, ToolResult | None] = {}

    def send(self, *, token: str | None, turn: int, is_harmless: bool, with_session: bool) -> ToolCall:
        call = ToolCall(
            call_id=f"call-{next(self.numbers)}",
            session_id=self.session_id if with_session else None,
            turn=turn,
            token=token if with_session else None,
            tool="tool",
            arguments="{}",
            deadline=self.now + 20,
            timeout_s=1,
            reply_topic="results",
            reply_partition=0,
        )
        self.records.append((call, is_harmless))
        return call

    # The episode.

    @rule(is_harmless=st.booleans(), with_session=st.sampled_from([True, True, True, False]))
    def ask(self, is_harmless: bool, with_session: bool) -> None:
        if len(self.waiting) < 3 and not any(self.waiting.values()):
            call = self.send(token=self.token, turn=self.turn, is_harmless=is_harmless, with_session=with_session)
            self.waiting[call.call_id] = None

    @precondition(lambda self: not self.waiting)
    @rule(worker=WORKER)
    def a_whole_turn(self, worker: int) -> None:
        self.ask(is_harmless=True, with_session=True)
        self.deliver(pick=0, worker=worker, is_recent=True)
        if self.running and self.running[-1].call.call_id in self.waiting:
            self.finish(pick=-1)
        self.take_an_answer(pick=-1)

    @precondition(lambda self: not self.waiting)
    @rule(worker=WORKER, with_session=st.booleans())
    def a_harmful_call_arrives(self, worker: int, with_session: bool) -> None:
        self.ask(is_harmless=False, with_session=with_session)
        self.deliver(pick=0, worker=worker, is_recent=True)

    @precondition(lambda self: self.records)
    @rule(pick=PICK)
    def ask_again(self, pick: int) -> None:
        call, is_harmless = self.records[pick % len(self.records)]
        self.records.append((msgspec.structs.replace(call, is_first=False, deadline=self.now + 20), is_harmless))

    @rule(pick=PICK, turns_back=st.integers(0, 1), worker=WORKER)
    def a_stranger_asks(self, pick: int, turns_back: int, worker: int) -> None:
        tokens = list(self.named)
        token, turn = tokens[pick % len(tokens)], max(0, self.turn - turns_back)
        self.send(token=token, turn=turn, is_harmless=True, with_session=True)
        self.deliver_record(len(self.records) - 1, worker)

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def take_an_answer(self, pick: int) -> None:
        if not self.answers:
            return
        answer = self.answers[pick % len(self.answers)]
        if answer.call_id not in self.waiting or self.waiting[answer.call_id] is not None:
            return
        if answer.status != "ok":
            self.begin_attempt()
            return
        self.waiting[answer.call_id] = answer
        answered = [each for each in self.waiting.values() if each is not None]
        if len(answered) == len(self.waiting):
            self.end_turn(answered)

    def end_turn(self, answers: list[ToolResult]) -> None:
        for answer in answers:
            if answer.incarnation is None:
                continue
            if self.incarnation not in (None, answer.incarnation):
                self.begin_attempt()  # two sandboxes
                return
            self.incarnation = answer.incarnation
            self.lineage.append(answer.call_id)
        self.turn += 1
        self.waiting = {}
        if self.incarnation is not None:
            self.token = ids.session_token(self.incarnation, self.lineage)
            self.named[self.token] = (self.incarnation, frozenset(self.lineage))
            begun = [call.call_id for call in self.ran[self.incarnation]]
            assert set(self.lineage) <= set(begun), "an answer of a sandbox that has not run the call"

    @rule()
    def give_up(self) -> None:
        self.begin_attempt()

    # The workers.

    @precondition(lambda self: self.records)
    @rule(pick=PICK, worker=WORKER, is_recent=st.booleans())
    def deliver(self, pick: int, worker: int, is_recent: bool) -> None:
        count = len(self.records)
        self.deliver_record(count - 1 - pick % min(count, 3) if is_recent else pick % count, worker)

    def deliver_record(self, offset: int, worker: int) -> None:
        if offset in self.committed:
            return
        call, is_harmless = self.records[offset]
        must_run = self.must_run(worker, call)
        admission = self.ledgers[worker].admit(call, now=self.now, is_idempotent=is_harmless)
        assert isinstance(admission, Run) or not must_run, f"refused for nothing: {admission}"
        self.check(worker, call, is_harmless, admission)
        if isinstance(admission, Run):
            if admission.commits_first:
                self.committed.add(offset)
            self.begin(worker, call, is_harmless, admission, offset)
        elif isinstance(admission, Replay):
            self.answers.append(admission.result)
        elif isinstance(admission, Refuse):
            self.answers.append(
                ToolResult(call_id=call.call_id, session_id=call.session_id, status=admission.status, content="")
            )

    def must_run(self, worker: int, call: ToolCall) -> bool:
        """The sandbox here is in exactly the state that the call names, and has never begun it."""
        incarnation, lineage = self.named[call.token]
        return (
            call.token is not None
            and call.deadline > self.now
            and self.ledgers[worker].is_open(call.session_id or "", incarnation)
            and self.ran[incarnation or ""][0].session_id == call.session_id
            and lineage.issuperset(each.call_id for each in self.ran[incarnation or ""])
        )

    def check(self, worker: int, call: ToolCall, is_harmless: bool, admission: Admission) -> None:
        here = [
            each
            for each in self.running
            if (each.worker, each.call.call_id) == (worker, call.call_id)
            and (call.session_id is None or self.ledgers[worker].is_open(call.session_id, each.run.incarnation))
        ]
        if isinstance(admission, Join):
            assert here
        if isinstance(admission, Replay):
            assert self.results[admission.result.incarnation, call.call_id] == admission.result.content
            assert not here
        if isinstance(admission, Run) and not is_harmless and not call.is_first:
            assert call.token is not None, "run although it may have run before"

    def begin(self, worker: int, call: ToolCall, is_harmless: bool, run: Run, offset: int) -> None:
        if not is_harmless:
            self.harm[call.call_id] = self.harm.get(call.call_id, 0) + 1
            assert self.harm[call.call_id] == 1, "a harmful call ran twice"
        if run.incarnation is not None:
            begun = self.ran.setdefault(run.incarnation, [])
            assert call.call_id not in [each.call_id for each in begun], "a call ran twice in one sandbox"
            incarnation, lineage = self.named[call.token]
            assert incarnation in (None, run.incarnation), "continued in another sandbox"
            before = {each.call_id for each in begun if (each.turn, each.token) != (call.turn, call.token)}
            assert before == lineage, "continued from another past"
            begun.append(call)
        self.running.append(Running(worker, call, run, f"run {next(self.numbers)}", is_harmless, offset))

    @precondition(lambda self: self.running)
    @rule(pick=PICK)
    def finish(self, pick: int) -> None:
        running = self.running.pop(pick % len(self.running))
        plain = ToolResult(
            call_id=running.call.call_id, session_id=running.call.session_id, status="ok", content=running.content
        )
        result = self.ledgers[running.worker].complete(running.call, running.run, plain, now=self.now)
        if result.status == "ok":
            assert result.incarnation == running.run.incarnation, "named after another sandbox than it ran in"
            self.results[result.incarnation, result.call_id] = result.content
        self.answers.append(result)

    @precondition(lambda self: self.running)
    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        running = self.running.pop(pick % len(self.running))
        ledger = self.ledgers[running.worker]
        if running.call.session_id is None:
            ledger.withdraw(running.call, running.run)
        else:
            ledger.close(running.call.session_id, running.run.incarnation)

    @precondition(lambda self: self.running)
    @rule(pick=PICK)
    def find_no_place(self, pick: int) -> None:
        running = self.running[pick % len(self.running)]
        if not running.is_harmless:
            return
        self.running.remove(running)
        if running.run.incarnation is not None:
            self.ran[running.run.incarnation].remove(running.call)
        self.ledgers[running.worker].withdraw(running.call, running.run)
        self.records.append((msgspec.structs.replace(running.call, is_first=False), True))

    @rule(worker=WORKER)
    def end_the_session(self, worker: int) -> None:
        over = self.session_id
        self.begin_attempt()
        for _ in range(2):
            self.ledgers[worker].end(over)
        for each in [each for each in self.running if (each.worker, each.call.session_id) == (worker, over)]:
            assert self.ledgers[worker].is_open(over, each.run.incarnation) or not self.is_here(each)
            self.running.remove(each)
            plain = ToolResult(call_id=each.call.call_id, session_id=over, status="ok", content=each.content)
            self.ledgers[worker].complete(each.call, each.run, plain, now=self.now)
            self.ledgers[worker].close_if_over(over)
        assert over not in self.ledgers[worker], "ended and still there"

    def is_here(self, running: Running) -> bool:
        """Whether a call that runs has not lost its session."""
        return self.ledgers[running.worker].is_open(running.call.session_id or "", running.run.incarnation)

    @precondition(lambda self: self.running)
    @rule(pick=PICK)
    def lose_the_sandbox_under_a_call_that_is_sent_again(self, pick: int) -> None:
        running = self.running[pick % len(self.running)]
        if running.call.session_id is not None:
            self.ledgers[running.worker].close(running.call.session_id, running.run.incarnation)
            self.records.append((msgspec.structs.replace(running.call, is_first=False), running.is_harmless))
            self.deliver(pick=0, worker=running.worker, is_recent=True)

    @rule(worker=WORKER, idle_s=st.integers(0, 10))
    def close_idle(self, worker: int, idle_s: int) -> None:
        for session_id in self.ledgers[worker].idle_since(self.now - idle_s):
            self.ledgers[worker].close(session_id)

    @rule(worker=WORKER)
    def crash(self, worker: int) -> None:
        self.ledgers[worker] = self.new_ledger()
        cut_off = [each for each in self.running if each.worker == worker]
        self.running = [each for each in self.running if each.worker != worker]
        for each in cut_off:
            self.deliver_record(each.offset, 1 - worker)
            self.records.append((msgspec.structs.replace(each.call, is_first=False), each.is_harmless))
            self.deliver_record(len(self.records) - 1, 1 - worker)

    @rule(seconds=st.integers(1, 15))
    def wait(self, seconds: int) -> None:
        self.now += seconds


Histories.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


class AnyToken(SessionLedger):
    def _takes(self, session: Session, call: ToolCall) -> bool:
        session.base, session.turn = call.token, call.turn
        return True


class TurnWithoutBase(SessionLedger):
    def _takes(self, session: Session, call: ToolCall) -> bool:
        return call.turn == session.turn or super()._takes(session, call)


class TokenOpensSession(SessionLedger):
    def admit(self, call: ToolCall, *, now: float, is_idempotent: bool = True) -> Admission:
        if call.session_id is not None and call.session_id not in self:
            call = msgspec.structs.replace(call, token=None)
        return super().admit(call, now=now, is_idempotent=is_idempotent)


class ForgetfulOfResults(SessionLedger):
    def _known(self, session: Session, call: ToolCall, now: float) -> Admission:
        known = super()._known(session, call, now)
        return Run(session.incarnation) if isinstance(known, Refuse | Replay) else known


class ForgetfulOfRuns(SessionLedger):
    def _known(self, session: Session, call: ToolCall, now: float) -> Admission:
        known = super()._known(session, call, now)
        return Run(session.incarnation) if isinstance(known, Join) else known


class RefusesSiblings(SessionLedger):
    def _takes(self, session: Session, call: ToolCall) -> bool:
        return call.turn > session.turn + 1 and super()._takes(session, call)


class SessionByNameOnly(SessionLedger):
    def complete(self, call: ToolCall, run: Run, result: ToolResult, *, now: float) -> ToolResult:
        session = self._sessions.get(call.session_id or "")
        run = run if session is None else Run(session.incarnation)
        return super().complete(call, run, result, now=now)


class EverybodyIsFirst(SessionLedger):
    def admit(self, call: ToolCall, *, now: float, is_idempotent: bool = True) -> Admission:
        return super().admit(msgspec.structs.replace(call, is_first=True), now=now, is_idempotent=is_idempotent)


class RunsBeforeCommit(SessionLedger):
    def admit(self, call: ToolCall, *, now: float, is_idempotent: bool = True) -> Admission:
        admission = super().admit(call, now=now, is_idempotent=is_idempotent)
        return Run(admission.incarnation) if isinstance(admission, Run) else admission


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (AnyToken, "continued"),
        (TurnWithoutBase, "continued"),
        (TokenOpensSession, "continued"),
        (ForgetfulOfResults, "twice"),
        (ForgetfulOfRuns, "twice"),
        (RefusesSiblings, "refused for nothing"),
        (SessionByNameOnly, "named after another sandbox"),
        (EverybodyIsFirst, "run although|ran twice"),
        (RunsBeforeCommit, "ran twice"),
    ],
)
def test_a_ledger_without_one_of_the_rules_is_found_out(planted: type[SessionLedger], message: str) -> None:
    class Planted(Histories):
        ledger_type = planted

    search = settings(
        max_examples=1000,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[phase for phase in settings().phases if phase.name == "generate"],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises(AssertionError, match=message):
        run_state_machine_as_test(Planted, settings=search)
