"""What the pipeline is doing, from its own words on ``control`` and the lag of its consumer groups. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rollstream.schemas.control import Pause, PolicyVersion, ProducerProgress, TrainerProgress, WorkerStatus

SILENT_AFTER_INTERVALS = 3
FORGOTTEN_AFTER_S = 3600.0
"""A worker that stopped or fell silent this long ago is history and not shown."""


@dataclass(frozen=True)
class GroupLag:
    """Records of ``topic`` that the consumer group has not committed yet."""

    group: str
    topic: str
    lag: int


@dataclass(frozen=True)
class WorkerReport:
    """One worker; ``silent`` means that it is overdue and presumed dead."""

    worker_id: str
    role: str
    state: Literal["starting", "running", "draining", "stopped", "silent"]
    running: int
    finished: int
    policy_version: int | None
    versions_behind: int | None
    seen_s_ago: float


@dataclass(frozen=True)
class StatusReport:
    """The whole pipeline at one moment; ``rollstream status --json`` prints exactly this."""

    bootstrap: str
    prefix: str
    at: float
    lags: tuple[GroupLag, ...]
    workers: tuple[WorkerReport, ...]
    episodes_running: int
    tool_calls_running: int
    policy_version: int | None
    policy_lineage: int | None
    policy_uri: str | None
    policy_age_s: float | None
    trainer: TrainerReport | None
    producers: tuple[ProducerReport, ...]
    is_paused: bool
    dead_letters_open: int | None = None
    """None: not counted."""


@dataclass(frozen=True)
class TrainerReport:
    """The trainer's own word."""

    trainer_id: str
    version: int
    groups_consumed: int
    groups_dropped: int
    emit_limit: int | None
    seen_s_ago: float
    dropped_for: dict[str, int] = field(default_factory=dict[str, int])
    """Dropped groups by reason."""


@dataclass(frozen=True)
class ProducerReport:
    """One run of prompts."""

    run_id: str
    groups_emitted: int
    group_size: int
    is_finished: bool
    is_train: bool
    seen_s_ago: float


def build_report(
    *,
    bootstrap: str,
    prefix: str,
    at: float,
    lags: Sequence[GroupLag],
    workers: Iterable[WorkerStatus],
    policy: PolicyVersion | None,
    trainer: TrainerProgress | None,
    producers: Iterable[ProducerProgress],
    pause: Pause | None,
) -> StatusReport:
    """Put one moment together; ``at`` in unix seconds decides who is silent."""
    reports = [worker_report(worker, policy, at) for worker in workers]
    shown = [r for r in reports if r.state not in ("stopped", "silent") or r.seen_s_ago < FORGOTTEN_AFTER_S]
    live = [report for report in shown if report.state not in ("stopped", "silent")]
    return StatusReport(
        bootstrap=bootstrap,
        prefix=prefix,
        at=at,
        lags=tuple(lags),
        workers=tuple(sorted(shown, key=lambda report: (report.role, report.worker_id))),
        episodes_running=sum(report.running for report in live if report.role == "rollout-worker"),
        tool_calls_running=sum(report.running for report in live if report.role == "tool-worker"),
        policy_version=policy.version if policy else None,
        policy_lineage=policy.lineage if policy else None,
        policy_uri=policy.uri if policy else None,
        policy_age_s=_age(policy.published_at, at) if policy else None,
        trainer=_trainer_report(trainer, at) if trainer else None,
        producers=tuple(_producer_report(p, at) for p in sorted(producers, key=lambda p: p.updated_at)),
        is_paused=pause.is_paused if pause else False,
    )


def worker_report(status: WorkerStatus, policy: PolicyVersion | None, at: float) -> WorkerReport:
    """A worker's word, weighed with its age."""
    seen_s_ago = _age(status.updated_at, at)
    is_silent = status.state != "stopped" and seen_s_ago > SILENT_AFTER_INTERVALS * status.interval_s
    behind = None
    if policy is not None and status.policy_version is not None and status.lineage == policy.lineage:
        behind = max(0, policy.version - status.policy_version)
    return WorkerReport(
        worker_id=status.worker_id,
        role=status.role,
        state="silent" if is_silent else status.state,
        running=status.running,
        finished=status.finished,
        policy_version=status.policy_version,
        versions_behind=behind,
        seen_s_ago=seen_s_ago,
    )


