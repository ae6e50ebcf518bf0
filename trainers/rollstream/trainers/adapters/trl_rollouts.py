"""The rollout worker of TRL's ``AsyncGRPOTrainer``: its queue is the stream itself.

Duty: hand TRL one sample after another. Invariants: the stream is used by TRL's thread alone, and asked for a batch
only when TRL asks for a sample that is not there, so nothing is read ahead but what TRL reads ahead. Crash: see
``trl``.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.handed_out import HandedOut
from rollstream.trainers.adapters.trl_samples import (
    RolloutSample,
    check_sampling,
    filling,
    rollout_samples,
    trl_version,
)
from rollstream.trainers.advantages import batch_advantages
from rollstream.trainers.batches import TrainingBatch
from rollstream.trainers.sync_stream import TrajectoryStream


@dataclass(slots=True)
class TrlConnection:
    """The stream as the parts of the adapter share it.

    Attributes:
        stream: opened by the trainer when training begins and closed when it ends, on its main process only.
        policy_store: where the stream copies policies to; None: they stay where they are saved.
        handed_out: what TRL has been given.
        restored: the stream's part of the checkpoint that training goes on from; None: it begins.
        restored_step: the optimizer step of that checkpoint.
    """

    stream: TrajectoryStream
    policy_store: str | None
    handed_out: HandedOut = field(default_factory=HandedOut)
    restored: dict[str, Any] | None = None
    restored_step: int = 0
    is_open: bool = False

    def open(self) -> None:
        """Connect, once."""
        if not self.is_open:
            self.stream.__enter__()
            self.is_open = True

    def close(self) -> None:
        """Disconnect, once."""
        if self.is_open:
            self.is_open = False
            self.stream.__exit__(None, None, None)


class TrlRolloutWorker:
    """TRL's ``RolloutWorkerProtocol``: its queue is the stream itself."""

    def __init__(self, connection: TrlConnection, estimator: str) -> None:
        self._connection = connection
        self._estimator = estimator
        self._ready: deque[RolloutSample] = deque()
        self._groups = 0
        self._filled = 0
        self._sync_count = 0
        self.rollout_buffer: Any = _StreamQueue(self)
        self.metrics_queue: Any = queue.Queue[dict[str, float]]()
        self.steps_per_sync = 1
        self.temperature: float | None = None
        self.fill_length = 2
        self.has_ended = False
        """Whether the stream has delivered its last batch."""

    @property
    def waiting(self) -> int:
        """Samples that TRL can have at once."""
        return len(self._ready)

    def start(self) -> None:
        """Called by TRL once, after its first weight sync."""
        if self.temperature is None:
            raise SettingsError("pass TrlStream.callback to the trainer too: callbacks=[source.callback]")
        self._connection.open()

    def stop(self) -> None:
        """Called by TRL when training ends, however it ends."""
        self._connection.close()

    def update_model_version(self, model_version: int) -> None:
        """TRL counts its weight syncs."""
        self._sync_count = model_version

    def check_health(self, stale_after_s: float) -> None:
        """Nothing runs beside TRL's thread: a broken stream raises where TRL asks for the next sample."""

    def next_sample(self) -> RolloutSample:
        """The next sample; once the stream has ended, filling that does not change the model.

        Raises:
            TimeoutError: the stream has brought nothing within its ``timeout_s``; says what is missing.
            DataLossError, TransientError: as the stream raises them.
        """
        while not self._ready and not self.has_ended:
            self._take_batch()
        if self._ready:
            sample = self._ready.popleft()
        else:
            sample = filling(self._filled, length=self.fill_length, model_version=self._sync_count)
            self._filled += 1
            self._connection.handed_out.add_filling(sample.metrics.key)
        sample.enqueued_at = time.time()
        return sample

    def _take_batch(self) -> None:
        stream = self._connection.stream
        before = stream.state_dict()
        batch = next(stream, None)
        if batch is None:
            self.has_ended = True
            return
        samples = self._samples(batch)
        wanted = set(self._connection.handed_out.add_batch(before, [sample.metrics.key for sample in samples]))
        self._ready.extend(sample for sample in samples if sample.metrics.key in wanted)

    def _samples(self, batch: TrainingBatch) -> list[RolloutSample]:
        samples: list[RolloutSample] = []
        for group, advantages in zip(batch.groups, batch_advantages(batch, self._estimator), strict=True):
            for trajectory in group.trajectories:
                check_sampling(trajectory, self.temperature or 1.0)
            version = trl_version(self._sync_count, group.staleness, self.steps_per_sync)
            samples += rollout_samples(group, advantages, group_id=self._groups, model_version=version)
            self._groups += 1
        return samples


class _StreamQueue(queue.Queue[Any]):
    """Looks like the queue TRL drains; getting asks the stream."""

    def __init__(self, worker: TrlRolloutWorker) -> None:
        super().__init__()
        self._worker = worker

    def get(self, block: bool = True, timeout: float | None = None) -> RolloutSample:
        """Waits as long as the stream's ``timeout_s``, not ``timeout``: the stream's error says what is missing."""
        return self._worker.next_sample()

    def qsize(self) -> int:
        return self._worker.waiting
