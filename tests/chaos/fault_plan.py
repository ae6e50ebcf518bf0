"""Which process is hurt when, and how: a pure function of a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["rollout-worker", "tool-worker", "trainer", "producer", "broker"]
Kind = Literal[
    "kill",
    "kill_replaced",
    "kill_at_step",
    "freeze",
    "freeze_long",
    "zombie",
    "twin",
    "term",
    "term_twice",
    "cut_reset",
    "cut_black_hole",
    "cut_answers",
    "slow_link",
    "scale",
]
TrainerStep = Literal["polled", "stepped", "published", "half_a_checkpoint", "checkpointed", "committed"]
TRAINER_STEPS: tuple[TrainerStep, ...] = (
    "polled",
    "stepped",
    "published",
    "half_a_checkpoint",
    "checkpointed",
    "committed",
)

WEIGHTS: dict[tuple[Role, Kind], float] = {
    ("rollout-worker", "kill"): 70,
    ("rollout-worker", "kill_replaced"): 10,
    ("rollout-worker", "freeze"): 2,
    ("rollout-worker", "freeze_long"): 2,
    ("rollout-worker", "zombie"): 2,
    ("rollout-worker", "twin"): 1,
    ("rollout-worker", "term"): 3,
    ("rollout-worker", "term_twice"): 2,
    ("rollout-worker", "cut_reset"): 2,
    ("rollout-worker", "cut_black_hole"): 3,
    ("rollout-worker", "cut_answers"): 2,
    ("rollout-worker", "slow_link"): 1,
    ("rollout-worker", "scale"): 1,
    ("tool-worker", "kill"): 16,
    ("tool-worker", "freeze"): 1,
    ("tool-worker", "freeze_long"): 1,
    ("tool-worker", "term"): 1,
    ("tool-worker", "cut_black_hole"): 1,
    ("trainer", "kill"): 9,
    ("trainer", "kill_at_step"): 9,
    ("trainer", "cut_reset"): 1,
    ("producer", "kill"): 12,
    ("producer", "term"): 1,
    ("broker", "kill"): 2,
    ("broker", "freeze"): 1,
}
"""How often each fault happens, relative to the others."""

SHORT_PAUSE_S = (0.1, 0.6)
SHORT_FREEZE_S = (0.3, 2.0)
LONGER_THAN_SESSION_S = (1.5, 4.0)
"""Added to the session time-out."""
ONE_ALONE_IN = 25
MOST_ALONE = 12
MIN_PAUSE, MAX_PAUSE = 0.3, 2.5
"""Time between two faults, as a share of the mean."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to hurt.

    Attributes:
        rollout_workers: running at rest; scaling goes up to ``max_rollout_workers``.
        start_s: about how long a worker takes to start, for replacements that must be there before a zombie wakes.
        kinds: which kinds of faults happen; None: all.
    """

    rollout_workers: int = 3
    max_rollout_workers: int = 4
    tool_workers: int = 2
    session_timeout_s: float = 6.0
    start_s: float = 2.0
    kinds: frozenset[Kind] | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """One injury.

    Attributes:
        after_s: pause since the fault before it began.
        slot: which process of its role; where that one is being hurt already, the next one that is not.
        lasts_s: of a freeze or a cut, between two signals, or of one size while scaling.
        returns_s: pause before a dead process is started again.
        step: where in its loop the trainer dies (``kill_at_step``).
        is_alone: it waits until everything before it has healed, and what comes after waits for it.
        sizes: numbers of rollout workers, one after another (``scale``).
    """

    number: int
    after_s: float
    role: Role
    kind: Kind
    slot: int
    lasts_s: float = 0.0
    returns_s: float = 0.0
    step: TrainerStep = "polled"
    sizes: tuple[int, ...] = ()
    is_alone: bool = False


def plan_faults(seed: int, count: int, interval_s: float, cluster: Cluster) -> tuple[Fault, ...]:
    """``count`` faults, one every ``interval_s`` on average; each kind comes once before kinds come again by lot.

    One of ``ONE_ALONE_IN`` comes at the end, a kill of a rollout worker with nothing else going on.
    """
    rng = random.Random(f"chaos/{seed}")
    alone = min(MOST_ALONE, count // ONE_ALONE_IN)
    faults: list[Fault] = []
    for number, (role, kind) in enumerate(_draw(rng, count - alone, cluster)):
        after_s = interval_s * min(MAX_PAUSE, max(MIN_PAUSE, rng.expovariate(1.0)))
        faults.append(_fault(rng, number, after_s, role, kind, cluster))
    for number in range(count - alone, count):
        kind: Kind = "kill" if number % 2 else "kill_replaced"
        faults.append(replace(_fault(rng, number, 0.0, "rollout-worker", kind, cluster), is_alone=True))
    return tuple(faults)


def _draw(rng: random.Random, count: int, cluster: Cluster) -> list[tuple[Role, Kind]]:
    weights = {each: weight for each, weight in WEIGHTS.items() if _is_possible(each, cluster)}
    kinds = list(weights)
    if count <= len(kinds):
        return _without_replacement(rng, kinds, [weights[each] for each in kinds], count)
    further = rng.choices(kinds, [weights[each] for each in kinds], k=count - len(kinds))
    drawn = [*kinds, *further]
    rng.shuffle(drawn)
    return drawn


def _without_replacement(
    rng: random.Random, kinds: Sequence[tuple[Role, Kind]], weights: Sequence[float], count: int
) -> list[tuple[Role, Kind]]:
    """A short plan: different kinds, the frequent ones first."""
    ranked = sorted(zip(kinds, weights, strict=True), key=lambda each: rng.random() ** (1 / each[1]), reverse=True)
    drawn = [kind for kind, _ in ranked[:count]]
    rng.shuffle(drawn)
    return drawn


def _is_possible(fault: tuple[Role, Kind], cluster: Cluster) -> bool:
    kind = fault[1]
    if cluster.kinds is not None and kind not in cluster.kinds:
        return False
    return kind != "scale" or cluster.max_rollout_workers > 1


def _fault(rng: random.Random, number: int, after_s: float, role: Role, kind: Kind, cluster: Cluster) -> Fault:
    slots = {"rollout-worker": cluster.rollout_workers, "tool-worker": cluster.tool_workers}.get(role, 1)
    return Fault(
        number=number,
        after_s=round(after_s, 3),
        role=role,
        kind=kind,
        slot=rng.randrange(slots),
        lasts_s=round(_lasts_s(rng, kind, cluster), 3),
        returns_s=round(_returns_s(rng, kind, cluster), 3),
        step=rng.choice(TRAINER_STEPS),
        sizes=_sizes(cluster) if kind == "scale" else (),
    )


def _lasts_s(rng: random.Random, kind: Kind, cluster: Cluster) -> float:
    over_session_s = cluster.session_timeout_s + rng.uniform(*LONGER_THAN_SESSION_S)
    short_s = rng.uniform(*SHORT_FREEZE_S)
    match kind:
        case "freeze_long":
            return over_session_s
        case "zombie" | "twin":
            return max(over_session_s, cluster.start_s + 2.0)
        case "cut_reset" | "cut_black_hole" | "cut_answers":
            return rng.choice([short_s, over_session_s])
        case "scale":
            return cluster.start_s + rng.uniform(1.0, 2.0)
        case _:
            return short_s


def _returns_s(rng: random.Random, kind: Kind, cluster: Cluster) -> float:
    if kind == "kill_replaced":
        return cluster.session_timeout_s + rng.uniform(*LONGER_THAN_SESSION_S)
    return rng.uniform(*SHORT_PAUSE_S)


def _sizes(cluster: Cluster) -> tuple[int, ...]:
    return 1, cluster.max_rollout_workers, max(1, cluster.max_rollout_workers // 2), cluster.rollout_workers