def _trainer_report(trainer: TrainerProgress, at: float) -> TrainerReport:
    return TrainerReport(
        trainer_id=trainer.trainer_id,
        version=trainer.version,
        groups_consumed=trainer.groups_consumed,
        groups_dropped=trainer.groups_dropped,
        emit_limit=trainer.emit_limit,
        seen_s_ago=_age(trainer.updated_at, at),
        dropped_for=dict(trainer.dropped_for),
    )


def _producer_report(producer: ProducerProgress, at: float) -> ProducerReport:
    return ProducerReport(
        run_id=producer.run_id,
        groups_emitted=producer.groups_emitted,
        group_size=producer.group_size,
        is_finished=producer.is_finished,
        is_train=producer.is_train,
        seen_s_ago=_age(producer.updated_at, at),
    )


def _age(since: float, at: float) -> float:
    return round(max(0.0, at - since), 1)


def report_table(report: StatusReport) -> RenderableType:
    """The report for a terminal."""
    return Group(_header(report), _worker_table(report), _lag_table(report))


def _header(report: StatusReport) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    policy = "none published"
    if report.policy_version is not None:
        age_s = report.policy_age_s or 0.0
        policy = f"{report.policy_version} (lineage {report.policy_lineage}, published {age_s:.0f} s ago)"
    rows = [("kafka", f"{report.bootstrap}, prefix {report.prefix!r}"), ("policy version", policy)]
    if report.trainer is not None:
        rows.append(("trainer", _trainer_text(report.trainer)))
    for producer in report.producers:
        state = "finished" if producer.is_finished else f"seen {producer.seen_s_ago:.0f} s ago"
        text = f"{producer.run_id}: {producer.groups_emitted} groups of {producer.group_size}, {state}"
        rows.append(("producer", text))
    rows.append(("running", f"{report.episodes_running} episodes, {report.tool_calls_running} tool calls"))
    if report.is_paused:
        rows.append(("paused", "producers wait"))
    if report.dead_letters_open:
        rows.append(("dead letters", f"{report.dead_letters_open} open: rollstream dead-letters list"))
    for label, text in rows:
        grid.add_row(Text(label, style="dim"), Text(text))
    return grid


def _trainer_text(trainer: TrainerReport) -> str:
    limit = "none" if trainer.emit_limit is None else str(trainer.emit_limit)
    reasons = ", ".join(f"{groups} {reason}" for reason, groups in trainer.dropped_for.items())
    dropped = f"{trainer.groups_dropped} dropped{f' ({reasons})' if reasons else ''}"
    return (
        f"version {trainer.version}, {trainer.groups_consumed} groups consumed, {dropped}, "
        f"emit limit {limit}, seen {trainer.seen_s_ago:.0f} s ago"
    )


def _worker_table(report: StatusReport) -> RenderableType:
    table = Table(title="workers", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("worker", "role", "state", "running", "finished", "policy", "behind", "seen"):
        table.add_column(column)
    for worker in report.workers:
        style = {"silent": "red", "running": "green"}.get(worker.state, "yellow")
        table.add_row(
            worker.worker_id,
            worker.role,
            Text(worker.state, style=style),
            str(worker.running),
            str(worker.finished),
            "-" if worker.policy_version is None else str(worker.policy_version),
            "-" if worker.versions_behind is None else str(worker.versions_behind),
            f"{worker.seen_s_ago:.0f} s ago",
        )
    return table if report.workers else Text("no workers", style="yellow")


def _lag_table(report: StatusReport) -> RenderableType:
    table = Table(title="lag", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("group", "topic", "records behind"):
        table.add_column(column)
    for lag in report.lags:
        table.add_row(lag.group, lag.topic, str(lag.lag))
    return table if report.lags else Text("no consumer group has committed anything yet", style="dim")


def report_line(report: StatusReport) -> str:
    """The report in one line, for logs."""
    live = sum(worker.state not in ("stopped", "silent") for worker in report.workers)
    silent = sum(worker.state == "silent" for worker in report.workers)
    version = "-" if report.policy_version is None else str(report.policy_version)
    return (
        f"workers {live}" + (f" ({silent} silent)" if silent else "") + f", episodes {report.episodes_running}, "
        f"tool calls {report.tool_calls_running}, policy {version}, lag {sum(lag.lag for lag in report.lags)}"
    )
