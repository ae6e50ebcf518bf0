"""``rollstream broker start | stop | status``: the local broker of this user."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from rollstream.cli.settings import load_settings
from rollstream.transport.local_broker import (
    BrokerSettings,
    BrokerState,
    running_broker,
    start_to_stay,
    stop_staying,
)

NOT_RUNNING = 3
"""Exit code of ``status`` when no broker runs."""

broker_app = typer.Typer(no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option(help="Topics and state of the broker, kept when it stops.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


@broker_app.command()
def start(
    data_dir: DataDir = None,
    port: Annotated[int | None, typer.Option(help="Port; by default the former one, else a free one.")] = None,
    source: Annotated[Literal["auto", "docker", "jars"] | None, typer.Option(help="Where it comes from.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start a broker that stays until `rollstream broker stop`; finds the one that runs already."""
    settings = _settings(data_dir, port=port, source=source)
    known = running_broker(settings)
    state = start_to_stay(settings)
    if as_json:
        typer.echo(json.dumps(asdict(state)))
        return
    typer.echo(f"broker {'started' if known is None else 'runs already'}: {state.bootstrap} ({_where(state)})")


@broker_app.command()
def stop(data_dir: DataDir = None) -> None:
    """Stop the broker; its data is kept."""
    settings = _settings(data_dir)
    stopped = stop_staying(settings)
    if stopped is None:
        typer.echo(f"no broker runs on {settings.data_dir}")
    else:
        typer.echo(f"broker stopped: {stopped.bootstrap}; its data stays in {stopped.data_dir}")


@broker_app.command()
def status(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the broker that runs on the data folder; exit code 3 when none does."""
    settings = _settings(data_dir)
    state = running_broker(settings)
    if as_json:
        typer.echo(json.dumps({"running": state is not None} | (asdict(state) if state else {})))
    elif state is None:
        typer.echo(f"no broker runs on {settings.data_dir}; `rollstream broker start` starts one")
    else:
        typer.echo(f"broker runs: {state.bootstrap} ({_where(state)})")
    if state is None:
        raise typer.Exit(NOT_RUNNING)


def _settings(data_dir: Path | None, port: int | None = None, source: str | None = None) -> BrokerSettings:
    """The section [broker]. An address for [kafka] is filled in, as looking for one is not what these commands do."""
    broker = {"data_dir": data_dir, "port": port, "source": source}
    return load_settings({"broker": broker, "kafka": {"bootstrap": "127.0.0.1:9092"}}).broker


def _where(state: BrokerState) -> str:
    place = f"container {state.container[:12]}" if state.container else f"pid {state.pid}, data in {state.data_dir}"
    return place if state.stays else f"{place}, ends with its owner"
