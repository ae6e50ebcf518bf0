"""Every task ends in exactly one trajectory, infrastructure never becomes data, and no kill makes a difference."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from aiokafka import ConsumerRecord

from rollstream.rollout_workers.attempts import AttemptRunner
from rollstream.rollout_workers.budgets import AttemptBudgets
from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.engine import Engine, Generation, PolicyRef
from rollstream.rollout_workers.episode import Episode, EpisodeServices
from rollstream.rollout_workers.handovers import Handovers
from rollstream.rollout_workers.policy_follower import PolicyFollower
from rollstream.rollout_workers.scripted_engine import ScriptedEngine, ScriptPrompt
from rollstream.rollout_workers.task_handling import TaskHandler
from rollstream.rollout_workers.terminal_records import TerminalRecords
from rollstream.rollout_workers.trajectory_assembly import WorkerFacts
from rollstream.schemas import ids
from rollstream.schemas.codec import EncodedRecord, decode, encode
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import EngineDeadError, EngineError, SessionLostError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.tasks import (
    ChatMessage,
    EpisodeLimits,
    PolicyPin,
    RewardSpec,
    RolloutTask,
    SamplingParams,
    ToolSpec,
)
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.dead_letters import Cause
from rollstream.transport.journal.journal import held
from rollstream.transport.journal.partition_fold import PartitionFold
from rollstream.transport.journal.task_state import PartitionLostError, TaskState
from rollstream.transport.policy_files import seal_policy
from rollstream.transport.records import Record

CALL = '<tool_call>{"name": "calculator", "arguments": {}}</tool_call>'


class KilledError(BaseException):
    """kill -9: nothing of the process runs any more."""


class Log:
    """A journal that outlives its workers. ``dies_at``: the append at which the process is killed, and when in it."""

    def __init__(self) -> None:
        self.fold = PartitionFold(100)
        self.records: list[JournalRecord] = []
        self.dies_at: tuple[int, str] | None = None
        self.is_lost = False

    def state(self, trajectory_id: str) -> TaskState | None:
        if self.is_lost:
            raise PartitionLostError
        return self.fold.tasks.get(trajectory_id)

    def is_current(self) -> bool:
        return True

    async def until_current(self) -> None:
        """It always is."""

    async def append(self, record: JournalRecord) -> TaskState:
        while (state := held(self.state(record.trajectory_id), record)) is None:
            await asyncio.sleep(0)
            number = len(self.records)
            if self.dies_at == (number, "before"):
                raise KilledError
            self.records.append(record)
            self.fold.apply(self.fold.position, record)
            if self.dies_at == (number, "after"):
                raise KilledError
        return state

    def kinds(self) -> list[str]:
        return [record.kind for record in self.records]


class Silence:
    """No trainer has announced anything."""

    def latest(self, message_type: type[PolicyVersion], /) -> None:
        return None

    async def wait_for_change(self, timeout_s: float) -> bool:
        await asyncio.sleep(timeout_s)
        return False


class Tools:
    """Loses the session a number of times, then answers."""

    def __init__(self, losses: int = 0) -> None:
        self.losses = losses
        self.call_ids: list[str] = []
        self.ended: list[str] = []

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        self.call_ids.append(call.call_id)
        if self.losses > 0:
            self.losses -= 1
            raise SessionLostError("gone")
        return ToolResult(call_id=call.call_id, session_id=None, status="ok", content="42")

    def end_session(self, session_id: str, toolset: str) -> None:
        self.ended.append(session_id)


@dataclass
class World:
    """What there is outside a worker: the log, what was published and buried, what was given back."""

    log: Log = field(default_factory=Log)
    published: list[EncodedRecord] = field(default_factory=list[EncodedRecord])
    buried: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    given_back: list[JournalRecord] = field(default_factory=list[JournalRecord])
    is_leaving: bool = False
    paused_s: list[float] = field(default_factory=list[float])
    sampled: list[str] = field(default_factory=list[str])
    time: float = 1000.0
    max_value_bytes: int = 10**6
    policies: PolicyFollower | None = None

    async def publish(self, message: EncodedRecord, *, topic: str, key: str, partition: int) -> None:
        assert (topic, partition) == ("trajectories", ids.group_partition(key, 4))
        self.published.append(message)

    async def bury(self, record: Record, error: BaseException | Cause, *, attempts: int) -> None:
        cause = error if isinstance(error, Cause) else Cause.of(error)
        self.buried.append((f"{cause.type}: {cause.text}", attempts))

    async def pause(self, pause_s: float) -> None:
        self.paused_s.append(pause_s)

    async def give_back(self, partition: int, record: JournalRecord) -> None:
        self.given_back.append(record)

    def hear(self, *, trajectory_id: str, attempt: int, birth: int, path: str) -> None:
        self.sampled.append(f"{birth}/{path}")

    def worker(
        self, name: str = "w", *, tools: Tools | None = None, engine: Engine | None = None,
        budgets: AttemptBudgets | None = None,
    ) -> TaskHandler:  # fmt: skip
        """A worker as if its process had just begun; its clocks stand still."""
        services = EpisodeServices(
            engine or ScriptedEngine(script), ByteChatFormat(), tools or Tools(), clock=lambda: self.time,
            monotonic=lambda: 0.0, on_generation=self.hear,
        )  # fmt: skip
        return TaskHandler(
            runner=AttemptRunner(services),
            facts=WorkerFacts("one name for all", "m", "t", "processed_logprobs"),
            budgets=budgets or AttemptBudgets(),
            journal_of=lambda _: self.log,
            publisher=self,
            dead_letters=self,
            handovers=Handovers(self.give_back),
            terminal_records=TerminalRecords("trajectories", 4, self.max_value_bytes),
            policies=self.policies or PolicyFollower(services.engine, Silence(), Path("unused")),
            writer=name,
            is_leaving=lambda: self.is_leaving,
            clock=lambda: self.time,
            pause=self.pause,
        )

    @property
    def trajectory(self) -> Trajectory:
        """The one that was published; all copies are equal."""
        assert len({record.value for record in self.published}) == 1
        return decode(self.published[0].value, self.published[0].headers, Trajectory)


async def run(
    of: RolloutTask | Record, *, tools: Tools | None = None, engine: Engine | None = None,
    budgets: AttemptBudgets | None = None,
) -> World:  # fmt: skip
    """What comes of one task on one worker."""
    world = World()
    record = of if isinstance(of, ConsumerRecord) else record_of(of)
    async with asyncio.timeout(20):
        assert await world.worker(tools=tools, engine=engine, budgets=budgets).handle(record)
    return world


def task(agent: str = "react", reward: RewardSpec | None = None, **limits: float) -> RolloutTask:
    return RolloutTask(
        run_id="run",
        group_id=ids.group_id("run", 3),
        group_index=3,
        group_size=2,
        member_index=1,
        trajectory_id=ids.trajectory_id("run", 3, 1),
        messages=[ChatMessage(role="user", content="What is 6 * 7?")],
        tools=[ToolSpec(name="calculator", description="", parameters={})],
        agent=agent,
        reward=reward,
        sampling=SamplingParams(max_tokens=200),
        limits=EpisodeLimits(**limits),  # type: ignore[arg-type]  # the test's own numbers, int or float as declared
        data_source="test",
        data_index="test:3",
    )


def record_of(of: RolloutTask, offset: int = 7) -> Record:
    encoded = encode(of)
    return ConsumerRecord("tasks", 0, offset, 0, 0, b"k", encoded.value, None, 1, 1, encoded.headers)


def script(prompt: ScriptPrompt) -> str:
    return "The answer is 42." if "42" in prompt.text else CALL


async def raising(episode: Episode) -> None:
    """An agent that fails of its own doing."""
    raise ValueError(f"no idea what to do with {episode.task.data_index}")


async def swallowing(episode: Episode) -> None:
    """An agent that does not want to know of failures."""
    turn = await episode.generate()
    try:
        await episode.call_tools(turn.tool_calls)
    except Exception:
        return


async def relabelling(episode: Episode) -> None:
    """An agent that raises an error of its own for every other."""
    turn = await episode.generate()
    try:
        await episode.call_tools(turn.tool_calls)
    except Exception as error:
        raise RuntimeError("something went wrong") from error


async def impatient(episode: Episode) -> None:
    """An agent with a time limit of its own."""
    raise TimeoutError("this takes too long")


fickle_calls = 0


async def fickle(episode: Episode) -> None:
    """An agent that does something else on every run."""
    global fickle_calls
    fickle_calls += 1
    await episode.generate()
    await episode.say(f"Again, for the {fickle_calls}th time.")
    await episode.generate()


async def branching(episode: Episode) -> None:
    """Two lanes beside one another, then one more turn."""
    await episode.generate()
    lanes = [episode.branch([ChatMessage(role="user", content=f"{n}: 42?")]) for n in range(2)]
    async with asyncio.TaskGroup() as group:
        for lane in lanes:
            group.create_task(talk(lane))
    await episode.say("And 42?")
    await episode.generate()


async def talk(lane: Episode) -> None:
    for turn in range(2):
        await lane.generate()
        await lane.say(f"Go on, {turn}.")


async def test_a_good_episode_is_completed_scored_and_says_where_it_comes_from() -> None:
    world = await run(task(reward=RewardSpec(name="numeric", answer="42")))
    trajectory = world.trajectory
    assert (trajectory.status, trajectory.stop_reason, trajectory.reward) == ("completed", "stop", 1.0)
    assert (trajectory.group_index, trajectory.member_index, trajectory.data_index) == (3, 1, "test:3")
    assert (trajectory.attempt, trajectory.birth, trajectory.num_turns) == (1, 100, 2)
    assert trajectory.metrics["tool_calls"] == 1
    assert trajectory.metrics["sampled_tokens"] == trajectory.samples[0].response_mask.sum()
    assert world.log.kinds() == ["start", "effect", "effect", "effect", "effect", "end", "done"]
    assert world.buried == []


async def test_a_wrong_answer_is_reward_zero_and_no_reward_is_null() -> None:
    assert (await run(task(reward=RewardSpec(name="numeric", answer="43")))).trajectory.reward == 0.0
    assert (await run(task())).trajectory.reward is None


async def test_a_cut_episode_is_truncated_and_scored_on_what_it_said() -> None:
    trajectory = (await run(task(reward=RewardSpec(name="numeric", answer="42"), max_turns=1))).trajectory
    assert (trajectory.status, trajectory.stop_reason, trajectory.reward) == ("truncated", "max_turns", 0.0)
    assert len(trajectory.samples) == 1


async def test_a_lost_session_begins_a_fresh_attempt_with_ids_of_its_own() -> None:
    tools = Tools(losses=2)
    world = await run(task(), tools=tools)
    trajectory = world.trajectory
    assert (trajectory.status, trajectory.attempt) == ("completed", 3)
    assert (trajectory.infra_failures, trajectory.data_failures) == (2, 0)
    assert len(set(tools.call_ids)) == 3
    assert world.paused_s == [0.0, 0.25, 0.5]


async def test_infrastructure_that_stays_away_ends_as_failed_without_samples_or_reward() -> None:
    world = await run(
        task(reward=RewardSpec(name="numeric", answer="42")),
        tools=Tools(losses=99),
        budgets=AttemptBudgets(infra=3, data=2),
    )
    trajectory = world.trajectory
    assert (trajectory.status, trajectory.stop_reason) == ("failed", "infrastructure")
    assert (trajectory.samples, trajectory.reward, trajectory.infra_failures) == ([], None, 3)
    assert trajectory.error is not None
    assert trajectory.error.type == "SessionLostError"
    assert world.buried == [("SessionLostError: gone", 3)]


async def test_infrastructure_that_an_agent_swallows_is_infrastructure_all_the_same() -> None:
    trajectory = (await run(task(agent=f"{__name__}:swallowing"), tools=Tools(losses=1))).trajectory
    assert (trajectory.status, trajectory.infra_failures) == ("completed", 1)


@pytest.mark.parametrize("agent", ["relabelling", "impatient"])
async def test_only_what_an_agent_does_of_its_own_is_its_failure(agent: str) -> None:
    trajectory = (await run(task(agent=f"{__name__}:{agent}"), tools=Tools(losses=1))).trajectory
    failures = (trajectory.infra_failures, trajectory.data_failures)
    assert failures == ((1, 0) if agent == "relabelling" else (0, 2))


async def test_a_single_engine_failure_costs_an_attempt_and_no_more() -> None:
    trajectory = (await run(task(), engine=FailingEngine(EngineError("out of memory"), times=1))).trajectory
    assert (trajectory.status, trajectory.infra_failures) == ("completed", 1)


async def test_an_agent_that_raises_is_tried_within_the_data_budget_and_says_why() -> None:
    world = await run(task(agent=f"{__name__}:raising"))
    trajectory = world.trajectory
    assert (trajectory.status, trajectory.stop_reason, trajectory.data_failures) == ("failed", "agent_error", 2)
    assert trajectory.error is not None
    assert "no idea what to do with test:3" in trajectory.error.message


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        (task(agent="no-such-agent"), "no-such-agent"),
        (task(reward=RewardSpec(name="no-such-reward")), "no-such-reward"),
    ],
)
async def test_a_task_that_cannot_be_run_fails_and_names_the_cause(broken: RolloutTask, names: str) -> None:
    trajectory = (await run(broken)).trajectory
    assert (trajectory.status, trajectory.stop_reason) == ("failed", "invalid_task")
    assert trajectory.error is not None
    assert names in trajectory.error.message


async def run_pinned(pin: PolicyPin, folder: Path, world: World | None = None) -> World:
    """What comes of a task pinned to a policy, on a worker that follows no trainer and has just begun."""
    world = world or World()
    engine = ScriptedEngine(script)
    follower = world.policies = PolicyFollower(engine, Silence(), folder)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        following = group.create_task(follower.run())
        assert await world.worker(engine=engine).handle(record_of(pinned(pin)))
        following.cancel()
    return world


async def test_a_pinned_task_is_drawn_by_its_policy_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    pin = PolicyPin(lineage=1, version=2, uri=str(tmp_path), manifest_sha256=seal_policy(tmp_path))
    world = await run_pinned(pin, tmp_path / "cache")
    assert world.trajectory.status == "completed"
    spans = world.trajectory.samples[0].version_spans
    assert {(span.lineage, span.version) for span in spans} == {(1, 2)}


async def test_a_pinned_episode_of_a_dead_worker_goes_on_under_its_pin(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w")
    pin = PolicyPin(lineage=1, version=2, uri=str(tmp_path), manifest_sha256=seal_policy(tmp_path))
    undisturbed = await run_pinned(pin, tmp_path / "cache")
    for number in range(len(undisturbed.log.records)):
        world = World()
        world.log.dies_at = (number, "after")
        with pytest.raises((KilledError, BaseExceptionGroup)):
            await run_pinned(pin, tmp_path / "cache", world)
        world.log.dies_at = None
        await run_pinned(pin, tmp_path / "cache", world)
        assert {record.value for record in world.published} == {undisturbed.published[0].value}, number
        assert len(world.sampled) <= len(undisturbed.sampled) + 1


async def test_a_pinned_task_whose_policy_is_gone_fails_as_invalid_and_names_the_cause(tmp_path: Path) -> None:
    gone = PolicyPin(lineage=1, version=2, uri=str(tmp_path / "gone"), manifest_sha256="0" * 64)
    world = await run_pinned(gone, tmp_path)
    assert (world.trajectory.status, world.trajectory.stop_reason) == ("failed", "invalid_task")
    assert world.trajectory.error is not None
    assert "policy 1:2, to which the task is pinned, cannot be had" in world.trajectory.error.message
    assert "gone" in world.trajectory.error.message
    assert world.sampled == []


async def test_the_sessions_of_every_attempt_are_ended_once_the_journal_says_that_it_is_over() -> None:
    kinds: list[str] = []

    class Watching(Tools):
        def end_session(self, session_id: str, toolset: str) -> None:
            kinds.append(world.log.records[-1].kind)
            super().end_session(session_id, toolset)

    world, tools = World(), Watching(losses=1)
    assert await world.worker(tools=tools).handle(record_of(stateful(task())))
    births = [record.birth for record in world.log.records if record.kind in ("attempt_end", "end")]
    assert kinds == ["attempt_end", "end"]
    assert tools.ended == [ids.session_id(task().trajectory_id, birth or 0) for birth in births]


@pytest.mark.parametrize("kind", ["attempt_end", "end"])
async def test_nobody_ends_a_session_before_the_journal_says_that_its_attempt_is_over(kind: str) -> None:
    of = stateful(task())
    undisturbed = World()
    await undisturbed.worker(tools=Tools(losses=1)).handle(record_of(of))
    world, tools = World(), Tools(losses=1)
    world.log.dies_at = (undisturbed.log.kinds().index(kind), "after")
    with pytest.raises(KilledError):
        await world.worker("dead", tools=tools).handle(record_of(of))
    assert len(tools.ended) == (0 if kind == "attempt_end" else 1)


async def test_a_session_is_left_alone_by_who_loses_its_partition() -> None:
    class LosingTools(Tools):
        async def call(self, call: ToolCall, toolset: str) -> ToolResult:
            world.log.is_lost = True
            return await super().call(call, toolset)

    world, tools = World(), LosingTools()
    assert not await world.worker(tools=tools).handle(record_of(stateful(task())))
    assert (len(tools.call_ids), tools.ended) == (1, [])


async def test_what_is_no_task_is_buried_and_done_under_its_place() -> None:
    world = await run(ConsumerRecord("tasks", 0, 7, 0, 0, b"k", b"\xc1rubbish", None, 1, 1, []))
    assert world.published == []
    assert len(world.buried) == 1
    assert {record.trajectory_id for record in world.log.records} == {"tasks/0/7"}
    assert world.log.kinds() == ["start", "end", "done"]


async def test_a_task_under_another_name_than_its_header_says_is_no_task() -> None:
    record = record_of(task())
    record.headers = [(name, b"f00" if name == "trajectory_id" else value) for name, value in record.headers]
    world = await run(record)
    assert world.published == []
    assert "header trajectory_id is 'f00'" in world.buried[0][0]


async def test_a_trajectory_that_is_too_large_ends_as_failed_and_says_so() -> None:
    world = World()
    failed_bytes = len((await run(task(agent=f"{__name__}:raising"))).published[0].value)
    world.max_value_bytes = failed_bytes + 300
    assert await world.worker().handle(record_of(task()))
    assert (world.trajectory.status, world.trajectory.data_failures) == ("failed", 2)
    assert "shorten the episode limits" in world.buried[0][0]


async def test_a_task_emitted_twice_is_run_once() -> None:
    world = World()
    worker = world.worker()
    both = await asyncio.gather(worker.handle(record_of(task(), 7)), worker.handle(record_of(task(), 12)))
    assert both == [True, True]
    assert len(world.published) == 1
    assert world.log.kinds().count("start") == 1


@pytest.mark.parametrize("agent", ["react", f"{__name__}:branching"])
async def test_killed_at_any_record_the_next_worker_publishes_the_same_bytes_and_repeats_one_generation(
    agent: str,
) -> None:
    of = task(agent=agent, reward=RewardSpec(name="numeric", answer="42"))
    undisturbed = await run(of)
    for number in range(len(undisturbed.log.records)):
        for moment in ("before", "after"):
            world = World()
            world.log.dies_at = (number, moment)
            with pytest.raises((KilledError, BaseExceptionGroup)):
                await world.worker("dead").handle(record_of(of))
            world.log.dies_at = None
            assert await world.worker("next").handle(record_of(of))
            assert {record.value for record in world.published} == {undisturbed.published[0].value}, (number, moment)
            repeated = [path for path in set(world.sampled) if world.sampled.count(path) > 1]
            assert len(repeated) <= (1 if agent == "react" else 2), (number, moment, repeated)
            assert len(world.sampled) <= len(undisturbed.sampled) + len(repeated)


async def test_a_worker_that_loses_its_partition_gives_its_start_back() -> None:
    world, engine = World(), WaitingEngine()
    worker = world.worker("w", engine=engine)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(worker.handle(record_of(task())))
        await engine.is_asked.wait()
        running.cancel()
    await worker.handovers.flush()
    assert [(record.kind, record.key) for record in world.given_back] == [("released", "1/1/w")]


async def test_an_episode_whose_partition_has_left_goes_no_further_even_if_nobody_could_cancel_it() -> None:
    world, engine = World(), WaitingEngine()
    worker = world.worker("w", engine=engine)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(worker.handle(record_of(task())))
        await engine.is_asked.wait()
        world.log.is_lost = True
        engine.may_answer.set()
    assert running.result() is False
    assert world.log.kinds() == ["start"]
    await worker.handovers.flush()
    assert [record.kind for record in world.given_back] == ["released"]


async def test_a_draining_worker_finishes_the_turn_gives_the_start_back_and_leaves_the_rest() -> None:
    world, engine = World(), WaitingEngine()
    worker = world.worker("w", engine=engine)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        running = group.create_task(worker.handle(record_of(task())))
        await engine.is_asked.wait()
        world.is_leaving = True
        engine.may_answer.set()
    assert running.result() is False
    assert world.log.kinds() == ["start", "effect"]
    await worker.handovers.flush()
    assert [record.kind for record in world.given_back] == ["released"]
    world.is_leaving = False
    assert await world.worker("next").handle(record_of(task()))
    assert len(world.sampled) == 2


async def test_a_dead_engine_counts_against_the_task_because_the_task_may_be_why() -> None:
    world = World()
    for n in range(5):
        worker = world.worker(f"w{n}", engine=FailingEngine(EngineDeadError("gone"), times=1))
        with pytest.raises(EngineDeadError):
            await worker.handle(record_of(task()))
        await worker.handovers.flush()
    assert world.given_back == []
    assert await world.worker("last").handle(record_of(task()))
    assert (world.trajectory.status, world.trajectory.stop_reason) == ("failed", "infrastructure")
    assert world.trajectory.error is not None
    assert world.trajectory.error.type == "PoisonousTaskError"


async def test_a_task_that_kills_even_who_says_that_it_failed_is_abandoned_unread() -> None:
    world = World()
    for n in range(8):
        world.log.dies_at = (n, "after")
        with pytest.raises(KilledError):
            await world.worker(f"w{n}").handle(record_of(task()))
    world.log.dies_at = None
    assert await world.worker("last").handle(record_of(task()))
    assert world.published == []
    assert "never heard of again" in world.buried[0][0]
    assert world.log.kinds() == ["start"] * 8 + ["end", "done"]


async def test_suspects_run_one_at_a_time_and_others_beside_them() -> None:
    world, engine = World(), WaitingEngine()
    records = [record_of(in_group(task(), n), n) for n in range(3)]
    for n, record in enumerate(records[:2] * 2):
        world.log.dies_at = (n, "after")
        with pytest.raises(KilledError):
            await world.worker(f"w{n}").handle(record)
    world.log.dies_at = None
    worker = world.worker("last", engine=engine)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for record in records:
            group.create_task(worker.handle(record))
        for _ in range(100):
            await asyncio.sleep(0)
        assert engine.asked == 2
        engine.may_answer.set()
    assert len(world.published) == 3


async def test_an_agent_that_is_not_deterministic_is_found_out_on_replay() -> None:
    world = World()
    of = task(agent=f"{__name__}:fickle")
    world.log.dies_at = (2, "after")
    with pytest.raises(KilledError):
        await world.worker("dead").handle(record_of(of))
    world.log.dies_at = None
    assert await world.worker("next").handle(record_of(of))
    assert (world.trajectory.status, world.trajectory.attempt, world.trajectory.data_failures) == ("completed", 2, 1)


class FailingEngine(ScriptedEngine):
    """Fails ``times`` times."""

    def __init__(self, error: Exception, times: int) -> None:
        super().__init__(script)
        self._error = error
        self._times = times

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, request_id: str, *, max_tokens: int,
        stop_token_ids: Sequence[int], policy: PolicyRef | None = None,
    ) -> Generation:  # fmt: skip
        if self._times:
            self._times -= 1
            raise self._error
        return await super().generate(
            prompt_ids, sampling, request_id, max_tokens=max_tokens, stop_token_ids=stop_token_ids, policy=policy
        )


class WaitingEngine(ScriptedEngine):
    """Answers when it may."""

    def __init__(self) -> None:
        super().__init__(script)
        self.is_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.asked = 0

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, request_id: str, *, max_tokens: int,
        stop_token_ids: Sequence[int], policy: PolicyRef | None = None,
    ) -> Generation:  # fmt: skip
        self.asked += 1
        self.is_asked.set()
        await self.may_answer.wait()
        return await super().generate(
            prompt_ids, sampling, request_id, max_tokens=max_tokens, stop_token_ids=stop_token_ids, policy=policy
        )


def pinned(pin: PolicyPin) -> RolloutTask:
    """A task for evaluation on one policy."""
    return msgspec.structs.replace(task(), is_train=False, policy=pin)


def stateful(of: RolloutTask) -> RolloutTask:
    """The same task with a tool that has a session."""
    return msgspec.structs.replace(of, tools=[msgspec.structs.replace(of.tools[0], is_stateful=True)])


def in_group(of: RolloutTask, group_index: int) -> RolloutTask:
    """The same task in another group."""
    return msgspec.structs.replace(
        of,
        group_index=group_index,
        group_id=ids.group_id("run", group_index),
        trajectory_id=ids.trajectory_id("run", group_index, 1),
    )
