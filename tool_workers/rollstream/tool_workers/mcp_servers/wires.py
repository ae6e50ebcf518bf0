"""How a server is reached, for those who need not know; and the bounds on what comes back."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from rollstream.schemas.errors import TransientError

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_BYTES_PER_CALL = 4 * 1024 * 1024
MAX_JUNK_LINES = 100
MAX_REQUESTS_PER_CALL = 100


class McpServerLostError(TransientError):
    """The server is gone, or says what no server may; what it held is lost."""


class Wire(Protocol):
    """A way to one server; used once."""

    def streams(self) -> AbstractAsyncContextManager[TransportStreams]:
        """Connect, and disconnect at the end.

        Raises:
            Exception: it cannot be reached, or says too much; whoever holds the streams is then cancelled.
        """
        ...

    def call_begins(self) -> None:
        """Allow the server another call's worth of bytes."""
        ...

    @property
    def complaint(self) -> str:
        """What the server wrote beside its answers; untrusted, bounded."""
        ...


class LineReader:
    """Lines out of chunks, and how much may still be said. Pure.

    Raises McpServerLostError when a line is too long, or when more is said than calls are worth.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._bytes_left = MAX_BYTES_PER_CALL
        self._requests_left = MAX_REQUESTS_PER_CALL
        self._junk_left = MAX_JUNK_LINES

    def call_begins(self) -> None:
        """Another call's worth is allowed."""
        self._bytes_left = MAX_BYTES_PER_CALL
        self._requests_left = MAX_REQUESTS_PER_CALL

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that the chunk completes; empty ones are left out."""
        self._bytes_left -= len(chunk)
        if self._bytes_left < 0:
            raise McpServerLostError(f"it said more than {MAX_BYTES_PER_CALL} bytes for one call")
        *lines, rest = (self._pending + chunk).split(b"\n") if b"\n" in chunk else [self._grown(chunk)]
        self._pending = bytearray(rest)
        if max(map(len, [*lines, rest])) > MAX_MESSAGE_BYTES:
            raise McpServerLostError(f"it said a line of more than {MAX_MESSAGE_BYTES} bytes")
        return [bytes(line) for line in lines if line.strip()]

    def _grown(self, chunk: bytes) -> bytearray:
        self._pending += chunk
        return self._pending

    def junk(self) -> None:
        """A line was no message."""
        self._junk_left -= 1
        if self._junk_left < 0:
            raise McpServerLostError(f"it said more than {MAX_JUNK_LINES} lines that are no messages")

    def request(self) -> None:
        """A line was a request of the server's own."""
        self._requests_left -= 1
        if self._requests_left < 0:
            raise McpServerLostError(f"it made more than {MAX_REQUESTS_PER_CALL} requests of its own during one call")
