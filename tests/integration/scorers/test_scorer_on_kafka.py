"""Trajectories through a scorer and a real broker, with a judge that is as unreliable as judges are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from aiohttp import web

from rollstream.schemas.codec import encode
from rollstream.schemas.control import ProducerProgress, WorkerStatus
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.scorers import GroupScoreRequest, scorer
from rollstream.scorers.service import run_scorer
from rollstream.scorers.settings import ScorerSettings
from rollstream.trainers import AsyncTrajectoryStream
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker]

Make = Callable[..., Trajectory]
Send = Callable[[list[Trajectory]], Awaitable[None]]
Scored = Callable[[int], Awaitable[list[Trajectory]]]
Running = Callable[..., AbstractAsyncContextManager[None]]
Say = Callable[..., web.Response]


async def test_a_trainer_gets_each_trajectory_once_with_its_new_reward(
    kafka: KafkaSettings, publisher: Publisher, make: Make, send: Send, running: Running, judge: Any, say: Say
) -> None:
    async def length(question: str) -> web.Response:
        return say(f"Score: {len(question.split()) - 1}")

    judge.answer = length
    members = [make(group, member) for group in range(4) for member in range(2)]
    await send([*members, *members])
    progress = ProducerProgress(run_id="run", groups_emitted=4, group_size=2, is_finished=True)
    await publisher.publish(progress, key=control_key(progress))

    async with (
        running(combine="add", weights={"judge": 10.0}),
        AsyncTrajectoryStream(kafka, topic="scored-trajectories", groups_per_batch=2, timeout_s=60) as stream,
    ):
        groups = [group async for batch in stream for group in batch.groups]
        assert stream.state_dict()["topic"] == kafka.topic("scored-trajectories")

    assert sorted(group.trajectories[0].group_index for group in groups) == [0, 1, 2, 3]
    for group in groups:
        # The outcome's 1 and ten times the share of a scale that ends at 10.
        assert [each.reward for each in group.trajectories] == [2.0, 3.0]
        assert [each.rewards for each in group.trajectories] == [
            {"outcome": 1.0, "judge": 0.1},
            {"outcome": 1.0, "judge": 0.2},
        ]
    assert "w10: w1" in judge.questions


async def test_what_is_not_scored_goes_on_as_the_same_bytes_in_the_same_place(
    make: Make,
    send: Send,
    running: Running,
    judge: Any,
    records: Callable[[str, int], Awaitable[list[Record]]],
) -> None:
    passed = [make(0, 0, status="failed"), make(1, 0, is_train=False), make(2, 0, is_train=False)]
    await send(passed)
    async with running():
        after = await records("scored-trajectories", 3)
    before = await records("trajectories", 3)

    def place(record: Record) -> tuple[int, bytes | None, bytes | None]:
        return record.partition, record.key, record.value

    assert sorted(map(place, after), key=repr) == sorted(map(place, before), key=repr)
    assert judge.questions == []


async def test_a_judge_that_is_busy_broken_silent_or_gone_for_a_while_is_waited_for(
    make: Make, send: Send, running: Running, scored: Scored, judge: Any, say: Say
) -> None:
    troubles = iter(
        [
            lambda: web.Response(status=429, headers={"Retry-After": "0"}),
            lambda: web.Response(status=503, headers={"Retry-After": "0"}),
            lambda: web.Response(status=500, headers={"Retry-After": "0"}),
            None,
        ]
    )

    async def trouble_first(question: str) -> web.Response:
        trouble = next(troubles, say)
        if trouble is None:
            await asyncio.Event().wait()
        return say("Score: 10") if trouble in (None, say) else trouble()

    judge.answer = trouble_first
    await send([make(0, 0)])
    async with running(judge_settings={"request_timeout_s": 0.3}):
        [done] = await scored(1)

    assert done.reward == 1.0
    assert done.metrics["scorer_failures"] == 0.0
    assert len(judge.questions) == 5


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: web.Response(text="<html>"), "no JSON"),
        (lambda: web.json_response({"choices": []}), "no chat completion"),
        (lambda: web.Response(status=400, text="too long"), "answered 400: 'too long'"),
        (lambda: web.Response(status=500), "answered 500"),
    ],
)
async def test_a_judge_of_no_use_costs_the_reward_and_closes_the_group(
    kafka: KafkaSettings,
    make: Make,
    send: Send,
    running: Running,
    scored: Scored,
    judge: Any,
    answer: Callable[[], web.Response],
    error: str,
) -> None:
    async def useless(question: str) -> web.Response:
        return answer()

    judge.answer = useless
    before = make(0, 0)
    await send([before])
    async with running(give_up_after_s=0.01, data_attempts=2, judge_settings={"request_tries": 1}):
        [done] = await scored(1)

    assert done.reward is None
    assert done.rewards == {"outcome": 1.0}
    assert done.metrics["scorer_failures"] == 1.0
    assert error in done.extra["scorer_errors"]["judge"]
    assert encode(done).value != encode(before).value
    assert done.samples[0].response_ids.tolist() == before.samples[0].response_ids.tolist()


async def test_a_long_answer_is_read_to_its_end(
    make: Make, send: Send, running: Running, scored: Scored, judge: Any, say: Say
) -> None:
    async def verbose(question: str) -> web.Response:
        return say("hm " * 200_000 + "Score: 10")

    judge.answer = verbose
    await send([make(0, 0)])
    async with running():
        assert [each.reward for each in await scored(1)] == [1.0]


async def test_votes_are_averaged_and_those_that_say_nothing_are_left_out(
    make: Make, send: Send, running: Running, scored: Scored, judge: Any, say: Say
) -> None:
    votes = iter(["Score: 2", "no idea", "Score: 6", "Score: 99"])

    async def vote(question: str) -> web.Response:
        return say(next(votes))

    judge.answer = vote
    await send([make(0, 0)])
    async with running(scorers={"judge": {"kind": "judge", "votes": 4, "prompt": "{response}"}}):
        [done] = await scored(1)

    assert done.reward == pytest.approx(0.4)
    assert done.metrics["judge/votes"] == 2.0


async def test_no_more_requests_are_under_way_than_a_judge_may_get(
    make: Make, send: Send, running: Running, scored: Scored, judge: Any, say: Say
) -> None:
    release = asyncio.Event()

    async def slow(question: str) -> web.Response:
        await release.wait()
        return say("Score: 5")

    judge.answer = slow
    await send([make(group, 0) for group in range(12)])
    async with running(judge_settings={"max_requests": 3}):
        async with asyncio.timeout(30):
            while judge.running < 3:
                judge.asked.clear()
                await judge.asked.wait()
        release.set()
        assert len(await scored(12)) == 12

    assert judge.most_running == 3


async def test_a_reward_model_is_asked_with_the_body_that_is_set(
    make: Make, send: Send, running: Running, scored: Scored, judge: Any
) -> None:
    async def classify(question: str) -> web.Response:
        return web.json_response({"data": [{"probs": [0.25, 0.75]}]})

    judge.answer = classify
    model = {
        "kind": "reward-model",
        "url": f"{judge.url}/classify",
        "body": {"model": "rm", "input": "{prompt} {response}"},
        "score_at": "data.0.probs.1",
    }
    await send([make(0, 1)])
    async with running(scorers={"rm": model}, judges={}):
        [done] = await scored(1)

    assert done.reward == 0.75
    assert judge.questions == ['{"model": "rm", "input": "w10 w1 w2"}']


async def test_a_wrong_key_ends_the_worker_and_costs_no_trajectory(
    kafka: KafkaSettings,
    make: Make,
    send: Send,
    running: Running,
    scored: Scored,
    judge: Any,
    say: Say,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")

    async def refuse(question: str) -> web.Response:
        return web.Response(status=401, text="unknown key sk-very-secret")

    judge.answer = refuse
    await send([make(0, 0)])
    with pytest.raises(BaseExceptionGroup) as ended:
        async with running(judge_settings={"key_variable": "JUDGE_KEY"}):
            await asyncio.Event().wait()
    error = ended.value.exceptions[0]
    assert isinstance(error, SettingsError)
    assert "answered 401: 'unknown key [key]'" in str(error)
    assert "sk-very-secret" not in caplog.text

    async def score(question: str) -> web.Response:
        return say("Score: 10")

    judge.answer = score
    async with running(judge_settings={"key_variable": "JUDGE_KEY"}):
        [done] = await scored(1)
    assert done.reward == 1.0
    assert judge.keys == {"Bearer sk-very-secret"}


@scorer(group=True)
async def by_length(request: GroupScoreRequest) -> list[dict[str, float]]:
    """Ranks the members of a group: the longest gets 1."""
    lengths = [len(member.trajectory.samples[0].response_ids) for member in request.members]
    return [
        {"reward": float(length == max(lengths)), "members": len(lengths), "is_complete": request.is_complete}
        for length in lengths
    ]


@pytest.fixture
def ranking(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Scorers: the group scorer above, importable by a name of its own."""
    import sys
    from types import ModuleType

    module = ModuleType("ranking_scorers")
    module.__dict__["by_length"] = by_length
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {"rank": {"kind": "function", "function": f"{module.__name__}:by_length"}}


