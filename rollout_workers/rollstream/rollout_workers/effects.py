"""Numbered effects: everything an agent does to the outside, journaled before anything follows from it.

An effect is named by its path (``3``, in a branch ``3.0``) and carries a digest of its request. Its result is bytes, so
that what an agent sees is the same whether the effect was just performed or is read back from the journal.

Invariants: an effect the journal holds is never performed; what the journal holds is what the agent gets, whoever wrote
it; once an effect has failed, every later one of the attempt fails alike, so that an agent that swallows the failure
comes no further.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

import msgspec

from rollstream.rollout_workers.episode_limits import EpisodeCut
from rollstream.schemas.errors import DataError, RollstreamError
from rollstream.schemas.journal import JournalRecord
from rollstream.transport.journal.journal import Journal
from rollstream.transport.journal.task_state import AttemptOverError

T = TypeVar("T")


class NondeterministicAgentError(DataError):
    """The agent asked for something else at the same place than it did before: its attempt ends."""


class WorkerLeavingError(RollstreamError):
    """The worker drains: no new effect begins, the episode goes on elsewhere."""


def never_leaving() -> bool:
    """For episodes whose worker does not drain."""
    return False


def no_news() -> None:
    """For episodes nobody watches."""


@dataclass(frozen=True, slots=True)
class AttemptIdentity:
    """Which attempt this is. ``birth``: journal offset of its first start; session and call ids are built on it."""

    attempt: int
    birth: int


class EffectLog:
    """The effects of one attempt as this process runs it.

    Args:
        journal: of the task's partition.
        trajectory_id: of the task in the journal.
        identity: the attempt.
        writer: nonce of this process.
        is_leaving: whether new effects may no longer begin.
        on_progress: called whenever an effect has been performed and is confirmed.
    """

    def __init__(
        self,
        journal: Journal,
        trajectory_id: str,
        identity: AttemptIdentity,
        *,
        writer: str,
        is_leaving: Callable[[], bool] = never_leaving,
        on_progress: Callable[[], None] = no_news,
    ) -> None:
        self._journal = journal
        self._trajectory_id = trajectory_id
        self._identity = identity
        self._writer = writer
        self._is_leaving = is_leaving
        self._on_progress = on_progress
        self.failure: Exception | None = None
        """The first failure of an effect."""
        self.failed_path = ""
        """The effect that failed, or the one begun last."""

    async def perform(self, path: str, digest: bytes, run: Callable[[], Awaitable[bytes]]) -> tuple[bytes, bool]:
        """The recorded result of ``path``; if there is none, run it, journal it and return what the journal then holds.

        Returns:
            (result, whether it is the one that was run here and now).

        Raises:
            NondeterministicAgentError: ``path`` is recorded with another digest.
            AttemptOverError: the journal says that the attempt is over.
            WorkerLeavingError: the effect is not recorded and the worker drains.
        """
        if self.failure is not None:
            raise self.failure
        try:
            while (held := self._held(path)) is None and not self._journal.is_current():
                await self._journal.until_current()
            was_run = held is None
            if held is None:
                # That the journal does not hold it and the beginning of the effect are one step: no await between.
                held = await self._run(path, digest, run)
            if held.digest != digest:
                raise NondeterministicAgentError(
                    f"effect {path!r} was requested with digest {digest.hex()!r} and is recorded with "
                    f"{held.digest.hex()!r}: the agent must do the same on every run; take time and randomness from "
                    "the episode"
                )
        except EpisodeCut:
            raise
        except Exception as error:
            if self.failure is None:
                self.failure, self.failed_path = error, path
            raise
        return held.payload, was_run and held.writer == self._writer

    def _held(self, path: str) -> JournalRecord | None:
        state = self._journal.state(self._trajectory_id)
        if state is None or state.attempt != self._identity.attempt or state.has_ended:
            raise AttemptOverError(f"attempt {self._identity.attempt} of trajectory {self._trajectory_id!r} is over")
        return state.effects.get(path)

    async def _run(self, path: str, digest: bytes, run: Callable[[], Awaitable[bytes]]) -> JournalRecord:
        if self._is_leaving():
            raise WorkerLeavingError(f"effect {path!r} of trajectory {self._trajectory_id!r} is left to the next owner")
        if self.failure is None:
            self.failed_path = path
        payload = await run()
        state = await self._journal.append(
            JournalRecord(
                kind="effect",
                trajectory_id=self._trajectory_id,
                attempt=self._identity.attempt,
                key=path,
                writer=self._writer,
                birth=self._identity.birth,
                digest=digest,
                payload=payload,
            )
        )
        self._on_progress()
        return state.effects[path]


class EffectSequence:
    """Numbers the effects of one lane and turns results into bytes and back."""

    def __init__(self, log: EffectLog, lane: str = "") -> None:
        self._log = log
        self.lane = lane
        """What every path of this lane begins with."""
        self._next = 0

    def reserve(self) -> str:
        """The next path, for a branch: what happens in it is numbered under it."""
        path = f"{self.lane}{self._next}"
        self._next += 1
        return path

    async def perform(
        self, kind: str, request: Any, result_type: type[T], run: Callable[[str], Awaitable[T]]
    ) -> tuple[T, bool]:
        """Perform the next effect. ``request`` is anything msgspec encodes; ``run`` is given the effect's path.

        Returns:
            (result, whether it was performed here and now).
        """
        path = self.reserve()
        digest = blake2b(kind.encode() + b"\0" + msgspec.msgpack.encode(request), digest_size=16).digest()

        async def encoded() -> bytes:
            return msgspec.msgpack.encode(await run(path))

        payload, is_own = await self._log.perform(path, digest, encoded)
        return msgspec.msgpack.decode(payload, type=result_type), is_own
