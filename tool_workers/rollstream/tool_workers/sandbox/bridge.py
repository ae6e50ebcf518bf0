"""A long-lived program in a sandbox, its streams in our hands. What it says is untrusted, and bounded."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from rollstream.tool_workers.sandbox.replies import BridgeEnd, SandboxLostError, frame, frame_size, parse_bridge_end
from rollstream.tool_workers.sandbox.spawning import SupervisorProcess

MAX_COMPLAINT_BYTES = 8192
MAX_BRIDGE_FRAME_BYTES = 128 * 1024
CHUNK_BYTES = 60_000
WRITE_TIMEOUT_S = 30.0


class NoInputTakenError(SandboxLostError):
    """The program reads nothing of what it is given: its own doing, and no failure of the sandbox."""


class Bridge(Protocol):
    """A program that was started by ``Sandbox.bridge``; it ends with its sandbox."""

    async def write(self, data: bytes) -> None:
        """Hand data to its standard input; what a program that has ended is given is nobody's.

        Raises SandboxLostError, NoInputTakenError.
        """
        ...

    async def close_input(self) -> None:
        """End its standard input. Raises SandboxLostError, NoInputTakenError."""
        ...

    async def read(self, *, timeout_s: float) -> bytes:
        """The next piece of its standard output; empty when it has ended. Raises SandboxLostError, TimeoutError."""
        ...

    @property
    def complaint(self) -> str:
        """The last of what it wrote to standard error."""
        ...

    @property
    def end(self) -> BridgeEnd | None:
        """How it ended, once ``read`` has said so."""
        ...


class SupervisedBridge:
    """A bridge over the supervisor's channel. A cancelled read loses nothing."""

    def __init__(self, process: SupervisorProcess, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._complaint = bytearray()
        self._end: BridgeEnd | None = None
        self._reading = asyncio.Lock()
        self._header: bytes | None = None
        self._oom_kills = process.facts.oom_kills() or 0

    async def write(self, data: bytes) -> None:
        """In pieces, each when there is room."""
        for start in range(0, len(data), CHUNK_BYTES):
            await self._send(b"i" + data[start : start + CHUNK_BYTES])

    async def close_input(self) -> None:
        """After what was written before."""
        await self._send(b"c")

    async def read(self, *, timeout_s: float) -> bytes:
        """The next piece."""
        async with asyncio.timeout(timeout_s), self._reading:
            while self._end is None:
                kind, body = await self._receive()
                if kind == b"o":
                    return body
                if kind == b"e":
                    self._complaint += body
                    del self._complaint[:-MAX_COMPLAINT_BYTES]
                elif kind == b"x":
                    self._end = self._explained(parse_bridge_end(body))
                else:
                    self._process.kill()
                    raise SandboxLostError(f"the supervisor sent a frame of unknown kind {kind!r}")
            return b""

    @property
    def complaint(self) -> str:
        """Decoded."""
        return self._complaint.decode("utf-8", "backslashreplace")

    @property
    def end(self) -> BridgeEnd | None:
        """None while it runs."""
        return self._end

    def _explained(self, end: BridgeEnd) -> BridgeEnd:
        """The kernel may have been quicker than the supervisor, and it may count where only we can see it."""
        is_killed = end.cause is None and (self._process.facts.oom_kills() or 0) > self._oom_kills
        return msgspec.structs.replace(end, cause="memory") if is_killed else end

    async def _send(self, body: bytes) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                self._writer.write(frame(body))
                await self._writer.drain()
        except TimeoutError as error:
            raise NoInputTakenError(f"the program in the sandbox takes no input for {WRITE_TIMEOUT_S:g} s") from error
        except OSError as error:
            raise SandboxLostError(f"the supervisor is gone: {self._process.complaint() or repr(error)}") from error

    async def _receive(self) -> tuple[bytes, bytes]:
        try:
            if self._header is None:
                self._header = await self._reader.readexactly(4)
            body = await self._reader.readexactly(frame_size(self._header, MAX_BRIDGE_FRAME_BYTES))
        except (OSError, EOFError) as error:
            raise SandboxLostError(f"the supervisor is gone: {self._process.complaint() or repr(error)}") from error
        except SandboxLostError:
            self._process.kill()
            raise
        self._header = None
        return body[:1], body[1:]
