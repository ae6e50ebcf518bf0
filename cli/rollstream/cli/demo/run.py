"""The demo's course: broker and model side by side, then workers, trainer and producer, then the figures.

Whatever happens (an error, Ctrl-C, the end), no process of the run is alive afterwards. Stopped at any moment, by a
kill too, the run goes on where it was when it is started again: topics, checkpoint and policies lie in its folder until
it has come to its end.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rollstream.cli.demo.flow import Flow, FlowMessage
from rollstream.cli.demo.plan import (
    GROUP_SIZE,
    PARTITIONS,
    TRAINER,
    DemoOptions,
    demo_processes,
    point_latest_to,
    producer_settings,
    trainer_script,
    write_settings,
    write_tasks,
)
from rollstream.cli.demo.plots import draw_curves
from rollstream.cli.demo.runs import RunRecord, Session
from rollstream.cli.demo.summary import RunSummary, summarise
from rollstream.cli.demo.view import DemoView
from rollstream.cli.record_stream import read_records
from rollstream.cli.settings import RollstreamSettings, changed_kafka
from rollstream.cli.supervisor import Supervisor
from rollstream.cli.task_ledger import TaskLedger
from rollstream.cli.tiny_model import ensure_tiny_model
from rollstream.cli.up import a_broker
from rollstream.producers.service import produce
from rollstream.schemas.errors import TransientError
from rollstream.schemas.messages import Message
from rollstream.trainers.trajectory_export import export_trajectories
from rollstream.transport.local_broker.choice import stop_staying
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

LAST_TRAJECTORIES_S = 90.0
"""How long tasks that were emitted may take to end after the trainer's last step."""
DRAIN_S = 10.0
LOOK_INTERVAL_S = 0.25
SAVE_INTERVAL_S = 2.0
"""How much of its time and staleness a run forgets at most when it is killed."""
TRAINED_STALENESS = re.compile(r"staleness \S+ \(max (\d+)\)")
OBSERVED = ("tasks", "tool-calls.default", "tool-results", "trajectories", "control")


