"""The tools of one worker, by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import ToolSpec
from rollstream.tool_workers.functions import Tool, declared_tool
from rollstream.tool_workers.grading.own import OwnGrader, declared_graders
from rollstream.tool_workers.tool_resources import ToolResource

BUILTIN_TOOLS = (
    "calculator",
    "bash",
    "python",
    "bash_session",
    "python_session",
    "str_replace_editor",
    "find_text",
    "search",
    "finish",
)
"""Each is a module of ``rollstream.tool_workers.builtin_tools``."""


class ToolRegistry:
    """Tools with distinct names, in the order they were named."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools: dict[str, Tool] = {}
        self._hidden: dict[str, Tool] = {}
        self._offer(tools, "give one another name with @tool(name=…)")

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def get(self, name: str) -> Tool | None:
        """The tool with this name, hidden ones included."""
        return self._tools.get(name) or self._hidden.get(name)

    def hide(self, tool: Tool) -> None:
        """Serve a tool that no task is offered: only rollout workers know its name."""
        self._hidden[tool.name] = tool

    def add(self, tools: Iterable[Tool]) -> None:
        """Offer more tools. Raises SettingsError when a name is taken."""
        self._offer(tools, "give its server another prefix")

    def _offer(self, tools: Iterable[Tool], remedy: str) -> None:
        for each in tools:
            if self._tools.setdefault(each.name, each) is not each:
                raise SettingsError(f"two tools are named {each.name!r}: {remedy}")

    @property
    def names(self) -> list[str]:
        """Names, in order."""
        return list(self._tools)

    @property
    def resources(self) -> list[type[ToolResource]]:
        """What the tools share, in the order in which it is named."""
        kinds = [kind for tool in self for kind in tool.provided.values() if issubclass(kind, ToolResource)]
        return list(dict.fromkeys(kinds))

    def specs(self, names: Sequence[str] | None = None, *, toolset: str = "default") -> list[ToolSpec]:
        """What tasks carry so that a model can call the tools; by default all of them.

        Raises:
            SettingsError: there is no such tool.
        """
        chosen = self.names if names is None else names
        if unknown := [name for name in chosen if name not in self._tools]:
            raise SettingsError(f"unknown tools {unknown}: there are {self.names}")
        return [self._tools[name].spec(toolset) for name in chosen]


def load_tools(sources: Sequence[str]) -> ToolRegistry:
    """Tools by name (built-in ones), by module, or by ``file.py``; of the latter two, everything under ``@tool``.

    Raises:
        SettingsError: a module or file cannot be loaded or declares no tool, or two tools have one name.
    """
    return ToolRegistry([found for source in sources for found in _tools_of(source)])


def load_graders(sources: Sequence[str]) -> dict[str, OwnGrader]:
    """Everything under ``@grader`` in modules and files, by name. Raises as ``load_tools``."""
    graders: dict[str, OwnGrader] = {}
    for source in sources:
        if source not in BUILTIN_TOOLS:
            graders |= declared_graders(_module_of(source))
    return graders


def _module_of(source: str) -> ModuleType:
    if source.startswith("mcp:"):
        raise SettingsError(
            f"tools: {source!r} is a server that only a tool worker mounts; "
            "write its tools to a file with `rollstream tools export FILE.json` and name that file"
        )
    if source in BUILTIN_TOOLS:
        return importlib.import_module(f"rollstream.tool_workers.builtin_tools.{source}")
    if not source.endswith(".py"):
        return _load_module(source)
    loaded = sys.modules.get(_name_of_file(Path(source)))
    return loaded if loaded is not None and loaded.__file__ == source else _load_file(Path(source))


def _name_of_file(path: Path) -> str:
    return f"rollstream_tools_{path.stem}"


def _tools_of(source: str) -> list[Tool]:
    module = _module_of(source)
    found = {declared.name: declared for value in vars(module).values() if (declared := declared_tool(value))}
    own = [each for each in found.values() if each.function.__module__ == module.__name__] or list(found.values())
    if not own and not declared_graders(module):
        raise SettingsError(f"tools: {source!r} declares no tool; put @tool above its functions")
    return own


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingsError(
            f"tools: {name!r} is neither a built-in tool ({', '.join(BUILTIN_TOOLS)}) nor a module that can be "
            f"imported ({error}); a file is named with its ending .py"
        ) from error
    finally:
        sys.path.remove("")


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SettingsError(f"tools: file {str(path)!r} does not exist")
    name = _name_of_file(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SettingsError:
        raise
    except Exception as error:
        raise SettingsError(f"tools: file {str(path)!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return module
