"""prime-rl's trainer fed by files, in place of its orchestrator; its broadcast weights become policies.

Duty: for step N put ``rollouts/step_N/rank_<r>.bin`` for every data rank where the trainer waits for them; publish the
newest ``broadcasts/step_N`` that is marked ``STABLE`` as policy version N.

Invariants: the files of a step appear at once, with the stream's state after it, by the rename of their directory. So
the directories are the log of what the trainer was given: each group is in one step at most, and in one for good.

Crash: start again with the same directory; the step that was being written has left no trace, and the next one begins
where the newest directory says. A trainer that goes back to an older checkpoint finds the same files again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollstream.schemas.errors import PolicyFilesError, SettingsError
from rollstream.trainers.adapters.prime_rl_batches import rank_files
from rollstream.trainers.adapters.prime_rl_folders import (
    FIRST_STEP,
    last_step,
    load_state,
    newest_broadcast,
    policy_directory,
    put_step,
)
from rollstream.trainers.advantages import find_estimator
from rollstream.trainers.batches import TrainingBatch
from rollstream.trainers.settings import StreamOptions, TrainerSettings, trainer_settings
from rollstream.trainers.stream import AsyncTrajectoryStream
from rollstream.transport.policy_files import local_path
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at the broadcast folder."""


@dataclass(frozen=True, kw_only=True)
class PrimeRlOptions:
    """How prime-rl is fed.

    Attributes:
        output_dir: prime-rl's ``output_dir``, on a disk that its trainer and this process share.
        model_dir: folder of the model that training began with; broadcasts lack its config and tokenizer.
        policies: folder in which each published version gets a directory; workers must be able to read it.
        ranks: data-parallel ranks of the trainer.
        seq_len: the trainer's ``model.seq_len``; longer samples are left out.
        estimator: of advantages; the default is what prime-rl's GRPO computes.
        pad_to_multiple_of: tokens of a micro-batch are padded to a multiple of it, as context parallelism needs.
        max_ahead: steps that may be written beyond the one the trainer works on.
        resume_step: go on after this step, as the trainer does from its checkpoint, and remove later ones; None: after
            the newest step there is.
    """

    output_dir: Path
    model_dir: Path
    policies: Path
    ranks: int = 1
    seq_len: int = 4096
    estimator: str = "dr_grpo"
    pad_to_multiple_of: int = 1
    max_ahead: int = 1
    resume_step: int | None = None

    def __post_init__(self) -> None:
        find_estimator(self.estimator)
        for name in ("ranks", "seq_len", "pad_to_multiple_of"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)!r}: must be at least 1")
        if self.max_ahead < 0:
            raise SettingsError(f"max_ahead={self.max_ahead!r}: must not be negative")
        if self.seq_len % self.pad_to_multiple_of:
            raise SettingsError(
                f"seq_len={self.seq_len} is no multiple of pad_to_multiple_of={self.pad_to_multiple_of}: a full "
                "micro-batch would be padded beyond it"
            )


async def feed_prime_rl(kafka: KafkaSettings, trainer: TrainerSettings, options: PrimeRlOptions) -> int:
    """Feed the trainer until the stream ends; returns the last step written, 0 if there is none.

    Raises:
        TimeoutError: the trainer, or the stream, has not moved within the trainer setting ``timeout_s``.
        DataLossError: records that were still needed are gone.
        TransientError: the broker does not answer; start again.
    """
    return await _Feeder(kafka, trainer, options).run()


class _Feeder:
    def __init__(self, kafka: KafkaSettings, trainer: TrainerSettings, options: PrimeRlOptions) -> None:
        self._options = options
        self._patience_s = trainer.timeout_s
        self._stream = AsyncTrajectoryStream(kafka, **_impatient(trainer))
        self._rollouts = options.output_dir / "rollouts"
        self._broadcasts = options.output_dir / "broadcasts"
        self._published = -1

    async def run(self) -> int:
        last = await asyncio.to_thread(last_step, self._rollouts, self._options.resume_step)
        async with self._stream:
            if last >= FIRST_STEP:
                state = await asyncio.to_thread(load_state, self._rollouts / f"step_{last}")
                self._stream.load_state_dict(state)
                self._published = _version_with_files(state)
            while True:
                await self._wait_for_trainer(last + 1)
                batch = await self._next_batch()
                if batch is None:
                    return last
                files = await asyncio.to_thread(self._files, batch)
                if files:
                    last += 1
                    directory = self._rollouts / f"step_{last}"
                    await asyncio.to_thread(put_step, directory, files, self._stream.state_dict())

    async def _next_batch(self) -> TrainingBatch | None:
        since = time.monotonic()
        while True:
            await self._publish()
            try:
                return await anext(self._stream, None)
            except TimeoutError:
                if time.monotonic() - since > self._patience_s:
                    raise

    async def _wait_for_trainer(self, step: int) -> None:
        """Until this step is at most ``max_ahead`` steps beyond the one the trainer works on."""
        needed = step - 1 - self._options.max_ahead
        since = time.monotonic()
        while True:
            await self._publish()
            if self._published >= needed or needed <= 0:
                return
            if time.monotonic() - since > self._patience_s:
                raise TimeoutError(
                    f"prime-rl has not broadcast step {needed} below {str(self._broadcasts)!r} for "
                    f"{self._patience_s:.0f} s: is its trainer alive, with weight_broadcast.type = 'filesystem'?"
                )
            await asyncio.sleep(LOOK_S)

    async def _publish(self) -> None:
        step = await asyncio.to_thread(newest_broadcast, self._broadcasts)
        if step is None or step <= self._published or step < self._stream.stats().version:
            return
        source, target = self._broadcasts / f"step_{step}", self._options.policies / f"v{step}-{time.time_ns()}"
        try:
            await asyncio.to_thread(policy_directory, source, self._options.model_dir, target)
            await self._stream.publish_policy(step, target)
        except (FileNotFoundError, PolicyFilesError) as error:
            logger.warning("broadcast %s is not published: %s", source, error)
            return
        self._published = step
        if self._stream.settings.policy_store is None:
            await self._stream.prune_policies(self._options.policies)
        else:
            await asyncio.to_thread(shutil.rmtree, target)
            await self._stream.prune_policies()

    def _files(self, batch: TrainingBatch) -> list[bytes]:
        options = self._options
        return rank_files(
            batch,
            ranks=options.ranks,
            seq_len=options.seq_len,
            estimator=options.estimator,
            pad_to_multiple_of=options.pad_to_multiple_of,
        )


def _impatient(trainer: TrainerSettings) -> StreamOptions:
    """Waits end soon, so that policies are published in between."""
    options = trainer.model_dump()
    options["timeout_s"] = LOOK_S
    return StreamOptions(**trainer_settings(StreamOptions(**options)).model_dump())


def _version_with_files(state: Mapping[str, Any]) -> int:
    """The version that the restored stream announces by itself; -1 if its files are gone."""
    if state["policy"] is None:
        return -1
    directory = local_path(state["policy"]["uri"])
    return state["version"] if directory is None or directory.is_dir() else -1
