"""`rollstream tools`: what a tool worker with these settings offers, for people and for producers.

Servers are asked as a worker asks them: those with a command in a sandbox. A producer that is given the file needs
neither the servers nor their settings.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from rollstream.cli.settings import load_settings
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import ToolSpec

if TYPE_CHECKING:
    from rollstream.tool_workers.settings import ToolWorkerSettings

tools_app = typer.Typer(no_args_is_help=True, help="List and export the tools of a tool worker.")

Tools = Annotated[
    str | None, typer.Option("--tools", help="Built-in names, modules, file.py or mcp:name, with commas.")
]


@tools_app.command("list")
def list_command(tools: Tools = None) -> None:
    """Print one JSON object per tool."""
    for spec in _specs(tools):
        print(msgspec.json.encode(spec).decode())


@tools_app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="For `rollstream produce --tools FILE.json`.")],
    tools: Tools = None,
) -> None:
    """Write the tools to a file that a producer takes."""
    if file.suffix != ".json":
        raise SettingsError(f"{str(file)!r}: the name must end in .json, by which producers know such a file")
    specs = _specs(tools)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(specs), indent=2) + b"\n")
    print(f"{len(specs)} tools are in {file}")


def read_specs(file: Path) -> list[ToolSpec]:
    """What `rollstream tools export` has written.

    Raises:
        SettingsError: it is something else.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[ToolSpec])
    except OSError as error:
        raise SettingsError(f"tools: file {str(file)!r} cannot be read: {error}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise SettingsError(
            f"tools: file {str(file)!r} holds no tools as `rollstream tools export` writes: {error}"
        ) from error


def _specs(tools: str | None) -> list[ToolSpec]:
    chosen = tuple(name.strip() for name in tools.split(",")) if tools else None
    settings = load_settings({"tool_worker": {"tools": chosen}}, needs_broker=False)
    return asyncio.run(specs_of(settings.tool_worker))


async def specs_of(settings: ToolWorkerSettings) -> list[ToolSpec]:
    """The tools of a worker with these settings, as tasks carry them.

    Raises:
        SettingsError: a tool cannot be loaded or a server not be mounted.
        IsolationError: a server needs a sandbox and this machine cannot isolate.
    """
    from rollstream.tool_workers.mcp_servers.mounting import MCP
    from rollstream.tool_workers.registry import ToolRegistry, load_tools
    from rollstream.tool_workers.service import mount_servers, own_sources, start_sandboxes

    registry = load_tools(own_sources(settings))
    async with AsyncExitStack() as stack:
        servers = settings.model_copy(update={"tools": tuple(s for s in settings.tools if s.startswith(MCP))})
        started = await start_sandboxes(servers, ToolRegistry([]), stack)
        await mount_servers(servers, registry, started, stack)
    return registry.specs(toolset=settings.toolset)
