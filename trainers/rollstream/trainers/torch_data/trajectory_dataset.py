"""The stream as a dataset of torch, for training loops that are built around a ``DataLoader``.

Duty: hand the batches of an open ``TrajectoryStream`` on, in its order, in the process that reads them.

Invariants: one process reads, because batches are formed under one global limit: worker processes are refused. Nothing
is read ahead: ``state_dict()`` counts the batches handed out, and no other, as trained on.

Crash: the state that was saved with the model continues the sequence, as with the stream itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.batches import TrainingBatch
from rollstream.trainers.stream_state import StreamStats
from rollstream.trainers.sync_stream import TrajectoryStream

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

T = TypeVar("T")

_ONE_READER = (
    "a TrajectoryDataset is read where its stream was opened, because one reader forms the batches: use "
    "DataLoader(dataset, batch_size=None, num_workers=0); the stream fetches in a thread of its own anyway"
)


class TrajectorySource(Generic[T]):
    """What ``TrajectoryDataset`` does, without torch."""

    def __init__(self, stream: TrajectoryStream, transform: Callable[[TrainingBatch], T] | None = None) -> None:
        """The stream is opened and closed by the caller.

        Args:
            stream: inside its ``with`` block whenever the dataset is iterated.
            transform: what the loader gets instead of a ``TrainingBatch``, for example
                ``partial(padded_tensors, pad_token_id=0)``.
        """
        self._stream = stream
        self._transform = transform
        self._process = os.getpid()

    def __iter__(self) -> Iterator[T]:
        """Goes on where the last iteration stopped; a finished stream is empty.

        Raises:
            SettingsError: in a worker process.
        """
        if os.getpid() != self._process:
            raise SettingsError(_ONE_READER)
        return self._items()

    def __reduce__(self) -> NoReturn:
        raise SettingsError(_ONE_READER)

    def state_dict(self) -> dict[str, Any]:
        """The stream's part of a checkpoint; every batch handed out counts as trained on."""
        return self._stream.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, before the first batch; see ``AsyncTrajectoryStream.load_state_dict``."""
        self._stream.load_state_dict(state_dict)

    def publish_policy(self, version: int, directory: str | Path, *, target_uri: str | None = None) -> None:
        """Announce weights; see ``AsyncTrajectoryStream.publish_policy``."""
        self._stream.publish_policy(version, directory, target_uri=target_uri)

    def roll_back(self, version: int, *, root: str | Path | None = None) -> str:
        """Go back to an older policy; see ``AsyncTrajectoryStream.roll_back``."""
        return self._stream.roll_back(version, root=root)

    def prune_policies(self, root: str | Path | None = None, *, keep: int = 2, every: int | None = None) -> list[str]:
        """Remove policies nobody needs; see ``AsyncTrajectoryStream.prune_policies``."""
        return self._stream.prune_policies(root, keep=keep, every=every)

    def commit(self) -> None:
        """Show the present positions as the consumer group's offsets; for dashboards only."""
        self._stream.commit()

    def stats(self) -> StreamStats:
        """Counters and sizes now."""
        return self._stream.stats()

    def _items(self) -> Iterator[T]:
        for batch in self._stream:
            yield cast(T, batch) if self._transform is None else self._transform(batch)


if TYPE_CHECKING:

    class TrajectoryDataset(TrajectorySource[T], IterableDataset[T]):
        """An ``IterableDataset`` of batches; ``batch_size=None``, as each item is a whole batch already.

        It speaks torchdata's protocol of stateful datasets, so ``StatefulDataLoader(dataset, batch_size=None)`` has the
        stream's state in its own.
        """

else:

    def __getattr__(name: str) -> Any:
        if name == "TrajectoryDataset":
            return _dataset_class()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    @cache
    def _dataset_class() -> type[Any]:
        from torch.utils.data import IterableDataset

        body = {"__module__": __name__, "__doc__": "An ``IterableDataset`` of batches; see ``TrajectorySource``."}
        return type("TrajectoryDataset", (TrajectorySource, IterableDataset), body)
