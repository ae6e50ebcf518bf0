"""Whose weights are served: nobody draws with the wrong ones, and nobody waits for ever."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.engine import PolicyRef
from rollstream.rollout_workers.policy_choice import Decision, PolicyChoice

HOLD_S = 100.0
LOAD_S = 1.0
A, B = PolicyRef(1, 1), PolicyRef(1, 2)
OLD, NEW = PolicyRef(5, 1), PolicyRef(5, 2)


def choice(loaded: PolicyRef = OLD, *, others: int = 0) -> PolicyChoice:
    return PolicyChoice(loaded=loaded, newest=loaded, hold_s=HOLD_S, others=others)


def test_a_newer_policy_is_loaded_at_once_when_no_pinned_episode_runs() -> None:
    engine = choice(others=3)
    assert engine.decide(0.0) == Decision()
    engine.announce(NEW)
    assert engine.decide(1.0) == Decision(load=NEW)


def test_a_pin_on_what_is_served_begins_at_once_and_holds_newer_weights_back_until_it_ends() -> None:
    engine = choice(others=1)
    engine.ask(1, OLD)
    assert engine.decide(0.0).admitted == (1,)
    engine.announce(NEW)
    assert engine.decide(5.0) == Decision(look_again_at_s=5.0 + HOLD_S)
    engine.leave(1)
    assert engine.decide(20.0) == Decision(load=NEW)


def test_a_pinned_episode_that_runs_longer_than_the_others_may_wait_is_ousted() -> None:
    engine = choice(others=1)
    engine.ask(1, OLD)
    engine.decide(0.0)
    engine.announce(NEW)
    assert engine.decide(5.0).look_again_at_s == 105.0
    assert engine.decide(104.9) == Decision(look_again_at_s=105.0)
    assert engine.decide(105.0) == Decision(ousted=(1,), load=NEW)


def test_episodes_join_a_phase_in_its_first_half_only_while_others_wait() -> None:
    engine = choice(A, others=1)
    engine.ask(1, A)
    engine.decide(0.0)
    engine.announce(NEW)
    engine.decide(0.0)
    engine.ask(2, A)
    assert engine.decide(49.0).admitted == (2,)
    engine.ask(3, A)
    assert engine.decide(51.0).admitted == ()
    engine.leave(1)
    engine.leave(2)
    assert engine.decide(60.0) == Decision(load=NEW)


def test_training_has_the_newest_weights_as_long_as_a_phase_has_kept_them_away() -> None:
    engine = choice(others=1)
    engine.ask(1, A)
    assert engine.decide(0.0).load == A
    engine.has_loaded(A, 1.0)
    assert engine.decide(1.0).admitted == (1,)
    engine.leave(1)
    engine.ask(2, A)
    assert engine.decide(51.5).load == OLD
    engine.has_loaded(OLD, 52.0)
    assert engine.decide(52.0) == Decision(look_again_at_s=103.0)
    assert engine.decide(103.0).load == A


def test_without_other_episodes_the_next_pin_follows_at_once() -> None:
    engine = choice()
    engine.ask(1, A)
    engine.ask(2, B)
    assert engine.decide(0.0).load == A
    engine.has_loaded(A, 1.0)
    assert engine.decide(1.0).admitted == (1,)
    engine.leave(1)
    assert engine.decide(2.0).load == B
    engine.has_loaded(B, 3.0)
    assert engine.decide(3.0).admitted == (2,)
    engine.leave(2)
    assert engine.decide(4.0).load == OLD


def test_who_waits_for_files_that_are_gone_waits_no_longer_and_the_engine_goes_on() -> None:
    engine = choice(others=1)
    engine.ask(1, A)
    engine.ask(2, B)
    assert engine.decide(0.0).load == A
    assert engine.refuse_pin(A) == (1,)
    assert engine.decide(0.0).load == B


def test_newest_weights_that_cannot_be_had_are_not_asked_for_again_before_their_time() -> None:
    engine = choice(A)
    engine.announce(NEW)
    assert engine.decide(0.0).load == NEW
    engine.refuse_newest(60.0)
    assert engine.decide(59.0).load is None
    assert engine.decide(60.0).load == NEW


@dataclass
class Worker:
    """Episodes come and run for a while; what the choice says is done, on a clock of its own."""

    choice: PolicyChoice
    now_s: float = 0.0
    pins: dict[int, PolicyRef] = field(default_factory=dict[int, PolicyRef])
    lengths_s: dict[int, float] = field(default_factory=dict[int, float])
    asked_at_s: dict[int, float] = field(default_factory=dict[int, float])
    waits_s: dict[int, float] = field(default_factory=dict[int, float])
    running: set[int] = field(default_factory=set[int])
    ousted: set[int] = field(default_factory=set[int])
    stale_since_s: float | None = None
    longest_stale_s: float = 0.0

    def play(self, comings: list[tuple[float, int, PolicyRef | None, float]]) -> None:
        """``comings``: (when, ticket, pin or None for a new version, length in seconds), in any order."""
        events: list[tuple[float, int, str, int]] = []
        for at_s, ticket, pin, length_s in comings:
            if pin is None:
                heapq.heappush(events, (at_s, -1, "announce", ticket))
            else:
                self.pins[ticket], self.lengths_s[ticket] = pin, length_s
                heapq.heappush(events, (at_s, ticket, "ask", ticket))
        for _ in range(20 * len(comings) + 50):
            look_again_at_s = self.settle(events)
            if not events and look_again_at_s is None:
                return
            if events and (look_again_at_s is None or events[0][0] <= look_again_at_s):
                at_s, _, what, ticket = heapq.heappop(events)
                self.now_s = max(self.now_s, at_s)
                self.happen(what, ticket)
            elif look_again_at_s is not None:
                assert look_again_at_s > self.now_s, "looking again at once would never end"
                self.now_s = look_again_at_s
        raise AssertionError("it does not come to rest")

    def happen(self, what: str, ticket: int) -> None:
        if what == "announce":
            self.choice.announce(PolicyRef(9, ticket))
        elif what == "ask":
            self.asked_at_s[ticket] = self.now_s
            self.choice.ask(ticket, self.pins[ticket])
        else:
            self.running.discard(ticket)
            self.choice.leave(ticket)

    def settle(self, events: list[tuple[float, int, str, int]]) -> float | None:
        while True:
            decision = self.choice.decide(self.now_s)
            for ticket in decision.admitted:
                assert self.pins[ticket] == self.choice.loaded
                self.waits_s[ticket] = self.now_s - self.asked_at_s[ticket]
                self.running.add(ticket)
                heapq.heappush(events, (self.now_s + self.lengths_s[ticket], ticket, "leave", ticket))
            self.ousted |= set(decision.ousted)
            self.running -= set(decision.ousted)
            if decision.load is None:
                self.note_staleness()
                return decision.look_again_at_s
            assert decision.load != self.choice.loaded
            assert not self.running, "weights are never taken from an episode that has not been told"
            self.now_s += LOAD_S
            self.choice.has_loaded(decision.load, self.now_s)
            self.note_staleness()

    def note_staleness(self) -> None:
        is_stale = self.choice.loaded != self.choice.newest
        if is_stale and self.stale_since_s is None:
            self.stale_since_s = self.now_s
        if self.stale_since_s is not None:
            self.longest_stale_s = max(self.longest_stale_s, self.now_s - self.stale_since_s)
        if not is_stale:
            self.stale_since_s = None


pins = st.sampled_from([A, B, PolicyRef(2, 7), OLD])
moments_s = st.floats(0, 2000, allow_nan=False)


@given(
    st.lists(st.tuples(moments_s, pins, st.floats(0, 3 * HOLD_S)), max_size=25),
    st.lists(moments_s, max_size=6),
    st.integers(0, 2),
)
def test_whatever_comes_every_episode_has_its_turn_in_time_and_the_newest_weights_are_served_in_the_end(
    asks: list[tuple[float, PolicyRef, float]], announcements: list[float], others: int
) -> None:
    worker = Worker(choice(others=others))
    comings: list[tuple[float, int, PolicyRef | None, float]] = [
        (at_s, ticket, pin, length_s) for ticket, (at_s, pin, length_s) in enumerate(asks)
    ]
    comings += [(at_s, version, None, 0.0) for version, at_s in enumerate(sorted(announcements), start=1)]
    worker.play(comings)
    assert worker.waits_s.keys() == set(range(len(asks)))
    assert worker.choice.loaded == worker.choice.newest
    distinct = len({pin for _, pin, _ in asks})
    updates = 2 * (distinct + 1 + len(announcements))
    assert all(wait_s <= 2 * (distinct + 1) * HOLD_S + updates * LOAD_S for wait_s in worker.waits_s.values())
    assert all(worker.lengths_s[ticket] >= HOLD_S / 2 - LOAD_S for ticket in worker.ousted)
    if others:
        assert worker.longest_stale_s <= HOLD_S + (2 + len(announcements)) * LOAD_S
