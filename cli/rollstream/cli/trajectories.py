"""``rollstream trajectories tail | export``: look at the trajectories of all runs, or take them away as files."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from rollstream.cli.points_in_time import point_in_time
from rollstream.cli.settings import load_settings
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings

trajectories_app = typer.Typer(no_args_is_help=True)

SHOWN = 20
FETCH_WAIT_S = 0.25

Bootstrap = Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")]
Prefix = Annotated[str | None, typer.Option(help="Prefix of all topics.")]
Run = Annotated[str | None, typer.Option("--run", help="Trajectories of this run only.")]
Since = Annotated[str | None, typer.Option(help="Begin there: 90s, 15m, 2h, 1d ago, or an ISO time.")]


@trajectories_app.command()
def tail(
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    run: Run = None,
    since: Since = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per trajectory and line.")] = False,
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="Stop after this many.")] = None,
) -> None:
    """Show trajectories as they arrive, until Ctrl-C; without --since only new ones."""
    kafka = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}}).kafka
    asyncio.run(
        _tail(kafka, run, point_in_time(since, "--since"), as_json=as_json or not Console().is_terminal, limit=limit)
    )


@trajectories_app.command()
def export(
    target: Annotated[str, typer.Argument(help="Directory, or fsspec URL of one (s3://…), that holds no export yet.")],
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    run: Run = None,
    since: Since = None,
    file_format: Annotated[Literal["parquet", "jsonl"], typer.Option("--format", help="Kind of file.")] = "parquet",
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new ones until Ctrl-C.")] = False,
) -> None:
    """Write every trajectory once, from the earliest to the present end: one row per sample, arrays as lists."""
    kafka = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}}).kafka
    summary = asyncio.run(_export(kafka, target, file_format, run, point_in_time(since, "--since"), follow=follow))
    typer.echo(summary)


async def _tail(
    kafka: KafkaSettings, run_id: str | None, since_s: float | None, *, as_json: bool, limit: int | None
) -> None:
    newest: deque[dict[str, Any]] = deque(maxlen=SHOWN)
    shown = 0
    with stop_on_signals() as stop, Live(console=Console(stderr=as_json), auto_refresh=False) as live:
        async with aclosing(_arriving(kafka, since_s, stop)) as arriving:
            async for record, trajectory in arriving:
                if run_id not in (None, trajectory.run_id):
                    continue
                facts = trajectory_line(record, trajectory)
                if as_json:
                    typer.echo(json.dumps(facts))
                else:
                    newest.append(facts)
                    live.update(_table(newest, shown + 1), refresh=True)
                shown += 1
                if shown == limit:
                    return


async def _arriving(
    kafka: KafkaSettings, since_s: float | None, stop: asyncio.Event
) -> AsyncGenerator[tuple[Record, Trajectory]]:
    from rollstream.trainers.trajectory_log import TrajectoryLog

    async with TrajectoryLog(kafka) as log:
        await log.seek(await log.end_offsets() if since_s is None else await log.offsets_at(since_s))
        while not stop.is_set():
            for record in await log.fetch(timeout_s=FETCH_WAIT_S):
                try:
                    yield record, decode_record(record, Trajectory)
                except InvalidMessageError as error:
                    typer.echo(f"{record_place(record)} is no trajectory: {error}", err=True)


async def _export(
    kafka: KafkaSettings,
    target: str,
    file_format: Literal["parquet", "jsonl"],
    run_id: str | None,
    since_s: float | None,
    *,
    follow: bool,
) -> str:
    from rollstream.trainers.trajectory_export import ExportSummary, export_trajectories

    with stop_on_signals() as stop, Console(stderr=True).status("reading…") as status:

        def show(so_far: ExportSummary) -> None:
            status.update(f"{so_far.trajectories} trajectories, {so_far.parts} files")

        exporting = export_trajectories(
            kafka,
            target,
            file_format=file_format,
            run_id=run_id,
            since_s=since_s,
            is_following=follow,
            stop=stop,
            on_progress=show,
        )
        done = await exporting
    left_out = f", {done.duplicates} copies and {done.undecodable} undecodable records left out"
    return f"{done.trajectories} trajectories in {done.parts} files: {target}{left_out}"


def trajectory_line(record: Record, trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory in brief, without its arrays."""
    return {
        "time": record.timestamp / 1000,
        "run_id": trajectory.run_id,
        "group_index": trajectory.group_index,
        "member_index": trajectory.member_index,
        "trajectory_id": trajectory.trajectory_id,
        "status": trajectory.status,
        "stop_reason": trajectory.stop_reason,
        "reward": trajectory.reward,
        "num_turns": trajectory.num_turns,
        "sampled_tokens": sum(int(sample.response_mask.sum()) for sample in trajectory.samples),
        "response_tokens": sum(len(sample.response_ids) for sample in trajectory.samples),
        "policy_version_min": trajectory.policy_version_min,
        "policy_version_max": trajectory.policy_version_max,
        "lineage": trajectory.lineage,
        "is_train": trajectory.is_train,
        "worker_id": trajectory.worker_id,
        "error": f"{trajectory.error.type}: {trajectory.error.message}" if trajectory.error else None,
    }


def _table(newest: deque[dict[str, Any]], count: int) -> Table:
    table = Table("time", "run", "group", "member", "status", "reward", "turns", "tokens", "versions", "worker")
    table.caption = f"{count} trajectories"
    for facts in newest:
        status = facts["status"] if facts["status"] == "completed" else f"{facts['status']} ({facts['stop_reason']})"
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(facts["time"])),
            facts["run_id"],
            str(facts["group_index"]),
            str(facts["member_index"]),
            status,
            "-" if facts["reward"] is None else f"{facts['reward']:g}",
            str(facts["num_turns"]),
            str(facts["sampled_tokens"]),
            f"{facts['policy_version_min']}-{facts['policy_version_max']}",
            facts["worker_id"],
        )
    return table
