"""`rollstream rollout-worker`: one process that turns tasks into trajectories."""

from __future__ import annotations

from typing import Annotated

import typer

from rollstream.cli.event_loop import run_on_uvloop
from rollstream.cli.settings import describe, load_settings
from rollstream.cli.stop_signals import stop_on_signals


def rollout_worker_command(
    model: Annotated[str | None, typer.Option(help="Folder of the model and its tokenizer.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    max_running_episodes: Annotated[int | None, typer.Option(help="Episodes in flight at once.", min=1)] = None,
    instance_id: Annotated[
        str | None, typer.Option(help="Stable name: a restart within the session time-out moves no partitions.")
    ] = None,
    worker_id: Annotated[str | None, typer.Option(help="Name in logs, status and trajectories.")] = None,
) -> None:
    """Run episodes until SIGTERM or Ctrl-C; running ones may then finish within the drain limit."""
    from rollstream.rollout_workers.service import run_rollout_worker
    from rollstream.transport.telemetry import set_up_logging

    settings = load_settings(
        {
            "kafka": {"bootstrap": bootstrap, "prefix": prefix},
            "rollout_worker": {
                "model": model,
                "max_running_episodes": max_running_episodes,
                "instance_id": instance_id,
                "worker_id": worker_id,
            },
        }
    )
    set_up_logging()
    typer.echo(describe(settings.rollout_worker), err=True)

    async def run() -> None:
        with stop_on_signals() as stop:
            await run_rollout_worker(settings.rollout_worker, settings.kafka, stop)

    run_on_uvloop(run())
