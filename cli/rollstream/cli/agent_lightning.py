"""``rollstream agent-lightning push``: trajectories become finished rollouts of an agent-lightning server."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rollstream.cli.event_loop import run_on_uvloop
from rollstream.cli.settings import load_settings
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.schemas.errors import SettingsError

agent_lightning_app = typer.Typer(no_args_is_help=True)


@agent_lightning_app.callback()
def _feed() -> None:
    """Feed trainers that read rollouts from an agent-lightning server."""


@agent_lightning_app.command()
def push(
    url: Annotated[str, typer.Argument(help="Of the server: http://host:8080.")],
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Trajectories of this run only.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File that holds the server's API key.")] = None,
    state_file: Annotated[Path, typer.Option(help="Where the place in the stream is kept.")] = Path(
        "agent-lightning-push.json"
    ),
    max_waiting_rollouts: Annotated[int, typer.Option(help="Rollouts that may wait in the server.", min=1)] = 256,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Directory in which the trainer saves step_<n>; each becomes a policy version.")
    ] = None,
) -> None:
    """Push complete groups until the run ends, SIGTERM or Ctrl-C."""
    if find_spec("aiohttp") is None:
        raise SettingsError("`rollstream agent-lightning` needs aiohttp: `pip install rollstream[atropos]`")
    from rollstream.trainers.adapters.agent_lightning.pusher import PushOptions, run_pusher
    from rollstream.transport.telemetry import set_up_logging

    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}, "trainer": {"run_id": run}})
    options = PushOptions(
        url=url,
        state_file=state_file,
        key=None if key_file is None else _key(key_file),
        max_waiting_rollouts=max_waiting_rollouts,
        checkpoints=checkpoints,
    )
    set_up_logging()

    async def pushing() -> None:
        with stop_on_signals() as stop:
            pushed = await run_pusher(settings.kafka, settings.trainer, options, stop)
        typer.echo(f"{pushed} trajectories pushed")

    run_on_uvloop(pushing())


def _key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"--key-file {str(path)!r} cannot be read: {error}") from error
