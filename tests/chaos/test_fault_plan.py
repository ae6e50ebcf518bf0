from __future__ import annotations

from fault_plan import WEIGHTS, Cluster, plan_faults
from hypothesis import given
from hypothesis import strategies as st

seeds = st.integers(0, 2**32)


@given(seeds, st.integers(0, 200))
def test_a_seed_is_a_plan(seed: int, count: int) -> None:
    first, again = (plan_faults(seed, count, 2.0, Cluster()) for _ in range(2))
    assert first == again
    assert len(first) == count
    assert all(fault.after_s >= 0 for fault in first)
    assert [fault.number for fault in first] == list(range(count))


def test_another_seed_is_another_plan() -> None:
    assert plan_faults(1, 20, 2.0, Cluster()) != plan_faults(2, 20, 2.0, Cluster())


@given(seeds)
def test_a_long_plan_has_every_kind_and_mostly_kills(seed: int) -> None:
    plan = plan_faults(seed, 400, 2.0, Cluster())
    assert {(fault.role, fault.kind) for fault in plan} == WEIGHTS.keys()
    assert sum(fault.kind.startswith("kill") for fault in plan) > 200


@given(seeds, st.integers(1, 24))
def test_a_short_plan_repeats_no_kind(seed: int, count: int) -> None:
    plan = plan_faults(seed, count, 2.0, Cluster())
    assert len({(fault.role, fault.kind) for fault in plan}) == count


@given(seeds)
def test_faults_that_outlast_the_session_do(seed: int) -> None:
    cluster = Cluster(session_timeout_s=6.0)
    for fault in plan_faults(seed, 100, 2.0, cluster):
        if fault.kind in {"freeze_long", "zombie", "twin"}:
            assert fault.lasts_s > cluster.session_timeout_s
        if fault.kind == "kill_replaced":
            assert fault.returns_s > cluster.session_timeout_s
        if fault.kind == "freeze":
            assert fault.lasts_s < cluster.session_timeout_s


@given(seeds)
def test_only_what_is_there_is_hurt_and_only_as_allowed(seed: int) -> None:
    cluster = Cluster(rollout_workers=2, max_rollout_workers=4, tool_workers=1, kinds=frozenset({"kill", "scale"}))
    plan = plan_faults(seed, 100, 2.0, cluster)
    assert {fault.kind for fault in plan if not fault.is_alone} == {"kill", "scale"}
    assert {fault.slot for fault in plan if fault.role == "rollout-worker"} == {0, 1}
    assert {fault.slot for fault in plan if fault.role != "rollout-worker"} == {0}
    assert {fault.sizes for fault in plan if fault.kind == "scale"} == {(1, 4, 2, 2)}


def test_the_mean_time_between_faults_is_what_was_asked_for() -> None:
    plan = plan_faults(0, 2000, 2.0, Cluster())
    assert 1.6 < sum(fault.after_s for fault in plan) / len(plan) < 2.4


@given(seeds)
def test_some_kills_come_alone_and_last(seed: int) -> None:
    plan = plan_faults(seed, 200, 2.0, Cluster())
    alone = [fault for fault in plan if fault.is_alone]
    assert plan[-len(alone) :] == tuple(alone)
    assert [fault.kind for fault in alone] == ["kill_replaced", "kill"] * 4
    assert {fault.role for fault in alone} == {"rollout-worker"}
