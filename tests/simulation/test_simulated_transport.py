"""Production code of the transport on the simulated Kafka: it works there, and a seed decides everything."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from simulator.cluster import Weather
from simulator.simulation import Simulation

from rollstream.schemas.control import Pause
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.intake import GroupIntake
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

KAFKA = KafkaSettings(
    bootstrap="simulated:9092",
    session_timeout_s=3.0,
    partitions={"tasks": 2, "tool-calls.default": 2, "tool-results": 2, "trajectories": 2, "dead-letters": 1},
)
ROUGH = Weather(unknown_outcome=0.2, refused=0.1, twice=0.2)


def pauses(simulation: Simulation) -> list[str]:
    return [
        (record.key or b"").decode()
        for log in simulation.cluster.partitions(KAFKA.topic("tasks"))
        for record in log.records
    ]


async def publish(count: int) -> None:
    async with Publisher(KAFKA, profile="durable") as publisher:
        for number in range(count):
            message = Pause(is_paused=True, reason=str(number))
            await publisher.publish(message, topic=KAFKA.topic("tasks"), key=str(number))


@pytest.mark.parametrize("seed", range(5))
def test_what_a_publisher_returned_for_is_in_the_log(seed: int) -> None:
    simulation = Simulation(seed, ROUGH)
    with simulation.running():
        simulation.create_topics(KAFKA)

        async def work() -> None:
            await publish(20)
            simulation.end("done")

        simulation.start("publisher", work)
        assert simulation.run(until=2000) == "done"

    assert set(pauses(simulation)) == {str(number) for number in range(20)}


def run_members(seed: int, *, records: int = 30) -> tuple[list[str], Simulation]:
    """Two members of a group, one of them killed and both restarted, until everything is committed."""
    simulation = Simulation(seed, ROUGH)
    handled: list[str] = []
    group = KAFKA.group("members")

    async def member() -> None:
        async with GroupIntake(KAFKA, [KAFKA.topic("tasks")], group_id=group) as intake, asyncio.TaskGroup() as tasks:
            tasks.create_task(intake.run())
            while True:
                for record in await intake.poll(max_records=3, timeout_s=0.5):
                    await asyncio.sleep(0.05)
                    handled.append((record.key or b"").decode())
                    [place] = [p for p in intake.partitions if p.partition == record.partition] or [None]
                    if place is not None:
                        intake.finished(place, record.offset)

    def check(*_: object) -> None:
        offsets = simulation.cluster.groups[group].committed
        logs = simulation.cluster.partitions(KAFKA.topic("tasks"))
        if len(set(handled)) == records and sum(c.offset for c in offsets.values()) == sum(log.end for log in logs):
            simulation.end("done")

    with simulation.running():
        simulation.create_topics(KAFKA)
        simulation.cluster.on_commit.append(check)
        simulation.start("publisher", lambda: publish(records))
        first = simulation.start("member", member)
        second = simulation.start("member", member)
        simulation.cluster.later(2.0, lambda: simulation.kill(first))
        simulation.cluster.later(2.5, lambda: simulation.freeze(second))
        simulation.cluster.later(7.0, lambda: simulation.wake(second))
        simulation.cluster.later(8.0, lambda: simulation.start("member", member))
        assert simulation.run(until=2000) == "done", (handled, simulation.loop.failures)
    return handled, simulation


@pytest.mark.parametrize("seed", range(10))
def test_every_record_reaches_a_member_of_the_group_whatever_happens_to_members(seed: int) -> None:
    handled, simulation = run_members(seed)

    assert set(handled) == {str(number) for number in range(30)}
    assert not simulation.loop.failures


def test_facts_on_control_reach_a_follower_that_joined_before_and_one_that_joins_after() -> None:
    simulation = Simulation(1)
    heard: list[str] = []

    async def follow(name: str) -> None:
        async with ControlFollower(KAFKA) as follower:
            while follower.latest(Pause) is None:
                await follower.wait_for_change(timeout_s=10)
            heard.append(name)
            if len(heard) == 2:
                simulation.end("done")

    async def announce() -> None:
        async with Publisher(KAFKA) as publisher:
            await asyncio.sleep(3)
            await publisher.publish(pause := Pause(is_paused=True), key=control_key(pause))
            simulation.start("late", lambda: follow("late"))

    with simulation.running():
        simulation.create_topics(KAFKA)
        simulation.start("early", lambda: follow("early"))
        simulation.start("announcer", announce)
        assert simulation.run(until=2000) == "done"
    assert sorted(heard) == ["early", "late"]


def test_the_same_seed_gives_the_same_run_in_another_operating_system_process() -> None:
    handled, simulation = run_members(3)
    program = (
        "import sys; sys.path.append(sys.argv[1]); import test_simulated_transport as t;"
        "handled, simulation = t.run_members(3); print(simulation.loop.digest, simulation.loop.steps, len(handled))"
    )
    folder = str(Path(__file__).parent)
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, folder],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        ).stdout.split()
        for hash_seed in ("0", "1")
    ]

    assert outputs == [[str(simulation.loop.digest), str(simulation.loop.steps), str(len(handled))]] * 2
