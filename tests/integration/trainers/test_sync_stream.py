from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrajectoryStream
from rollstream.transport.settings import KafkaSettings

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]


@pytest.mark.broker
async def test_the_loop_of_a_trainer_needs_no_event_loop(
    kafka: KafkaSettings, make_trajectory: Make, send: Send, emitted: Callable[..., Awaitable[None]], tmp_path: Path
) -> None:
    await send(make_trajectory(group, member) for group in range(4) for member in range(2))
    await send(make_trajectory(0, member, run_id="eval", is_train=False) for member in range(2))
    await emitted(4, is_finished=True)
    await emitted(1, run_id="eval", is_train=False, is_finished=True)
    evaluated_in: list[str] = []
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"weights")

    def train() -> list[int]:
        with TrajectoryStream(
            kafka.bootstrap,
            prefix=kafka.prefix,
            groups_per_batch=2,
            on_evaluation=lambda _: evaluated_in.append(threading.current_thread().name),
        ) as stream:
            stream.publish_policy(0, weights)
            first = next(stream)
            state = stream.state_dict()
            stream.commit()
        with TrajectoryStream(
            kafka, groups_per_batch=2, on_evaluation=lambda _: evaluated_in.append(threading.current_thread().name)
        ) as stream:
            stream.load_state_dict(state)
            rest = list(stream)
            assert stream.stats().batches == 2
        return sorted(group.group_index for batch in [first, *rest] for group in batch.groups)

    assert await asyncio.to_thread(train) == [0, 1, 2, 3]
    assert len(evaluated_in) == 1
    assert not evaluated_in[0].startswith("rollstream"), "callbacks run where the trainer runs"
    assert "rollstream-trajectories" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.broker
async def test_an_error_of_the_trainer_closes_the_stream_and_passes(kafka: KafkaSettings) -> None:
    def train() -> None:
        with TrajectoryStream(kafka):
            raise RuntimeError("the loss is NaN")

    with pytest.raises(RuntimeError, match="the loss is NaN"):
        await asyncio.to_thread(train)
    assert "rollstream-trajectories" not in {thread.name for thread in threading.enumerate()}


def test_a_broker_that_is_not_there_is_an_error_within_the_start_up_limit() -> None:
    kafka = KafkaSettings(bootstrap="127.0.0.1:1", start_timeout_s=0.5)
    with pytest.raises(TransientError, match=r"127\.0\.0\.1:1"), TrajectoryStream(kafka):
        pass
    assert "rollstream-trajectories" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.broker
async def test_a_missing_topic_is_named(broker: str) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.trajectories"):
        await asyncio.to_thread(TrajectoryStream(broker, prefix="nowhere.").__enter__)


def test_a_stream_that_is_not_open_says_so() -> None:
    with pytest.raises(SettingsError, match="is not open"):
        next(TrajectoryStream("127.0.0.1:1"))


@pytest.mark.parametrize("options", [{"groups_per_batch": 0}, {"group_per_batch": 4}])
def test_wrong_options_are_named(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        TrajectoryStream("127.0.0.1:1", **options)  # pyright: ignore[reportArgumentType]  -- wrong on purpose
