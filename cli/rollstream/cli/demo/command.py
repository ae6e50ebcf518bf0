"""``rollstream demo``."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rollstream.cli.demo.picture import summary_panel
from rollstream.cli.demo.plan import DemoOptions, default_name, open_folder
from rollstream.cli.demo.run import DemoRun
from rollstream.cli.demo.summary import RunSummary
from rollstream.cli.demo.view import DemoView, a_demo_view
from rollstream.cli.settings import RollstreamSettings, load_settings
from rollstream.cli.up import first_error
from rollstream.schemas.errors import RollstreamError

ENDED_BY_SIGNAL = 130


def demo_command(
    seed: Annotated[int, typer.Option(help="Seed of tasks, engine and trainer.", min=0)] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: date and time.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the trainer.", min=1)] = 40,
    live: Annotated[bool, typer.Option(help="Live picture on a terminal; lines without.")] = True,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
) -> None:
    """From nothing to a reward curve that rises: broker, tiny model, workers, tools and a GRPO trainer."""
    options = DemoOptions(name=name or default_name(), seed=seed, steps=steps, runs_dir=runs_dir)
    settings = load_settings(needs_broker=False)
    folder = open_folder(options)
    logging.basicConfig(filename=folder / "logs" / "demo.log", level=logging.INFO, force=True)
    console = Console()
    title = f"rollstream demo, run {options.name}, seed {seed}"
    with a_demo_view(console, is_live=live and console.is_terminal, title=title, steps=steps) as view:
        try:
            summary = asyncio.run(_run(settings, options, view))
        except asyncio.CancelledError:
            raise typer.Exit(ENDED_BY_SIGNAL) from None
    console.print(summary_panel(summary, str(folder)))
    if summary.lost:
        raise typer.Exit(1)


async def _run(settings: RollstreamSettings, options: DemoOptions, view: DemoView) -> RunSummary:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ctrl-C too: a shell starts background jobs with it ignored, and then Python installs no handler of its own.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await DemoRun(settings, options, view).run()
    except* RollstreamError as errors:
        raise first_error(errors) from None
