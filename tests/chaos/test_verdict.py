from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO

import pytest
from chaos_report import Report
from evidence import Begun, Evidence, Injury, Phases, TaskSeen, Trained, TrajectorySeen
from rates import quantile, rate, recovery_s
from report_table import report_table
from rich.console import Console
from verdict import judge, order_of_an_unkilled_reader

GROUPS, SIZE = 3, 2
IDS = [f"{group}/{member}" for group in range(GROUPS) for member in range(SIZE)]


def begun(trajectory_id: str, path: str, worker: str, at: float, *, attempt: int = 1) -> Begun:
    return Begun(trajectory_id, attempt, 7, path, worker, ord(worker), at)


def killed(worker: str, at: float, until: float | None = None) -> Injury:
    return Injury("rollout-worker", "kill", worker, ord(worker), at, at if until is None else until, killed=1)


def seen(trajectory_id: str, at: float) -> TrajectorySeen:
    group, member = map(int, trajectory_id.split("/"))
    mark = f"d{trajectory_id}"
    return TrajectorySeen(trajectory_id, group, SIZE, member, "completed", True, mark, f"f{trajectory_id}", at)


def healthy() -> Evidence:
    """Six episodes; A is killed at 12 while it generates turn 1 of 0/0, which B goes on with at 15."""
    return Evidence(
        phases=Phases(0.0, 10.0, 20.0, 30.0),
        tasks=[TaskSeen(each, int(each[0]), SIZE, int(each[2])) for each in IDS],
        trajectories=[seen(each, 17.0 + place) for place, each in enumerate(IDS)],
        ledger=[Trained(each, f"f{each}") for each in IDS],
        begun=[begun("0/0", "0", "A", 10.5), begun("0/0", "2", "A", 11.5), begun("0/0", "2", "B", 15.0)]
        + [begun(each, "0", "B", 12.5) for each in IDS[1:]],
        injuries=[killed("A", 12.0, 13.0)],
    )


def verdict(evidence: Evidence) -> Report:
    return judge(evidence, seed=3, engine="scripted", session_timeout_s=6.0)


def test_a_healthy_run_keeps_every_promise() -> None:
    report = verdict(healthy())
    assert report.broken == []
    assert (report.lost, report.trained_twice, report.unequal_copies, report.untrained) == (0, 0, 0, 0)
    assert (report.episodes_hit, report.generations_repeated, report.generations_repeated_max) == (1, 1, 1)
    assert report.generations_repeated_mean == 1.0
    assert (report.takeover_s_p50, report.takeover_s_max, report.takeover_clean) == (3.0, 3.0, 1)
    assert report.kills == {"rollout-worker": {"kill": 1}}
    assert (report.processes_killed, report.completed, report.tasks) == (1, 6, 6)


def without_a_trajectory(e: Evidence) -> Evidence:
    return replace(e, trajectories=e.trajectories[:-1], ledger=e.ledger[:-2])


def trained_again(e: Evidence) -> Evidence:
    return replace(e, ledger=[*e.ledger, e.ledger[1]])


def never_trained(e: Evidence) -> Evidence:
    return replace(e, ledger=e.ledger[:-1])


def trained_something_else(e: Evidence) -> Evidence:
    return replace(e, ledger=[replace(e.ledger[0], fingerprint="other"), *e.ledger[1:]])


def trained_out_of_order(e: Evidence) -> Evidence:
    return replace(e, ledger=[*e.ledger[2:4], *e.ledger[:2], *e.ledger[4:]])


def with_an_unequal_copy(e: Evidence) -> Evidence:
    return replace(e, trajectories=[*e.trajectories, replace(e.trajectories[0], digest="other")])


def with_a_foreign_call(e: Evidence) -> Evidence:
    return replace(e, trajectories=[replace(e.trajectories[0], broken_history="phantom"), *e.trajectories[1:]])


def with_a_finished_turn_again(e: Evidence) -> Evidence:
    return replace(e, begun=[*e.begun, begun("0/0", "0", "B", 14.0)])


def with_the_running_turn_twice_again(e: Evidence) -> Evidence:
    return replace(e, begun=[*e.begun, begun("0/0", "2", "B", 15.5)])


def with_a_turn_again_in_peace(e: Evidence) -> Evidence:
    return replace(e, begun=[*e.begun, begun("2/1", "2", "B", 20.0), begun("2/1", "2", "B", 29.0)])


