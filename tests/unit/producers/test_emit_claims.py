"""Several producers under one limit, in any interleaving, with crashes and compaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.producers.emit_claims import CLAIM_GROUPS, Claim, claim_of, claims_of_others, groups_granted
from rollstream.producers.pacing import decide_pace
from rollstream.schemas.control import ControlMessage, ProducerProgress, TrainerProgress
from rollstream.transport.control import ControlFacts, control_key


def limit_of(emit_limit: int, closed: int) -> TrainerProgress:
    """Limits may fall (a restored trainer), but what is newest is decided by the accounts beside it."""
    return TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=closed, groups_dropped=0, emit_limit=emit_limit
    )


@dataclass
class Control:
    """The topic: records in order, of which compaction keeps the newest of each key."""

    records: dict[int, ControlMessage] = field(default_factory=dict[int, ControlMessage])
    end: int = 0

    def append(self, message: ControlMessage) -> int:
        self.records[self.end] = message
        self.end += 1
        return self.end - 1

    def compact(self) -> None:
        newest = {control_key(message): offset for offset, message in self.records.items()}
        self.records = {offset: self.records[offset] for offset in sorted(newest.values())}


@dataclass
class Producer:
    """What `service` does, one step at a time."""

    run_id: str
    control: Control
    emitted: int = 0
    """Groups in `tasks`; survives a crash."""
    announced: int = 0
    claim: Claim | None = None
    facts: ControlFacts = field(default_factory=ControlFacts)
    read_to: int = 0
    clock: float = 0.0

    def read(self) -> None:
        for offset in [offset for offset in self.control.records if offset >= self.read_to]:
            message = self.control.records[offset]
            self.facts.learn(control_key(message), offset, message)
        self.read_to = self.control.end

    def announce(self) -> int:
        self.announced = self.emitted
        self.clock += 1
        return self.control.append(
            ProducerProgress(
                run_id=self.run_id,
                groups_emitted=self.announced,
                group_size=1,
                groups_reserved=self.claim.end if self.claim else 0,
                reserved_from=self.claim.start if self.claim else 0,
                reserved_at=self.claim.place if self.claim else None,
                updated_at=self.clock,
            )
        )

    def step(self) -> bool:
        """Emit a group or claim places; False when it has to wait."""
        if self.claim is not None and self.claim.place >= self.read_to:
            return False
        trainer = self.facts.latest(TrainerProgress)
        others = claims_of_others(self.facts.placed(ProducerProgress), self.run_id)
        pace = decide_pace(
            self.emitted,
            pacing="wait",
            trainer=trainer[0] if trainer else None,
            pause=None,
            claim=self.claim,
            others=others,
        )
        if pace.needs_claim:
            self._claim_more()
        elif pace.state == "emitting":
            self.emitted += 1
        else:
            return False
        return True

    def _claim_more(self) -> None:
        start, end = self.emitted, self.emitted + CLAIM_GROUPS
        self.clock += 1
        place = self.control.append(
            ProducerProgress(
                run_id=self.run_id, groups_emitted=self.emitted, group_size=1, groups_reserved=end,
                reserved_from=start, updated_at=self.clock,
            )
        )  # fmt: skip
        self.claim = Claim(self.run_id, start, end, place)

    def crash(self) -> None:
        self.facts, self.read_to, self.claim = ControlFacts(), 0, None
        self.read()
        for progress, offset in self.facts.placed(ProducerProgress):
            if progress.run_id == self.run_id:
                self.clock = progress.updated_at
                claim = claim_of(progress, offset)
                self.claim = claim if claim.end > claim.start else None


ACTIONS = ["step", "step", "step", "read", "read", "announce", "crash", "raise", "fall", "compact"]


@settings(max_examples=120, deadline=None)
@given(
    producers=st.integers(1, 5), seed=st.integers(0, 2**32), actions=st.lists(st.sampled_from(ACTIONS), max_size=250)
)
def test_together_they_never_pass_the_highest_limit(producers: int, seed: int, actions: list[str]) -> None:
    random, control = Random(seed), Control()
    runs = [Producer(f"run-{number}", control) for number in range(producers)]
    limit = highest = closed = 0
    for action in actions:
        run = random.choice(runs)
        match action:
            case "raise" | "fall":
                limit = max(0, limit + random.randint(1, 9) * (1 if action == "raise" else -1))
                highest, closed = max(highest, limit), closed + 1
                control.append(limit_of(limit, closed))
            case "compact":
                control.compact()
            case _:
                getattr(run, action)()
        assert sum(each.emitted for each in runs) <= highest


@settings(max_examples=40, deadline=None)
@given(
    producers=st.integers(2, 5), seed=st.integers(0, 2**32), rises=st.lists(st.integers(1, 4), min_size=20, max_size=40)
)
def test_while_the_limit_holds_them_up_each_gets_its_turn_and_all_of_it_is_used(
    producers: int, seed: int, rises: list[int]
) -> None:
    random, control = Random(seed), Control()
    runs = [Producer(f"run-{number}", control) for number in range(producers)]
    limit = 0
    for closed, rise in enumerate(rises):
        limit += rise
        control.append(limit_of(limit, closed))
        is_moving = True
        while is_moving:
            for run in runs:
                run.read()
            is_moving = sum(run.step() for run in random.sample(runs, len(runs))) > 0
        assert sum(run.emitted for run in runs) == limit
        assert max(run.emitted for run in runs) - min(run.emitted for run in runs) <= 2 * CLAIM_GROUPS


def test_a_run_that_keeps_to_no_limit_takes_what_it_has_emitted_and_evaluation_takes_nothing() -> None:
    free = ProducerProgress(run_id="free", groups_emitted=7, group_size=8)
    evaluation = ProducerProgress(run_id="eval", groups_emitted=100, group_size=8, is_train=False)
    own = ProducerProgress(run_id="own", groups_emitted=3, group_size=8)
    others = claims_of_others([(free, 5), (evaluation, 6), (own, 7)], "own")
    assert others == [Claim("free", 7, 7, 5)]


def test_what_a_finished_run_had_reserved_and_does_not_need_is_free_again() -> None:
    finished = ProducerProgress(run_id="r", groups_emitted=6, group_size=8, groups_reserved=8, is_finished=True)
    assert claim_of(finished, 9).end == 6


@pytest.mark.parametrize(("place", "granted"), [(3, 4), (9, 6)])
def test_who_claims_first_is_served_first(place: int, granted: int) -> None:
    """Ten places, of which each of two wants four beyond the four and two that they have."""
    assert groups_granted(Claim("a", 4, 8, 5), [Claim("b", 2, 6, place)], 8) == granted
