"""The `trajectories` topic as files: parts of a directory, local or at any fsspec URL.

Each trajectory is exported once, its first record; a part appears only when it is whole. Crash: the parts that are
there are whole, the rest is missing; export again to another directory.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (fsspec and pyarrow are not annotated)

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.trainers.trajectory_rows import ROW_SCHEMA, json_row, trajectory_rows
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

FileFormat = Literal["parquet", "jsonl"]
ROWS_PER_PART = 10_000
BYTES_PER_PART = 64 * 1024 * 1024
"""Arrays held in memory before a part is written."""
FETCH_RECORDS = 500
FETCH_WAIT_S = 0.5
STALL_S = 60.0
"""Reading that brings nothing for this long before the end has failed."""


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was exported: distinct trajectories, copies left out, records that are no trajectory, files written."""

    trajectories: int
    duplicates: int
    undecodable: int
    parts: int


OnProgress = Callable[[ExportSummary], None]


async def export_trajectories(
    kafka: KafkaSettings,
    target: str,
    *,
    file_format: FileFormat = "parquet",
    run_id: str | None = None,
    since_s: float | None = None,
    rows_per_part: int = ROWS_PER_PART,
    is_following: bool = False,
    stop: asyncio.Event | None = None,
    on_progress: OnProgress | None = None,
) -> ExportSummary:
    """Write all trajectories that are in the topic now; commits nothing, other readers notice nothing.

    Args:
        kafka: where the topic is.
        target: a directory, or an fsspec URL of one, that holds no export yet.
        file_format: ``part-00000.parquet``, …, or ``part-00000.jsonl``, …
        run_id: of this run only; None: of every run.
        since_s: only records the broker took at or after this unix time; None: from the earliest.
        rows_per_part: a file ends with the trajectory that reaches this many rows; large rows make it end sooner.
        is_following: go on with what arrives until ``stop`` is set, instead of ending at the present end.
        stop: end early; what was read is written.
        on_progress: called after each fetch.

    Raises:
        SettingsError: the target cannot be written to, or holds an export.
        TransientError: the broker gave nothing for a minute.
    """
    parts = await asyncio.to_thread(_Parts, target, file_format, rows_per_part)
    export = _Export(parts, run_id)
    async with TrajectoryLog(kafka) as log:
        ends = await log.end_offsets()
        start = await log.seek({} if since_s is None else await log.offsets_at(since_s))
        left = {partition for partition, end in ends.items() if start[partition] < end}
        silent_s = 0.0
        while (left or is_following) and not (stop is not None and stop.is_set()):
            records = await log.fetch(timeout_s=FETCH_WAIT_S, max_records=FETCH_RECORDS)
            silent_s = 0.0 if records or not left else silent_s + FETCH_WAIT_S
            if silent_s > STALL_S:
                raise TransientError(
                    f"{log.topic!r} gave no record for {STALL_S:.0f} s before its end; is the broker up?"
                )
            wanted = [r for r in records if is_following or r.offset < ends[r.partition]]
            left -= {record.partition for record in records if record.offset + 1 >= ends[record.partition]}
            await asyncio.to_thread(export.add, wanted)
            if on_progress is not None:
                on_progress(export.summary())
    await asyncio.to_thread(parts.close)
    return export.summary()


class _Export:
    def __init__(self, parts: _Parts, run_id: str | None) -> None:
        self._parts = parts
        self._run_id = run_id
        self._seen: set[str] = set()
        self._duplicates = 0
        self._undecodable = 0

    def add(self, records: list[Record]) -> None:
        for record in records:
            try:
                trajectory = decode_record(record, Trajectory)
            except InvalidMessageError as error:
                logger.warning("%s is left out: %s", record_place(record), error)
                self._undecodable += 1
                continue
            if self._run_id not in (None, trajectory.run_id):
                continue
            if trajectory.trajectory_id in self._seen:
                self._duplicates += 1
                continue
            self._seen.add(trajectory.trajectory_id)
            self._parts.add(list(trajectory_rows(trajectory, record.partition, record.offset)))

    def summary(self) -> ExportSummary:
        return ExportSummary(len(self._seen), self._duplicates, self._undecodable, self._parts.written)


class _Parts:
    """The files of one export; blocks on disks and networks."""

    def __init__(self, target: str, file_format: FileFormat, rows_per_part: int) -> None:
        self._format: FileFormat = file_format
        self._rows_per_part = rows_per_part
        self._rows: list[dict[str, Any]] = []
        self._size_bytes = 0
        self.written = 0
        try:
            self._files, root = fsspec.core.url_to_fs(target)
            self._root = str(root).rstrip("/")
            self._files.makedirs(self._root, exist_ok=True)
            present = sorted(str(name) for name in self._files.glob(f"{self._root}/part-*"))
        except (ImportError, ValueError, OSError) as error:
            raise SettingsError(f"the export cannot be written to {target!r}: {error}") from error
        if present:
            raise SettingsError(f"{target!r} holds an export already ({present[0]!r}): choose another directory")

    def add(self, rows: list[dict[str, Any]]) -> None:
        """All rows of a trajectory, which lie in one file."""
        self._rows += rows
        self._size_bytes += sum(value.nbytes for row in rows for value in row.values() if isinstance(value, np.ndarray))
        if len(self._rows) >= self._rows_per_part or self._size_bytes >= BYTES_PER_PART:
            self._write()

    def close(self) -> None:
        """Write what is left; an export of nothing has one empty part, so that readers find the columns."""
        if self._rows or self.written == 0:
            self._write()

    def _write(self) -> None:
        path = f"{self._root}/part-{self.written:05d}.{self._format}"
        part = f"{self._root}/.part-{self.written:05d}.{self._format}"
        try:
            self._files.pipe_file(part, _encoded(self._rows, self._format))
            self._files.mv(part, path)
        except OSError as error:
            raise SettingsError(f"the export cannot write {path!r}: {error}") from error
        self.written += 1
        self._rows = []
        self._size_bytes = 0


def _encoded(rows: list[dict[str, Any]], file_format: FileFormat) -> bytes:
    if file_format == "jsonl":
        return b"".join(json_row(row) for row in rows)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()
