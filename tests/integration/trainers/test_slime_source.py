from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.adapters.slime import StreamDataSource, generate_rollout
from rollstream.trainers.batches import TrainingBatch
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]


@pytest.fixture
def args(kafka: KafkaSettings, tmp_path: Path) -> Namespace:
    """Slime's arguments, as far as they are read."""
    for rollout in range(4):
        (tmp_path / "hf" / str(rollout)).mkdir(parents=True)
        (tmp_path / "hf" / str(rollout) / "model.safetensors").write_bytes(f"after {rollout}".encode())
    return Namespace(
        rollstream={"bootstrap": kafka.bootstrap, "prefix": kafka.prefix, "stream": {"timeout_s": 30}},
        rollout_batch_size=1,
        n_samples_per_prompt=2,
        save=str(tmp_path / "checkpoints"),
        load=str(tmp_path / "checkpoints"),
        save_hf=str(tmp_path / "hf" / "{rollout_id}"),
    )


@pytest.fixture
async def trajectories(make_trajectory: Make, send: Send, emitted: Emitted) -> None:
    """Four groups, then the end."""
    await send(make_trajectory(group, member) for group in range(4) for member in range(2))
    await send(make_trajectory(0, member, run_id="eval", is_train=False) for member in range(2))
    await emitted(1, run_id="eval", is_train=False, is_finished=True)
    await emitted(4, is_finished=True)


def group_index(batch: TrainingBatch) -> int:
    return batch.groups[0].group_index


@pytest.mark.broker
@pytest.mark.usefixtures("trajectories")
async def test_a_restored_slime_gets_what_followed_its_checkpoint_though_it_had_asked_ahead(
    args: Namespace, kafka: KafkaSettings, tmp_path: Path
) -> None:
    def train() -> tuple[list[int], list[int]]:
        source = StreamDataSource(args)
        source.load(-1)
        first = [group_index(source.next_batch(0)), group_index(source.next_batch(1))]
        source.save(0)
        source.close()
        again = StreamDataSource(args)
        again.load(0)
        rest = [group_index(again.next_batch(rollout)) for rollout in (1, 2, 3)]
        with pytest.raises(SettingsError, match="set --num-rollout to 4"):
            again.next_batch(4)
        again.close()
        return first, rest

    first, rest = await asyncio.to_thread(train)
    assert rest[0] == first[1]
    assert sorted([first[0], *rest]) == [0, 1, 2, 3]
    async with ControlFollower(kafka) as control:
        announced = control.latest(PolicyVersion)
    assert announced is not None
    assert (announced[0].version, announced[0].uri) == (1, str(tmp_path / "hf" / "0"))


@pytest.mark.broker
async def test_a_checkpoint_without_the_streams_state_is_refused(args: Namespace) -> None:
    def load() -> None:
        source = StreamDataSource(args)
        try:
            source.load(7)
        finally:
            source.close()

    with pytest.raises(SettingsError, match="load the checkpoint before it"):
        await asyncio.to_thread(load)


@pytest.mark.broker
@pytest.mark.skipif(find_spec("slime") is None, reason="slime is on no package registry, and needs SGLang")
@pytest.mark.usefixtures("trajectories")
async def test_slimes_rollout_function_returns_its_own_samples_and_evaluations(args: Namespace) -> None:
    def generate() -> tuple[Any, Any]:
        source = StreamDataSource(args)
        outputs = [generate_rollout(args, rollout, source) for rollout in range(4)]
        with pytest.raises(SettingsError, match="has ended"):
            generate_rollout(args, 4, source)
        evaluated = generate_rollout(args, 4, source, evaluation=True)
        source.close()
        return outputs, evaluated

    outputs, evaluated = await asyncio.to_thread(generate)
    rollouts = [output.samples[0] for output in outputs]
    assert sorted(member[0].reward for group in rollouts for member in group) == [0.0] * 4 + [1.0] * 4
    assert evaluated.data["rollstream"]["rewards"] == [0.0, 1.0]
