"""The group coordinator: eager rebalances with any assignment, sessions, static members, commits by generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata
from simulator.processes import Process

if TYPE_CHECKING:
    from simulator.cluster import Cluster

Notice = Literal["rebalance", "unknown"]
JoinAnswer = tuple[str, int, tuple[TopicPartition, ...]] | None
"""(member id, generation, partitions); None: the member id is not known, join anew."""


@dataclass(eq=False)
class Member:
    """One member as the broker knows it."""

    member_id: str
    instance_id: str | None
    process: Process
    session_timeout_s: float
    heartbeat_s: float
    notify: Callable[[Notice, str], bool]
    """Called with what a heartbeat says and the member id it was for; False: the client does not know that id yet."""
    answer: Callable[[JoinAnswer], None] | None = None
    """Set while it waits for the rebalance to end."""
    partitions: tuple[TopicPartition, ...] = ()


@dataclass(eq=False)
class GroupCoordinator:
    """One consumer group. A member that neither heartbeats nor joins in time is expelled."""

    cluster: Cluster
    name: str
    topics: tuple[str, ...] = ()
    generation: int = 0
    members: dict[str, Member] = field(default_factory=dict[str, Member])
    committed: dict[TopicPartition, OffsetAndMetadata] = field(default_factory=dict[TopicPartition, OffsetAndMetadata])
    owners: dict[TopicPartition, str] = field(default_factory=dict[TopicPartition, str])
    """Of the last generation: member ids."""
    is_preparing: bool = False
    _ids: int = 0

    def join(self, member_id: str | None, asked: Member) -> None:
        """A member wants in, again or for the first time; it is answered when all have joined."""
        if member_id is not None and member_id not in self.members:
            self._answer(asked, None)
            return
        replaced = self._static_predecessor(asked) if member_id is None else None
        if member_id is None:
            self._ids += 1
            asked.member_id = f"{asked.instance_id or 'member'}-{self._ids}"
            self.watch(asked)
        if replaced is not None:
            del self.members[replaced.member_id]
            self._turn_away(replaced)
            if not self.is_preparing:  # back within its session: its partitions are still its own
                self.members[asked.member_id] = asked
                asked.partitions = replaced.partitions
                for place in asked.partitions:
                    self.owners[place] = asked.member_id
                self._answer(asked, (asked.member_id, self.generation, asked.partitions))
                return
        known = self.members.setdefault(asked.member_id, asked)
        known.answer = asked.answer
        self._prepare()
        self._complete_if_all_are_here()

    def leave(self, member_id: str) -> None:
        """A dynamic member says goodbye."""
        self.expel(member_id)

    def expel(self, member_id: str) -> None:
        """The member is out; it hears of it at its next heartbeat."""
        member = self.members.pop(member_id, None)
        if member is None:
            return
        self._turn_away(member)
        if self.members:
            self._prepare()
            self._complete_if_all_are_here()

    def commit(self, member_id: str | None, generation: int, offsets: dict[TopicPartition, OffsetAndMetadata]) -> bool:
        """Refused (False) for strangers and old generations."""
        is_alone = member_id is None and generation < 0 and not self.members  # a consumer that assigns by hand
        if not is_alone and (member_id not in self.members or generation != self.generation):
            return False
        self.committed.update(offsets)
        for place, commit in offsets.items():
            for observe in self.cluster.on_commit:
                observe(self.name, place, commit)
        return True

    def watch(self, member: Member) -> None:
        """Expel it when its process is dead or frozen for a session."""

        def silent_since() -> None:
            def check() -> None:
                if member.member_id in self.members and self._is_silent(member):
                    self.expel(member.member_id)

            wait_s = member.session_timeout_s - member.heartbeat_s * self.cluster.rng.random()
            self.cluster.later(wait_s, check)

        process = member.process
        if self._is_silent(member):
            silent_since()
        process.on_death.append(silent_since)
        process.on_freeze.append(silent_since)

    def owner_process(self, place: TopicPartition) -> Process | None:
        """The process that the group believes to own a partition, if it is a member still."""
        member = self.members.get(self.owners.get(place, ""))
        return member.process if member is not None and place in member.partitions else None

    def _is_silent(self, member: Member) -> bool:
        return not member.process.is_alive or member.process.is_frozen

    def _static_predecessor(self, asked: Member) -> Member | None:
        if asked.instance_id is None:
            return None
        return next((m for m in self.members.values() if m.instance_id == asked.instance_id), None)

    def _prepare(self) -> None:
        if self.is_preparing:
            return
        self.is_preparing = True
        for member in self.members.values():
            if member.answer is None:
                self._tell(member, "rebalance")

    def _complete_if_all_are_here(self) -> None:
        if any(member.answer is None for member in self.members.values()):
            return
        self.is_preparing = False
        self.generation += 1
        rng, ids = self.cluster.rng, sorted(self.members)
        shares: dict[str, list[TopicPartition]] = {member_id: [] for member_id in ids}
        for topic in self.topics:
            for log in self.cluster.partitions(topic):
                place = TopicPartition(topic, log.partition)
                keeps = self.owners.get(place)
                chosen = keeps if keeps in shares and rng.random() < 0.7 else rng.choice(ids)
                assert chosen is not None
                shares[chosen].append(place)
                self.owners[place] = chosen
        for member_id, share in shares.items():
            member = self.members[member_id]
            member.partitions = tuple(share)
            self._answer(member, (member_id, self.generation, member.partitions))

    def _turn_away(self, member: Member) -> None:
        if member.answer is not None:
            self._answer(member, None)
        else:
            self._tell(member, "unknown")

    def _answer(self, member: Member, answer: JoinAnswer) -> None:
        deliver, member.answer = member.answer, None
        if deliver is not None:
            self.cluster.later(self.cluster.latency_s(), lambda: deliver(answer))

    def _tell(self, member: Member, notice: Notice) -> None:
        """With the answers to its heartbeats, which a frozen process sends when it has woken, until it has heard."""
        cluster, process = self.cluster, member.process
        is_known = member.member_id in self.members

        def next_heartbeat() -> None:
            cluster.later(cluster.rng.random() * member.heartbeat_s, answer)

        def answer() -> None:
            if process.is_frozen:
                process.on_wake.append(next_heartbeat)
                return
            is_news = notice == "unknown" or (is_known and self.is_preparing and member.answer is None)
            if is_news and process.is_alive and not member.notify(notice, member.member_id):
                next_heartbeat()

        next_heartbeat()
