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
from rollstream.cli.demo.runs import RunRecord, choose_run, locked_run, stopped_runs
from rollstream.cli.demo.summary import RunSummary
from rollstream.cli.demo.view import DemoView, a_demo_view
from rollstream.cli.settings import RollstreamSettings, load_settings
from rollstream.cli.up import first_error
from rollstream.schemas.errors import RollstreamError

ENDED_BY_SIGNAL = 130


def demo_command(
    seed: Annotated[int, typer.Option(help="Seed of tasks, engine and trainer.", min=0)] = 0,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; default: that of a stopped run, else date and time.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps of the trainer.", min=1)] = 40,
    live: Annotated[bool, typer.Option(help="Live picture on a terminal; lines without.")] = True,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin a new run, whatever was stopped.")] = False,
) -> None:
    """From nothing to a reward curve that rises: broker, tiny model, workers, tools and a GRPO trainer.

    A run that was stopped, by whatever, goes on where it was.
    """
    settings = load_settings(needs_broker=False)
    wanted = RunRecord(name=name or default_name(), seed=seed, steps=steps)
    run = choose_run([] if name else stopped_runs(runs_dir), wanted, is_fresh=fresh)
    options = DemoOptions(name=run.name, seed=seed, steps=steps, runs_dir=runs_dir)
    record = open_folder(options)
    console = Console()
    with locked_run(options.folder):
        if record.is_finished:
            console.print(summary_panel(RunSummary.read(options.folder / "summary.json"), str(options.folder)))
            console.print("this run came to its end earlier; choose another --name for a new one", markup=False)
            return
        summary = _watched(settings, options, record, console, is_live=live and console.is_terminal)
    console.print(summary_panel(summary, str(options.folder)))
    if summary.lost:
        raise typer.Exit(1)


def _watched(
    settings: RollstreamSettings, options: DemoOptions, record: RunRecord, console: Console, *, is_live: bool
) -> RunSummary:
    logging.basicConfig(filename=options.folder / "logs" / "demo.log", level=logging.INFO, force=True)
    if record.sessions:
        console.print(
            f"run {options.name} goes on from step {record.steps_done} of {options.steps} (--fresh begins a new one)",
            markup=False,
        )
    title = f"rollstream demo, run {options.name}, seed {options.seed}"
    try:
        with a_demo_view(console, is_live=is_live, title=title, steps=options.steps) as view:
            return asyncio.run(_run(settings, options, record, view))
    except asyncio.CancelledError:
        console.print(
            f"stopped at step {record.steps_done} of {options.steps}: the same command goes on from there", markup=False
        )
        raise typer.Exit(ENDED_BY_SIGNAL) from None


async def _run(settings: RollstreamSettings, options: DemoOptions, record: RunRecord, view: DemoView) -> RunSummary:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        # Ctrl-C too: a shell starts background jobs with it ignored, and then Python installs no handler of its own.
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await DemoRun(settings, options, record, view).run()
    except* RollstreamError as errors:
        raise first_error(errors) from None
