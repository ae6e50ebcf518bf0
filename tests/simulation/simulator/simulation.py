"""One simulated world: the loop, the cluster, the processes, and what may happen to them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Coroutine, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

from simulator.admin import SimulatedAdmin
from simulator.cluster import Cluster, Weather
from simulator.consumer import SimulatedConsumer
from simulator.processes import Process, ProcessKilled
from simulator.producer import SimulatedProducer
from simulator.stand_ins import replaced, simulated_clocks_and_names
from simulator.virtual_loop import VirtualLoop

from rollstream.transport import clients, intake
from rollstream.transport.settings import KafkaSettings


class Simulation:
    """Use ``running()``; production code that runs in its processes sees nothing but the simulation."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.rng = random.Random(seed)
        self._names = random.Random(f"names of {seed}")
        self.loop = VirtualLoop(random.Random(f"order of {seed}"), Process("world", 0))
        self.cluster = Cluster(self.loop, random.Random(f"network of {seed}"), weather or Weather())
        self.processes: list[Process] = []
        self.on_exit: Callable[[Process, BaseException | None], None] = self._note_exit
        self.trace: Callable[[str], None] = _silent
        self._ended: str | None = None

    @contextmanager
    def running(self) -> Generator[Simulation]:
        """Production code sees this world while the block lasts."""
        seams = [
            (clients, "AIOKafkaProducer", _bound(SimulatedProducer, self.cluster)),
            (clients, "AIOKafkaConsumer", _bound(SimulatedConsumer, self.cluster)),
            (clients, "AIOKafkaAdminClient", _bound(SimulatedAdmin, self.cluster)),
            (clients, "abandon", _leave_nothing),
            (intake, "InstanceLock", _HostOfItsOwn),
        ]
        disabled = logging.root.manager.disable
        with ExitStack() as stack:
            stack.callback(self.loop.tear_down)
            stack.callback(logging.disable, disabled)
            if self.trace is _silent:
                logging.disable(logging.CRITICAL)
            stack.enter_context(simulated_clocks_and_names(self.loop.time, self._names))
            for owner, name, value in seams:
                stack.enter_context(replaced(owner, name, value))
            yield self

    def create_topics(self, kafka: KafkaSettings) -> None:
        """All declared topics."""
        for declared in kafka.topics.values():
            self.cluster.create(declared.name, declared.partitions)

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, object]]) -> Process:
        """A new process that does ``work``, and what happens to be left of it then is gone."""
        process = Process(name, len(self.processes) + 1)
        self.processes.append(process)
        self.trace(f"start {process}")
        self.loop.spawn(process, self._live(process, work))
        return process

    def kill(self, process: Process) -> None:
        """Nothing of it ever runs again."""
        if not process.is_alive:
            return
        self.trace(f"end {process}")
        process.is_alive = False
        process.is_frozen = False
        process.held.clear()
        for react in process.on_death:
            react()

    def freeze(self, process: Process) -> None:
        """It stops between two steps; everything of it stays as it is."""
        if process.is_alive and not process.is_frozen:
            self.trace(f"freeze {process}")
            process.is_frozen = True
            for react in process.on_freeze:
                react()

    def wake(self, process: Process) -> None:
        """It goes on where it was."""
        if process.is_alive and process.is_frozen:
            self.trace(f"wake {process}")
            self.loop.thaw(process)
            reactions, process.on_wake = process.on_wake, []
            for react in reactions:
                react()

    def end(self, reason: str) -> None:
        """Stop the run."""
        self._ended = self._ended or reason

    def run(self, *, until: float = float("inf")) -> str | None:
        """Run until ``end`` is called (the reason) or virtual time is over (None)."""
        self.loop.run(lambda: self._ended is not None, until=until)
        return self._ended

    async def _live(self, process: Process, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        failure: BaseException | None = None
        try:
            await work()
        except ProcessKilled:
            raise
        except Exception as error:
            failure = error
        if self.loop.is_torn_down:
            return
        self.kill(process)
        self.on_exit(process, failure)

    def _note_exit(self, process: Process, failure: BaseException | None) -> None:
        if failure is not None:
            self.end(f"{process} ended: {failure!r}")


class _HostOfItsOwn:
    """Simulated processes are on hosts of their own: a lock of the host keeps no twin away."""

    def __init__(self, group_id: str, instance_id: str) -> None:
        self._names = (group_id, instance_id)

    def __enter__(self) -> _HostOfItsOwn:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _bound(client: type[Any], cluster: Cluster) -> type[Any]:
    return type(client.__name__, (client,), {"cluster": cluster})


def _leave_nothing(_: object) -> None:
    """Simulated clients have no connections and no tasks of their own."""


def _silent(_: str) -> None:
    return None
