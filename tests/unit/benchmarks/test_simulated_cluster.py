"""Asynchronous training against the ideal, in virtual time: the bar of `make bench` on small clusters."""

from __future__ import annotations

import pytest
from benchmarks.simulated_cluster import DURATIONS, GROUP_SIZE, Cluster, ideal_seconds, simulate
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("durations", ["lognormal 0.5", "10 % ten times longer"])
def test_two_batches_ahead_reach_the_bar_and_leave_synchronous_training_behind(durations: str) -> None:
    sync, ahead = (
        simulate(Cluster(workers=4, batches=60, durations=durations, pipeline_depth=depth)) for depth in (0, 2)
    )
    assert ahead.of_ideal >= 0.95
    assert 2.2 <= sync.seconds / ahead.seconds <= 3.0
    assert (ahead.dropped, sync.max_staleness) == (0.0, 0)
    assert ahead.mean_staleness <= 3
    assert ahead.max_staleness <= 4


@settings(max_examples=25, deadline=None)
@given(
    workers=st.integers(1, 3),
    batches=st.integers(1, 12),
    durations=st.sampled_from(sorted(DURATIONS)),
    depth=st.integers(0, 4),
    max_staleness=st.sampled_from([0, 1, 2, 4, None]),
    step_ratio=st.sampled_from([0.1, 1.0, 5.0]),
    is_placed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_nothing_beats_the_ideal_and_no_age_passes_the_bound(
    workers: int,
    batches: int,
    durations: str,
    depth: int,
    max_staleness: int | None,
    step_ratio: float,
    is_placed: bool,
    seed: int,
) -> None:
    cluster = Cluster(
        workers=workers, batches=batches, durations=durations, pipeline_depth=depth, max_staleness=max_staleness,
        step_ratio=step_ratio, is_placed=is_placed, seed=seed,
    )  # fmt: skip
    outcome = simulate(cluster)
    assert 0 < outcome.of_ideal <= 1 + 1e-9
    assert max_staleness is None or outcome.max_staleness <= max_staleness
    assert 0 <= outcome.slots_idle < 1
    assert simulate(cluster) == outcome


def test_the_ideal_is_the_busier_of_trainer_and_slots_with_the_first_and_the_last_batch_beside_it() -> None:
    assert ideal_seconds([80.0] * 10, slots=8, step_s=1.0) == 10 * 10.0 + 1.0
    assert ideal_seconds([80.0] * 10, slots=8, step_s=50.0) == 10.0 + 10 * 50.0
    assert ideal_seconds([8.0, 8.0, 800.0, 8.0], slots=8, step_s=5.0) == 1.0 + 1.0 + 100.0 + 2 * 5.0


def test_the_work_of_a_batch_keeps_slots_and_trainer_equally_busy() -> None:
    cluster = Cluster(workers=2, batches=1)
    assert cluster.groups_per_batch * GROUP_SIZE == cluster.slots * cluster.waves