def with_an_orphan(e: Evidence) -> Evidence:
    return replace(e, orphans=["engine"])


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (without_a_trajectory, "1 tasks have no trajectory, e.g. 2/1"),
        (trained_again, "1 trajectories were trained on again, e.g. 0/1"),
        (never_trained, "1 trajectories were never trained on, e.g. 2/1"),
        (trained_something_else, "1 trained trajectories are not the first record"),
        (trained_out_of_order, "order of training"),
        (with_an_unequal_copy, "1 records differ from the first one"),
        (with_a_foreign_call, "another history of their tools"),
        (with_a_finished_turn_again, "begun again, e.g. 0/0: '0' of attempt 1 on B"),
        (with_the_running_turn_twice_again, "begun again, e.g. 0/0: '2' of attempt 1 on B"),
        (with_a_turn_again_in_peace, "begun again, e.g. 2/1"),
        (with_an_orphan, "1 processes outlived their parents, e.g. engine"),
    ],
)
def test_a_planted_break_is_found_and_nothing_else(plant: Callable[[Evidence], Evidence], complaint: str) -> None:
    broken = verdict(plant(healthy())).broken
    assert len(broken) == 1, broken
    assert complaint in broken[0]


def test_a_generation_begun_twice_again_counts_twice() -> None:
    report = verdict(with_the_running_turn_twice_again(healthy()))
    assert (report.generations_repeated, report.generations_repeated_max) == (2, 2)
    assert report.generations_repeated_unfair == 1


def test_an_episode_that_is_begun_from_its_prompt_again_repeats_more_than_one_generation() -> None:
    e = healthy()
    again = [begun("0/0", "0", "B", 15.0), begun("0/0", "2", "B", 16.0)]
    report = verdict(replace(e, begun=[*e.begun[:2], *e.begun[3:], *again]))
    assert (report.generations_repeated_max, report.generations_repeated_mean) == (2, 2.0)
    assert report.broken


def test_every_change_of_hands_may_repeat_the_running_generation() -> None:
    e = healthy()
    e = replace(
        e,
        begun=[*e.begun, begun("0/0", "2", "C", 16.5)],
        injuries=[*e.injuries, killed("B", 16.0)],
    )
    report = verdict(e)
    assert report.broken == []
    assert (report.generations_repeated, report.generations_repeated_max) == (2, 1)


def woken(at: float) -> Injury:
    return Injury("rollout-worker", "zombie", "A", ord("A"), at, at + 1)


def test_a_woken_worker_may_repeat_one_finished_generation_blindly() -> None:
    e = healthy()
    finished = [*e.begun, begun("0/0", "4", "B", 16.0), begun("0/0", "2", "A", 16.5)]
    report = verdict(replace(e, begun=finished, injuries=[woken(11.8)]))
    assert (report.broken, report.generations_repeated_blindly) == ([], 1)
    second = [*finished, begun("0/0", "4", "A", 16.7)]
    assert verdict(replace(e, begun=second, injuries=[woken(11.8)])).generations_repeated_unfair == 1


def test_a_new_attempt_repeats_nothing() -> None:
    e = healthy()
    assert verdict(replace(e, begun=[*e.begun, begun("0/0", "0", "B", 16.0, attempt=2)])).broken == []


def test_the_journal_tells_of_a_takeover_before_the_next_generation() -> None:
    report = verdict(replace(healthy(), signs={"0/0": [10.6, 11.0, 13.5, 14.0]}))
    assert report.takeover_s_max == 1.5


def test_a_takeover_that_was_disturbed_is_not_held_against_the_bar() -> None:
    e = healthy()
    outage = Injury("broker", "kill", "broker", 1, 13.5, 14.5)
    report = verdict(replace(e, injuries=[*e.injuries, outage]))
    assert (report.takeover_s_max, report.takeover_clean_s_max) == (3.0, None)


def test_equal_copies_break_nothing() -> None:
    e = healthy()
    report = verdict(replace(e, trajectories=[*e.trajectories, e.trajectories[0]]))
    assert (report.broken, report.copies) == ([], 1)


def test_failed_trajectories_are_not_missed_by_the_trainer() -> None:
    e = healthy()
    failed = replace(e.trajectories[0], status="failed", is_trainable=False)
    report = verdict(replace(e, trajectories=[failed, *e.trajectories[1:]], ledger=e.ledger[1:]))
    assert (report.broken, report.failed) == ([], 1)


def test_groups_are_trained_when_their_last_member_has_come() -> None:
    log = [seen(each, 0.0) for each in ("1/1", "0/0", "1/1", "1/0", "2/0", "0/1")]
    assert order_of_an_unkilled_reader(log) == ["1/0", "1/1", "0/0", "0/1"]


def test_recovery_is_the_first_window_with_nearly_the_former_rate() -> None:
    ended = [100 + 4 + place / 10 for place in range(100)]
    assert rate(ended, 104, 109) == 10
    assert recovery_s(ended, 10.0, 100.0, 114.0) == 4.0
    assert recovery_s(ended, 1000.0, 100.0, 114.0) is None


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0


def test_a_report_is_json_and_a_table() -> None:
    report = verdict(trained_again(healthy()))
    assert json.loads(json.dumps(report.to_dict()))["trained_twice"] == 1
    console = Console(width=140, record=True, file=StringIO())
    console.print(report_table(report))
    assert "BROKEN: 1 trajectories were trained on again" in console.export_text()