async def test_a_ranking_sees_whole_groups_however_their_members_come(
    make: Make, send: Send, running: Running, scored: Scored, ranking: dict[str, Any]
) -> None:
    def member(group: int, index: int, **changes: Any) -> Trajectory:
        return make(group, index, group_size=3, **changes)

    first = [member(0, 0), member(1, 2), member(0, 1, status="failed")]
    await send(first)
    async with running(scorers=ranking):
        await send([member(1, 0), member(0, 2), member(1, 1)])
        done = await scored(6)

    assert [(each.group_index, each.reward) for each in done] == [
        (0, 0.0),
        (0, None),
        (0, 1.0),
        (1, 0.0),
        (1, 0.0),
        (1, 1.0),
    ]
    assert done[0].rewards["rank/members"] == 2.0


@pytest.mark.parametrize("options", [{"group_deadline_s": 0.2}, {"max_held_trajectories": 2}])
async def test_a_group_that_does_not_get_whole_is_scored_as_it_is(
    make: Make, send: Send, running: Running, scored: Scored, ranking: dict[str, Any], options: dict[str, Any]
) -> None:
    await send([make(0, 0), make(1, 1)])
    async with running(scorers=ranking, **options):
        await scored(1)
        if "max_held_trajectories" in options:
            await send([make(2, 0), make(3, 0)])
        done = await scored(2)

    assert {each.rewards["rank/is_complete"] for each in done} == {0.0}


