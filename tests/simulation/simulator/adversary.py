"""What goes wrong, when, and to whom: the faults of the protocol's model, on real processes of the simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from aiokafka import TopicPartition
from simulator.cluster import Record
from simulator.processes import Process
from simulator.scenario import Fault

if TYPE_CHECKING:
    from simulator.world import World

T = TypeVar("T")

MAX_SLOTS = 4


class Adversary:
    """Does what the scenario's faults say, then leaves the world alone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending = 0
        self._ambushes: list[tuple[str, Fault]] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing it began is still to end."""
        return self._pending == 0

    def arm(self) -> None:
        """Every fault has its moment."""
        for fault in self._world.plan.faults:
            self._later(fault.at, lambda fault=fault: self._strike(fault))
        self._later(self._world.plan.faults_until, self._calm)
        self._world.simulation.cluster.on_append.append(self._spring)

    def _later(self, delay_s: float, action: Callable[[], object]) -> None:
        self._pending += 1

        def act() -> None:
            self._pending -= 1
            action()

        self._world.simulation.cluster.later(delay_s, act)

    def _calm(self) -> None:
        weather = self._world.simulation.cluster.weather
        weather.unknown_outcome = weather.refused = weather.twice = 0.0
        self._ambushes.clear()

    def _strike(self, fault: Fault) -> None:
        self._world.faults += 1
        self._world.note(f"fault {fault.kind}")
        getattr(self, f"_{fault.kind}")(fault)

    # ---- processes

    def _kill(self, fault: Fault) -> None:
        victim = self._choose(fault, self._alive())
        if victim is not None:
            self._world.kill(victim, fault.length_s)

    def _kill_all(self, fault: Fault) -> None:
        for victim in self._alive("rollout"):
            self._world.kill(victim, fault.length_s * (0.5 + self._world.rng.random()))

    def _freeze(self, fault: Fault) -> None:
        victim = self._choose(fault, self._alive("rollout", "tools", "trainer"))
        if victim is not None:
            self._world.simulation.freeze(victim)
            self._later(fault.length_s, lambda: self._world.simulation.wake(victim))

    def _replace(self, fault: Fault) -> None:
        """Frozen, taken for dead, and woken when another already has its place."""
        victim = self._choose(fault, self._alive("rollout", "tools"))
        if victim is None:
            return
        self._world.simulation.freeze(victim)
        self._succeed(victim)
        self._later(fault.length_s, lambda: self._world.simulation.wake(victim))
        self._later(fault.length_s + 2 + 4 * fault.pick, lambda: self._world.simulation.kill(victim))

    def _twin(self, fault: Fault) -> None:
        """Two at once under one name."""
        victim = self._choose(fault, self._alive("rollout", "tools"))
        if victim is not None:
            self._succeed(victim)
            self._later(fault.length_s, lambda: self._world.simulation.kill(victim))

    def _strike_writer(self, fault: Fault) -> None:
        """Whoever writes next: killed, frozen or replaced before it hears of it."""
        topics = ("journal", "journal", "journal", "tool-calls.default", "tool-results", "trajectories")
        self._ambushes.append((self._world.kafka.topic(topics[int(fault.pick * len(topics))]), fault))

    def _spring(self, record: Record, sender: Process | None) -> None:
        for ambush in self._ambushes:
            topic, fault = ambush
            if topic == record.topic and sender in self._world.present.values() and sender is not None:
                self._ambushes.remove(ambush)
                self._later(0.0, partial(self._hit, sender, fault))
                return

    def _hit(self, victim: Process, fault: Fault) -> None:
        if not victim.is_alive or victim.is_frozen:
            return
        kind = int(fault.pick * 997) % 3
        self._world.note(f"hit {victim} as a writer: {('kill', 'freeze', 'replace')[kind]}")
        if kind == 0:
            self._world.kill(victim, fault.length_s)
            return
        self._world.simulation.freeze(victim)
        self._later(fault.length_s, lambda: self._world.simulation.wake(victim))
        if kind == 2:
            self._succeed(victim)
            self._later(fault.length_s + 3, lambda: self._world.simulation.kill(victim))

    def _drain(self, fault: Fault) -> None:
        victim = self._choose(fault, self._alive("rollout", "tools"))
        if victim is not None:
            self._world.stops[victim].set()
            if fault.length_s < 0.3:  # a second signal
                self._later(fault.length_s, lambda: self._world.kill(victim, 1.0) if victim.is_alive else None)

    def _scale(self, fault: Fault) -> None:
        role = "rollout" if fault.pick < 0.6 else "tools"
        slots = [slot for name, slot in self._world.present if name == role]
        if len(slots) < MAX_SLOTS:
            self._world.start(role, len(slots))

    def _expel(self, fault: Fault) -> None:
        groups = [self._world.simulation.cluster.groups[name] for name in sorted(self._world.simulation.cluster.groups)]
        members = [(group, member) for group in groups for member in group.members]
        chosen = self._choose(fault, members)
        if chosen is not None:
            chosen[0].expel(chosen[1])

    def _trainer(self, fault: Fault) -> None:
        """Restored from any of its last checkpoints."""
        checkpoints = self._world.memory.checkpoints
        back = int(fault.pick * 3)
        if back and len(checkpoints) > back:
            del checkpoints[-back:]
        self._world.kill(self._world.present["trainer", 0], fault.length_s)

    def _producer(self, fault: Fault) -> None:
        """Killed, started beside itself, or started again when it had ended."""
        present = self._world.present["producer", 0]
        if fault.pick < 0.5:
            self._world.kill(present, fault.length_s)
        else:
            self._world.start("producer", 0)

    # ---- records

    def _retention(self, fault: Fault) -> None:
        """Trajectories that no checkpoint in use needs are deleted."""
        checkpoints = self._world.memory.checkpoints
        if len(checkpoints) < 4:
            return
        for log in self._world.simulation.cluster.partitions(self._world.kafka.topic("trajectories")):
            positions = [
                {int(p): o for p, o in c.state["positions"].items()}.get(log.partition, 0) for c in checkpoints
            ]
            log.start = max(log.start, min(positions))

    def _emit_again(self, fault: Fault) -> None:
        self._repeat(fault, "tasks")

    def _stray_record(self, fault: Fault) -> None:
        self._repeat(fault, "journal")

    def _stray_call(self, fault: Fault) -> None:
        """Delivered again, late, perhaps to a worker that never had its partition."""
        self._repeat(fault, "tool-calls.default", elsewhere=fault.pick > 0.5)

    def _rubbish(self, fault: Fault) -> None:
        """A record that cannot be a task, with the header of one or without."""
        place = TopicPartition(self._world.kafka.topic("tasks"), 0)
        headers = [("trajectory_id", f"{int(fault.pick * 1e9):032x}".encode())] if fault.pick < 0.5 else []
        self._world.simulation.cluster.append(place, None, b"rubbish", headers, None)

    def _repeat(self, fault: Fault, short: str, *, elsewhere: bool = False) -> None:
        cluster = self._world.simulation.cluster
        logs = cluster.partitions(self._world.kafka.topic(short))
        # A call marked as the first is in the log at most once: its sender sees to that.
        records = [record for log in logs for record in log.records if b'"pay"' not in (record.value or b"")]
        record = self._choose(fault, [record for record in records if b"\xa3pay" not in (record.value or b"")])
        if record is not None:
            partition = (record.partition + elsewhere) % len(logs)
            cluster.append(TopicPartition(record.topic, partition), record.key, record.value, record.headers, None)

    # ----

    def _succeed(self, victim: Process) -> None:
        place = next((place for place, present in self._world.present.items() if present is victim), None)
        if place is not None:
            self._world.start(*place)

    def _alive(self, *roles: str) -> list[Process]:
        return [
            process
            for (role, _), process in self._world.present.items()
            if process.is_alive and not process.is_frozen and (not roles or role in roles)
        ]

    def _choose(self, fault: Fault, candidates: Sequence[T]) -> T | None:
        return candidates[int(fault.pick * len(candidates))] if candidates else None
