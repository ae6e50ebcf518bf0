"""Numbered effects: everything an agent does to the outside, in the order it did it.

An effect is named by its path (``3``, in a branch ``3.0.1``) and carries a digest of its request. Its result is bytes,
so that what an agent sees is the same whether the effect was just performed or is read back from a log.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

import msgspec

from rollstream.schemas.errors import DataError

T = TypeVar("T")


class NondeterministicAgentError(DataError):
    """The agent asked for something else at the same place than it did before: its attempt ends."""


class EffectLog(Protocol):
    """Where the effects of one attempt are kept."""

    async def perform(self, path: str, digest: bytes, run: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the recorded result of ``path``, or run it, record it and return what was recorded.

        Raises:
            NondeterministicAgentError: ``path`` is recorded with another digest.
        """
        ...


class MemoryEffectLog:
    """Effects of an attempt that lives and dies with this process."""

    def __init__(self) -> None:
        self._records: dict[str, tuple[bytes, bytes]] = {}

    async def perform(self, path: str, digest: bytes, run: Callable[[], Awaitable[bytes]]) -> bytes:
        """See ``EffectLog``."""
        if path not in self._records:
            self._records[path] = (digest, await run())
        recorded, payload = self._records[path]
        if recorded != digest:
            raise NondeterministicAgentError(
                f"effect {path!r} was requested with digest {digest.hex()!r} and is recorded with {recorded.hex()!r}: "
                "the agent must do the same on every run; take time and randomness from the episode"
            )
        return payload


class EffectSequence:
    """Numbers the effects of one lane and turns results into bytes and back."""

    def __init__(self, log: EffectLog, prefix: str = "") -> None:
        self._log = log
        self._prefix = prefix
        self._next = 0

    async def perform(self, kind: str, request: Any, result_type: type[T], run: Callable[[str], Awaitable[T]]) -> T:
        """Perform the next effect. ``request`` is anything msgspec encodes; ``run`` is given the effect's path."""
        path = f"{self._prefix}{self._next}"
        self._next += 1
        digest = blake2b(kind.encode() + b"\0" + msgspec.msgpack.encode(request), digest_size=16).digest()

        async def encoded() -> bytes:
            return msgspec.msgpack.encode(await run(path))

        return msgspec.msgpack.decode(await self._log.perform(path, digest, encoded), type=result_type)
