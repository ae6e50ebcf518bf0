"""From `mcp:<name>` among a worker's tools to tools that models can call.

The library is loaded only here, and only when a server is mounted. What is read of a server at start is what tasks
carry; the worker checks nothing again when the server starts anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import SecretStr

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.arguments import parse_object
from rollstream.tool_workers.functions import SessionKey, TimeLimit, Tool, ToolOutput
from rollstream.tool_workers.mcp_servers.answers import output_of
from rollstream.tool_workers.mcp_servers.argument_check import check_arguments
from rollstream.tool_workers.mcp_servers.offers import Offer, read_offers
from rollstream.tool_workers.mcp_servers.settings import McpServerSettings, url_problem
from rollstream.tool_workers.sandbox_pool import SandboxOpener
from rollstream.tool_workers.tool_secrets import VARIABLE_PREFIX, Redaction, Secrets, secret_value

if TYPE_CHECKING:
    from rollstream.tool_workers.mcp_servers.connection import McpConnection
    from rollstream.tool_workers.mcp_servers.mounts import Mount

MCP = "mcp:"
"""Begins a source of tools that is a server."""
SHARE_OF_START = 0.8
"""Of a call's time, what the server's start may take: a start that fails is no time-out of the model's."""


class _Anything(msgspec.Struct):
    """Arguments that a server's schema describes, not a type of ours."""


@dataclass(frozen=True)
class McpTool(Tool):
    """A tool of a server; takes any object that its schema allows."""

    def parse(self, arguments: str) -> dict[str, Any]:
        """The one argument ``given`` of the function. Raises InvalidArgumentsError."""
        given = parse_object(arguments)
        check_arguments(given, self.parameters)
        return {"given": given}


class McpServers:
    """The mounted servers of a worker, and their tools."""

    def __init__(self, mounts: Sequence[Mount], tools: Sequence[Tool]) -> None:
        self._mounts = mounts
        self.tools = tuple(tools)

    def end_session(self, incarnation: str) -> None:
        """A session is over: end what servers keep for it."""
        for mount in self._mounts:
            mount.end_session(incarnation)


def chosen_servers(
    sources: Sequence[str], servers: Mapping[str, McpServerSettings], allowed_hosts: tuple[str, ...]
) -> dict[str, McpServerSettings]:
    """The servers among the sources of tools, by name.

    Raises:
        SettingsError: one is not configured, or must not be asked.
    """
    chosen: dict[str, McpServerSettings] = {}
    for source in sources:
        if not source.startswith(MCP):
            continue
        name = source.removeprefix(MCP)
        if name not in servers:
            raise SettingsError(
                f"tools: there is no server {source!r}: set tool_worker.mcp.{name}; known: {[*servers]}"
            )
        server = servers[name]
        if server.url is not None and (problem := url_problem(server.url, allowed_hosts)) is not None:
            raise SettingsError(f"tool_worker.mcp.{name}.url: {problem}")
        chosen[name] = server
    return chosen


def secrets_of(
    chosen: Mapping[str, McpServerSettings], given: Mapping[str, SecretStr], environment: Mapping[str, str]
) -> dict[str, str]:
    """Values of the secrets that headers name.

    Raises:
        SettingsError: one is not set; says how to set it.
    """
    values: dict[str, str] = {}
    for name, server in chosen.items():
        for header, secret in server.headers.items():
            value = secret_value(secret, given, environment)
            if value is None:
                raise SettingsError(
                    f"tool_worker.mcp.{name}.headers.{header}: the secret {secret!r} is not set: "
                    f"set {VARIABLE_PREFIX}{secret} or tool_worker.secrets.{secret}"
                )
            values[secret] = value
    return values


