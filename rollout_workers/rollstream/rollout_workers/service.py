"""The rollout worker: tasks in, terminal trajectories out.

Duty: run as many episodes as there are slots, from the partitions of `tasks` this worker owns, on the newest policy.

Invariants: a task's offset is committed only after its trajectory is acknowledged and the journal says so; nothing of a
partition is begun before its journal has been read; a record that cannot be a task goes to the dead letters, never
away; nothing is taken on unless a slot is free; model, tokenizer, template and topics are checked before the first
record.

Crash: the next owner of a partition reads its journal and goes on with every episode at its next turn. Rebalance:
episodes of partitions that stay keep running, those of partitions that leave are abandoned at once and given back.
Drain: intake stops, running turns may finish within ``drain_s`` and are journaled, the episodes are given back.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from aiokafka import TopicPartition

from rollstream.rollout_workers.attempts import AttemptRunner
from rollstream.rollout_workers.budgets import AttemptBudgets
from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.chat_format import ChatFormat
from rollstream.rollout_workers.engine_settings import build_engine
from rollstream.rollout_workers.episode import EpisodeServices
from rollstream.rollout_workers.episode_pool import EpisodePool
from rollstream.rollout_workers.generation_log import generation_log
from rollstream.rollout_workers.handovers import Handovers
from rollstream.rollout_workers.policy_follower import PolicyFollower
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.rollout_workers.task_handling import TaskHandler
from rollstream.rollout_workers.terminal_records import TerminalRecords
from rollstream.rollout_workers.trajectory_assembly import WorkerFacts
from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.journal import JournalRecord
from rollstream.transport.control import ControlFollower
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.heartbeat import INTERVAL_S, beat, say
from rollstream.transport.intake import GroupIntake
from rollstream.transport.journal.journal import MemoryJournals
from rollstream.transport.journal.keeper import JournalKeeper
from rollstream.transport.metrics import served_metrics
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient
from rollstream.transport.topic_watch import watched_topics

logger = logging.getLogger(__name__)

USED_TOPICS = ("tasks", "journal", "trajectories", "control")
GIVE_BACK_S = 5.0
"""For the last records of a worker that leaves; a broker that is away must not keep it."""


async def run_rollout_worker(settings: RolloutWorkerSettings, kafka: KafkaSettings, stop: asyncio.Event) -> None:
    """Work until ``stop`` is set, then drain.

    Raises:
        SettingsError: model, tokenizer, template, agents or topics are not as they must be.
        EngineError: the engine died; restart the worker, its episodes go on at their next turn.
        DataLossError: the journal no longer holds what is needed, or a topic was deleted or made anew meanwhile.
    """
    import_agents(settings.agents)
    chat = await asyncio.to_thread(load_chat_format, settings)
    engine = await build_engine(settings.engine, settings.model)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.close)
        if settings.metrics_port is not None:
            stack.enter_context(served_metrics(settings.metrics_port))
        publisher = await stack.enter_async_context(Publisher(kafka, profile="durable"))
        dead_letters = await stack.enter_async_context(
            DeadLetterOffice(kafka, role="rollout-worker", worker_id=settings.worker_id)
        )
        tools = await stack.enter_async_context(ToolClient(kafka, worker_id=settings.worker_id))
        control = await stack.enter_async_context(ControlFollower(kafka, dead_letters=dead_letters))
        follower = PolicyFollower(
            engine,
            control,
            policy_cache(settings),
            follows=settings.follow_policy,
            pin_hold_s=settings.pin_hold_s,
        )
        await follower.catch_up()
        on_generation = stack.enter_context(generation_log(settings.generation_log, settings.worker_id))
        services = EpisodeServices(engine, chat, tools, on_generation=on_generation)
        keeper = None
        if settings.journal:
            keeper = await stack.enter_async_context(
                JournalKeeper(kafka, publisher, dead_letters, accepts_data_loss=settings.accepts_data_loss)
            )
        worker = RolloutWorker(settings, kafka, publisher, dead_letters, services, follower, keeper)
        async with watched_topics(kafka, map(kafka.topic, USED_TOPICS)):
            await worker.run(stop)


def load_chat_format(settings: RolloutWorkerSettings) -> ChatFormat:
    """The chat format of the worker's model; bytes for a scripted engine without one. Blocking.

    Raises:
        SettingsError: no model is named, or its tokenizer or template does not pass the start-up checks.
    """
    if settings.model:
        from rollstream.rollout_workers.template_chat_format import TemplateChatFormat

        return TemplateChatFormat.load(Path(settings.model))
    if settings.engine.kind == "scripted":
        return ByteChatFormat()
    raise SettingsError("no model: give rollout_worker.model (or --model), the folder of the model and its tokenizer")


def import_agents(modules: Sequence[str]) -> None:
    """Import the modules that register agents.

    Raises:
        SettingsError: one cannot be imported.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SettingsError(f"agents module {name!r} cannot be imported: {error}; is it on PYTHONPATH?") from error


