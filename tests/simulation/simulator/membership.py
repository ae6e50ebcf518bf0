"""The client's side of a consumer group: joins, hears heartbeats' answers, calls the rebalance listener."""

# pyright: reportUnknownMemberType=false
# (aiokafka is annotated in part)

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from aiokafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
from simulator.groups import GroupCoordinator, JoinAnswer, Member, Notice
from simulator.processes import current_process

if TYPE_CHECKING:
    from simulator.consumer import SimulatedConsumer


class Membership:
    """Eager, as aiokafka: everything is revoked first, nothing is fetched until the group has settled."""

    def __init__(self, consumer: SimulatedConsumer, **options: Any) -> None:
        cluster = consumer.cluster
        self._consumer = consumer
        self._cluster = cluster
        self.coordinator = cluster.groups.setdefault(
            options["group_id"], GroupCoordinator(cluster, options["group_id"])
        )
        self.listener: ConsumerRebalanceListener | None = None
        self._instance_id: str | None = options["group_instance_id"]
        self._session_timeout_s = options["session_timeout_ms"] / 1000
        self._heartbeat_s = options["heartbeat_interval_ms"] / 1000
        self._member_id: str | None = None
        self._generation = -1
        self._rejoin = asyncio.Event()
        self._has_joined = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._commits_until = 0.0
        self._former_ids: set[str | None] = set()
        self._is_stopped = False

    async def start(self, topics: tuple[str, ...]) -> None:
        """Join; returns with partitions assigned."""
        self.coordinator.topics = topics
        self._running = asyncio.get_running_loop().create_task(self._stay())
        await self._has_joined.wait()

    async def stop(self) -> None:
        """A static member stays in the group until its session ends."""
        self._is_stopped = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        member_id, coordinator = self._member_id, self.coordinator
        if member_id is None:
            return
        member = coordinator.members.get(member_id)
        if self._instance_id is None:
            self._cluster.later(self._cluster.latency_s(), lambda: coordinator.leave(member_id))
        elif member is not None:
            self._cluster.later(self._session_timeout_s, lambda: coordinator.expel(member_id))

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> bool:
        """False: refused. In order with other commits of this client; lands even if nobody waits for it any more."""
        cluster, loop = self._cluster, self._cluster.loop
        member_id, generation, process = self._member_id, self._generation, current_process()
        outcome: asyncio.Future[bool] = loop.create_future()
        self._commits_until = max(self._commits_until, loop.time() + cluster.latency_s())

        def land() -> None:
            if process.is_frozen and cluster.rng.random() < 0.5:
                process.on_wake.append(lambda: cluster.later(cluster.latency_s(), land))
                return
            is_taken = self.coordinator.commit(member_id, generation, offsets)
            if not outcome.done():
                outcome.set_result(is_taken)

        cluster.later(self._commits_until - loop.time(), land)
        is_taken = await asyncio.shield(outcome)
        if not is_taken and generation == self._generation:
            self._hear("unknown")
        return is_taken

    def _hear(self, notice: Notice) -> None:
        if notice == "unknown":
            self._former_ids.add(self._member_id)
            self._member_id, self._generation = None, -1
        self._rejoin.set()

    async def _stay(self) -> None:
        while True:
            self._rejoin.clear()
            if self._has_joined.is_set():
                self._consumer.hold_fetches(is_held=True)
                await self._tell_revoked()
            answer = await self._join()
            if answer is None:
                self._former_ids.add(self._member_id)
                self._member_id = None
                continue
            self._member_id, self._generation, partitions = answer
            self._consumer.take(partitions)
            self._consumer.hold_fetches(is_held=False)
            await self._tell_assigned()
            self._has_joined.set()
            await self._rejoin.wait()

    async def _tell_revoked(self) -> None:
        if self.listener is not None:
            await self._calm(self.listener.on_partitions_revoked(self._consumer.assignment()))

    async def _tell_assigned(self) -> None:
        if self.listener is not None:
            await self._calm(self.listener.on_partitions_assigned(self._consumer.assignment()))

    async def _calm(self, called: object) -> None:
        """The client logs what a listener raises and goes on; a simulation wants to know."""
        try:
            if inspect.isawaitable(called):
                await called
        except Exception as error:
            self._cluster.loop.failures.append(f"a rebalance listener raised {error!r}")

    async def _join(self) -> JoinAnswer:
        answered: asyncio.Future[JoinAnswer] = asyncio.get_running_loop().create_future()

        def answer(result: JoinAnswer) -> None:
            if not answered.done():
                answered.set_result(result)

        member = Member(
            self._member_id or "",
            self._instance_id,
            current_process(),
            self._session_timeout_s,
            self._heartbeat_s,
            self._notify,
            answer,
        )
        await self._consumer.travel()
        self.coordinator.join(self._member_id, member)
        return await answered

    def _notify(self, notice: Notice, member_id: str) -> bool:
        """Runs outside of the process; what it wakes runs inside. False: we may yet be told that this is our id."""
        if member_id == self._member_id:
            self._hear(notice)
            return True
        return member_id in self._former_ids or self._is_stopped
