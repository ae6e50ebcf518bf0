"""The stream of a data-parallel trainer: rank 0 reads, every rank gets its share of each batch.

Duty: make each call one act of all ranks. Rank 0 does it on its ``TrajectoryStream``; the outcome, be it a share, the
end of the stream or an exception, reaches every rank, so none waits for what does not come.

Invariants: rank 0 alone knows the broker, because batches are formed under one global limit. All ranks make the same
calls in the same order; one that does not is told. No wait is longer than the process group's time-out: while rank 0
waits for a batch it says so every ``heartbeat_s``.

Crash: when a rank dies, or leaves the ``with`` block by an exception, the others' calls fail with ``TransientError`` as
soon as the connection is gone, at the latest after the time-out; those of rank 0 once its own wait for the stream is
over. The state saved with the model continues the sequence.
"""

# pyright: reportUnknownMemberType=false
# (torch.distributed is annotated in part only)

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.trainers.advantages import Estimator, find_estimator
from rollstream.trainers.dealing import DealBy, Share, deal
from rollstream.trainers.stream_state import StreamStats
from rollstream.trainers.sync_stream import TrajectoryStream

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What rank 0 tells one rank about one call."""

    call: str
    value: Any = None
    error: Exception | None = None
    is_waiting: bool = False


class DealtStream:
    """A context manager and iterator of ``Share``; every method is collective: all ranks call it, in the same order."""

    def __init__(
        self,
        stream: TrajectoryStream | None,
        *,
        by: DealBy = "group",
        advantages: str | Estimator | None = None,
        group: ProcessGroup | None = None,
        heartbeat_s: float = 15.0,
    ) -> None:
        """Collective, after ``torch.distributed.init_process_group``.

        Args:
            stream: open, on rank 0; None on all others.
            by: whole groups, or whole trajectories, on one rank.
            advantages: an estimator or its name; computed on rank 0 over the whole batch.
            group: a process group whose backend moves objects of the CPU; its rank 0 reads. None: all ranks, by gloo,
                so that NCCL's streams and time-outs have no part in it.
            heartbeat_s: rank 0 says so often that it still waits for a batch; well below the group's time-out.

        Raises:
            SettingsError: no process group, no such estimator, a heartbeat that is none, or the stream is on another
                rank than 0.
        """
        from torch import distributed

        if not distributed.is_available() or not distributed.is_initialized():
            raise SettingsError(
                "DealtStream needs the ranks to know each other: start with torchrun and call "
                "torch.distributed.init_process_group() first"
            )
        if advantages is not None:
            find_estimator(advantages)
        if heartbeat_s <= 0:
            raise SettingsError(f"heartbeat_s={heartbeat_s!r}: a time above 0")
        self._owns_group = group is None
        self._group: Any = distributed.new_group(backend="gloo") if group is None else group
        self.rank = distributed.get_rank(self._group)
        self.world_size = distributed.get_world_size(self._group)
        self._stream = stream
        self._by: DealBy = by
        self._advantages = advantages
        self._heartbeat_s = heartbeat_s
        self._check_reader()

    def __enter__(self) -> DealtStream:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Take down the process group, if it is our own: ranks that still wait for this one fail at once."""
        from torch import distributed

        if self._owns_group:
            distributed.destroy_process_group(self._group)

    def __iter__(self) -> Iterator[Share]:
        return self

    def __next__(self) -> Share:
        """This rank's share of the next batch; asking for it says that the one before is finished.

        Raises:
            TimeoutError, DataLossError, TransientError: on every rank, what the stream raised on rank 0; see
                ``AsyncTrajectoryStream.__anext__``. ``TransientError`` too if a rank is gone.
        """
        share = self._together("next", self._deal_next, is_for_each=True)
        if share is None:
            raise StopIteration
        return share

    def publish_policy(self, version: int, directory: str | Path, *, target_uri: str | None = None) -> None:
        """Announce weights once every rank is here, so that each may have written its part of ``directory``.

        Raises what ``AsyncTrajectoryStream.publish_policy`` raises, on every rank.
        """
        from torch import distributed

        self._reach(lambda: distributed.barrier(self._group))
        self._together(
            "publish_policy", lambda stream: stream.publish_policy(version, directory, target_uri=target_uri)
        )

    def roll_back(self, version: int, *, root: str | Path | None = None) -> str:
        """Go back to an older policy; see ``AsyncTrajectoryStream.roll_back``. Every rank gets the URI of its files."""
        return self._together("roll_back", lambda stream: stream.roll_back(version, root=root))

    def prune_policies(self, root: str | Path | None = None, *, keep: int = 2, every: int | None = None) -> list[str]:
        """Remove policies nobody needs; see ``AsyncTrajectoryStream.prune_policies``."""
        return self._together("prune_policies", lambda stream: stream.prune_policies(root, keep=keep, every=every))

    def state_dict(self) -> dict[str, Any]:
        """The stream's part of a checkpoint, equal on every rank; every batch dealt so far counts as trained on."""
        return self._together("state_dict", lambda stream: stream.state_dict())

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint, before the first batch; what rank 0 passes counts, others may pass None.

        Raises:
            SettingsError: on every rank, if it is too late, or the state is of another topic or run, or None on rank 0.
        """

        def load(stream: TrajectoryStream) -> None:
            if state is None:
                raise SettingsError("load_state_dict(None) on rank 0: pass the state there")
            stream.load_state_dict(state)

        self._together("load_state_dict", load)

    def commit(self) -> None:
        """Show the present positions as the consumer group's offsets; for dashboards only."""
        self._together("commit", lambda stream: stream.commit())

    def stats(self) -> StreamStats:
        """Counters and sizes now, equal on every rank."""
        return self._together("stats", lambda stream: stream.stats())

    def _check_reader(self) -> None:
        """All ranks learn whether rank 0, and only rank 0, has the stream."""
        from torch import distributed

        has_stream: list[bool] = [False] * self.world_size
        self._reach(lambda: distributed.all_gather_object(has_stream, self._stream is not None, group=self._group))
        if has_stream != [rank == 0 for rank in range(self.world_size)]:
            readers = [rank for rank, has in enumerate(has_stream) if has]
            raise SettingsError(
                f"ranks {readers} have a stream: pass the open TrajectoryStream on rank 0, and None on all others"
            )

    def _deal_next(self, stream: TrajectoryStream) -> list[Share] | list[None]:
        batch = next(stream, None)
        if batch is None:
            return [None] * self.world_size
        return deal(batch, self.world_size, by=self._by, advantages=self._advantages)

    def _together(self, call: str, act: Callable[[TrajectoryStream], Any], *, is_for_each: bool = False) -> Any:
        """What ``act`` gives on rank 0, on every rank; with ``is_for_each`` it gives a list, one for each rank."""
        if self._stream is None:
            return self._hear(call)
        with self._heartbeats(call):
            try:
                value, error = act(self._stream), None
            except Exception as caught:
                value, error = None, caught
        if error is not None:
            self._tell([_Outcome(call, error=_portable(error))] * self.world_size)
            raise error
        values: Any = value if is_for_each else [value] * self.world_size
        self._tell([_Outcome(call, value) for value in values])
        return values[self.rank]

    @contextmanager
    def _heartbeats(self, call: str) -> Generator[None]:
        """While the block runs, the other ranks hear that rank 0 is there."""
        stopped, failures = threading.Event(), list[Exception]()

        def beat() -> None:
            while not stopped.wait(self._heartbeat_s):
                try:
                    self._tell([_Outcome(call, is_waiting=True)] * self.world_size)
                except Exception as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=beat, name="rollstream-heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
        if failures:
            raise failures[0]

    def _tell(self, outcomes: list[_Outcome]) -> None:
        self._scatter(outcomes)

    def _hear(self, call: str) -> Any:
        while True:
            outcome = self._scatter(None)
            if outcome.call != call:
                raise SettingsError(
                    f"rank {self.rank} calls {call}() while rank 0 is in {outcome.call}(): all ranks make the same "
                    "calls of a DealtStream in the same order"
                )
            if outcome.error is not None:
                raise outcome.error
            if not outcome.is_waiting:
                return outcome.value

    def _scatter(self, outcomes: list[_Outcome] | None) -> _Outcome:
        from torch import distributed

        mine: list[Any] = [None]
        self._reach(lambda: distributed.scatter_object_list(mine, outcomes, group=self._group, group_src=0))
        return mine[0]

    def _reach(self, communicate: Callable[[], Any]) -> None:
        try:
            communicate()
        except RuntimeError as error:
            raise TransientError(
                f"rank {self.rank} cannot reach the other ranks of the dealt stream: one is gone, or was silent for "
                f"longer than the process group's time-out; restart all from the checkpoint ({error})"
            ) from error


def _portable(error: Exception) -> Exception:
    """The same error, or where it does not pickle what it says; told apart on other ranks by a note."""
    try:
        copied: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        copied = RuntimeError(f"{type(error).__name__}: {error}")
    copied.add_note("raised on rank 0 of the dealt stream")
    return copied