@dataclass
class DemoRun:
    """One run; ``run`` is called once."""

    settings: RollstreamSettings
    options: DemoOptions
    record: RunRecord
    view: DemoView
    clock: Callable[[], float] = time.monotonic
    phases_s: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        self._started = self.clock()
        self._flow = Flow(TaskLedger(frozenset({self.options.name})))
        self._changed = asyncio.Event()
        self._session = Session(started_at=time.time())
        self._saved_at = self._started

    async def run(self) -> RunSummary:
        """Everything, from nothing to the summary.

        Raises:
            RollstreamError: a part is missing or failed; the message says which and what to do.
        """
        trainer_script()
        tasks_file = write_tasks(self.options)
        self.record.sessions.append(self._session)
        self._save_record()
        try:
            async with asyncio.TaskGroup() as tasks:
                making_model = tasks.create_task(self._make_model())
                self.view.phase("broker", "starting")
                async with a_broker(await self._broker_settings(), self._broker_dir) as kafka:
                    kafka = changed_kafka(kafka, prefix=self.options.prefix, partitions=PARTITIONS)
                    await apply_topics(kafka)
                    self._ready("broker")
                    model = await making_model
                    await self._train(kafka, model, tasks_file)
                    await self._export(kafka)
        finally:
            self._save_record()
        summary = self._summary()
        self.record.is_finished = True
        self._save_record()
        await asyncio.to_thread(shutil.rmtree, self._broker_dir, ignore_errors=True)
        return summary

    @property
    def _broker_dir(self) -> Path:
        return self.options.folder / "broker"

    async def _broker_settings(self) -> RollstreamSettings:
        """A broker of our own keeps its data while the run is stopped; one in a container would not."""
        broker = self.settings.broker
        if broker.source == "auto":
            broker = broker.model_copy(update={"source": "jars"})
        here = broker.model_copy(update={"data_dir": self._broker_dir})
        if await asyncio.to_thread(stop_staying, here) is not None:
            self.view.phase("broker", "ended the one that a killed demo had left")
        return self.settings.model_copy(update={"broker": broker})

    def _save_record(self) -> None:
        self._session.wall_s = self._elapsed()
        self.record.steps_done = max(self.record.steps_done, self._flow.trainer.version if self._flow.trainer else 0)
        self.record.save(self.options.folder)

    async def _make_model(self) -> Path:
        self.view.phase("model", "looking for the tiny model")
        loop = asyncio.get_running_loop()
        has_ended = threading.Event()

        def report(line: str) -> None:
            if has_ended.is_set():  # a thread cannot be cancelled: raising here ends the training
                raise TransientError("the demo ended while the tiny model was in training")
            loop.call_soon_threadsafe(self.view.phase, "model", line)

        try:
            model = await asyncio.to_thread(ensure_tiny_model, progress=report)
        finally:
            has_ended.set()
        self._ready("model")
        return model

    async def _train(self, kafka: KafkaSettings, model: Path, tasks_file: Path) -> None:
        settings_file = write_settings(self.options, kafka, model)
        supervisor = Supervisor(
            demo_processes(self.options, kafka, model, settings_file), drain_s=DRAIN_S, on_line=self._hear
        )
        no_more_tasks = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            topics = [kafka.topic(short) for short in OBSERVED]
            background = [
                tasks.create_task(read_records(kafka, topics, self._see)),
                tasks.create_task(self._show(supervisor)),
            ]
            processes = tasks.create_task(supervisor.run())
            producing = tasks.create_task(produce(producer_settings(self.options, tasks_file), kafka, no_more_tasks))
            await supervisor.wait_finished(TRAINER)
            self.phases_s["training over"] = self._elapsed()
            no_more_tasks.set()
            emitted = await producing
            await self._wait_for_last_trajectories(emitted.groups_done * GROUP_SIZE)
            self.phases_s["last trajectory"] = self._elapsed()
            supervisor.stop.set()
            await processes
            self.phases_s["drained"] = self._elapsed()
            for task in background:
                task.cancel()

    def _see(self, message: Message, log_order: tuple[int, int, int]) -> None:
        if isinstance(message, FlowMessage):
            self._flow.see(message, log_order)
            self._changed.set()

    async def _wait_for_last_trajectories(self, emitted: int) -> None:
        """Until every task has its trajectory; what is missing at the deadline is counted as lost."""
        try:
            async with asyncio.timeout(LAST_TRAJECTORIES_S):
                while self._flow.ledger.ended < emitted:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            self.view.phase("trajectories", "some tasks did not end in time")

    async def _show(self, supervisor: Supervisor) -> None:
        shown = self.clock()
        while True:
            for role, state in self._flow.roles().items():
                if role not in self.phases_s and state == "running":
                    self._ready(role)
            for process in supervisor.states():
                if process.name not in self.phases_s or process.phase not in ("starting", "running"):
                    self.view.phase(process.name, process.phase)
            if self.clock() - self._saved_at >= SAVE_INTERVAL_S:
                self._saved_at = self.clock()
                await asyncio.to_thread(self._save_record)
            if self._flow.facts and "first trajectory" not in self.phases_s:
                self.phases_s["first trajectory"] = self._elapsed()
            if self.clock() - shown >= self.view.interval_s:
                shown = self.clock()
                self.view.show(self._flow.snapshot(time.time()), self._elapsed())
            await asyncio.sleep(LOOK_INTERVAL_S)

    async def _export(self, kafka: KafkaSettings) -> None:
        self.view.phase("files", "writing")
        target = self.options.folder / "trajectories"
        await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)  # of a demo that was killed here
        await export_trajectories(kafka, str(target), run_id=self.options.name)

    def _hear(self, process: str, line: str) -> None:
        """Only the trainer knows how old trajectories were when it used them; it says so after every step."""
        if process == TRAINER and (found := TRAINED_STALENESS.search(line)):
            self.record.trained_staleness = max(self.record.trained_staleness, int(found[1]))

    def _summary(self) -> RunSummary:
        summary = summarise(
            self._flow,
            name=self.options.name,
            seed=self.options.seed,
            steps=self.options.steps,
            wall_s=self.record.wall_s,
            session_starts=[session.started_at for session in self.record.sessions],
            trained_staleness=self.record.trained_staleness,
            phases_s=self.phases_s,
        )
        title = f"run {self.options.name}, seed {self.options.seed}"
        draw_curves(self._flow.in_task_order(), self.options.folder / "curves.png", title)
        summary.write(self.options.folder / "summary.json")
        point_latest_to(self.options.folder)
        return summary

    def _ready(self, phase: str) -> None:
        self.phases_s[phase] = self._elapsed()
        self.view.phase(phase, f"ready after {self._elapsed():.0f} s")

    def _elapsed(self) -> float:
        return self.clock() - self._started
