"""How far an evaluation is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

from rollstream.cli.evaluation.rollouts import OnProgress, RolloutProgress

PLAIN_STEPS = 10
"""Without a terminal: a line at every change of state and after every tenth of the episodes."""


@contextmanager
def progress_shown(title: str) -> Generator[OnProgress]:
    """Shows, on standard error, what it is told for the time of the block."""
    if not sys.stderr.isatty():
        yield _line_printer(title)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("episodes"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(progress: RolloutProgress) -> None:
            bar.update(
                task,
                description=f"{title}{_state(progress)}",
                total=progress.wanted,
                completed=progress.arrived,
            )

        yield show


def _line_printer(title: str) -> OnProgress:
    shown: tuple[str, int] | None = None

    def show(progress: RolloutProgress) -> None:
        nonlocal shown
        step = progress.arrived * PLAIN_STEPS // max(1, progress.wanted)
        if (progress.producer.state, step) != shown:
            shown = (progress.producer.state, step)
            print(f"{title}{_state(progress)}: {progress.arrived}/{progress.wanted} episodes", file=sys.stderr)

    return show


def _state(progress: RolloutProgress) -> str:
    """Why nothing may be going on."""
    match progress.producer.state:
        case "reading":
            return " (reading what is there)"
        case "paused":
            return " (producers are paused)"
        case _:
            return ""
