"""How often a scoring is tried. Infrastructure is waited for, what is wrong with the data is not.

A ``TransientError`` or ``OSError`` is tried again, with growing pauses, until the time is over. Anything else a scorer
raises, a malformed answer of a judge included, is tried ``data_attempts`` times. What is left then is a
`ScorerFailure`: the trajectory goes out without a reward. A ``SettingsError`` is everybody's: it ends the worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from rollstream.schemas.errors import SettingsError, TransientError, single_errors
from rollstream.scorers.combining import ScorerFailure

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRANSIENT = (TransientError, OSError)
MAX_PAUSE_S = 30.0
MAX_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """Seconds, but for ``data_attempts``: tries. One attempt may begin until ``give_up_after_s``."""

    give_up_after_s: float
    attempt_timeout_s: float
    data_attempts: int
    first_pause_s: float = 1.0


async def attempted(run: Callable[[], Awaitable[T]], limits: AttemptLimits, *, name: str) -> T | ScorerFailure:
    """Run until it succeeds or is given up.

    Raises:
        SettingsError: as ``run``.
    """
    data_failures = 0

    def is_over(state: RetryCallState) -> bool:
        nonlocal data_failures
        if isinstance(_error(state), TRANSIENT):
            return (state.seconds_since_start or 0.0) >= limits.give_up_after_s
        data_failures += 1
        return data_failures >= limits.data_attempts

    retrying = AsyncRetrying(
        stop=is_over,
        wait=wait_random_exponential(multiplier=limits.first_pause_s, max=MAX_PAUSE_S),
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, SettingsError)),
        before_sleep=lambda state: logger.info("scorer %r is tried again: %r", name, _error(state)),
        reraise=True,
    )
    try:
        return await retrying(_within, run, limits.attempt_timeout_s)
    except SettingsError:
        raise
    except Exception as error:  # the border of a scoring: a user's function raises anything
        logger.warning("scorer %r gave up: %s: %s", name, type(error).__name__, error)
        return ScorerFailure(type(error).__name__, str(error)[:MAX_ERROR_CHARS])


async def _within(run: Callable[[], Awaitable[T]], timeout_s: float) -> T:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await run()
    except TimeoutError as error:
        if limit.expired():
            raise TransientError(f"not scored within {timeout_s:g} s") from error
        raise
    except ExceptionGroup as errors:
        raise next(single_errors(errors)) from errors


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
