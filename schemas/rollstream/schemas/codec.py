"""Message ⇄ record bytes and headers.

Body: msgpack maps, arrays as extension types (`arrays.py`). A body above a threshold is compressed with zstd; the
header ``content-encoding: zstd`` says so. What is encoded or decoded has passed its rules (`rules.py`); what is decoded
can neither expand beyond ``MAX_BODY_BYTES`` nor raise anything but `InvalidMessageError`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import msgspec
import zstandard

from rollstream.schemas.arrays import check_array_type, pack_array, pack_array_in_planes, unpack_array
from rollstream.schemas.errors import InvalidMessageError, UnsupportedSchemaError
from rollstream.schemas.messages import SCHEMA_VERSION, Message
from rollstream.schemas.rules import check_message

Headers = Iterable[tuple[str, bytes]]
M = TypeVar("M", bound=Message)

COMPRESS_ABOVE_BYTES = 16 * 1024
"""Smaller bodies gain little and would only wait for a thread."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""Of the uncompressed body: some 7 million tokens."""
ZSTD_LEVEL = 1
"""Of a trajectory's byte planes, level 3 saves 1 % of the bytes for 40 % more time."""


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """What goes into a Kafka record: value and headers (keys and partitions are the sender's business)."""

    value: bytes
    headers: list[tuple[str, bytes]]


def encode(message: Message, *, compress_above_bytes: int = COMPRESS_ABOVE_BYTES) -> EncodedRecord:
    """Encode a message; large bodies are compressed. Pure, CPU-bound: call it in a thread for large trajectories.

    Raises:
        InvalidMessageError: the message breaks a rule; the error names field, value and rule.
    """
    check_message(message)
    headers = [
        ("schema", type(message).__name__.encode()),
        ("schema_version", str(message.schema_version).encode()),
        *((name, str(getattr(message, name)).encode()) for name in message.header_fields),
    ]
    body = _encode_body(_encoder(), message)
    if len(body) > compress_above_bytes:
        body = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(_encode_body(_planes_encoder(), message))
        headers.append(("content-encoding", b"zstd"))
    return EncodedRecord(body, headers)


def decode(value: bytes | None, headers: Headers, *types: type[M]) -> M:
    """Decode a record as one of ``types``, chosen by its ``schema`` header.

    Raises:
        UnsupportedSchemaError: the header names none of ``types``, or a newer version.
        InvalidMessageError: the bytes are not such a message; the error names field, value and rule.
    """
    message_type, body = _read(value, headers, types)
    try:
        message = _decoder(message_type).decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidMessageError(f"{message_type.__name__}: {error}") from error
    check_message(message)
    return message


def read_body(value: bytes | None, headers: Headers, message_type: type[Message]) -> bytes:
    """The msgpack body of a record of ``message_type``, decompressed, for readers that want a few fields only.

    Raises:
        InvalidMessageError: as in ``decode``, up to the body.
    """
    return _read(value, headers, (message_type,))[1]


def _read(value: bytes | None, headers: Headers, types: tuple[type[M], ...]) -> tuple[type[M], bytes]:
    if value is None:
        raise InvalidMessageError("the record has no value (a tombstone) where a message was expected")
    by_name = {name: data or b"" for name, data in headers}
    schema = by_name.get("schema", b"").decode(errors="replace")
    message_type = next((t for t in types if t.__name__ == schema), None)
    if message_type is None:
        expected = sorted(t.__name__ for t in types)
        raise UnsupportedSchemaError(f"header schema is {schema[:80]!r}, expected one of {expected}", field="schema")
    _check_version(schema, by_name.get("schema_version", b""))
    encoding = by_name.get("content-encoding", b"")
    if encoding == b"zstd":
        value = _decompress(value)
    elif encoding:
        raise InvalidMessageError(
            f"content-encoding is {encoding[:80]!r}, expected b'zstd' or none", field="content-encoding"
        )
    if len(value) > MAX_BODY_BYTES:
        raise InvalidMessageError(f"the body has {len(value)} bytes, at most {MAX_BODY_BYTES} are allowed")
    return message_type, value


def _check_version(schema: str, version: bytes) -> None:
    if not version.isdigit() or len(version) > 9 or not 1 <= int(version) <= SCHEMA_VERSION:
        raise UnsupportedSchemaError(
            f"schema_version {version[:80]!r} of {schema} is not supported: this reader knows 1 to {SCHEMA_VERSION}; "
            "upgrade it",
            field="schema_version",
        )


def _decompress(value: bytes) -> bytes:
    try:
        size = zstandard.frame_content_size(value)
        if size > MAX_BODY_BYTES:
            raise InvalidMessageError(f"the body would have {size} bytes, at most {MAX_BODY_BYTES} are allowed")
        return zstandard.ZstdDecompressor().decompress(value, max_output_size=MAX_BODY_BYTES, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise InvalidMessageError(f"the body is not valid zstd: {error}") from error


def _encode_body(encoder: msgspec.msgpack.Encoder, message: Message) -> bytes:
    try:
        body = encoder.encode(message)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessageError(f"{type(message).__name__}: {error}") from error
    if len(body) > MAX_BODY_BYTES:
        raise InvalidMessageError(
            f"{type(message).__name__}: the body has {len(body)} bytes, at most {MAX_BODY_BYTES} are allowed"
        )
    return body


@cache
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=pack_array)


@cache
def _planes_encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=pack_array_in_planes)


@cache
def _decoder(message_type: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(message_type, ext_hook=unpack_array, dec_hook=check_array_type)
