"""What a trainer that reads ahead has been given and has not trained on yet. Pure.

A stream counts every delivered batch as trained on. A trainer that keeps samples in a queue of its own would lose them
with a checkpoint of that moment. So the stream's state from before each batch is kept until the trainer is done with
all samples of the batch; a checkpoint is the state before the oldest unfinished batch, together with the samples from
there on that are finished. After a restore they are left out when their batch comes again: no sample is trained on
twice, none is skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from rollstream.schemas.errors import SettingsError

NEWEST_FIELDS = ("lineage", "version", "forks", "policy")
"""Of a stream's state: the policy is the trainer's own, however far back its reading begins."""


class SampleKey(NamedTuple):
    """Names a training sequence: a sample of a trajectory."""

    trajectory_id: str
    sample_index: int


class HandedOutState(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint.

    Attributes:
        stream: goes to ``load_state_dict`` of the stream.
        finished: samples that the stream will deliver again and the trainer is done with.
    """

    stream: dict[str, Any]
    finished: list[tuple[str, int]]


@dataclass(slots=True)
class _Batch:
    state_before: Mapping[str, Any]
    unfinished: dict[SampleKey, None]
    finished: list[SampleKey]


class HandedOut:
    """The samples between the stream and the trainer's optimizer, in the order in which they were handed out."""

    def __init__(self, finished_before: Iterable[tuple[str, int]] = ()) -> None:
        """``finished_before``: the ``finished`` of the checkpoint that the stream goes on from."""
        self._finished_before = {SampleKey(*key) for key in finished_before}
        self._batches: deque[_Batch] = deque()
        self._micro_batches: deque[tuple[SampleKey, ...]] = deque()
        self._under_way: dict[SampleKey, None] = {}
        """Handed out and not finished, oldest first."""

    def add_batch(self, state_before: Mapping[str, Any], keys: Sequence[SampleKey]) -> list[SampleKey]:
        """The stream has delivered a batch; returns the samples of it that the trainer has not finished yet."""
        finished = [key for key in keys if key in self._finished_before]
        unfinished = [key for key in keys if key not in self._finished_before]
        self._finished_before.difference_update(finished)
        self._batches.append(_Batch(state_before, dict.fromkeys(unfinished), finished))
        self._under_way.update(dict.fromkeys(unfinished))
        return unfinished

    def add_filling(self, key: SampleKey) -> None:
        """Something that belongs to no batch was handed out; what came before it is known to be done with it."""
        self._under_way[key] = None

    def packed(self, keys: Sequence[SampleKey]) -> None:
        """The trainer has put these samples into its next micro-batch; may be none."""
        self._micro_batches.append(tuple(keys))

    def trained(self, micro_batches: int = 1) -> None:
        """The trainer has done the oldest micro-batches.

        What was handed out before their youngest sample and is in no micro-batch was thrown away by the trainer, as too
        old or too long: it is finished too.

        Raises:
            SettingsError: there are not as many.
        """
        if micro_batches > len(self._micro_batches):
            raise SettingsError(
                f"{micro_batches} micro-batches are said to be trained on, but {len(self._micro_batches)} are packed: "
                "the trainer does not pack its samples where the adapter expects it; use the version it was tested with"
            )
        done = {key for _ in range(micro_batches) for key in self._micro_batches.popleft()}
        packed = {key for micro_batch in self._micro_batches for key in micro_batch}
        order = list(self._under_way)
        youngest = max((place for place, key in enumerate(order) if key in done), default=-1)
        for key in order[: youngest + 1]:
            if key not in packed:
                self._finish(key)

    @property
    def is_empty(self) -> bool:
        """Whether the trainer is done with every sample it was given."""
        return not any(batch.unfinished for batch in self._batches)

    def state(self, stream_state: Mapping[str, Any]) -> HandedOutState:
        """The checkpoint now; ``stream_state`` is the stream's at this moment."""
        while self._batches and not self._batches[0].unfinished:
            self._batches.popleft()
        if not self._batches:
            return HandedOutState(stream=dict(stream_state), finished=[*sorted(self._finished_before)])
        newest = {name: stream_state[name] for name in NEWEST_FIELDS if name in stream_state}
        finished = [*sorted(self._finished_before), *(key for batch in self._batches for key in batch.finished)]
        return HandedOutState(stream={**self._batches[0].state_before, **newest}, finished=[*finished])

    def _finish(self, key: SampleKey) -> None:
        del self._under_way[key]
        for batch in self._batches:
            if key in batch.unfinished:
                del batch.unfinished[key]
                batch.finished.append(key)
                return
