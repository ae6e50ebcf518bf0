"""What tools of a worker share for its whole life: an index, a connection, a model of their own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Self

from rollstream.tool_workers.settings import ToolWorkerSettings


class ToolResource:
    """Subclass it, and annotate a parameter of a tool with the subclass: all calls are given the one instance."""

    @classmethod
    async def open(cls, settings: ToolWorkerSettings) -> Self:
        """At the worker's start. Raise SettingsError for what is wrong with the settings."""
        return cls()

    async def close(self) -> None:
        """When the worker leaves."""


async def open_resources(
    kinds: Iterable[type[ToolResource]], settings: ToolWorkerSettings, stack: AsyncExitStack
) -> dict[type[ToolResource], ToolResource]:
    """One of each kind; they are closed with the stack. Raises what opening them raises."""
    opened: dict[type[ToolResource], ToolResource] = {}
    for kind in dict.fromkeys(kinds):
        opened[kind] = await kind.open(settings)
        stack.push_async_callback(opened[kind].close)
    return opened
