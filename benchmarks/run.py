"""All benchmarks: ``python benchmarks/run.py [--only NAME ...] [--quick] [--output FILE]``.

Prints a table and writes the figures as JSON, by default to ``runs/bench/latest.json``; a part of the benchmarks
(``--only``) or tiny sizes (``--quick``) go to a file of their own, so that the latest complete figures stay.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from figures import Figure
from report import figures_table, write_figures
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from workbench import Workbench

from rollstream.transport.local_broker import BrokerSettings, ensure_broker, running_broker

FOLDER = Path("runs") / "bench"
BOOTSTRAP_VARIABLE = "ROLLSTREAM_TEST_BOOTSTRAP"


@dataclass(frozen=True)
class Benchmark:
    """One module with a function that measures."""

    name: str
    module: str
    function: str = "measure"
    needs_broker: bool = True
    has_sizes: bool = False
    """It needs no broker, but wants to know whether sizes are tiny."""

    def measure(self, bench: Workbench) -> list[Figure]:
        """Run it."""
        function = getattr(importlib.import_module(self.module), self.function)
        return function(bench) if self.needs_broker or self.has_sizes else function()


BENCHMARKS = (
    Benchmark("wire", "wire", needs_broker=False),
    Benchmark("tool_round_trip", "tool_round_trip"),
    Benchmark("sandbox", "sandbox"),
    Benchmark("sandbox_round_trip", "sandbox_round_trip"),
    Benchmark("trajectory_stream", "trajectory_stream"),
    Benchmark("event_loop", "event_loop"),
    Benchmark("simulated_clusters", "simulated_clusters", needs_broker=False, has_sizes=True),
    Benchmark("pipeline_scripted", "pipeline", "measure_scripted"),
    Benchmark("pipeline_vllm", "pipeline", "measure_vllm"),
    Benchmark("journal", "journal"),
    Benchmark("weight_update", "weight_update"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; 1 if a benchmark failed (a missed bar is no failure)."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # either way the worker processes are stopped
    chosen = [each for each in BENCHMARKS if not options.only or each.name in options.only]
    folder = (FOLDER / time.strftime("logs-%Y%m%d-%H%M%S")).resolve()
    folder.mkdir(parents=True)
    logging.basicConfig(filename=folder / "benchmarks.log", level=logging.INFO)
    with _own_screen(folder / "output.log") as console:
        figures, failed = _measure(chosen, folder, console, is_quick=options.quick)
        output = options.output or default_output(options.only, options.quick)
        write_figures(figures, output)
        if len(chosen) > 1:
            console.print(figures_table(figures, title="RollStream, measured"))
        missed = [each.name for each in figures if not each.met]
        console.print(f"{len(figures)} figures, {len(missed)} missed their bar; written to {output}")
        if failed:
            console.print(f"[red]failed: {', '.join(failed)}; logs in {folder}[/red]")
    return 1 if failed else 0


def _measure(
    chosen: Sequence[Benchmark], folder: Path, console: Console, *, is_quick: bool
) -> tuple[list[Figure], list[str]]:
    """All figures, and the names of benchmarks that failed."""
    figures: list[Figure] = []
    failed: list[str] = []
    with _broker(chosen, folder) as broker, _progress(console) as progress:
        total = progress.add_task("benchmarks", total=len(chosen), now="")
        for each in chosen:
            bench = Workbench(*broker, is_quick, folder, _teller(progress, total, each.name))
            bench.say("")
            try:
                found = each.measure(bench)
            except Exception:
                failed.append(each.name)
                console.print(f"[red]{each.name} failed[/red]\n{traceback.format_exc()}", highlight=False)
            else:
                figures += found
                console.print(figures_table(found, title=each.name))
            progress.advance(total)
            progress.refresh()
    return figures, failed


def default_output(only: Sequence[str], is_quick: bool) -> Path:
    """Where the figures go unless told."""
    parts = [*only, *(["quick"] if is_quick else [])]
    return FOLDER / f"{'-'.join(parts) or 'latest'}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.name for each in BENCHMARKS]
    parser.add_argument("--only", action="append", default=[], choices=names, help="this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? the figures mean nothing")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser


@contextmanager
def _broker(chosen: Sequence[Benchmark], folder: Path) -> Generator[tuple[str, int | None]]:
    """Address and process of a broker of our own, or of the one in the environment; empty where none is needed."""
    given = os.environ.get(BOOTSTRAP_VARIABLE, "")
    if given or not any(each.needs_broker for each in chosen):
        yield given, None
        return
    settings = BrokerSettings(data_dir=folder / "broker")
    with ensure_broker(settings) as bootstrap:
        state = running_broker(settings)
        yield bootstrap, state.pid if state and state.container is None else None


@contextmanager
def _own_screen(log_path: Path) -> Generator[Console]:
    """A console on our standard output; what engines and their libraries print goes to the log."""
    kept = [os.dup(1), os.dup(2)]
    with log_path.open("wb") as log, os.fdopen(os.dup(1), "w") as screen:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            yield Console(file=screen, width=None if screen.isatty() else 160)
        finally:
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _progress(console: Console) -> Progress:
    # No refreshing thread: it would take its share of the time that is measured.
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=console,
        auto_refresh=False,
        transient=True,
    )


def _teller(progress: Progress, total: TaskID, name: str) -> Callable[[str], None]:
    def say(text: str) -> None:
        now = f"{name}: {text}" if text else name
        progress.update(total, now=now)
        progress.refresh()
        if not progress.console.is_terminal:
            progress.console.print(now, highlight=False)

    return say


if __name__ == "__main__":
    sys.exit(main())
