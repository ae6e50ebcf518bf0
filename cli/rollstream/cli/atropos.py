"""``rollstream atropos push | serve``: trainers that speak Atropos' HTTP API drink from the stream."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from rollstream.cli.event_loop import run_on_uvloop
from rollstream.cli.settings import load_settings
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.schemas.errors import SettingsError

atropos_app = typer.Typer(no_args_is_help=True)

Bootstrap = Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")]
Prefix = Annotated[str | None, typer.Option(help="Prefix of all topics.")]
Run = Annotated[str | None, typer.Option("--run", help="Trajectories of this run only.")]
StateFile = Annotated[Path, typer.Option(help="Where the place in the stream is kept.")]
Checkpoints = Annotated[
    Path | None, typer.Option(help="Directory in which the trainer saves step_<n>; each becomes a policy version.")
]
KeepEqual = Annotated[bool, typer.Option("--keep-equal-scores", help="Also groups whose scores are all equal.")]
MuteTruncated = Annotated[bool, typer.Option("--mute-truncated", help="Advantage 0 for truncated trajectories.")]


@atropos_app.command()
def push(
    url: Annotated[str, typer.Argument(help="Of the Atropos server: http://host:8000.")],
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    run: Run = None,
    state_file: StateFile = Path("atropos-push.json"),
    checkpoints: Checkpoints = None,
    env_name: Annotated[str, typer.Option(help="Name of the environment in the trainer's logs.")] = "rollstream",
    env_weight: Annotated[float, typer.Option(help="Its weight among other environments.", min=0.01)] = 1.0,
    max_queued_batches: Annotated[int, typer.Option(help="Batches that may wait in the server.", min=1)] = 3,
    keep_equal_scores: KeepEqual = False,
    keep_incomplete: Annotated[
        bool, typer.Option("--keep-incomplete", help="Cut groups that lack members to a power of two.")
    ] = False,
    mute_truncated: MuteTruncated = False,
) -> None:
    """Push complete groups to an Atropos server until the run ends, SIGTERM or Ctrl-C."""
    _check_extra()
    from rollstream.trainers.adapters.atropos.pusher import PushOptions, run_pusher
    from rollstream.trainers.adapters.atropos.scored_groups import GroupRules
    from rollstream.transport.telemetry import set_up_logging

    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}, "trainer": {"run_id": run}})
    options = PushOptions(
        url=url,
        state_file=state_file,
        env_name=env_name,
        env_weight=env_weight,
        rules=GroupRules(
            keeps_equal_scores=keep_equal_scores, keeps_incomplete=keep_incomplete, mutes_truncated=mute_truncated
        ),
        max_queued_batches=max_queued_batches,
        checkpoints=checkpoints,
    )
    set_up_logging()

    async def pushing() -> None:
        with stop_on_signals() as stop:
            counts = await run_pusher(settings.kafka, settings.trainer, options, stop)
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.refused.items()))
        typer.echo(f"{counts.pushed} groups pushed; left out: {left_out or 'none'}")

    run_on_uvloop(pushing())


@atropos_app.command()
def serve(
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    run: Run = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: a free one.", min=0, max=65535)] = 8000,
    state_file: StateFile = Path("atropos-serve.json"),
    checkpoints: Checkpoints = None,
    max_queued_batches: Annotated[int, typer.Option(help="Batches held ready.", min=1)] = 1,
    pause: Annotated[
        bool, typer.Option(help="Answer that there is none once after each batch, for trainers that collect batches.")
    ] = True,
    keep_equal_scores: KeepEqual = False,
    mute_truncated: MuteTruncated = False,
) -> None:
    """Answer Atropos' trainers in the place of its server, until SIGTERM or Ctrl-C."""
    _check_extra()
    from rollstream.trainers.adapters.atropos.scored_groups import GroupRules
    from rollstream.trainers.adapters.atropos.server import ServeOptions, run_server
    from rollstream.transport.telemetry import set_up_logging

    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}, "trainer": {"run_id": run}})
    options = ServeOptions(
        state_file=state_file,
        host=host,
        port=port,
        rules=GroupRules(keeps_equal_scores=keep_equal_scores, mutes_truncated=mute_truncated),
        max_queued_batches=max_queued_batches,
        pauses=pause,
        checkpoints=checkpoints,
    )
    set_up_logging()

    def say_port(port: int) -> None:
        typer.echo(f"listening on http://{host}:{port}")

    async def serving() -> None:
        with stop_on_signals() as stop:
            await run_server(settings.kafka, settings.trainer, options, stop, on_listening=say_port)

    run_on_uvloop(serving())


def _check_extra() -> None:
    if find_spec("aiohttp") is None:
        raise SettingsError("`rollstream atropos` needs aiohttp: install the extra, `pip install rollstream[atropos]`")
