"""Parts as bytes: rows with the header inside the same file, as a file alone is written whole or not at all. Pure.

Parquet has a place for it in the footer. Lines of JSON are compressed with zstd, whose format has frames that every
reader skips: the last frame is one of those, and its last eight bytes say how long it is.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (pyarrow is not annotated)

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.archive.parts import PartHeader
from rollstream.trainers.archive.settings import PartFormat
from rollstream.trainers.trajectory_rows import ROW_SCHEMA, json_row, trajectory_rows

HEADER_KEY: Final = b"rollstream.archive"
ROWS_PER_GROUP: Final = 1000
"""Of a Parquet file, and turned into columns at once."""
_SKIPPED: Final = struct.Struct("<II")
"""A skippable frame of zstd begins so: magic number, and size of what follows."""
_SKIPPED_MAGIC: Final = 0x184D2A50
_TRAILER: Final = struct.Struct("<Q")

Placed = tuple[int, Trajectory]
"""A trajectory and the offset of its record."""


def encode_part(header: PartHeader, trajectories: Sequence[Placed], file_format: PartFormat) -> bytes:
    """The file of a part; blocks for as long as compression takes."""
    rows = [row for offset, each in trajectories for row in trajectory_rows(each, header.partition, offset)]
    encode = _encode_parquet if file_format == "parquet" else _encode_json
    return encode(msgspec.json.encode(header), rows)


def _encode_parquet(header: bytes, rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, ROW_SCHEMA.with_metadata({HEADER_KEY: header}), compression="zstd") as writer:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist(list(rows[start : start + ROWS_PER_GROUP]), schema=ROW_SCHEMA))
    return buffer.getvalue()


def _encode_json(header: bytes, rows: Iterable[dict[str, Any]]) -> bytes:
    body = header + _TRAILER.pack(len(header))
    lines = zstandard.ZstdCompressor().compress(b"".join(map(json_row, rows)))
    return lines + _SKIPPED.pack(_SKIPPED_MAGIC, len(body)) + body


def read_header(read: Callable[[int, int], bytes], size_bytes: int, file_format: PartFormat) -> PartHeader:
    """The header of a file of ``size_bytes`` of which ``read(start, end)`` gives a piece.

    Raises:
        InvalidMessageError: it has none.
    """
    try:
        body = (_parquet_header if file_format == "parquet" else _json_header)(read, size_bytes)
        return msgspec.json.decode(body, type=PartHeader)
    except (msgspec.MsgspecError, struct.error, KeyError, ValueError, pa.ArrowException) as error:
        raise InvalidMessageError(f"no header of an archive's part: {error!r}") from error


def _parquet_header(read: Callable[[int, int], bytes], size_bytes: int) -> bytes:
    tail = read(max(0, size_bytes - 8), size_bytes)
    footer_bytes = struct.unpack("<I", tail[:4])[0] + 8
    metadata = pq.read_metadata(io.BytesIO(b"PAR1" + read(max(0, size_bytes - footer_bytes), size_bytes)))
    return metadata.metadata[HEADER_KEY]


def _json_header(read: Callable[[int, int], bytes], size_bytes: int) -> bytes:
    (length,) = _TRAILER.unpack(read(max(0, size_bytes - _TRAILER.size), size_bytes))
    end = size_bytes - _TRAILER.size
    return read(max(0, end - length), end)
