"""The independent observer: sees every append, commit, sample and batch in the step it happens, and checks I1 to I9.

It reads records, not the memory of roles, and folds the journal in its own way.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable

import msgspec
from aiokafka import OffsetAndMetadata, TopicPartition
from simulator.cluster import Cluster, Record
from simulator.journal_oracle import JournalOracle, TaskStory
from simulator.model_and_tools import Sampled, Surroundings
from simulator.processes import Process
from simulator.scenario import Scenario

from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.journal import JournalRecord, TerminalRecord
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings

_ANSWER = re.compile(r'\{"sandbox": (?:null|\d+), "sample": \d+, "call": \d+\}')
_NUMBER = re.compile(r"(?:turn|cut) (\d+)")


class Violation(Exception):
    """A promise is broken; says which."""


class Witness:
    """``report`` is called with what is wrong, in the step in which it becomes wrong."""

    def __init__(
        self,
        plan: Scenario,
        kafka: KafkaSettings,
        cluster: Cluster,
        around: Surroundings,
        report: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._cluster = cluster
        self._around = around
        self._report = report
        self._topics = {kafka.topic(s): s for s in ("tasks", "journal", "trajectories", "dead-letters")}
        self._tasks_topic, self._journal_topic = kafka.topic("tasks"), kafka.topic("journal")
        self._group = kafka.group("rollout-workers")
        partitions = range(plan.task_partitions)
        self._oracles = [JournalOracle() for _ in partitions]
        self._journals: list[list[JournalRecord | None]] = [[] for _ in partitions]
        self.emitted: dict[str, list[tuple[int, int]]] = {}
        self.unread: dict[tuple[int, int], object] = {}
        """Places of tasks that are none, and what they are known by: a name in their header, else their place."""
        self.buried: set[object] = set()
        """Tasks with a letter: by name, else by place."""
        self.published: dict[str, tuple[bytes | None, Trajectory]] = {}
        self.samples = 0
        self.resampled = 0

    # ---- what happens

    def appended(self, record: Record, sender: Process | None) -> None:
        """A record is in a log."""
        try:
            match self._topics.get(record.topic):
                case "tasks":
                    self._see_task(record)
                case "journal":
                    self._see_journal(record)
                case "trajectories":
                    self._see_trajectory(record)
                case "dead-letters":
                    self._see_letter(decode_record(record, DeadLetter))
                case _:
                    return
        except Violation as violation:
            self._report(str(violation))

    def committed(self, group: str, place: TopicPartition, commit: OffsetAndMetadata) -> None:
        """A group has committed."""
        if group != self._group:
            return
        try:
            self._check_finished_below(place, commit.offset)
            self._check_floor(place.partition, commit)
        except Violation as violation:
            self._report(str(violation))

    def sampled(self, sample: Sampled, process: Process) -> None:
        """I4: a model has begun a generation."""
        self.samples += 1
        found = self._story(sample.trajectory_id)
        if found is None or self.is_emitted_twice(sample.trajectory_id):
            return
        partition, story = found
        attempt = next((a for a, birth in story.births.items() if birth == sample.birth), None)
        if attempt is None:
            self._report(f"I4: trajectory {sample.trajectory_id}: sampled before its start is journaled")
            return
        held = story.effects.get((attempt, sample.path))
        journaled_at = held[0] if held is not None else story.decided_at
        if journaled_at is None:
            return
        self.resampled += 1
        is_owner = self._owner(partition) is process
        if (
            is_owner
            and self._cluster.read_position(process, TopicPartition(self._journal_topic, partition)) > journaled_at
        ):
            self._report(f"I4: journaled effect {sample.path} of {sample.trajectory_id} is sampled again by its owner")

    def trained(self, history: list[str], batch: list[Trajectory]) -> None:
        """I7: a trainer has got a batch; ``history`` is all it was trained on."""
        if len(set(history)) != len(history):
            self._report(f"I7: trained twice: {[i for i, n in Counter(history).items() if n > 1]}")
        for trajectory in batch:
            first = self.published.get(trajectory.trajectory_id)
            if first is None or first[1].birth != trajectory.birth or _text(first[1]) != _text(trajectory):
                self._report(f"I7: trained on {trajectory.trajectory_id} as it was not published first")

    def is_emitted_twice(self, trajectory_id: str) -> bool:
        """Whether `tasks` has it more than once."""
        return len(self.emitted.get(trajectory_id, ())) > 1

    def story(self, trajectory_id: str) -> TaskStory | None:
        """What the journal says about a task."""
        found = self._story(trajectory_id)
        return found[1] if found is not None else None

    # ---- how it must be

    def _see_task(self, record: Record) -> None:
        trajectory_id = dict(record.headers).get("trajectory_id", b"").decode(errors="replace")
        place = (record.partition, record.offset)
        if trajectory_id in self._plan.tasks and (record.value or b"")[:7] != b"rubbish":
            self.emitted.setdefault(trajectory_id, []).append(place)
        else:
            self.unread[place] = trajectory_id or place

    def _see_letter(self, letter: DeadLetter) -> None:
        place = (letter.origin_partition, letter.origin_offset)
        if letter.origin_topic == self._tasks_topic:
            name = dict(letter.headers).get("trajectory_id", b"").decode(errors="replace")
            self.buried.add(self.unread.get(place, name))

    def _see_journal(self, record: Record) -> None:
        decoded = decode_record(record, JournalRecord)
        self._journals[record.partition].append(decoded)
        counts = self._oracles[record.partition].tell(record.offset, decoded)
        plan = self._plan.tasks.get(decoded.trajectory_id)
        is_steady = plan is not None and not plan.wavers and not self.is_emitted_twice(decoded.trajectory_id)
        if counts and is_steady and decoded.kind == "attempt_end" and b"Nondeterministic" in decoded.payload:
            raise Violation(f"I8: a deterministic agent was found nondeterministic: {decoded.trajectory_id}")

    def _see_trajectory(self, record: Record) -> None:
        trajectory = decode_record(record, Trajectory)
        id_ = trajectory.trajectory_id
        first = self.published.setdefault(id_, (record.value, trajectory))
        if self.is_emitted_twice(id_):
            return
        if first[0] != record.value:
            raise Violation(f"I1: two records of trajectory {id_} differ")
        story = self.story(id_)
        end = story.end if story is not None else None
        decided = msgspec.msgpack.decode(end.payload, type=TerminalRecord) if end is not None else None
        if story is None or decided is None or decided.value != record.value:
            raise Violation(f"I2: trajectory {id_} is published, but the journal does not say so")
        self._check_turns(trajectory, story)

    def _check_turns(self, trajectory: Trajectory, story: TaskStory) -> None:
        id_, sandboxes = trajectory.trajectory_id, set[object]()
        for sample in trajectory.samples:
            ids = sample.response_ids.tolist()
            ends = [turn.start for turn in sample.turns[1:]] + [len(ids)]
            for turn, end in zip(sample.turns, ends, strict=True):
                number = self._check_generation(trajectory, story, ids[turn.start : turn.end])
                answers = [json.loads(found) for found in _ANSWER.findall(_decoded(ids[turn.end : end]))]
                wanted = [(number, call) for call in range(turn.tool_calls)]
                if not answers and end == len(ids) and trajectory.status == "truncated":
                    continue
                if [(answer["sample"], answer["call"]) for answer in answers] != wanted:
                    raise Violation(f"I2: trajectory {id_}: turn {number} has not all its answers: {answers}")
                sandboxes |= {answer["sandbox"] for answer in answers}
        if len(sandboxes) > 1:
            raise Violation(f"I2: trajectory {id_} has results of several sandboxes: {sandboxes}")

    def _check_generation(self, trajectory: Trajectory, story: TaskStory, ids: list[int]) -> int:
        id_, found = trajectory.trajectory_id, _NUMBER.search(_decoded(ids))
        if found is None:
            raise Violation(f"I2: trajectory {id_} has a turn nobody sampled")
        sample = self._around.samples[int(found[1])]
        held = story.effects.get((trajectory.attempt, sample.path))
        if (sample.trajectory_id, sample.birth) != (id_, trajectory.birth) or held is None:
            raise Violation(f"I2: turn {sample.number} of trajectory {id_} is not in the journal")
        if msgspec.msgpack.decode(held[1].payload)["ids"] != ids:
            raise Violation(f"I2: turn {sample.number} of trajectory {id_} is not the journal's")
        return sample.number

    def _check_finished_below(self, place: TopicPartition, offset: int) -> None:
        """I5."""
        for record in self._cluster.log(place).records[:offset]:
            where = (record.partition, record.offset)
            id_ = dict(record.headers).get("trajectory_id", b"").decode(errors="replace")
            name = self.unread.get(where, id_)
            if name not in self.published and name not in self.buried:
                raise Violation(f"I5: committed past the unfinished task {name}")

    def _check_floor(self, partition: int, commit: OffsetAndMetadata) -> None:
        """I6."""
        found = re.fullmatch(r"journal-floor=(\d+)", commit.metadata)
        if found is None:
            raise Violation(f"I6: the commit of {partition}:{commit.offset} has no floor: {commit.metadata!r}")
        whole, tail = self._oracles[partition], JournalOracle()
        for offset in range(int(found[1]), len(self._journals[partition])):
            record = self._journals[partition][offset]
            if record is not None:
                tail.tell(offset, record)
        for id_, story in whole.tasks.items():
            if story.task_offset < commit.offset or self.is_emitted_twice(id_):
                continue
            seen = tail.tasks.get(id_)
            if seen is None or seen.meaning() != story.meaning():
                raise Violation(f"I6: from the floor {found[1]} the journal says something else about {id_}")

    # ---- the end

    def check_end(self) -> None:
        """What must be true when everything has come to rest."""
        try:
            for id_, (_, trajectory) in self.published.items():
                self._check_sessions(id_, trajectory)
                self._check_ending(id_, trajectory)
            for id_, kills in self._around.poison_kills.items():
                if self._plan.only_poison and kills > CRASH_BUDGET + GIVE_UP_TRIES + self._begun_twice(id_):
                    raise Violation(f"I9: poison {id_} has killed {kills} workers")
            for id_, task in self._plan.tasks.items():
                if id_ not in self.published and task.poison != "decode":
                    raise Violation(f"I9: task {id_} has ended without a trajectory")
            for payment, times in Counter(self._around.payments).items():
                if times > 1:
                    raise Violation(f"I3: payment {payment} was made {times} times")
        except Violation as violation:
            self._report(str(violation))

    def _check_sessions(self, id_: str, trajectory: Trajectory) -> None:
        """I3: by what the journal holds; a trajectory leaves out answers that no turn has read."""
        story = self.story(id_)
        if story is None or self.is_emitted_twice(id_):
            return
        held = [record for (attempt, _), (_, record) in story.effects.items() if attempt == trajectory.attempt]
        answers = [json.loads(found) for record in held for found in _ANSWER.findall(_answers_text(record))]
        wanted = sorted((answer["sample"], answer["call"]) for answer in answers)
        for number in {answer["sandbox"] for answer in answers} - {None}:
            ran = self._around.sandboxes[int(number)].ran
            # A task that was given up may have been in the middle of a turn, whose answers the journal never got.
            of_last_turn = set(ran) - set(wanted) if trajectory.status == "failed" else set[tuple[str, int]]()
            is_one_turn = len({sample for sample, _ in of_last_turn}) <= 1
            if not is_one_turn or sorted(ran) != sorted([*wanted, *of_last_turn]):
                raise Violation(f"I3: sandbox {number} of {id_} ran {ran}, not {wanted}")

    def _check_ending(self, id_: str, trajectory: Trajectory) -> None:
        """I9."""
        task = self._plan.tasks[id_]
        kills = self._around.poison_kills.get(id_, 0)
        if task.poison in ("decode", "render") and trajectory.status != "failed":
            raise Violation(f"I9: poison {id_} ended as {trajectory.status}")
        allowed = CRASH_BUDGET + (GIVE_UP_TRIES if task.poison == "decode" else 1) + self._begun_twice(id_)
        if self._plan.only_poison and kills > allowed:
            raise Violation(f"I9: poison {id_} has killed {kills} workers")
        if self._plan.only_poison and task.poison is None and not task.wavers and trajectory.status == "failed":
            raise Violation(f"I9: {id_} failed because of its neighbour: {trajectory.error}")

    def _begun_twice(self, id_: str) -> int:
        """Starts beyond one for each n: two workers that overlap count as one, and poison kills both."""
        story = self.story(id_)
        starts = story.starts if story is not None else set[str]()
        return len(starts) - len({key.split("/")[1] for key in starts})

    def _owner(self, partition: int) -> Process | None:
        group = self._cluster.groups.get(self._group)
        return group.owner_process(TopicPartition(self._tasks_topic, partition)) if group is not None else None

    def _story(self, trajectory_id: str) -> tuple[int, TaskStory] | None:
        for partition, _ in self.emitted.get(trajectory_id, ()):
            story = self._oracles[partition].tasks.get(trajectory_id)
            if story is not None:
                return partition, story
        return None


CRASH_BUDGET, GIVE_UP_TRIES = 5, 3
"""Of a worker by default; to say that a task has failed its body is read, and poison may kill there too."""


def _decoded(ids: list[int]) -> str:
    return bytes(token for token in ids if token < 256).decode(errors="replace")


def _answers_text(record: JournalRecord) -> str:
    payload = msgspec.msgpack.decode(record.payload, type=_Answers)
    return "".join(answer.content for answer in payload.observations)


class _Answer(msgspec.Struct):
    content: str


class _Answers(msgspec.Struct):
    """What is of interest of an effect: nothing of a generation."""

    observations: tuple[_Answer, ...] = ()


def _text(trajectory: Trajectory) -> str:
    return "".join(_decoded(sample.response_ids.tolist()) for sample in trajectory.samples)
