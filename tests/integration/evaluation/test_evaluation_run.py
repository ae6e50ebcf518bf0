"""Evaluations on a real broker and a real worker with a scripted engine: what is counted, once, and what is not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
import pytest

from rollstream.cli.evaluation.flow import StoppedError
from rollstream.cli.evaluation.rollouts import RolloutProgress
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.producers.service import RunProgress, produce
from rollstream.producers.settings import ProducerSettings
from rollstream.producers.task_log import read_task_log
from rollstream.rollout_workers.scripted_engine import decode_bytes
from rollstream.schemas.control import TrainerProgress
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.ids import group_partition
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers.evaluation.report import PolicyFacts
from rollstream.transport.control import control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

DEADLINE_S = 60.0
EPISODES = 24
Settings = Callable[..., EvaluationSettings]
Worker = Callable[..., AbstractAsyncContextManager[None]]
PINNED = PolicyFacts(asked_for="3:7", lineage=3, version=7, uri="s3://b/v7", manifest_sha256="0" * 64)


def right_answers(trajectories: list[Trajectory]) -> dict[str, list[bool]]:
    """By row, whether each member said the right number, read from its tokens."""
    found: dict[str, list[bool]] = {}
    for trajectory in trajectories:
        said = re.search(r"The answer is (-?\d+)", decode_bytes(trajectory.samples[0].response_ids.tolist()))
        assert said is not None
        row = int(trajectory.data_index.rpartition(":")[2]) - 1
        found.setdefault(trajectory.data_index, []).append(int(said[1]) == 2 * row)
    return found


async def test_pass_at_k_is_the_share_of_choices_in_which_the_script_was_right(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, read_trajectories: Any
) -> None:
    async with scripted_worker():
        evaluation = await evaluated(evaluation_settings(has_pass_hat=True))
    right = right_answers(await read_trajectories())
    assert {len(members) for members in right.values()} == {4}
    metrics = evaluation.environments["sums.jsonl"]
    for k in (1, 2, 4):
        choices = [list(combinations(members, k)) for members in right.values()]
        assert metrics[f"pass@{k}"].mean == pytest.approx(fmean(fmean(map(any, c)) for c in choices))
        assert metrics[f"pass^{k}"].mean == pytest.approx(fmean(fmean(map(all, c)) for c in choices))
    assert metrics["reward"].mean == pytest.approx(fmean(map(fmean, right.values())))
    assert (evaluation.episodes.wanted, evaluation.episodes.completed, evaluation.episodes.is_whole) == (24, 24, True)


async def test_the_same_evaluation_again_samples_nothing_and_another_repeat_samples_anew(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, kafka: KafkaSettings
) -> None:
    async with scripted_worker():
        first = await evaluated(evaluation_settings())
        again = await evaluated(evaluation_settings())
        assert (await read_task_log(kafka, "")).records_read == EPISODES
        fresh = await evaluated(evaluation_settings(repeat=1))
    assert (again.prompts, again.run_ids) == (first.prompts, first.run_ids)
    assert fresh.run_ids != first.run_ids
    assert (await read_task_log(kafka, "")).records_read == 2 * EPISODES


async def test_one_that_was_stopped_in_the_middle_goes_on_and_counts_each_episode_once(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, kafka: KafkaSettings
) -> None:
    stop = asyncio.Event()

    def stop_after_some(progress: RolloutProgress) -> None:
        if 3 <= progress.arrived < EPISODES:
            stop.set()

    async with scripted_worker(token_s=0.02):
        with pytest.raises(StoppedError):
            await evaluated(evaluation_settings(), stop=stop, on_progress=stop_after_some)
        evaluation = await evaluated(evaluation_settings())
    assert (evaluation.episodes.wanted, evaluation.episodes.completed) == (EPISODES, EPISODES)
    assert [prompt.episodes for prompt in evaluation.prompts] == [4] * 6
    assert len((await read_task_log(kafka, evaluation.run_ids[0])).task_ids) == EPISODES


async def test_it_runs_beside_a_training_run_that_waits_at_its_limit_and_takes_no_place(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, kafka: KafkaSettings, data: str
) -> None:
    limit = TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=2, updated_at=1.0
    )
    seen: list[RunProgress] = []
    waits, stop = asyncio.Event(), asyncio.Event()

    def see(progress: RunProgress) -> None:
        seen.append(progress)
        if progress.state == "waiting_for_trainer":
            waits.set()

    training = ProducerSettings(source=data, run_id="training", reward="numeric", group_size=2)
    async with Publisher(kafka) as publisher:
        await publisher.publish(limit, key=control_key(limit))
    async with scripted_worker(), asyncio.TaskGroup() as tasks, asyncio.timeout(DEADLINE_S):
        producing = tasks.create_task(produce(training, kafka, stop, see))
        await waits.wait()
        evaluation = await evaluated(evaluation_settings())
        assert evaluation.episodes.completed == EPISODES
        stop.set()
        done = await producing
    assert (done.state, done.groups_done) == ("stopped", 2)
    assert {progress.groups_allowed for progress in seen if progress.state == "waiting_for_trainer"} == {2}


def answer(task: RolloutTask, *, version: int) -> Trajectory:
    """As a worker would answer, with one token of (3, version); right iff the member is even."""
    sample = Sample(
        prompt_ids=np.array([1], dtype=np.int32),
        response_ids=np.array([2], dtype=np.int32),
        response_mask=np.array([1], dtype=np.uint8),
        response_logprobs=np.array([-1], dtype=np.float32),
        version_spans=[VersionSpan(0, 1, version, 3)],
        turns=[],
    )
    return Trajectory(
        run_id=task.run_id,
        trajectory_id=task.trajectory_id,
        group_id=task.group_id,
        group_index=task.group_index,
        group_size=task.group_size,
        member_index=task.member_index,
        status="completed",
        stop_reason="stop",
        samples=[sample],
        reward=float(task.member_index % 2 == 0),
        is_train=False,
        lineage=3,
        policy_version_min=version,
        policy_version_max=version,
        data_source=task.data_source,
        data_index=task.data_index,
    )


async def test_tokens_of_another_policy_and_missing_episodes_are_counted_and_in_no_metric(
    evaluation_settings: Settings, evaluated: Any, read_tasks: Any, kafka: KafkaSettings
) -> None:
    partitions = kafka.topics["trajectories"].partitions
    answered = asyncio.Event()

    def see(progress: RolloutProgress) -> None:
        if progress.arrived == EPISODES - 1:
            answered.set()

    async with asyncio.TaskGroup() as group, asyncio.timeout(DEADLINE_S):
        evaluating = group.create_task(evaluated(evaluation_settings(), PINNED, on_progress=see))
        tasks = await read_tasks(EPISODES)
        assert {(task.policy.lineage, task.policy.version) for task in tasks} == {(3, 7)}
        async with Publisher(kafka) as publisher:
            for task in tasks:
                place = task.group_index, task.member_index
                if place != (2, 1):
                    trajectory = answer(task, version=8 if place == (4, 0) else 7)
                    partition = group_partition(task.group_id, partitions)
                    await publisher.publish(trajectory, key=task.group_id, partition=partition)
        await answered.wait()
        evaluating.cancel()
    evaluation = await evaluated(evaluation_settings(timeout_s=4.0), PINNED)
    counts = evaluation.episodes
    assert (counts.wanted, counts.completed, counts.mixed, counts.missing) == (EPISODES, 22, 1, 1)
    assert (evaluation.missing_places, counts.is_whole) == (["2/1"], False)
    rewards = {prompt.prompt.rpartition(":")[2]: prompt.rewards for prompt in evaluation.prompts}
    assert rewards["3"] == [1.0, 1.0, 0.0]
    assert rewards["5"] == [0.0, 1.0, 0.0]
    assert evaluation.environments["sums.jsonl"]["pass@4"].prompts == 4


async def test_own_scores_take_the_place_of_rewards(
    here: Path, evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker
) -> None:
    (here / "scores_of_mine.py").write_text(
        "def length(trajectory):\n    return {'reward': 0.25, 'length': len(trajectory.samples[0].response_ids)}\n"
        "def broken(trajectory):\n    raise RuntimeError('no judge')\n"
    )
    async with scripted_worker():
        evaluation = await evaluated(evaluation_settings(score="scores_of_mine:length", pass_threshold=0.25, tasks={}))
        with pytest.raises(SettingsError, match="RuntimeError: no judge"):
            await evaluated(evaluation_settings(score="scores_of_mine:broken", tasks={}))
    metrics = evaluation.environments["sums.jsonl"]
    assert (metrics["reward"].mean, metrics["pass@1"].mean) == (0.25, 1.0)
    assert metrics["length"].mean == metrics["tokens"].mean
    with pytest.raises(SettingsError, match="'scores_of_mine:absent' cannot be loaded"):
        await evaluated(evaluation_settings(score="scores_of_mine:absent"))


async def test_an_own_evaluator_rolls_out_what_it_wants_and_returns_metrics(
    here: Path, evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, kafka: KafkaSettings
) -> None:
    (here / "evaluator_of_mine.py").write_text(
        "async def evaluate(context):\n"
        "    easy = await context.rollout_data(samples=1)\n"
        "    rows = [{'question': f'What is {n} + {n}?', 'answer': str(2 * n)} for n in (5, 5, 0)]\n"
        "    groups = await context.rollout(rows, label='sure', samples=2, reward='exact')\n"
        "    groups = await context.rollout(rows, label='sure', samples=2, reward='exact')\n"
        "    return {'groups': len(easy), 'turns': [float(len(group)) for group in groups]}\n"
        "async def one_label(context):\n"
        "    for answer in ('5', '7'):\n"
        "        await context.rollout([{'question': '2 + 3?', 'answer': answer}], samples=1, reward='exact')\n"
        "def nonsense(context):\n    return 'good'\n"
    )
    settings = evaluation_settings(evaluator="evaluator_of_mine:evaluate")
    async with scripted_worker():
        evaluation = await evaluated(settings)
        again = await evaluated(settings)
        with pytest.raises(SettingsError, match="label 'rows' has rolled out other rows"):
            await evaluated(evaluation_settings(evaluator="evaluator_of_mine:one_label"))
    assert evaluation.metrics["groups"].mean == 6
    assert (evaluation.metrics["turns"].mean, evaluation.metrics["turns"].prompts) == (2, 3)
    assert list(evaluation.environments) == ["sums.jsonl", "sure"]
    assert (evaluation.episodes.wanted, evaluation.episodes.completed) == (12, 12)
    assert again.prompts == evaluation.prompts
    assert (await read_task_log(kafka, "")).records_read == 12 + 1
    with pytest.raises(SettingsError, match="returned 'good'"):
        await evaluated(evaluation_settings(evaluator="evaluator_of_mine:nonsense"))


@pytest.fixture
def bad_row(data: str) -> None:
    with Path(data).open("a") as file:
        file.write('{"question": "What is 9 + 9?", "answer": "eighteen"}\n')


@pytest.mark.usefixtures("bad_row")
async def test_bad_rows_that_are_left_out_are_neither_wanted_nor_missing(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker
) -> None:
    with pytest.raises(SettingsError, match=r"sums.jsonl:7.*no number"):
        await evaluated(evaluation_settings())
    async with scripted_worker():
        evaluation = await evaluated(evaluation_settings(tasks={"reward": "numeric", "on_bad_row": "skip"}))
    assert (evaluation.episodes.wanted, evaluation.episodes.completed) == (EPISODES, EPISODES)


async def test_rewards_after_the_fact_are_waited_for(
    evaluation_settings: Settings, evaluated: Any, scripted_worker: Worker, read_trajectories: Any, kafka: KafkaSettings
) -> None:
    settings = evaluation_settings(samples=1, topic="scored-trajectories", tasks={})
    topic = kafka.topic("scored-trajectories")
    async with scripted_worker(), asyncio.TaskGroup() as group, asyncio.timeout(DEADLINE_S):
        evaluating = group.create_task(evaluated(settings))
        while len(trajectories := await read_trajectories()) < 6:
            assert not evaluating.done()
        async with Publisher(kafka) as publisher:
            for trajectory in trajectories:
                judged = msgspec.structs.replace(trajectory, reward=trajectory.group_index / 5)
                partition = group_partition(judged.group_id, kafka.topics["scored-trajectories"].partitions)
                await publisher.publish(judged, key=judged.group_id, topic=topic, partition=partition)
        evaluation = await evaluating
    assert evaluation.environments["sums.jsonl"]["reward"].mean == pytest.approx(0.5)
    assert evaluation.environments["sums.jsonl"]["pass@1"].mean == pytest.approx(1 / 6)