async def test_members_that_wait_move_with_their_partition_to_another_scorer(
    kafka: KafkaSettings, make: Make, send: Send, running: Running, scored: Scored, ranking: dict[str, Any]
) -> None:
    async def joined(control: ControlFollower, worker_id: str) -> None:
        async with asyncio.timeout(60):
            while f"worker/{worker_id}" not in control.all(WorkerStatus):
                await control.wait_for_change(1.0)

    await send([make(group, 0) for group in range(20)])
    async with ControlFollower(kafka) as control, running(scorers=ranking, worker_id="a"):
        await joined(control, "a")
        async with running(scorers=ranking, worker_id="b"):
            await joined(control, "b")
            await send([make(group, 1) for group in range(20)])
            done = await scored(40)
        async with asyncio.timeout(60):
            while control.all(WorkerStatus)["worker/b"].state != "stopped":
                await control.wait_for_change(1.0)
        assert control.all(WorkerStatus)["worker/b"].finished > 0, "it owned a partition"

    assert [(each.group_index, each.member_index) for each in done] == [(g, m) for g in range(20) for m in range(2)]
    assert {each.rewards["rank/is_complete"] for each in done} == {1.0}
    assert [each.reward for each in done] == [0.0, 1.0] * 20


async def test_what_is_no_trajectory_is_buried_and_keeps_nobody_up(
    kafka: KafkaSettings,
    publisher: Publisher,
    make: Make,
    send: Send,
    running: Running,
    scored: Scored,
    records: Callable[[str, int], Awaitable[list[Record]]],
) -> None:
    status = WorkerStatus(worker_id="w", role="scorer", state="running")
    await publisher.publish(status, key="k", topic=kafka.topic("trajectories"), partition=0)
    await send([make(0, 0), make(1, 0)])
    async with running():
        assert len(await scored(2)) == 2
        assert len(await records("dead-letters", 1)) == 1


async def test_a_scorer_tells_what_it_does_and_drains(
    kafka: KafkaSettings, make: Make, send: Send, judge: Any, say: Say, running: Running, scored: Scored
) -> None:
    release = asyncio.Event()

    async def slow(question: str) -> web.Response:
        await release.wait()
        return say("Score: 5")

    judge.answer = slow
    await send([make(0, 0)])
    async with running(worker_id="s-1"):
        async with asyncio.timeout(30):
            await judge.asked.wait()
        asyncio.get_running_loop().call_later(0.2, release.set)
    assert [each.reward for each in await scored(1)] == [0.5]

    async with ControlFollower(kafka) as control:
        status = control.all(WorkerStatus)["worker/s-1"]
    assert (status.role, status.state, status.finished) == ("scorer", "stopped", 1)
    assert status.stats["trajectories_scored"] == 1.0


async def test_without_the_topic_of_scores_a_scorer_says_what_to_do(
    kafka: KafkaSettings, ranking: dict[str, Any]
) -> None:
    elsewhere = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"{kafka.prefix}none.")
    with pytest.raises(SettingsError, match="topics apply"):
        await run_scorer(ScorerSettings.model_validate({"scorers": ranking}), elsewhere, asyncio.Event())
