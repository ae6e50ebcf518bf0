"""Errors, sorted by what the caller does next.

A message names the thing (``{x!r}``), the cause and the fix. Every error pickles, so that it survives a process border.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, cast

E = TypeVar("E", bound=BaseException)


class RollstreamError(Exception):
    """Base of everything RollStream raises on purpose."""


class SettingsError(RollstreamError, ValueError):
    """The configuration is wrong: correct it and start again. Raised at start-up, never at the first record."""


class TopicDeniedError(SettingsError):
    """The broker does not let this user read or write a topic: grant it, or do without where that is possible."""


class InvalidMessageError(RollstreamError, ValueError):
    """A record breaks the contract and will break it again: send it to the dead letters, go on with the next."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnsupportedSchemaError(InvalidMessageError):
    """The record was written under a schema or a major version this process does not know: upgrade the reader."""


class TransientError(RollstreamError):
    """Infrastructure failed in a way that may pass (broker, engine, storage): retry within the budget."""


class SessionLostError(TransientError):
    """The tool session is not in the state the episode knows: end the attempt, begin a fresh one."""


class EngineError(TransientError):
    """The engine failed or died during a generation: the episode retries on a healthy engine."""


class EngineDeadError(EngineError):
    """The engine will never answer again: the worker leaves without spending anybody's budget and is started anew."""


class DataError(RollstreamError):
    """The task itself cannot be run (its agent raises, its prompt does not fit): counts against the data budget."""


class IsolationError(RollstreamError):
    """Model-written code could not be isolated here: the tool worker refuses to start. The message says the remedy."""


class PolicyFilesError(RollstreamError):
    """The files of a policy version are missing, torn or corrupt: keep the old version and say so."""


class DataLossError(RollstreamError):
    """Records that were still needed are gone (retention): stop, never skip silently."""


def single_errors(group: BaseExceptionGroup[E]) -> Iterator[E]:
    """The errors of a group and of the groups in it, in order; never none."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from single_errors(cast("BaseExceptionGroup[E]", error))
        else:
            yield error
