from __future__ import annotations

import io

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rollstream.cli.status_report import (
    FORGOTTEN_AFTER_S,
    GroupLag,
    StatusReport,
    build_report,
    report_line,
    report_table,
)
from rollstream.schemas.control import Pause, PolicyVersion, ProducerProgress, TrainerProgress, WorkerStatus

NOW = 1_000_000.0
POLICY = PolicyVersion(version=7, lineage=3, uri="policies/7", manifest_sha256="0" * 64, published_at=NOW - 4)


def worker(name: str = "w", **fields: object) -> WorkerStatus:
    known: dict[str, object] = {"role": "rollout-worker", "state": "running", "updated_at": NOW}
    return msgspec.convert({"worker_id": name, **known, **fields}, WorkerStatus)


def report_of(*workers: WorkerStatus, policy: PolicyVersion | None = POLICY) -> StatusReport:
    return build_report(
        bootstrap="h:1",
        prefix="p.",
        at=NOW,
        lags=[GroupLag("p.rollout-workers", "p.tasks", 12)],
        workers=workers,
        policy=policy,
        trainer=TrainerProgress(
            trainer_id="t", lineage=3, version=7, groups_consumed=9, groups_dropped=1, emit_limit=None, updated_at=NOW
        ),
        producers=[ProducerProgress(run_id="r", groups_emitted=5, group_size=8, is_finished=True)],
        pause=Pause(is_paused=True),
    )


@given(st.floats(0.1, 60), st.floats(0, 600))
def test_a_worker_is_presumed_dead_after_three_silent_intervals(interval_s: float, age_s: float) -> None:
    found = report_of(worker(interval_s=interval_s, updated_at=NOW - age_s, running=4)).workers[0]
    overdue = round(age_s, 1) > 3 * interval_s
    assert (found.state == "silent") == overdue


def test_only_living_workers_of_each_role_are_counted_as_running() -> None:
    report = report_of(
        worker("a", running=3),
        worker("b", running=5, updated_at=NOW - 60),
        worker("c", running=2, state="stopped"),
        worker("d", running=7, role="tool-worker"),
    )
    assert (report.episodes_running, report.tool_calls_running) == (3, 7)
    assert {found.worker_id: found.state for found in report.workers} == {
        "a": "running",
        "b": "silent",
        "c": "stopped",
        "d": "running",
    }


def test_workers_gone_for_long_are_forgotten() -> None:
    gone = NOW - FORGOTTEN_AFTER_S - 1
    assert report_of(worker("a", updated_at=gone), worker("b", state="stopped", updated_at=gone)).workers == ()


def test_distance_to_the_newest_policy_is_known_within_a_lineage_only() -> None:
    report = report_of(worker("a", policy_version=5, lineage=3), worker("b", policy_version=5, lineage=2), worker("c"))
    assert [found.versions_behind for found in report.workers] == [2, None, None]


def test_the_report_is_one_json_object_and_can_be_drawn() -> None:
    for report in (report_of(worker(policy_version=7, lineage=3)), report_of(policy=None)):
        data = msgspec.json.decode(msgspec.json.encode(report))
        assert data["lags"] == [{"group": "p.rollout-workers", "topic": "p.tasks", "lag": 12}]
        assert data["producers"][0]["run_id"] == "r"
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(report_table(report))
        assert "p.rollout-workers" in console.export_text()
        assert "lag 12" in report_line(report)
