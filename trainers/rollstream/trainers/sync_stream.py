"""The stream for training loops that are not asynchronous: the async one on an event loop of its own, in a thread.

Fetching goes on while the training loop computes. One thread uses the stream at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, Unpack

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.settings import StreamOptions
from rollstream.trainers.stream import AsyncTrajectoryStream, OnEvaluation
from rollstream.trainers.stream_state import StreamStats
from rollstream.transport.settings import KafkaSettings

T = TypeVar("T")


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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opened: Future[None] = Future()
        self._close: asyncio.Event | None = None
        self._owner: Future[None] | None = None

    def __enter__(self) -> TrajectoryStream:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="rollstream-trajectories", daemon=True)
        self._thread.start()
        self._owner = asyncio.run_coroutine_threadsafe(self._own_stream(), loop)
        try:
            self._opened.result()
        except BaseException:
            self._owner.cancel()
            with suppress(BaseException):
                self._owner.result()
            self._stop_loop()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._close is not None
        assert self._owner is not None
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._close.set)
            self._owner.result()
        finally:
            self._stop_loop()

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

    def commit(self) -> None:
        """Show the present positions as the consumer group's offsets; for dashboards only."""
        self._call(self._stream.commit())

    def stats(self) -> StreamStats:
        """Counters and sizes now."""
        return self._stream.stats()

    async def _next(self) -> TrainingBatch | None:
        return await anext(self._stream, None)

    async def _own_stream(self) -> None:
        """Opens and closes the stream in one task, as its background work demands."""
        self._close = asyncio.Event()
        try:
            async with self._stream:
                self._opened.set_result(None)
                await self._close.wait()
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            raise

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._loop is None or self._owner is None or self._owner.done():
            coroutine.close()
            if self._owner is not None:
                self._owner.result()
            raise SettingsError(
                "the trajectory stream is not open: use it inside `with TrajectoryStream(…) as stream:`"
            )
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
