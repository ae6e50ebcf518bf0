"""Message ⇄ record bytes and headers.

Body: msgpack. Arrays travel as one binary each, little-endian, their dtype given by the field's declared type. Bodies
above a threshold are compressed with zstd; the header ``content-encoding: zstd`` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, get_args

import msgspec
import numpy as np
import zstandard

from rollstream.schemas.errors import InvalidMessageError, UnsupportedSchemaError
from rollstream.schemas.messages import SCHEMA_VERSION, Message

Headers = Iterable[tuple[str, bytes]]
M = TypeVar("M", bound=Message)

COMPRESS_ABOVE_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """What goes into a Kafka record: value and headers (keys and partitions are the sender's business)."""

    value: bytes
    headers: list[tuple[str, bytes]]


def encode(message: Message, *, compress_above_bytes: int = COMPRESS_ABOVE_BYTES) -> EncodedRecord:
    """Encode a message; large bodies are compressed. Pure, CPU-bound: call it in a thread for large trajectories."""
    body = _encoder().encode(message)
    headers = [
        ("schema", type(message).__name__.encode()),
        ("schema_version", str(message.schema_version).encode()),
    ]
    if len(body) > compress_above_bytes:
        body = zstandard.ZstdCompressor(level=3).compress(body)
        headers.append(("content-encoding", b"zstd"))
    return EncodedRecord(body, headers)


def decode(value: bytes | None, headers: Headers, *types: type[M]) -> M:
    """Decode a record as one of ``types``, chosen by its ``schema`` header.

    Raises:
        UnsupportedSchemaError: the header names none of ``types``, or a newer version.
        InvalidMessageError: the bytes are not such a message; the error names field, value and rule.
    """
    if value is None:
        raise InvalidMessageError("the record has no value (a tombstone) where a message was expected")
    by_name = {name: data for name, data in headers}
    schema = by_name.get("schema", b"").decode(errors="replace")
    candidates = {t.__name__: t for t in types}
    if schema not in candidates:
        raise UnsupportedSchemaError(f"header schema is {schema!r}, expected one of {sorted(candidates)}", field="schema")
    version = by_name.get("schema_version", b"").decode(errors="replace")
    if not version.isdecimal() or int(version) > SCHEMA_VERSION:
        raise UnsupportedSchemaError(
            f"schema_version {version!r} of {schema} is not supported: this reader knows 1 to {SCHEMA_VERSION}; upgrade it",
            field="schema_version",
        )
    encoding = by_name.get("content-encoding", b"")
    if encoding == b"zstd":
        value = _decompress(value)
    elif encoding:
        raise InvalidMessageError(f"content-encoding {encoding!r} is unknown, expected b'zstd'", field="content-encoding")
    try:
        return _decoder(candidates[schema]).decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidMessageError(f"{schema}: {error}") from error


def _decompress(value: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompress(value, max_output_size=MAX_BODY_BYTES)
    except zstandard.ZstdError as error:
        raise InvalidMessageError(f"the body is not valid zstd: {error}") from error


@cache
def _encoder() -> msgspec.msgpack.Encoder:
    return msgspec.msgpack.Encoder(enc_hook=_encode_array)


@cache
def _decoder(message_type: type[M]) -> msgspec.msgpack.Decoder[M]:
    return msgspec.msgpack.Decoder(message_type, dec_hook=_decode_array)


def _encode_array(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).tobytes()
    raise TypeError(f"cannot encode {type(value).__name__} {value!r}")


def _decode_array(array_type: Any, value: Any) -> Any:
    dtype = np.dtype(get_args(get_args(array_type)[1])[0]).newbyteorder("<")
    if not isinstance(value, bytes) or len(value) % dtype.itemsize:
        raise ValueError(f"expected a binary of whole {dtype.name} items, got {type(value).__name__}")
    return np.frombuffer(value, dtype=dtype)
