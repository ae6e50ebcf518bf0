"""Scorer functions of the user, by ``module:function``."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import inspect
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

from rollstream.schemas.errors import SettingsError
from rollstream.scorers.scoring import IS_GROUP_SCORER, GroupScoreRequest, Score, as_score, as_scores

THREADS = 8
"""Calls at once of one function that is not async."""


class FunctionScorer:
    """Calls a function: for each trajectory, or for each group if it is marked so. Sync ones run in a thread."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="scorer")
        """Its own: calls that never return must not take the threads that tokenizers and encoders run in."""
        self.is_for_groups = bool(getattr(function, IS_GROUP_SCORER, False))

    async def score(self, request: GroupScoreRequest) -> Sequence[Score]:
        """See `Scorer`."""
        if self.is_for_groups:
            return as_scores(await self._call(request), len(request.members))
        return [as_score(await self._call(member)) for member in request.members]

    async def _call(self, request: object) -> object:
        if inspect.iscoroutinefunction(self._function):
            return await self._function(request)
        run = partial(contextvars.copy_context().run, self._function, request)
        returned = await asyncio.get_running_loop().run_in_executor(self._threads, run)
        return await returned if inspect.isawaitable(returned) else returned


def load_function(name: str) -> FunctionScorer:
    """The function ``module:function`` names.

    Raises:
        SettingsError: it names none, or its module cannot be imported.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not module_name or not attribute:
        raise SettingsError(f"scorer function {name!r} is not 'module:function'")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise SettingsError(
            f"scorer function {name!r} cannot be loaded ({type(error).__name__}: {error}): is {module_name!r} "
            f"installed or on PYTHONPATH, and does it define {attribute!r}?"
        ) from error
    if not callable(function):
        raise SettingsError(f"scorer function {name!r} is not a function")
    return FunctionScorer(cast("Callable[..., Any]", function))
