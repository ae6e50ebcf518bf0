"""``rollstream archive run``: the trajectories of all runs as files, for ever."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from rollstream.cli.event_loop import run_on_uvloop
from rollstream.cli.settings import describe, load_settings
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.schemas.errors import SettingsError

archive_app = typer.Typer(no_args_is_help=True)


@archive_app.callback()
def archive() -> None:
    """Keep what the topics hold for a while only."""


@archive_app.command()
def run(
    target: Annotated[str | None, typer.Option(help="Directory, or URL of one (s3://…), for this archive.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    topic: Annotated[
        Literal["trajectories", "scored-trajectories"] | None, typer.Option(help="Which of the two is archived.")
    ] = None,
    file_format: Annotated[Literal["parquet", "jsonl"] | None, typer.Option("--format", help="Kind of file.")] = None,
    partitions: Annotated[
        str | None, typer.Option(help="Those of the topic that this process archives: 0-15 or 1,3,5; default: all.")
    ] = None,
    part_rows: Annotated[int | None, typer.Option(help="A part is written at this many rows,", min=1)] = None,
    part_mib: Annotated[float | None, typer.Option(help="or when its arrays take this much memory,")] = None,
    part_minutes: Annotated[float | None, typer.Option(help="or when its first record was read so long ago.")] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on behind records deleted before they were archived.")
    ] = False,
    metrics_port: Annotated[int | None, typer.Option(help="Port of the Prometheus metrics.")] = None,
    worker_id: Annotated[str | None, typer.Option(help="Name in logs and status.")] = None,
) -> None:
    """Write every trajectory into exactly one file until SIGTERM or Ctrl-C; then what was read is written."""
    settings = load_settings(
        {
            "kafka": {"bootstrap": bootstrap, "prefix": prefix},
            "archive": {
                "target": target,
                "topic": topic,
                "file_format": file_format,
                "partitions": None if partitions is None else partition_numbers(partitions),
                "part_rows": part_rows,
                "part_mib": part_mib,
                "part_minutes": part_minutes,
                "accepts_loss": True if accept_loss else None,
                "metrics_port": metrics_port,
                "worker_id": worker_id,
            },
        }
    )
    chosen = settings.archive
    if chosen is None:
        raise SettingsError("where to archive is not known: give --target, or set archive.target in rollstream.toml")
    from rollstream.trainers.archive.service import run_archiver
    from rollstream.transport.telemetry import set_up_logging

    set_up_logging()
    typer.echo(describe(chosen), err=True)

    async def archiving() -> None:
        with stop_on_signals() as stop:
            done = await run_archiver(chosen, settings.kafka, stop)
        typer.echo(
            f"{done.trajectories} trajectories in {done.parts} parts: {chosen.target}; {done.duplicates} copies and "
            f"{done.undecodable} undecodable records left out, {done.yielded} parts left to another archiver"
        )

    run_on_uvloop(archiving())


def partition_numbers(text: str) -> tuple[int, ...]:
    """``0-3,7`` is 0, 1, 2, 3 and 7.

    Raises:
        SettingsError: it is no list of numbers and ranges.
    """
    numbers: set[int] = set()
    for piece in text.split(","):
        first, dash, last = piece.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SettingsError(f"--partitions {text!r}: expected numbers and ranges, as in 0-3,7")
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))
