"""Synthetic trajectories on a real broker, and a bucket for what becomes of them."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (fsspec is not annotated)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from uuid import uuid4

import fsspec
import numpy as np
import pytest
import pytest_asyncio

from rollstream.schemas import ids
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, VersionSpan
from rollstream.transport.control import control_key
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

GROUP_SIZE = 2


def synthetic(
    group_index: int,
    member_index: int,
    *,
    run_id: str = "run",
    tokens: int = 8,
    group_size: int = GROUP_SIZE,
    version: int = 0,
    lineage: int = 0,
    is_failed: bool = False,
    is_train: bool = True,
    replacement: int = 0,
    is_sampled: bool = True,
    worker_id: str = "w",
) -> Trajectory:
    """One terminal trajectory; without ``lineage`` it is of the model as it came, not ``is_sampled`` never ages."""
    sample = Sample(
        prompt_ids=np.arange(1, 4, dtype=np.int32),
        response_ids=np.arange(100, 100 + tokens, dtype=np.int32),
        response_mask=np.full(tokens, is_sampled, dtype=np.uint8),
        response_logprobs=-np.random.default_rng(group_index).random(tokens, dtype=np.float32) * np.float32(is_sampled),
        version_spans=[VersionSpan(0, tokens, version, lineage)] if is_sampled else [],
        turns=[],
    )
    return Trajectory(
        run_id=run_id,
        trajectory_id=ids.trajectory_id(run_id, group_index, member_index, replacement),
        group_id=ids.group_id(run_id, group_index),
        group_index=group_index,
        group_size=group_size,
        member_index=member_index,
        status="failed" if is_failed else "completed",
        stop_reason="infrastructure" if is_failed else "stop",
        samples=[] if is_failed else [sample],
        reward=None if is_failed else float(member_index),
        error=TrajectoryError(type="EngineError", message="died") if is_failed else None,
        is_train=is_train,
        lineage=0 if is_failed else lineage,
        policy_version_min=0 if is_failed else version,
        policy_version_max=0 if is_failed else version,
        replacement=replacement,
        worker_id=worker_id,
    )


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    return synthetic


@pytest_asyncio.fixture
async def publisher(kafka: KafkaSettings) -> AsyncIterator[Publisher]:
    async with Publisher(kafka, profile="durable") as publisher:
        yield publisher


Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]


@pytest.fixture
def send(publisher: Publisher, kafka: KafkaSettings) -> Send:
    """Publish trajectories as rollout workers do; those of one group keep their order."""

    async def send(trajectories: Iterable[Trajectory]) -> None:
        partitions = kafka.topics["trajectories"].partitions
        async with asyncio.TaskGroup() as sending:
            for trajectory in trajectories:
                sending.create_task(
                    publisher.publish(
                        trajectory,
                        key=trajectory.group_id,
                        partition=ids.group_partition(trajectory.group_id, partitions),
                    )
                )

    return send


@pytest.fixture
def emitted(publisher: Publisher) -> Emitted:
    """Say how far a producer is."""

    async def emitted(
        groups: int,
        *,
        run_id: str = "run",
        is_finished: bool = False,
        group_size: int = GROUP_SIZE,
        is_train: bool = True,
    ) -> None:
        progress = ProducerProgress(
            run_id=run_id, groups_emitted=groups, group_size=group_size, is_finished=is_finished, is_train=is_train
        )
        await publisher.publish(progress, key=control_key(progress))

    return emitted


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A server that speaks S3 over HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket reached as a user reaches one: by the variables of AWS's own tools."""
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": s3_server,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    name = f"test-{uuid4().hex}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
