"""The stream for training loops that are not asynchronous: the async one on an event loop of its own, in a thread.

Fetching goes on while the training loop computes. One thread uses the stream at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.loop_thread import LoopThread
from rollstream.trainers.seeking import SeekTarget
from rollstream.trainers.settings import StreamOptions
from rollstream.trainers.stream import AsyncTrajectoryStream, OnEvaluation
from rollstream.trainers.stream_state import StreamStats
from rollstream.transport.settings import KafkaSettings

_USAGE = "the trajectory stream is not open: use it inside `with TrajectoryStream(…) as stream:`"


class TrajectoryStream:
    """A context manager and iterator of ``TrainingBatch``; what ``AsyncTrajectoryStream`` promises holds here."""

    def __init__(
        self,
        kafka: str | KafkaSettings,
        *,
        prefix: str | None = None,
        on_evaluation: OnEvaluation | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        """Connects to nothing yet; the arguments are those of ``AsyncTrajectoryStream``."""
        self._on_evaluation = on_evaluation
        self._evaluations: deque[TrajectoryGroup] = deque()
        on_loop = self._evaluations.append if on_evaluation is not None else None
        self._stream = AsyncTrajectoryStream(kafka, prefix=prefix, on_evaluation=on_loop, **options)
        self._thread = LoopThread(self._stream, usage=_USAGE)
        self._call = self._thread.call

    def __enter__(self) -> TrajectoryStream:
        self._thread.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._thread.close()

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        """The next batch; see ``AsyncTrajectoryStream.__anext__`` for what it raises."""
        try:
            batch = self._call(self._next())
        finally:
            while self._evaluations and self._on_evaluation is not None:
                self._on_evaluation(self._evaluations.popleft())
        if batch is None:
            raise StopIteration
        return batch

    def publish_policy(self, version: int, directory: str | Path, *, target_uri: str | None = None) -> None:
        """Announce weights; see ``AsyncTrajectoryStream.publish_policy``."""
        self._call(self._stream.publish_policy(version, directory, target_uri=target_uri))

    def roll_back(self, version: int, *, root: str | Path | None = None) -> str:
        """Go back to an older policy; see ``AsyncTrajectoryStream.roll_back``."""
        return self._call(self._stream.roll_back(version, root=root))

    def prune_policies(self, root: str | Path | None = None, *, keep: int = 2, every: int | None = None) -> list[str]:
        """Remove policies nobody needs; see ``AsyncTrajectoryStream.prune_policies``."""
        return self._call(self._stream.prune_policies(root, keep=keep, every=every))

    def state_dict(self) -> dict[str, Any]:
        """The stream's part of a checkpoint; every batch delivered so far counts as trained on."""
        return self._stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; see ``AsyncTrajectoryStream.load_state_dict``."""
        self._stream.load_state_dict(state)

    def seek(self, to: SeekTarget) -> None:
        """Begin elsewhere than at the earliest record; see ``AsyncTrajectoryStream.seek``."""
        self._call(self._stream.seek(to))

    def commit(self) -> None:
        """Show the present positions as the consumer group's offsets; for dashboards only."""
        self._call(self._stream.commit())

    def stats(self) -> StreamStats:
        """Counters and sizes now."""
        return self._stream.stats()

    async def _next(self) -> TrainingBatch | None:
        return await anext(self._stream, None)
