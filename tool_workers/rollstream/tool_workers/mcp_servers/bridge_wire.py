"""A server in a sandbox of its own, its messages lines on its standard streams.

Everything it says is bounded before it is parsed. Its notifications are dropped: nothing here waits for them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification, JSONRPCRequest, jsonrpc_message_adapter

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.mcp_servers.wires import LineReader, McpServerLostError
from rollstream.tool_workers.output_text import clean
from rollstream.tool_workers.sandbox.bridge import Bridge
from rollstream.tool_workers.sandbox.bubblewrap import WORKSPACE
from rollstream.tool_workers.sandbox.workspace_files import unpack
from rollstream.tool_workers.sandbox_pool import ClosableSandbox, SandboxOpener

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

UNPACK_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 60.0
MAX_FILES_BYTES = 32 * 1024 * 1024
COMPLAINT_CHARS = 500


class BridgeWire:
    """One start of a server.

    Args:
        opener: starts sandboxes.
        command: the program.
        environment: its variables.
        files: an archive that is unpacked into its workspace first.
    """

    def __init__(
        self, opener: SandboxOpener, command: Sequence[str], environment: Mapping[str, str], files: bytes | None
    ) -> None:
        self._opener = opener
        self._command = command
        self._environment = environment
        self._files = files
        self._lines = LineReader()
        self._bridge: Bridge | None = None

    def call_begins(self) -> None:
        """Allow another call's worth of bytes."""
        self._lines.call_begins()

    @property
    def complaint(self) -> str:
        """The end of its standard error."""
        return "" if self._bridge is None else clean(self._bridge.complaint)[-COMPLAINT_CHARS:].strip()

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[TransportStreams]:
        """Start the server; at the end its sandbox is closed, and with it everything the server has started."""
        sandbox = await self._opener.open()
        try:
            await self._provide(sandbox)
            self._bridge = await sandbox.bridge(*self._command, environment=self._environment)
            async with pumped(self._bridge, self._lines) as streams:
                yield streams
        finally:
            await sandbox.close()

    async def _provide(self, sandbox: ClosableSandbox) -> None:
        if self._files is None:
            return
        unpacked = await unpack(sandbox, self._files, timeout_s=UNPACK_TIMEOUT_S)
        if unpacked.exit_code != 0 or unpacked.output:
            raise McpServerLostError(f"its files cannot be put into {WORKSPACE}: {clean(unpacked.output)[:300]}")


@asynccontextmanager
async def pumped(bridge: Bridge, lines: LineReader) -> AsyncGenerator[TransportStreams]:
    """The streams of a session over a bridge."""
    heard, read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    write_stream, said = anyio.create_memory_object_stream[SessionMessage](0)
    async with heard, read_stream, write_stream, said, anyio.create_task_group() as group:
        group.start_soon(_hear, bridge, lines, heard)
        group.start_soon(_say, bridge, said)
        yield read_stream, write_stream
        group.cancel_scope.cancel()


async def _hear(bridge: Bridge, lines: LineReader, heard: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    while True:
        try:
            chunk = await bridge.read(timeout_s=READ_TIMEOUT_S)
        except TimeoutError:
            continue
        if not chunk:
            raise McpServerLostError("it has ended")
        for line in lines.feed(chunk):
            message = _parsed(line)
            if message is None:
                lines.junk()
            elif not isinstance(message.message, JSONRPCNotification):
                if isinstance(message.message, JSONRPCRequest):
                    lines.request()
                await heard.send(message)


def _parsed(line: bytes) -> SessionMessage | None:
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except (ValueError, RecursionError):
        return None


async def _say(bridge: Bridge, said: MemoryObjectReceiveStream[SessionMessage]) -> None:
    async for message in said:
        line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        await bridge.write(line.encode() + b"\n")


def packed(path: Path) -> bytes:
    """A folder's content, or a file, as an archive. Blocks.

    Raises:
        SettingsError: it is not there, or too large.
    """
    content = io.BytesIO()
    try:
        with tarfile.open(fileobj=content, mode="w") as archive:
            for place in sorted(path.iterdir()) if path.is_dir() else [path]:
                archive.add(place, arcname=place.name)
    except OSError as error:
        raise SettingsError(f"the files {str(path)!r} of an MCP server cannot be read: {error}") from error
    if content.tell() > MAX_FILES_BYTES:
        raise SettingsError(f"the files {str(path)!r} of an MCP server are more than {MAX_FILES_BYTES} bytes")
    return content.getvalue()
