"""`rollstream scorer`: one process that scores trajectories after the fact, and the check of what it needs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from rollstream.cli.event_loop import run_on_uvloop
from rollstream.cli.settings import describe, load_settings
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.schemas.errors import SettingsError

NO_BROKER = "localhost:9"
"""A check talks to nobody, so it needs no address."""


def scorer_command(
    scorer: Annotated[
        str | None, typer.Option(help="module:function, besides [scorer.scorers]; its name is the function's.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the model's tokenizer.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    max_running_scorings: Annotated[int | None, typer.Option(help="Scorings at once.", min=1)] = None,
    instance_id: Annotated[
        str | None, typer.Option(help="Stable name: a restart within the session time-out moves no partitions.")
    ] = None,
    worker_id: Annotated[str | None, typer.Option(help="Name in logs and status.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load tokenizer, functions and keys, say what scores, and leave.")
    ] = False,
) -> None:
    """Score trajectories until SIGTERM or Ctrl-C; running scorings may then finish within the drain limit."""
    settings = load_settings(
        {
            "kafka": {"bootstrap": bootstrap or (NO_BROKER if check else None), "prefix": prefix},
            "scorer": {
                "scorers": function_scorer(scorer),
                "tokenizer": tokenizer,
                "max_running_scorings": max_running_scorings,
                "instance_id": instance_id,
                "worker_id": worker_id,
            },
        }
    )
    from rollstream.scorers.panel import opened_panel
    from rollstream.scorers.service import run_scorer
    from rollstream.transport.telemetry import set_up_logging

    if check:

        async def look() -> list[str]:
            async with opened_panel(settings.scorer) as panel:
                return panel.describe()

        for line in asyncio.run(look()):
            typer.echo(line)
        return
    set_up_logging()
    typer.echo(describe(settings.scorer), err=True)

    async def run() -> None:
        with stop_on_signals() as stop:
            await run_scorer(settings.scorer, settings.kafka, stop)

    run_on_uvloop(run())


def function_scorer(name: str | None) -> dict[str, Any] | None:
    """The settings that ``--scorer module:function`` stands for.

    Raises:
        SettingsError: it is not ``module:function``.
    """
    if name is None:
        return None
    module, _, function = name.partition(":")
    if not module or not function:
        raise SettingsError(f"--scorer {name!r} is not module:function")
    return {function: {"kind": "function", "function": name}}
