"""What a supervisor says. It lives beside model-written code, so its frames are untrusted input."""

from __future__ import annotations

import struct
from typing import Literal

import msgspec

from rollstream.schemas.errors import TransientError

MAX_FRAME_BYTES = 1024 * 1024
"""Twice 64 KiB of output, each byte escaped in six characters at worst, fits."""

KillCause = Literal["timeout", "memory", "output", "failed_to_start"]


class SandboxLostError(TransientError):
    """The sandbox died or broke its protocol; what it held is gone."""


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First frame: the supervisor is up."""

    ready: bool
    is_namespace_init: bool


class Execution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one program went. ``head`` and ``tail`` are the first and last bytes of its output, decoded."""

    exit_code: int | None
    """Negative: the signal that ended it."""
    cause: KillCause | None
    """Why it was killed; None: it ended by itself."""
    head: str
    tail: str
    total_bytes: int
    run_s: float

    @property
    def output(self) -> str:
        """Head and tail, with a note about what is left out between them."""
        omitted = self.total_bytes - len(self.head.encode()) - len(self.tail.encode())
        return f"{self.head}\n[... {omitted} bytes omitted ...]\n{self.tail}" if omitted > 0 else self.head + self.tail


def frame(request: object) -> bytes:
    """A request as the supervisor reads it."""
    body = msgspec.json.encode(request)
    return struct.pack("!I", len(body)) + body


def frame_size(header: bytes) -> int:
    """Size of the body that follows.

    Raises:
        SandboxLostError: larger than any honest reply.
    """
    (size,) = struct.unpack("!I", header)
    if size > MAX_FRAME_BYTES:
        raise SandboxLostError(f"the supervisor announced {size} bytes, at most {MAX_FRAME_BYTES} are honest")
    return size


def parse_ready(body: bytes) -> Ready:
    """The first frame.

    Raises:
        SandboxLostError: it is something else.
    """
    try:
        return msgspec.json.decode(body, type=Ready)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SandboxLostError(f"the supervisor did not report itself ready: {error}") from error


def parse_execution(body: bytes) -> Execution:
    """A reply.

    Raises:
        SandboxLostError: it is not one, or its numbers are impossible.
    """
    try:
        execution = msgspec.json.decode(body, type=Execution)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SandboxLostError(f"the supervisor's reply is malformed: {error}") from error
    if execution.total_bytes < 0 or not 0 <= execution.run_s < 1e7:
        raise SandboxLostError(
            f"the supervisor's reply is impossible: {execution.total_bytes} bytes in {execution.run_s} s"
        )
    return execution
