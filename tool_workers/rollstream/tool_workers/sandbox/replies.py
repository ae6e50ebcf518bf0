"""What a supervisor says. It lives beside model-written code, so its frames are untrusted input."""

from __future__ import annotations

import codecs
import struct
from typing import Literal

import msgspec

from rollstream.schemas.errors import TransientError

MAX_FRAME_BYTES = 1024 * 1024
"""Six times 128 KiB of output in base64."""
MAX_DENIED_NAMES = 96
"""More than there are system calls that a filter asks about: a program may try them all."""
MAX_NAME_CHARS = 64
MAX_SECONDS = 1e7

KillCause = Literal["timeout", "memory", "output", "cpu", "files", "failed_to_start"]


class SandboxLostError(TransientError):
    """The sandbox died or broke its protocol; what it held is gone."""


class Ready(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """First frame: the supervisor is up. ``counts_denials``: refused system calls are counted, not only refused."""

    ready: bool
    is_namespace_init: bool
    counts_denials: bool = False


class Execution(msgspec.Struct, frozen=True):
    """How one program went. ``head`` and ``tail`` are the first and last bytes of its output, decoded."""

    exit_code: int | None
    """Negative: the signal that ended it."""
    cause: KillCause | None
    """Why it was killed; None: it ended by itself."""
    head: str
    tail: str
    total_bytes: int
    run_s: float
    cpu_s: float = 0.0
    denied: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """System calls that were refused (or, for ``internet_socket``, only noted), by name."""
    is_restarted: bool = False
    """The long-lived process it ran in has ended; the next call has a fresh one."""
    raw: bytes = b""
    """The output as bytes, as far as it was kept."""

    @property
    def output(self) -> str:
        """Head and tail, with a note about what is left out between them."""
        omitted = self.total_bytes - len(self.raw) if self.raw else self._omitted_of_text
        return f"{self.head}\n[... {omitted} bytes omitted ...]\n{self.tail}" if omitted > 0 else self.head + self.tail

    @property
    def _omitted_of_text(self) -> int:
        return self.total_bytes - len(self.head.encode()) - len(self.tail.encode())


class _Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An execution on the wire; bytes in base64."""

    exit_code: int | None
    cause: KillCause | None
    head: bytes
    tail: bytes
    total_bytes: int
    run_s: float
    cpu_s: float
    denied: dict[str, int]
    is_restarted: bool


class BridgeEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bridged program is over. ``cause`` None: it ended by itself."""

    cause: KillCause | None
    denied: dict[str, int]


def frame(body: bytes) -> bytes:
    """A body as the supervisor reads it."""
    return struct.pack("!I", len(body)) + body


def frame_size(header: bytes, max_bytes: int = MAX_FRAME_BYTES) -> int:
    """Size of the body that follows.

    Raises:
        SandboxLostError: larger than any honest reply.
    """
    (size,) = struct.unpack("!I", header)
    if size > max_bytes:
        raise SandboxLostError(f"the supervisor announced {size} bytes, at most {max_bytes} are honest")
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
        reply = msgspec.json.decode(body, type=_Reply)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SandboxLostError(f"the supervisor's reply is malformed: {error}") from error
    if reply.total_bytes < 0 or not 0 <= reply.run_s < MAX_SECONDS or not 0 <= reply.cpu_s < MAX_SECONDS:
        raise SandboxLostError(f"the supervisor's reply is impossible: {reply.total_bytes} bytes in {reply.run_s} s")
    # Where nothing is missing between them, a character may begin in the head and end in the tail.
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    is_complete = reply.total_bytes <= len(reply.head) + len(reply.tail)
    return Execution(
        exit_code=reply.exit_code,
        cause=reply.cause,
        head=decoder.decode(reply.head, final=not is_complete),
        tail=decoder.decode(reply.tail, final=True),
        total_bytes=reply.total_bytes,
        run_s=reply.run_s,
        cpu_s=reply.cpu_s,
        denied=checked_denials(reply.denied),
        is_restarted=reply.is_restarted,
        raw=reply.head + reply.tail,
    )


def parse_bridge_end(body: bytes) -> BridgeEnd:
    """How a bridged program ended.

    Raises:
        SandboxLostError: it does not say.
    """
    try:
        end = msgspec.json.decode(body, type=BridgeEnd)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise SandboxLostError(f"the supervisor's last word is malformed: {error}") from error
    return msgspec.structs.replace(end, denied=checked_denials(end.denied))


def checked_denials(denied: dict[str, int]) -> dict[str, int]:
    """Counts that can be.

    Raises:
        SandboxLostError: there are too many, or they are no counts.
    """
    if len(denied) > MAX_DENIED_NAMES or any(
        count < 0 or not name.isidentifier() or len(name) > MAX_NAME_CHARS for name, count in denied.items()
    ):
        raise SandboxLostError("the supervisor's counts of refused system calls are impossible")
    return denied
