from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrainerSettings
from rollstream.trainers.adapters.prime_rl import PrimeRlOptions, feed_prime_rl
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]
DEADLINE_S = 60


@pytest.fixture
def options(tmp_path: Path) -> PrimeRlOptions:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return PrimeRlOptions(
        output_dir=tmp_path / "run", model_dir=model, policies=tmp_path / "policies", ranks=2, seq_len=16
    )


class StandInTrainer:
    """Does with the folders what prime-rl's trainer does: broadcasts, waits for its files, reads, broadcasts."""

    def __init__(self, output_dir: Path, ranks: int) -> None:
        self._output_dir = output_dir
        self._ranks = ranks
        self.read: dict[int, list[Any]] = {}

    def broadcast(self, step: int) -> None:
        directory = self._output_dir / "broadcasts" / f"step_{step}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.safetensors").write_bytes(f"weights {step}".encode())
        (directory / "STABLE").touch()

    async def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.broadcast(step - 1)
            paths = [self._output_dir / "rollouts" / f"step_{step}" / f"rank_{r}.bin" for r in range(self._ranks)]
            async with asyncio.timeout(DEADLINE_S):
                while not all(path.exists() for path in paths):  # noqa: ASYNC110  -- files have no event
                    await asyncio.sleep(0.02)
            self.read[step] = [msgspec.msgpack.decode(path.read_bytes()) for path in paths]


def steps_written(options: PrimeRlOptions) -> list[str]:
    return sorted(path.name for path in (options.output_dir / "rollouts").iterdir())


@pytest.mark.broker
async def test_a_feeder_that_is_stopped_goes_on_with_the_next_step_and_repeats_no_group(
    kafka: KafkaSettings, options: PrimeRlOptions, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    groups = {group: [make_trajectory(group, member, tokens=4 + group) for member in range(2)] for group in range(4)}
    await send(trajectory for group in (0, 1) for trajectory in groups[group])
    await emitted(2)
    trainer = StandInTrainer(options.output_dir, options.ranks)
    settings = TrainerSettings(groups_per_batch=1, timeout_s=DEADLINE_S)

    feeder = asyncio.create_task(feed_prime_rl(kafka, settings, options))
    await trainer.train(1, 2)
    feeder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeder
    (options.output_dir / "rollouts" / "step_3.part").mkdir()

    await send(trajectory for group in (2, 3) for trajectory in groups[group])
    await emitted(4, is_finished=True)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as both:
        fed = both.create_task(feed_prime_rl(kafka, settings, options))
        both.create_task(trainer.train(3, 4))
    assert fed.result() == 4
    assert steps_written(options) == ["step_1", "step_2", "step_3", "step_4"]
    sampled = [sum(sum(micro[1]) for rank in ranks for micro in rank) for ranks in trainer.read.values()]
    assert sorted(sampled) == [2 * (4 + group) for group in groups], "each group in one step"

    async with ControlFollower(kafka) as control:
        announced = control.latest(PolicyVersion)
    assert announced is not None
    assert announced[0].version >= 2, "a broadcast is published while the feeder waits"
    policy = Path(announced[0].uri)
    assert (policy / "model.safetensors").read_text() == f"weights {announced[0].version}"
    assert (policy / "config.json").exists()


@pytest.mark.broker
async def test_a_trainer_that_goes_back_is_given_the_steps_after_its_checkpoint_anew(
    kafka: KafkaSettings, options: PrimeRlOptions, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send(make_trajectory(group, member, tokens=4 + group) for group in range(3) for member in range(2))
    await emitted(3, is_finished=True)
    settings = TrainerSettings(groups_per_batch=1, timeout_s=DEADLINE_S)
    ahead = replace(options, max_ahead=5)
    assert await feed_prime_rl(kafka, settings, ahead) == 3

    def written() -> list[bytes]:
        return [(options.output_dir / "rollouts" / f"step_{n}" / "rank_0.bin").read_bytes() for n in (2, 3)]

    before = written()
    assert await feed_prime_rl(kafka, settings, replace(ahead, resume_step=1)) == 3
    assert written() == before
    with pytest.raises(SettingsError, match="no step_9"):
        await feed_prime_rl(kafka, settings, replace(ahead, resume_step=9))


@pytest.mark.broker
async def test_a_trainer_that_does_not_move_is_an_error_that_names_its_folder(
    kafka: KafkaSettings, options: PrimeRlOptions, make_trajectory: Make, send: Send, emitted: Emitted
) -> None:
    await send(make_trajectory(group, member) for group in range(3) for member in range(2))
    await emitted(3)
    with pytest.raises(TimeoutError, match=r"has not broadcast step 1 below .*broadcasts"):
        await feed_prime_rl(kafka, TrainerSettings(groups_per_batch=1, timeout_s=0.1), options)
    assert steps_written(options) == ["step_1", "step_2"], "one more than the trainer works on"