def policy_cache(settings: RolloutWorkerSettings) -> Path:
    """Where policies from remote storage are kept."""
    if settings.policy_cache is not None:
        return settings.policy_cache
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rollstream" / "policies"


class RolloutWorker:
    """One running worker: its pool, its handler, its journal and what it says of itself.

    ``keeper`` None: episodes are not journaled.
    """

    def __init__(
        self,
        settings: RolloutWorkerSettings,
        kafka: KafkaSettings,
        publisher: Publisher,
        dead_letters: DeadLetterOffice,
        services: EpisodeServices,
        follower: PolicyFollower,
        keeper: JournalKeeper | None,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._engine = services.engine
        self._follower = follower
        self._keeper = keeper
        self._handovers = Handovers(self._give_back)
        trajectories = kafka.topics["trajectories"]
        self._handler = TaskHandler(
            runner=AttemptRunner(services),
            facts=WorkerFacts(
                settings.worker_id, settings.model, services.chat.tokenizer_hash, services.engine.logprobs_mode
            ),
            budgets=AttemptBudgets(settings.infra_budget, settings.data_budget, settings.crash_budget),
            journal_of=keeper.of if keeper is not None else MemoryJournals().of,
            publisher=publisher,
            dead_letters=dead_letters,
            handovers=self._handovers,
            terminal_records=TerminalRecords(trajectories.name, trajectories.partitions, trajectories.max_value_bytes),
            policies=follower,
            writer=uuid.uuid4().hex,
            is_leaving=lambda: self._stop.is_set(),
            clock=services.clock,
            pause=self._pause,
        )
        self._pool = EpisodePool(
            self._handle, max_running=settings.max_running_episodes, parked=lambda: follower.waiting
        )
        self._intake = GroupIntake(
            kafka,
            [kafka.topic("tasks")],
            group_id=f"{kafka.prefix}rollout-workers",
            instance_id=settings.instance_id,
            on_lost=self._pool.abandon,
            companion=keeper,
        )
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Everything at once, until the pool has drained."""
        self._stop = stop
        async with self._intake, asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._intake.run()),
                group.create_task(self._handovers.run()),
                group.create_task(beat(self._publisher, self._status)),
                group.create_task(self._follower.run()),
                group.create_task(self._stop_waiting(stop)),
            ]
            if self._keeper is not None:
                background.append(group.create_task(self._keeper.run()))
            await self._pool.run(self._intake, stop, drain_s=self._settings.drain_s)
            await self._give_everything_back()
            for task in background:
                task.cancel()
        await say(self._publisher, self._status(has_left=True))

    async def _handle(self, record: Record) -> bool:
        is_finished = await self._handler.handle(record)
        if is_finished:
            self._intake.finished(TopicPartition(record.topic, record.partition), record.offset)
        return is_finished

    async def _stop_waiting(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._follower.leave()

    async def _pause(self, pause_s: float) -> None:
        """Ends early when the worker is leaving."""
        if pause_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()

    async def _give_back(self, partition: int, record: JournalRecord) -> None:
        if self._keeper is not None:
            await self._keeper.send(partition, record)

    async def _give_everything_back(self) -> None:
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                await self._handovers.flush()
        except TimeoutError:
            logger.warning("not everything was given back within %g s", GIVE_BACK_S)

    def _status(self, *, has_left: bool = False) -> WorkerStatus:
        stats = self._handler.stats
        policy = self._engine.policy
        return WorkerStatus(
            worker_id=self._settings.worker_id,
            role="rollout-worker",
            state="stopped" if has_left else "draining" if self._stop.is_set() else "running",
            running=self._pool.running,
            finished=self._pool.finished,
            policy_version=policy.version,
            lineage=policy.lineage,
            held_policies=self._follower.held,
            interval_s=INTERVAL_S,
            updated_at=time.time(),
            stats={
                **{f"trajectories_{status}": float(count) for status, count in stats.endings.items()},
                "sampled_tokens": float(stats.sampled_tokens),
                "dead_letters": float(stats.dead_letters),
                "resumed": float(stats.resumed),
                "policies_loaded": float(self._follower.loaded),
                "policies_refused": float(self._follower.refused),
                "waiting_for_policy": float(self._follower.waiting),
                "policy_pause_s": self._follower.last_pause_s,
            },
        )
