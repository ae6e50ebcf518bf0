"""A whole run: broker and processes come up, work undisturbed, are hurt, work undisturbed again, and finish their work.

Everything that was started ends with the run, however that ends.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from chaos_workload import (
    Workload,
    kafka_settings,
    rollstream,
    trainer_command,
    worker_command,
    write_files,
)
from evidence import Evidence, Injury, Phases
from evidence_reading import (
    count_trained,
    follow_counts,
    read_dead_letters,
    read_generations,
    read_ledger,
    read_signs,
    read_tasks,
    read_trajectories,
)
from fault_injection import LEAVES_WITHIN_S, Cluster, beginning, scale_to
from fault_plan import Cluster as Shape
from fault_plan import Fault, Role
from live_view import LiveView
from members import Member
from network_proxy import NetworkProxy
from process_sweep import remaining_processes
from progress import Progress, StuckError, Timing

from rollstream.schemas.errors import TransientError
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

LOOK_EVERY_S = 0.1
CRASH_PAUSE_S = 0.5
ORPHANS_END_S = 30.0
"""An engine whose worker died while it was being started notices when its modules are loaded."""


class Stage:
    """One run, played once."""

    def __init__(
        self,
        shape: Shape,
        workload: Workload,
        timing: Timing,
        folder: Path,
        environment: Mapping[str, str],
        seed: int,
    ) -> None:
        self._shape = shape
        self._workload = workload
        self._timing = timing
        self._folder = folder
        self._environment = environment
        self._seed = seed
        self._progress = Progress()

    async def play(self, plan: Sequence[Fault], view: LiveView) -> Evidence:
        """Play the plan and return what was seen.

        Raises:
            StuckError: no progress, with work left.
        """
        broker = LocalBroker(BrokerSettings(data_dir=self._folder / "broker", source="jars"))
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, broker.stop)
            view.say("starting the broker")
            await asyncio.to_thread(broker.start)
            kafka = kafka_settings(broker.bootstrap, self._workload)
            await apply_topics(kafka)
            write_files(self._workload, kafka, self._folder, self._seed)
            (self._folder / "trainer").mkdir()
            members = await self._members(stack, broker)
            cluster = Cluster(members, broker, self._folder / "trainer")
            async with self._watched(cluster, kafka, view):
                phases = await self._phases(cluster, plan, view)
            view.say("reading the evidence")
            return await self._evidence(cluster, kafka, phases)

    async def _members(self, stack: AsyncExitStack, broker: LocalBroker) -> list[Member]:
        folder = self._folder
        port = broker.state.broker_port
        members: list[Member] = []

        async def add(role: Role, name: str, command: Callable[[str, str], tuple[str, ...]]) -> None:
            proxy = await stack.enter_async_context(NetworkProxy(port))
            members.append(Member(role, name, proxy, command, folder, self._environment))

        def worker(role: Role, index: int) -> Callable[[str, str], tuple[str, ...]]:
            """Every second one is a static member, under its place's name."""
            instance = f"{role}-{index}" if index % 2 == 0 else None

            def command(address: str, name: str) -> tuple[str, ...]:
                return worker_command(folder, address, role, name, instance if name == f"{role}-{index}" else None)

            return command

        counts: dict[Role, int] = {
            "tool-worker": self._shape.tool_workers,
            "rollout-worker": self._shape.max_rollout_workers,
        }
        for role, count in counts.items():
            for index in range(count):
                await add(role, f"{role}-{index}", worker(role, index))
        await add("trainer", "trainer", lambda _address, _name: trainer_command(folder, self._workload.engine))
        await add("producer", "producer", lambda address, _name: rollstream(folder, address, "produce"))
        return members

    @asynccontextmanager
    async def _watched(self, cluster: Cluster, kafka: KafkaSettings, view: LiveView) -> AsyncGenerator[None]:
        """Counts, restarts what crashes, and ends all processes in the end."""
        async with asyncio.TaskGroup() as group:
            watching = [
                group.create_task(follow_counts(kafka, self._progress.count)),
                group.create_task(self._restart_crashed(cluster, view)),
                group.create_task(self._show(cluster, view)),
            ]
            try:
                yield
                await _end_all(cluster.members, within_s=LEAVES_WITHIN_S)
            finally:
                for task in watching:
                    task.cancel()
                await _end_all(cluster.members, within_s=0.0)

    async def _phases(self, cluster: Cluster, plan: Sequence[Fault], view: LiveView) -> Phases:
        view.say("starting the processes")
        for member in cluster.members:
            if member.role != "rollout-worker":
                await member.start()
        await scale_to(cluster, self._shape.rollout_workers)
        await self._until("the first trajectories", cluster, lambda: len(self._progress.trajectories) >= 8)
        view.say("undisturbed")
        began = time.time()
        await asyncio.sleep(self._timing.before_s)
        view.say("chaos")
        hurt = time.time()
        await self._hurt(cluster, plan, view)
        await scale_to(cluster, self._shape.rollout_workers)
        view.say("undisturbed again")
        healed = time.time()
        await asyncio.sleep(self._timing.after_s)
        ended = time.time()
        view.say("finishing")
        await self._finish(cluster)
        return Phases(began, hurt, healed, ended)

    async def _hurt(self, cluster: Cluster, plan: Sequence[Fault], view: LiveView) -> None:
        async with asyncio.TaskGroup() as group:
            running: set[asyncio.Task[None]] = set()
            for fault in plan:
                if fault.is_alone and running:
                    await asyncio.wait(running)
                    await scale_to(cluster, self._shape.rollout_workers)
                await asyncio.sleep(self._timing.calm_between_s if fault.is_alone else fault.after_s)
                hurting = await beginning(cluster, fault)
                view.hurt(fault)
                running.add(injecting := group.create_task(hurting))
                injecting.add_done_callback(running.discard)

    async def _finish(self, cluster: Cluster) -> None:
        """No more tasks; every task gets its trajectory, and the trainer every complete group."""
        [producer] = cluster.of("producer")
        producer.is_wanted = False
        if producer.running is not None:
            producer.running.signal(signal.SIGTERM)
            if not await producer.running.ended_within(LEAVES_WITHIN_S):
                raise StuckError(f"the producer does not leave:\n{producer.last_words()}")
        self._progress.last_news = time.monotonic()
        await asyncio.sleep(1.0)  # what the producer sent last is on its way to the counter
        await self._until("a trajectory for every task", cluster, lambda: self._progress.is_done)
        ledger = cluster.trainer_folder
        trained, self._progress.last_news = -1, time.monotonic()
        while time.monotonic() - self._progress.last_news < self._trainer_rests_s(trained):
            if (now := count_trained(ledger)) != trained:
                trained, self._progress.last_news = now, time.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)

    def _trainer_rests_s(self, trained: int) -> float:
        """When it has had everything, soon; else it may be starting or reading."""
        return 1.0 if trained >= len(self._progress.trajectories) else 20.0

    async def _until(self, what: str, cluster: Cluster, condition: Callable[[], bool]) -> None:
        self._progress.last_news = time.monotonic()
        allowed_s = max(self._timing.silence_s, self._timing.start_s)
        while not condition():
            if time.monotonic() - self._progress.last_news > allowed_s:
                words = "\n".join(f"--- {member.name}\n{member.last_words()}" for member in cluster.members)
                raise StuckError(
                    f"nothing new for {allowed_s:.0f} s while waiting for {what}: {len(self._progress.tasks)} tasks, "
                    f"{len(self._progress.trajectories)} trajectories\n{words}"
                )
            await asyncio.sleep(LOOK_EVERY_S)

    async def _restart_crashed(self, cluster: Cluster, view: LiveView) -> None:
        """As a supervisor would."""
        while True:
            for member in cluster.members:
                if member.has_crashed and member.running is not None:
                    dead, at = member.running, time.time()
                    said = f"exit code {dead.process.returncode}, {member.last_words(lines=1)}"
                    member.is_being_hurt = True
                    view.crashed(member.name)
                    await asyncio.sleep(CRASH_PAUSE_S)
                    await member.start()
                    member.is_being_hurt = False
                    cluster.injuries.append(
                        Injury(member.role, "crash", dead.name, dead.pid, at, time.time(), said=said)
                    )
            await asyncio.sleep(LOOK_EVERY_S)

    async def _show(self, cluster: Cluster, view: LiveView) -> None:
        while True:
            view.count(
                tasks=len(self._progress.tasks),
                trajectories=len(self._progress.trajectories),
                trained=count_trained(cluster.trainer_folder),
                alive=sum(member.is_alive for member in cluster.members),
                killed=sum(injury.killed for injury in cluster.injuries),
            )
            await asyncio.sleep(0.5)

    async def _orphans(self) -> list[str]:
        """What is still there a while after its parents have ended."""
        ends_at = time.monotonic() + ORPHANS_END_S
        while True:
            remaining = remaining_processes(self._environment["CHAOS_RUN"], self._folder)
            if not remaining or time.monotonic() > ends_at:
                return list(remaining.values())
            await asyncio.sleep(LOOK_EVERY_S)

    async def _evidence(self, cluster: Cluster, kafka: KafkaSettings, phases: Phases) -> Evidence:
        try:
            return Evidence(
                phases=phases,
                tasks=await read_tasks(kafka),
                trajectories=await read_trajectories(kafka, self._workload.engine, self._workload.model),
                ledger=read_ledger(cluster.trainer_folder),
                begun=read_generations(self._folder / "generations"),
                injuries=cluster.injuries,
                signs=await read_signs(kafka),
                dead_letters=await read_dead_letters(kafka),
                orphans=await self._orphans(),
            )
        except TransientError as error:
            raise StuckError(f"the evidence cannot be read: {error}") from error


async def _end_all(members: Sequence[Member], *, within_s: float) -> None:
    """Told to leave, and killed when they do not in time."""
    running = [member.running for member in members if member.running is not None and member.is_alive]
    for member in members:
        member.is_wanted = False
    for process in running:
        process.signal_all(signal.SIGCONT)
        process.signal(signal.SIGTERM)
    async with asyncio.TaskGroup() as group:
        endings = [group.create_task(process.ended_within(within_s)) for process in running]
    for process, ending in zip(running, endings, strict=True):
        if not ending.result():
            await process.kill()