@asynccontextmanager
async def mounted_servers(
    chosen: Mapping[str, McpServerSettings], opener: SandboxOpener | None, secrets: Mapping[str, str]
) -> AsyncGenerator[McpServers]:
    """Ask all servers what they offer, and serve calls until the end.

    Args:
        chosen: servers by name.
        opener: starts the sandboxes of those with a command.
        secrets: values for headers, by name.

    Raises:
        SettingsError: a server cannot be reached or offers what cannot be offered, or the library is missing.
    """
    _require_library()
    from rollstream.tool_workers.mcp_servers.mounts import SessionMount, SharedMount

    mounts: list[Mount] = []
    tools: list[Tool] = []
    try:
        async with asyncio.TaskGroup() as group:
            try:
                for name, server in chosen.items():
                    headers = {header: secrets[secret] for header, secret in server.headers.items()}
                    connect = await _connector(name, server, opener, headers)
                    offers = await _offers(name, server, connect, group)
                    if server.is_per_session:
                        mount: Mount = SessionMount(group, connect, max_sessions=server.max_sessions)
                    else:
                        mount = SharedMount(group, connect)
                    mounts.append(mount)
                    redact = Redaction([Secrets({name: secrets[name] for name in server.headers.values()})])
                    tools += [_tool(offer, server, mount, redact) for offer in offers]
                yield McpServers(mounts, tools)
            finally:
                for mount in mounts:
                    await mount.close()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures  # connections keep their failures to themselves


def _require_library() -> None:
    try:
        import mcp  # noqa: F401  # pyright: ignore[reportUnusedImport] -- only whether it is there
    except ImportError as error:
        raise SettingsError(
            f"tools: an MCP server needs the library mcp ({error}): install rollstream with the extra [mcp]"
        ) from error


async def _connector(
    name: str, server: McpServerSettings, opener: SandboxOpener | None, headers: Mapping[str, str]
) -> Callable[[], McpConnection]:
    """Makes connections that are not started yet."""
    from rollstream.tool_workers.mcp_servers.connection import McpConnection

    if server.url is not None:
        from rollstream.tool_workers.mcp_servers.http_wire import HttpWire

        url = server.url
        return lambda: McpConnection(name, HttpWire(url, headers, timeout_s=server.timeout_s))
    from rollstream.tool_workers.mcp_servers.bridge_wire import BridgeWire, packed

    assert opener is not None, "a worker with such servers starts sandboxes"
    files = None if server.files is None else await asyncio.to_thread(packed, server.files)
    return lambda: McpConnection(name, BridgeWire(opener, server.command, server.environment, files))


async def _offers(
    name: str, server: McpServerSettings, connect: Callable[[], McpConnection], group: asyncio.TaskGroup
) -> list[Offer]:
    from rollstream.tool_workers.mcp_servers.wires import McpServerLostError

    connection = connect()
    connection.start(group)
    try:
        await connection.wait_until_open(server.start_timeout_s)
        async with asyncio.timeout(server.start_timeout_s):
            listed = await connection.list_tools()
    except McpServerLostError as error:
        raise SettingsError(f"tools: {MCP}{name} cannot be mounted: {error}") from error
    except TimeoutError as error:
        raise SettingsError(
            f"tools: {MCP}{name} cannot be mounted: it lists no tools within {server.start_timeout_s:g} s"
        ) from error
    finally:
        await connection.close()
    prefix = f"{name}_" if server.prefix is None else server.prefix
    return read_offers(name, listed, prefix=prefix, wanted=server.tools)


def _tool(offer: Offer, server: McpServerSettings, mount: Mount, redact: Redaction) -> Tool:
    async def call(given: dict[str, Any], limit: TimeLimit, session: SessionKey) -> ToolOutput:
        timeout_s = min(limit.timeout_s, server.timeout_s)
        try:
            result = await mount.call(
                session.incarnation,
                offer.own_name,
                given,
                start_s=min(server.start_timeout_s, SHARE_OF_START * limit.timeout_s),
                timeout_s=timeout_s,
            )
        except TimeoutError:
            return ToolOutput(f"Error: timed out after {timeout_s:g} s", "timeout")
        output = output_of(result)
        return replace(output, content=redact(output.content))

    return McpTool(
        name=offer.name,
        description=offer.description,
        parameters=offer.schema,
        function=call,
        arguments_type=_Anything,
        timeout_s=server.timeout_s + server.start_timeout_s,
        is_idempotent=server.may_run_twice,
        is_stateful=server.is_per_session,
        sandbox_parameter=None,
        time_limit_parameter="limit",
        session_key_parameter="session",
    )
