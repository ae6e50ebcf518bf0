"""P5: slow episodes are trained on as often as fast ones. A seeded world around the former, with workers and a clock.

Episodes last 1 to 10 units of time, long ones rare (truncated Pareto). A group of one member is drawn whole by the
policy that is the newest when a worker takes it up; the trainer needs no time for a step.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import PublishedPolicy, StreamStats

Make = Callable[..., Trajectory]
LINEAGE = 7
GROUPS, DECILES = 1200, 10
TAIL = 10.0
POLICY = PublishedPolicy(uri="somewhere", manifest_sha256="0" * 64)


@dataclass
class Outcome:
    """What became of a run: how long each group's episode was, which groups were trained on, and how old."""

    durations: list[float]
    trained: list[int]
    oldest: int
    stats: StreamStats
    ended_at: float


def long_tailed(random: Random) -> float:
    """1 to ``TAIL``; a tenth of the episodes is longer than 4.6, the mean is 2.4."""
    return min(TAIL, random.paretovariate(1.5))


def simulate(make: Make, *, workers: int, groups: int, seed: int, runs: int = 1, **options: object) -> Outcome:
    """Producers emit in turn as soon as they may, workers take the next task as soon as they are free.

    Group ``i`` of all is group ``i // runs`` of run ``i % runs``.
    """
    random = Random(seed)
    former = BatchFormer(TrainerSettings.model_validate({"min_members": 1, **options}), "trajectories")
    former.open_lineage(LINEAGE, is_restored=False)
    former.begin_at({0: 0})
    durations = [long_tailed(random) for _ in range(groups)]
    free, queue, running = workers, 0, list[tuple[float, int, int]]()
    emitted = offset = 0
    clock, version, oldest = 0.0, 0, 0
    trained: list[int] = []
    while not former.has_ended:
        if emitted < min(groups, former.emit_limit):
            emitted = min(groups, former.emit_limit)
            for run in range(runs):
                progress = ProducerProgress(
                    run_id=f"run{run}",
                    groups_emitted=len(range(run, emitted, runs)),
                    group_size=1,
                    is_finished=emitted == groups,
                )
                former.note_progress(progress, now_s=clock)
        while free and queue < emitted:
            heapq.heappush(running, (clock + durations[queue], queue, version))
            free, queue = free - 1, queue + 1
        if (batch := former.next_batch()) is not None:
            trained += [group.group_index * runs + int(group.run_id[3:]) for group in batch.groups]
            oldest = max(oldest, *(group.staleness or 0 for group in batch.groups))
            version += 1
            former.published(version, POLICY)
            continue
        if former.has_ended or not running:
            break
        clock, index, begun_at = heapq.heappop(running)
        record = make(index // runs, 0, run_id=f"run{index % runs}", group_size=1, version=begun_at, lineage=LINEAGE)
        former.add(record, 0, offset, now_s=clock)
        free, offset = free + 1, offset + 1
    return Outcome(durations, trained, oldest, former.stats(), clock)


def shares_by_decile(outcome: Outcome) -> list[float]:
    """Per decile of the duration, shortest first: trained on ÷ emitted."""
    order = sorted(range(len(outcome.durations)), key=lambda index: outcome.durations[index])
    size, trained = len(order) // DECILES, set(outcome.trained)
    return [sum(index in trained for index in order[d * size : (d + 1) * size]) / size for d in range(DECILES)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("runs", [1, 3])
def test_as_many_long_episodes_are_trained_on_as_short_ones(
    make_trajectory: Make, seed: int, depth: int, runs: int
) -> None:
    """Exactly all: what is emitted under the limit fits, and nothing begins before it is emitted. So no tolerance."""
    options: dict[str, Any] = {"workers": 24, "groups": GROUPS, "seed": seed, "groups_per_batch": 8}
    options |= {"pipeline_depth": depth, "runs": runs}
    held = simulate(make_trajectory, max_staleness=2, **options)
    assert shares_by_decile(held) == [1.0] * DECILES
    assert held.stats.batches_held > 0
    assert held.oldest <= 2


@pytest.mark.parametrize("seed", range(3))
def test_without_holding_back_the_longest_episodes_are_lost(make_trajectory: Make, seed: int) -> None:
    """What the test above would show if nothing were held back."""
    options = {"workers": 24, "groups": GROUPS, "seed": seed, "groups_per_batch": 8, "pipeline_depth": 2}
    dropping = simulate(make_trajectory, max_staleness=2, stale="drop", **options)
    shares = shares_by_decile(dropping)
    assert shares[-1] < 0.1
    assert min(shares[:5]) == 1.0
    assert dropping.stats.batches_held == 0
    assert dropping.stats.stale_dropped == GROUPS - len(dropping.trained)


def test_where_nothing_is_slow_holding_back_costs_nothing(make_trajectory: Make) -> None:
    options = {"workers": 24, "groups": 400, "seed": 1, "groups_per_batch": 8, "pipeline_depth": 1}
    held = simulate(make_trajectory, max_staleness=8, **options)
    dropping = simulate(make_trajectory, max_staleness=8, stale="drop", **options)
    assert (held.stats.batches_held, dropping.stats.stale_dropped) == (0, 0)
    assert (held.trained, held.ended_at) == (dropping.trained, dropping.ended_at)


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 40),
    batch=st.integers(1, 6),
    depth=st.integers(0, 6),
    bound=st.integers(0, 4),
    runs=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_no_setting_lets_a_stream_stand_still_or_deliver_what_is_too_old(
    workers: int, batch: int, depth: int, bound: int, runs: int, seed: int, make_trajectory: Make
) -> None:
    outcome = simulate(
        make_trajectory,
        workers=workers,
        groups=60,
        seed=seed,
        runs=runs,
        groups_per_batch=batch,
        pipeline_depth=depth,
        max_staleness=bound,
    )
    assert outcome.oldest <= bound
    assert len(outcome.trained) + outcome.stats.stale_dropped == 60
    if depth <= bound:
        assert outcome.stats.stale_dropped == 0, "what may be under way always fits"
