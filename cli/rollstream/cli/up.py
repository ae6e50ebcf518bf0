"""``rollstream up``: all roles of one ``rollstream.toml`` on this machine.

Duty: a broker, the topics, and the role processes, kept alive until Ctrl-C (drain), a second Ctrl-C (kill), a role
that cannot be kept alive (exit code 1, named), or, with ``--until-done``, the last trajectory of the run.
A crash of this process takes its children along; what they had taken on is in the log and goes on with the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rollstream.cli.command_line import given
from rollstream.cli.record_stream import read_records
from rollstream.cli.role_processes import role_processes
from rollstream.cli.settings import RollstreamSettings, changed_kafka, describe, load_settings
from rollstream.cli.status import gather_report
from rollstream.cli.status_report import StatusReport, report_line, report_table
from rollstream.cli.supervisor import ProcessState, Supervisor, drain_on_signals
from rollstream.cli.task_ledger import TaskLedger
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import RollstreamError, SettingsError, TransientError, single_errors
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.control import ControlFollower
from rollstream.transport.local_broker import ensure_broker
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

LIVE_INTERVAL_S = 1.0
LINE_INTERVAL_S = 10.0


def up_command(
    rollout_workers: Annotated[int | None, typer.Option(help="Processes of rollout-worker.", min=0)] = None,
    tool_workers: Annotated[int | None, typer.Option(help="Processes of tool-worker.", min=0)] = None,
    log_dir: Annotated[Path | None, typer.Option(help="One log file per process.")] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End with exit code 0 when every task of the run has its trajectory.")
    ] = False,
    live: Annotated[bool, typer.Option(help="Live view on a terminal; plain lines without.")] = True,
) -> None:
    """Run all roles of rollstream.toml: broker, topics, workers, and producer and trainer where they are set."""
    settings = load_settings(
        {"up": {"rollout_workers": rollout_workers, "tool_workers": tool_workers, "log_dir": log_dir}},
        needs_broker=False,
    )
    if until_done and settings.producer is None:
        raise SettingsError("--until-done needs a section [producer] in rollstream.toml: there is no run to wait for")
    console = Console(stderr=True)
    console.print(describe(settings), style="dim", markup=False, highlight=False)
    asyncio.run(run_up(settings, console, until_done=until_done, is_live=live and console.is_terminal))


async def run_up(settings: RollstreamSettings, console: Console, *, until_done: bool, is_live: bool) -> None:
    """Run everything until it is told to stop or is done.

    Raises:
        RollstreamError: no broker can be had, a topic is not as declared, or a role could not be kept alive.
    """
    stop, kill = asyncio.Event(), asyncio.Event()
    with drain_on_signals(stop, kill):
        async with a_broker(settings) as kafka:
            if stop.is_set():
                return
            await apply_topics(kafka)
            specs = role_processes(settings, kafka, given())
            with a_view(console, is_live=is_live) as view:
                supervisor = Supervisor(specs, drain_s=settings.up.drain_s, on_line=view.line, stop=stop, kill=kill)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        watchers = [tasks.create_task(_show(kafka, supervisor, view))]
                        if until_done and settings.producer is not None:
                            watchers.append(tasks.create_task(_stop_when_done(kafka, settings.producer.run_id, stop)))
                        await supervisor.run()
                        for watcher in watchers:
                            watcher.cancel()
                except* RollstreamError as errors:
                    raise first_error(errors) from None


async def _show(kafka: KafkaSettings, supervisor: Supervisor, view: View) -> None:
    """Feed the view until cancelled. While the broker is away the roles wait for it, and so does the view."""
    while True:
        try:
            async with ControlFollower(kafka) as control:
                while True:
                    report = await gather_report(kafka, control)
                    view.show(report, supervisor.states())
                    await asyncio.sleep(view.interval_s)
        except TransientError as error:
            view.line("up", f"the view stands still: {error}")


class View:
    """Plain output: every line of every process with its name, and one line about the whole every ten seconds."""

    interval_s = LINE_INTERVAL_S

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, name: str, line: str) -> None:
        """One line that a process wrote."""
        self._console.print(f"{name:<18} {line}", markup=False, highlight=False, soft_wrap=True)

    def show(self, report: StatusReport, states: Sequence[ProcessState]) -> None:
        """The state of everything."""
        phases = ", ".join(f"{state.name} {state.phase}" for state in states if state.phase != "running")
        self.line("up", report_line(report) + (f"; {phases}" if phases else ""))


class LiveView(View):
    """A picture at the foot of the terminal, the lines of the processes above it."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self._live = live

    def show(self, report: StatusReport, states: Sequence[ProcessState]) -> None:
        """Draw the picture anew."""
        self._live.update(Group(report_table(report), _process_table(states)), refresh=True)


@contextmanager
def a_view(console: Console, *, is_live: bool) -> Generator[View]:
    """A live view on a terminal, plain lines elsewhere."""
    if not is_live:
        yield View(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveView(live.console, live)


def _process_table(states: Sequence[ProcessState]) -> RenderableType:
    table = Table(title="processes", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("process", "phase", "pid", "restarts"):
        table.add_column(column)
    for state in states:
        style = {"running": "green", "finished": "green", "failed": "red"}.get(state.phase, "yellow")
        pid = "-" if state.pid is None else str(state.pid)
        table.add_row(state.name, Text(state.phase, style=style), pid, str(state.restarts))
    return table


@asynccontextmanager
async def a_broker(settings: RollstreamSettings, data_dir: Path | None = None) -> AsyncGenerator[KafkaSettings]:
    """The configured broker, else a local one for as long as the block runs (its files in ``data_dir``, if given)."""
    broker = settings.broker
    if settings.has_broker:
        broker = broker.model_copy(update={"bootstrap": settings.kafka.bootstrap})
    elif data_dir is not None:
        broker = broker.model_copy(update={"data_dir": data_dir})
    context = ensure_broker(broker)
    bootstrap = await asyncio.to_thread(context.__enter__)
    try:
        yield changed_kafka(settings.kafka, bootstrap=bootstrap)
    finally:
        await asyncio.shield(asyncio.to_thread(context.__exit__, None, None, None))


def first_error(errors: BaseExceptionGroup[RollstreamError]) -> RollstreamError:
    """The first error of a group, for a message a person can act on."""
    return next(single_errors(errors))


async def _stop_when_done(kafka: KafkaSettings, run_id: str, stop: asyncio.Event) -> None:
    """Set ``stop`` when the producer has finished and every task of the run has its trajectory."""
    ledger = TaskLedger(frozenset({run_id}))

    def see(message: Message, _: tuple[int, int, int]) -> None:
        match message:
            case RolloutTask():
                ledger.see_task(message)
            case Trajectory():
                ledger.see_trajectory(message)
            case ProducerProgress():
                ledger.see_progress(message)
            case _:
                pass
        if ledger.is_done():
            stop.set()

    await read_records(kafka, [kafka.topic(short) for short in ("tasks", "trajectories", "control")], see)
