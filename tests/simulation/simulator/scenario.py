"""What a seed means: how much of everything there is, which tasks are odd, and what goes wrong when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from simulator.cluster import Weather

from rollstream.schemas import ids

RUN_ID = "simulated"
Poison = Literal["decode", "render", "turn"]

FaultKind = Literal[
    "kill",
    "kill_all",
    "freeze",
    "replace",
    "twin",
    "expel",
    "drain",
    "trainer",
    "retention",
    "producer",
    "emit_again",
    "rubbish",
    "stray_call",
    "stray_record",
    "scale",
    "strike_writer",
]


@dataclass(frozen=True)
class TaskPlan:
    """What the model does with one task."""

    turns: int = 2
    calls: tuple[int, ...] = (1, 1, 1)
    """Tool calls asked for in each turn but the last."""
    poison: Poison | None = None
    """Where it kills its worker, every time; ``turn``: when its second turn is sampled."""
    wavers: bool = False
    """Its agent is not deterministic."""
    pays: bool = False
    """Its calls go to the tool that must not run twice."""


@dataclass(frozen=True)
class Fault:
    """Something that happens at a virtual moment (seconds from the start)."""

    at: float
    kind: FaultKind
    pick: float
    """In [0, 1): chooses among those it could happen to."""
    length_s: float
    """How long a freeze lasts, or how long a dead process is away."""


_SHARES: dict[FaultKind, int] = {
    "strike_writer": 12,
    "kill": 7,
    "freeze": 5,
    "replace": 4,
    "expel": 2,
    "drain": 2,
    "trainer": 2,
    "stray_call": 2,
    "kill_all": 1,
    "twin": 1,
    "retention": 1,
    "producer": 1,
    "emit_again": 1,
    "rubbish": 1,
    "stray_record": 1,
    "scale": 1,
}
ANY_FAULT: tuple[FaultKind, ...] = tuple(kind for kind, share in _SHARES.items() for _ in range(share))


@dataclass(frozen=True)
class Profile:
    """A family of scenarios. Rare situations are searched for in families that favour them."""

    kinds: tuple[FaultKind, ...] = ANY_FAULT
    min_faults: int = 3
    max_faults: int = 12
    storm: bool | None = None
    """Whether sends fail; None: in some."""
    poison: Poison | Literal["some"] | None = "some"
    wavers: bool | None = None
    short_clock: bool | None = None
    engine_failures: bool | None = None
    engine_failure: float = 0.08
    group_deadlines: bool | None = None
    is_static: bool | None = None
    workers: tuple[int, ...] = (1, 2, 2, 3)
    tool_workers: tuple[int, ...] = (1, 1, 2)
    max_calls: int = 2
    pays: bool | None = None
    slow: float | None = None


@dataclass(frozen=True)
class Scenario:
    """Everything that is decided before the first step."""

    seed: int
    group_size: int
    groups: int
    tasks: dict[str, TaskPlan]
    task_partitions: int
    call_partitions: int
    trajectory_partitions: int
    workers: int
    tool_workers: int
    slots: int
    is_static: bool
    wall_clock_s: float
    engine_failure: float
    group_deadline_s: float
    groups_per_batch: int
    pipeline_depth: int
    only_poison: bool
    faults: tuple[Fault, ...]
    faults_until: float
    weather: Weather = field(default_factory=Weather)

    @property
    def deadlines(self) -> bool:
        """Whether groups may close without members."""
        return self.group_deadline_s < 1000


def scenario(seed: int, profile: Profile | None = None) -> Scenario:
    """The scenario of a seed in a family."""
    family = profile or Profile()
    rng = random.Random(f"scenario {seed}")
    groups, group_size = rng.choice((1, 2, 2, 3)), rng.choice((1, 2))
    tasks = {
        ids.trajectory_id(RUN_ID, group, member): TaskPlan(
            turns=rng.choice((1, 2, 3, 4)),
            calls=tuple(rng.randint(1, family.max_calls) for _ in range(4)),
            pays=_sometimes(family.pays, rng, 0.15),
        )
        for group in range(groups)
        for member in range(group_size)
    }
    only_poison = _spoil(tasks, family, rng)
    storm = _sometimes(family.storm, rng, 0.6)
    until = 0.0 if only_poison else rng.choice((3.0, 6.0, 12.0))
    number = 0 if only_poison else rng.randint(family.min_faults, family.max_faults)
    faults = [
        Fault(
            0.3 + rng.random() * until,
            rng.choice(family.kinds),
            rng.random(),
            rng.choice((0.2, 1, 4, 8)) * (0.5 + rng.random()),
        )
        for _ in range(number)
    ]
    return Scenario(
        seed=seed,
        group_size=group_size,
        groups=groups,
        tasks=tasks,
        task_partitions=rng.choice((1, 1, 2)),
        call_partitions=rng.choice((1, 2)),
        trajectory_partitions=rng.choice((1, 2)),
        workers=rng.choice(family.workers),
        tool_workers=rng.choice(family.tool_workers),
        slots=rng.choice((1, 2, 4)),
        is_static=_sometimes(family.is_static, rng, 0.5),
        wall_clock_s=rng.choice((3.0, 6.0, 10.0)) if _sometimes(family.short_clock, rng, 0.2) else 600.0,
        engine_failure=family.engine_failure
        if not only_poison and _sometimes(family.engine_failures, rng, 0.2)
        else 0.0,
        group_deadline_s=_group_deadline_s(tasks, family, rng),
        groups_per_batch=rng.choice((1, 1, 2)),
        pipeline_depth=rng.choice((0, 1, 4)),
        only_poison=only_poison,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        faults_until=until,
        weather=Weather(
            unknown_outcome=rng.choice((0.03, 0.1)) if storm and not only_poison else 0.0,
            refused=0.02 if storm and not only_poison else 0.0,
            twice=0.1 if storm and not only_poison else 0.0,
            slow=family.slow if family.slow is not None else rng.choice((0.02, 0.1, 0.3)),
            slow_s=rng.choice((0.3, 2.0)),
            lagging=rng.choice((0.0, 0.1, 0.5)),
            lag_s=rng.choice((1.0, 4.0)),
            idle_stretch=rng.choice((2.0, 8.0)),
        ),
    )


def _sometimes(fixed: bool | None, rng: random.Random, chance: float) -> bool:
    drawn = rng.random() < chance
    return drawn if fixed is None else fixed


def _group_deadline_s(tasks: dict[str, TaskPlan], family: Profile, rng: random.Random) -> float:
    """A task that can never be read leaves its group incomplete for ever."""
    if any(plan.poison == "decode" for plan in tasks.values()):
        return 60.0
    return rng.choice((8.0, 20.0)) if _sometimes(family.group_deadlines, rng, 0.1) else 1e6


def _spoil(tasks: dict[str, TaskPlan], family: Profile, rng: random.Random) -> bool:
    """Make one of the tasks odd, in some scenarios; whether poison is then the only fault."""
    chosen, mode, place = rng.choice(sorted(tasks)), rng.random(), rng.choice(("decode", "render", "turn", "turn"))
    plan = tasks[chosen]
    if family.poison is not None and (family.poison != "some" or mode < 0.12):
        poison: Poison = place if family.poison == "some" else family.poison
        tasks[chosen] = TaskPlan(max(2, plan.turns), plan.calls, poison, pays=plan.pays)
        return mode < 0.06
    if family.wavers or (family.wavers is None and 0.12 <= mode < 0.2):
        tasks[chosen] = TaskPlan(max(2, plan.turns), plan.calls, wavers=True)
    return False
