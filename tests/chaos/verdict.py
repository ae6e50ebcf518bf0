"""From what was seen to what was kept and what was broken. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chaos_report import Report
from evidence import Evidence, Injury, TrajectorySeen
from rates import quantile, rate, recovery_s
from takeovers import BLINDING, HARMLESS, find_repetitions, find_takeovers, repeated_after

TAKEOVER_GRACE_S = 3.0
"""Allowed for a takeover beyond the session time-out."""
EXAMPLES = 3
WORKING = frozenset({"rollout-worker", "broker"})
"""Roles whose injuries hold a takeover up."""
DEATHS = frozenset({"kill", "kill_replaced", "term_twice", "crash"})
"""Injuries after which a worker is gone at once: their takeover times are what the bar is about."""


def judge(evidence: Evidence, *, seed: int, engine: str, session_timeout_s: float) -> Report:
    """Weigh the evidence of a run."""
    first = first_records(evidence.trajectories)
    statuses = Counter(record.status for record in first.values())
    tasks = {task.trajectory_id for task in evidence.tasks}
    lost = sorted(tasks - first.keys())
    unequal = [r.trajectory_id for r in evidence.trajectories if r.digest != first[r.trajectory_id].digest]
    histories = [f"{r.trajectory_id}: {r.broken_history}" for r in first.values() if r.broken_history is not None]
    training = _Training.of(evidence, first)
    cost = _Cost.of(evidence, first, session_timeout_s)
    phases = evidence.phases
    ended = sorted(record.at for record in first.values())
    before = rate(ended, phases.began, phases.hurt)
    broken = [
        *_complaint(lost, "tasks have no trajectory"),
        *_complaint(unequal, "records differ from the first one with their id"),
        *_complaint(histories, "episodes were shown another history of their tools than their own calls"),
        *training.complaints(),
        *cost.complaints(),
        *_complaint(evidence.orphans, "processes outlived their parents"),
    ]
    return Report(
        seed=seed,
        engine=engine,
        minutes=round((phases.ended - phases.began) / 60, 2),
        kills=_by_role_and_kind(evidence.injuries),
        injuries=len(evidence.injuries),
        processes_killed=sum(injury.killed for injury in evidence.injuries),
        crashes=[f"{injury.worker}: {injury.said}" for injury in evidence.injuries if injury.kind == "crash"],
        tasks=len(tasks),
        episodes=len(first),
        completed=statuses["completed"],
        failed=statuses["failed"],
        truncated=statuses["truncated"],
        aborted=statuses["aborted"],
        lost=len(lost),
        untrained=len(training.missing),
        trained=len(evidence.ledger),
        trained_twice=len(training.twice),
        trained_unequal=len(training.unequal),
        trained_out_of_order=training.is_out_of_order,
        copies=len(evidence.trajectories) - len(first),
        unequal_copies=len(unequal),
        broken_histories=len(histories),
        generations=len(evidence.begun),
        episodes_hit=cost.episodes_hit,
        episodes_killed=cost.episodes_killed,
        generations_repeated=cost.repeated,
        generations_repeated_max=cost.repeated_max,
        generations_repeated_mean=round(cost.repeated_after_deaths / max(1, cost.episodes_killed), 3),
        generations_repeated_blindly=cost.repeated_blindly,
        generations_repeated_unfair=len(cost.unfair),
        session_timeout_s=session_timeout_s,
        takeover_s_p50=quantile(cost.takeovers, 0.5),
        takeover_s_p99=quantile(cost.takeovers, 0.99),
        takeover_s_max=quantile(cost.takeovers, 1.0),
        takeover_clean=len(cost.clean_takeovers),
        takeover_clean_s_p50=quantile(cost.clean_takeovers, 0.5),
        takeover_clean_s_p99=quantile(cost.clean_takeovers, 0.99),
        takeover_clean_s_max=quantile(cost.clean_takeovers, 1.0),
        slowest=cost.slowest,
        throughput_before=round(before, 2),
        throughput_during=round(rate(ended, phases.hurt, phases.healed), 2),
        throughput_after=round(rate(ended, phases.healed, phases.ended), 2),
        recovery_s=recovery_s(ended, before, phases.healed, phases.ended),
        left_late=sum(injury.late_s > 0 for injury in evidence.injuries),
        dead_letters=dict(evidence.dead_letters),
        orphans=list(evidence.orphans),
        broken=broken,
    )


def first_records(trajectories: Iterable[TrajectorySeen]) -> dict[str, TrajectorySeen]:
    """The record that counts, by trajectory id."""
    first: dict[str, TrajectorySeen] = {}
    for record in trajectories:
        first.setdefault(record.trajectory_id, record)
    return first


def order_of_an_unkilled_reader(trajectories: Iterable[TrajectorySeen]) -> list[str]:
    """Trainable trajectories as a trainer gets them that takes one group at a time and reads the one partition once.

    A group is taken when its last member has come; members come by their number.
    """
    members: dict[int, dict[int, TrajectorySeen]] = defaultdict(dict)
    ordered: list[str] = []
    for record in trajectories:
        group = members[record.group_index]
        if record.member_index in group:
            continue
        group[record.member_index] = record
        if len(group) == record.group_size:
            ordered += [group[index].trajectory_id for index in sorted(group) if group[index].is_trainable]
    return ordered


@dataclass(frozen=True, slots=True)
class _Training:
    """The ledger against the log."""

    missing: list[str]
    twice: list[str]
    unequal: list[str]
    is_out_of_order: bool

    @classmethod
    def of(cls, evidence: Evidence, first: Mapping[str, TrajectorySeen]) -> _Training:
        """Compare."""
        trained = [entry.trajectory_id for entry in evidence.ledger]
        expected = order_of_an_unkilled_reader(evidence.trajectories)
        known = {record.trajectory_id: record.fingerprint for record in first.values()}
        return cls(
            missing=sorted(set(expected) - set(trained)),
            twice=[each for each, times in Counter(trained).items() for _ in range(times - 1)],
            unequal=[e.trajectory_id for e in evidence.ledger if known.get(e.trajectory_id) != e.fingerprint],
            is_out_of_order=list(dict.fromkeys(trained)) != [each for each in expected if each in set(trained)],
        )

    def complaints(self) -> list[str]:
        """What is broken."""
        return [
            *_complaint(self.missing, "trajectories were never trained on"),
            *_complaint(self.twice, "trajectories were trained on again"),
            *_complaint(self.unequal, "trained trajectories are not the first record with their id"),
            *(["the order of training is not that of an unkilled reader"] if self.is_out_of_order else []),
        ]


@dataclass(frozen=True, slots=True)
class _Cost:
    """What the injuries of rollout workers cost."""

    episodes_hit: int
    episodes_killed: int
    repeated: int
    repeated_after_deaths: int
    repeated_max: int
    repeated_blindly: int
    unfair: list[str]
    takeovers: list[float]
    clean_takeovers: list[float]
    slowest: list[str]

    @classmethod
    def of(cls, evidence: Evidence, first: Mapping[str, TrajectorySeen], session_timeout_s: float) -> _Cost:
        """Count."""
        injuries = [i for i in evidence.injuries if i.role == "rollout-worker" and i.kind not in HARMLESS]
        published = {each: record.at for each, record in first.items()}
        takeovers = find_takeovers(
            evidence.begun, published, evidence.signs, injuries, [i for i in evidence.injuries if i.role in WORKING]
        )
        repetitions = find_repetitions(
            evidence.begun,
            _moments(evidence.injuries, session_timeout_s),
            [injury for injury in evidence.injuries if injury.kind in BLINDING],
        )
        deaths = [t for t in takeovers if t.injury.kind in DEATHS]
        return cls(
            episodes_hit=len(takeovers),
            episodes_killed=len(deaths),
            repeated=len(repetitions),
            repeated_after_deaths=sum(
                count
                for takeover, count in zip(takeovers, repeated_after(takeovers, repetitions), strict=True)
                if takeover.injury.kind in DEATHS
            ),
            repeated_max=max((each.in_a_row for each in repetitions), default=0),
            repeated_blindly=sum(each.is_blind for each in repetitions),
            unfair=[
                f"{each.trajectory_id}: {each.generation.path!r} of attempt {each.generation.attempt} on "
                f"{each.generation.worker} at {each.generation.at:.3f}"
                for each in repetitions
                if not each.is_fair
            ],
            takeovers=[t.took_s for t in deaths if t.took_s is not None],
            clean_takeovers=[t.took_s for t in deaths if t.took_s is not None and t.is_clean],
            slowest=[
                f"{t.trajectory_id} of {t.injury.worker}, {t.injury.kind} at {t.injury.at:.1f}: "
                f"{'never' if t.took_s is None else f'{t.took_s:.1f} s'}{', undisturbed' if t.is_clean else ''}"
                for t in sorted(deaths, key=lambda t: t.took_s or math.inf, reverse=True)[:EXAMPLES]
            ],
        )

    def complaints(self) -> list[str]:
        """What is broken."""
        return _complaint(self.unfair, "finished generations, or undisturbed ones, were begun again")


def _moments(injuries: Iterable[Injury], session_timeout_s: float) -> list[float]:
    """When partitions may have moved: a member was hurt, came back, or its session ran out."""
    return sorted(
        moment
        for injury in injuries
        if injury.role in {"rollout-worker", "broker"}
        for moment in (injury.at, injury.until, injury.at + session_timeout_s)
    )


def _by_role_and_kind(injuries: Iterable[Injury]) -> dict[str, dict[str, int]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for injury in injuries:
        counted[injury.role][injury.kind] += 1
    return {role: dict(sorted(kinds.items())) for role, kinds in sorted(counted.items())}


def _complaint(found: Sequence[str], what: str) -> list[str]:
    return [f"{len(found)} {what}, e.g. {'; '.join(found[:EXAMPLES])}"] if found else []
