"""`rollstream tool-worker`: one process that runs tool calls, and the check of what it needs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from rollstream.cli.event_loop import run_on_uvloop
from rollstream.cli.settings import describe, load_settings
from rollstream.cli.stop_signals import stop_on_signals

if TYPE_CHECKING:
    from rollstream.tool_workers.functions import Tool
    from rollstream.tool_workers.settings import ToolWorkerSettings

NO_BROKER = "localhost:9"
"""A check talks to nobody, so it needs no address."""


def tool_worker_command(
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    toolset: Annotated[str | None, typer.Option(help="Serves the topic tool-calls.<toolset>.")] = None,
    tools: Annotated[str | None, typer.Option(help="Built-in names, modules or file.py, with commas.")] = None,
    isolation: Annotated[
        str | None, typer.Option(help="unsafe-local: run model-written code without any isolation.")
    ] = None,
    max_running_calls: Annotated[int | None, typer.Option(help="Calls running at once.", min=1)] = None,
    instance_id: Annotated[
        str | None, typer.Option(help="Stable name: a restart within the session time-out moves no partitions.")
    ] = None,
    worker_id: Annotated[str | None, typer.Option(help="Name in logs, status and results.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Load the tools, try to get out of a sandbox, say what holds, and leave.")
    ] = False,
) -> None:
    """Run tool calls until SIGTERM or Ctrl-C; running ones may then finish within the drain limit."""
    settings = load_settings(
        {
            "kafka": {"bootstrap": bootstrap or (NO_BROKER if check else None), "prefix": prefix},
            "tool_worker": {
                "toolset": toolset,
                "tools": tuple(name.strip() for name in tools.split(",")) if tools else None,
                "isolation": isolation,
                "max_running_calls": max_running_calls,
                "instance_id": instance_id,
                "worker_id": worker_id,
            },
        }
    )
    if check:
        for line in asyncio.run(check_tool_worker(settings.tool_worker)):
            typer.echo(line)
        return
    from rollstream.tool_workers.service import run_tool_worker
    from rollstream.transport.telemetry import set_up_logging

    set_up_logging()
    typer.echo(describe(settings.tool_worker), err=True)

    async def run() -> None:
        with stop_on_signals() as stop:
            await run_tool_worker(settings.tool_worker, settings.kafka, stop)

    run_on_uvloop(run())


async def check_tool_worker(settings: ToolWorkerSettings) -> list[str]:
    """What a worker with these settings would serve, and what its sandbox withstands; one line each.

    Raises:
        SettingsError: a tool cannot be loaded, a secret is missing, or what tools share cannot be opened.
        IsolationError: a tool needs a sandbox and this machine cannot isolate.
    """
    from rollstream.tool_workers.registry import load_tools
    from rollstream.tool_workers.service import mount_servers, own_sources, secrets_of_tools, start_sandboxes
    from rollstream.tool_workers.tool_resources import open_resources

    registry = load_tools(own_sources(settings))
    async with AsyncExitStack() as stack:
        started = await start_sandboxes(settings, registry, stack)
        await mount_servers(settings, registry, started, stack)
        secrets_of_tools(registry, settings)
        await open_resources(registry.resources, settings, stack)
    lines = [
        f"tool {tool.name}: {_place_of(tool)}, {'with' if tool.is_stateful else 'without'} state" for tool in registry
    ]
    if started is None:
        return [*lines, "no tool needs a sandbox"]
    if started.report is None:
        return [*lines, f"isolation: none ({settings.isolation})"]
    return [*lines, *(str(layer) for layer in started.report.layers)]


def _place_of(tool: Tool) -> str:
    from rollstream.tool_workers.mcp_servers.mounting import McpTool

    if isinstance(tool, McpTool):
        return "at an MCP server"
    return "in a sandbox" if tool.needs_sandbox else "in the worker"
