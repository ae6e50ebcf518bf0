"""Agents by name. An agent is an async function of an Episode; whatever it does to the outside goes through it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from rollstream.rollout_workers.named_functions import import_function
from rollstream.schemas.errors import DataError, SettingsError

if TYPE_CHECKING:
    from rollstream.rollout_workers.episode import Episode

Agent = Callable[["Episode"], Awaitable[None]]

_AGENTS: dict[str, Agent] = {}


def agent(name: str) -> Callable[[Agent], Agent]:
    """Register an agent under a name that tasks can ask for."""

    def register(function: Agent) -> Agent:
        _AGENTS[name] = function
        return function

    return register


def find_agent(name: str) -> Agent:
    """The agent a task names: a registered one, or ``module:function``.

    Raises:
        DataError: there is no such agent.
    """
    if name in _AGENTS:
        return _AGENTS[name]
    try:
        function = import_function(name, kind="agent", known=_AGENTS)
    except SettingsError as error:
        raise DataError(str(error)) from error
    if not inspect.iscoroutinefunction(function):
        raise DataError(f"agent {name!r} is not an async function of one Episode")
    return function


@agent("react")
async def react(episode: Episode) -> None:
    """Think, call tools, read their answers, until a turn calls none, or finishes (Yao et al., 2022)."""
    while (turn := await episode.generate()).tool_calls:
        await episode.call_tools(turn.tool_calls)
        if episode.answer is not None:
            break
