"""Hurts the members of a cluster as planned, and writes down what was done to whom and when."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence import Injury
from fault_plan import Fault, Kind, Role
from members import Member, Running
from network_proxy import Wire

from rollstream.transport.local_broker import LocalBroker

LEAVES_WITHIN_S = 30.0
"""After SIGTERM, drain limit included; past it a process is killed and counts as late."""
LEAVES_AT_ONCE_S = 3.0
"""After the second SIGTERM."""
STEP_REACHED_WITHIN_S = 15.0
ZOMBIE_LIVES_S = 3.0
LOOK_EVERY_S = 0.05
AT_WORK_AFTER_S = 2.0
ONE_AT_START_IN = 6
WIRES: dict[Kind, Wire] = {
    "cut_reset": "reset",
    "cut_black_hole": "black_hole",
    "cut_answers": "cut_answers",
    "slow_link": "slow",
}


@dataclass
class Cluster:
    """Everything that runs.

    Attributes:
        members: all places, those that are scaled away included.
        broker: the broker behind all wires.
        trainer_folder: where the trainer looks for the order to die.
    """

    members: Sequence[Member]
    broker: LocalBroker
    trainer_folder: Path
    injuries: list[Injury] = field(default_factory=list[Injury])
    broker_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    scale_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def of(self, role: Role) -> list[Member]:
        """The places of a role, in order."""
        return [member for member in self.members if member.role == role]


async def beginning(cluster: Cluster, fault: Fault) -> Coroutine[Any, Any, None]:
    """Wait until there is somebody to hurt; what is returned does it and ends when everything is as before."""
    if fault.role == "broker":
        await cluster.broker_lock.acquire()
        return _hurt_broker(cluster, fault)
    if fault.kind == "scale":
        await cluster.scale_lock.acquire()
        return _scale(cluster, fault)
    return _hurt(cluster, await _free_member(cluster, fault), fault)


async def _free_member(cluster: Cluster, fault: Fault) -> Member:
    """The member that is meant, or the next one of its role that lives and is not being hurt.

    Most faults leave a process the time to get to work first; some hit it while it starts.
    """
    min_age_s = 0.0 if fault.number % ONE_AT_START_IN == 0 else AT_WORK_AFTER_S
    while True:
        members = cluster.of(fault.role)
        for member in [*members[fault.slot :], *members[: fault.slot]]:
            if member.is_wanted and not member.is_being_hurt and member.age_s >= min_age_s:
                member.is_being_hurt = True
                return member
        await asyncio.sleep(LOOK_EVERY_S)


async def _hurt(cluster: Cluster, member: Member, fault: Fault) -> None:
    try:
        await _hurt_member(cluster, member, fault)
    finally:
        member.is_being_hurt = False


async def _hurt_member(cluster: Cluster, member: Member, fault: Fault) -> None:
    victim = member.running
    assert victim is not None
    at = time.time()
    killed, late_s = 0, 0.0
    match fault.kind:
        case "kill" | "kill_replaced":
            killed = 1
            await victim.kill()
            await _come_back(member, fault.returns_s)
        case "kill_at_step":
            at = await _kill_at_step(cluster, victim, fault)
            killed = 1
            await _come_back(member, fault.returns_s)
        case "freeze" | "freeze_long":
            await _freeze(victim, fault.lasts_s)
        case "zombie" | "twin":
            killed = await _wake_after_replacement(member, victim, fault)
        case "term":
            late_s = await _leave(victim, LEAVES_WITHIN_S)
            await _come_back(member, fault.returns_s)
        case "term_twice":
            killed = 1
            victim.signal(signal.SIGTERM)
            await asyncio.sleep(fault.lasts_s)
            late_s = await _leave(victim, LEAVES_AT_ONCE_S)
            await _come_back(member, fault.returns_s)
        case _:
            await member.proxy.set_wire(WIRES[fault.kind])
            await asyncio.sleep(fault.lasts_s)
            await member.proxy.set_wire("whole")
    cluster.injuries.append(
        Injury(fault.role, fault.kind, victim.name, victim.pid, at, time.time(), killed=killed, late_s=late_s)
    )


async def _come_back(member: Member, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await member.start()


async def _freeze(victim: Running, seconds: float) -> None:
    victim.signal_all(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    victim.signal_all(signal.SIGCONT)


async def _wake_after_replacement(member: Member, victim: Running, fault: Fault) -> int:
    """A replacement works already when the old process wakes: under its name on another host, or under a new one."""
    victim.signal_all(signal.SIGSTOP)
    is_twin = fault.kind == "twin"
    await member.start(
        name=member.name if is_twin else f"{member.name}-b", scratch="other-host" if is_twin else "scratch"
    )
    await asyncio.sleep(fault.lasts_s)
    victim.signal_all(signal.SIGCONT)
    await asyncio.sleep(ZOMBIE_LIVES_S)
    survived = victim.is_alive
    if survived:
        await victim.kill()
    return int(survived)


async def _leave(victim: Running, allowed_s: float) -> float:
    """SIGTERM; how much longer than allowed it stayed until it was killed."""
    victim.signal(signal.SIGTERM)
    if await victim.ended_within(allowed_s):
        return 0.0
    await victim.kill()
    return allowed_s


async def _kill_at_step(cluster: Cluster, victim: Running, fault: Fault) -> float:
    order = cluster.trainer_folder / "die-at"
    order.write_text(fault.step)
    if not await victim.ended_within(STEP_REACHED_WITHIN_S):
        await victim.kill()
    order.unlink(missing_ok=True)
    return time.time()


async def _hurt_broker(cluster: Cluster, fault: Fault) -> None:
    try:
        pid = cluster.broker.state.pid
        assert pid is not None
        at = time.time()
        if fault.kind == "freeze":
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            os.kill(pid, signal.SIGCONT)
        else:
            await asyncio.to_thread(cluster.broker.kill9)
            await asyncio.sleep(fault.lasts_s)
            await asyncio.to_thread(cluster.broker.start)
        killed = int(fault.kind == "kill")
        cluster.injuries.append(Injury("broker", fault.kind, "broker", pid, at, time.time(), killed=killed))
    finally:
        cluster.broker_lock.release()


async def _scale(cluster: Cluster, fault: Fault) -> None:
    try:
        at = time.time()
        for size in fault.sizes:
            await scale_to(cluster, size)
            await asyncio.sleep(fault.lasts_s)
        cluster.injuries.append(Injury(fault.role, "scale", "", 0, at, time.time()))
    finally:
        cluster.scale_lock.release()


async def _until_left_alone(member: Member) -> None:
    while member.is_being_hurt:  # noqa: ASYNC110  -- other faults end by themselves
        await asyncio.sleep(LOOK_EVERY_S)


async def scale_to(cluster: Cluster, size: int) -> None:
    """So many rollout workers, the others told to leave. Each that leaves is an injury of its own."""

    async def settle(index: int, member: Member) -> None:
        await _until_left_alone(member)
        if index < size:
            if not member.is_alive:
                await member.start()
            return
        member.is_wanted = False
        victim = member.running
        if victim is not None and victim.is_alive:
            at = time.time()
            late_s = await _leave(victim, LEAVES_WITHIN_S)
            cluster.injuries.append(
                Injury("rollout-worker", "scaled_down", victim.name, victim.pid, at, time.time(), late_s=late_s)
            )

    async with asyncio.TaskGroup() as group:
        for index, member in enumerate(cluster.of("rollout-worker")):
            group.create_task(settle(index, member))
