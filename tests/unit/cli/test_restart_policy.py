from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.cli.restart_policy import KILLED_AFTER_S, KILLS, Finished, GiveUp, Restart, RestartPolicy, after_exit

policies = st.builds(
    RestartPolicy,
    budget=st.integers(0, 20),
    first_delay_s=st.floats(0.01, 10),
    max_delay_s=st.floats(0.01, 100),
    healthy_after_s=st.floats(1, 1000),
)
exit_codes = st.integers(-64, 255).filter(lambda code: code not in KILLS)


@given(policies, st.lists(st.tuples(exit_codes, st.floats(0, 0.5)), min_size=30, max_size=30))
def test_a_process_that_always_fails_at_once_is_given_up_after_exactly_its_budget(
    policy: RestartPolicy, exits: list[tuple[int, float]]
) -> None:
    failures = restarts = 0
    delays: list[float] = []
    for exit_code, ran_s in exits:
        decision = after_exit(policy, exit_code=exit_code, ran_s=ran_s, failures=failures, may_finish=False)
        if isinstance(decision, GiveUp):
            break
        assert isinstance(decision, Restart)
        failures = decision.failures
        delays.append(decision.delay_s)
        restarts += 1
    assert restarts == policy.budget
    assert delays == sorted(delays)
    assert all(delay <= policy.max_delay_s for delay in delays)


@given(policies, exit_codes, st.integers(0, 10_000))
def test_a_long_healthy_run_gives_the_whole_budget_back(policy: RestartPolicy, exit_code: int, failures: int) -> None:
    decision = after_exit(
        policy, exit_code=exit_code, ran_s=policy.healthy_after_s, failures=failures, may_finish=False
    )
    assert isinstance(decision, GiveUp if policy.budget == 0 else Restart)
    assert decision.failures == 1


@given(policies, st.floats(0, 1e6), st.integers(0, 100))
def test_exit_code_zero_is_the_end_for_a_producer_and_a_failure_for_a_worker(
    policy: RestartPolicy, ran_s: float, failures: int
) -> None:
    assert after_exit(policy, exit_code=0, ran_s=ran_s, failures=failures, may_finish=True) == Finished()
    assert after_exit(policy, exit_code=0, ran_s=ran_s, failures=failures, may_finish=False) != Finished()


def test_delays_double() -> None:
    policy = RestartPolicy(budget=9, first_delay_s=1, max_delay_s=10)
    decisions = [after_exit(policy, exit_code=1, ran_s=0, failures=n, may_finish=True) for n in range(6)]
    assert [d.delay_s for d in decisions if isinstance(d, Restart)] == [1, 2, 4, 8, 10, 10]


@given(policies.filter(lambda policy: policy.budget > 0), st.sampled_from(sorted(KILLS)), st.integers(0, 10_000))
def test_a_process_that_others_kill_is_started_again_however_often(
    policy: RestartPolicy, exit_code: int, failures: int
) -> None:
    killed = after_exit(policy, exit_code=exit_code, ran_s=KILLED_AFTER_S, failures=failures, may_finish=False)
    assert killed == Restart(policy.first_delay_s, 0)
    at_its_start = after_exit(policy, exit_code=exit_code, ran_s=0.0, failures=failures, may_finish=False)
    assert at_its_start == after_exit(policy, exit_code=1, ran_s=0.0, failures=failures, may_finish=False)
