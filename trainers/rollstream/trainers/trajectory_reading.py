"""Trajectories out of files: of an export, an archive, or a Hugging Face dataset on disk. Blocks; needs no Kafka."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (fsspec, pyarrow and zstandard are annotated in part or not at all)

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, cast

import fsspec
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_rows import ARRAY_COLUMNS, rebuild_trajectory

ROWS_AT_ONCE: Final = 64
"""In memory, of one file."""


def read_trajectories(
    source: str, *, run_id: str | None = None, status: Iterable[str] | None = None, min_reward: float | None = None
) -> Iterator[Trajectory]:
    """Every trajectory in the files at ``source``, exactly as it was sampled, one after the other.

    Files are read in the order of their names, with a few rows in memory at a time. Within a file the order is that of
    the topic; an archive has one directory for each partition. Nothing is left out as a copy: one export or archive has
    none, two exports of the same topic have.

    Args:
        source: a file, a directory with everything below it, or an fsspec URL of either. What ends in ``.parquet``,
            ``.jsonl``, ``.jsonl.zst`` or ``.arrow`` is read; names that begin with ``.`` or ``_`` are not.
        run_id: trajectories of this run only.
        status: those with one of these only.
        min_reward: those with a reward of at least this only; those without a reward are left out then.

    Raises:
        SettingsError: there is no such file.
        InvalidMessageError: a file is damaged, or holds something else.
    """
    wanted = None if status is None else frozenset(status)
    files, paths = _find_files(source)
    rows = (row for path in paths for row in _guarded(path, _rows_of(files, path)))
    for trajectory in _guarded(source, _rebuilt(rows, run_id)):
        if wanted is not None and trajectory.status not in wanted:
            continue
        if min_reward is not None and (trajectory.reward is None or trajectory.reward < min_reward):
            continue
        yield trajectory


def _find_files(source: str) -> tuple[Any, list[str]]:
    try:
        files, root = fsspec.core.url_to_fs(source)
        files.invalidate_cache()
        root = str(root).rstrip("/")
        if files.isfile(root):
            return files, [root]
        found = [str(path) for path in files.find(root)]
    except (ImportError, ValueError, OSError) as error:
        raise SettingsError(f"trajectories cannot be read from {source!r}: {error}") from error
    inside = {path: path.removeprefix(root).strip("/").split("/") for path in found}
    paths = [
        path
        for path, names in inside.items()
        if path.endswith(tuple(_READERS)) and not any(name.startswith((".", "_")) for name in names)
    ]
    if not paths:
        raise SettingsError(f"there are no trajectories at {source!r}: expected files that end in {sorted(_READERS)}")
    return files, sorted(paths)


class _DamagedFileError(InvalidMessageError):
    """Says already where the damage is."""


def _guarded(place: str, items: Iterator[Any]) -> Iterator[Any]:
    """What is wrong is told with its place, the innermost one."""
    try:
        yield from items
    except _DamagedFileError:
        raise
    except InvalidMessageError as error:
        raise _DamagedFileError(f"{place!r}: {error}", field=error.field) from error
    except (KeyError, ValueError, TypeError, pa.ArrowException, msgspec.MsgspecError, zstandard.ZstdError) as error:
        raise _DamagedFileError(f"{place!r} is damaged, or holds no trajectories: {error!r}") from error


def _rebuilt(rows: Iterable[dict[str, Any]], run_id: str | None) -> Iterator[Trajectory]:
    """Rows of one trajectory lie together, if need be over the border of two files; the first has sample 0, or none.

    Raises:
        InvalidMessageError: a sample is missing in between, as a file is.
    """
    held: list[dict[str, Any]] = []
    for row in rows:
        if run_id not in (None, row["run_id"]):
            continue
        if not row["sample_index"]:
            if held:
                yield rebuild_trajectory(held)
            held = []
        elif len(held) != row["sample_index"] or held[0]["trajectory_id"] != row["trajectory_id"]:
            raise InvalidMessageError(
                f"trajectory {row['trajectory_id']!r} lacks the samples before its sample {row['sample_index']}: is a "
                "file missing, or read alone?"
            )
        held.append(row)
    if held:
        yield rebuild_trajectory(held)


def _rows_of(files: Any, path: str) -> Iterator[dict[str, Any]]:
    read = next(read for ending, read in _READERS.items() if path.endswith(ending))
    with files.open(path, "rb") as file:
        yield from read(file)


def _parquet_rows(file: Any) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
            yield from _batch_rows(batch)


def _arrow_rows(file: Any) -> Iterator[dict[str, Any]]:
    with pa.ipc.open_stream(file) as stream:
        for batch in stream:
            for start in range(0, len(batch), ROWS_AT_ONCE):
                yield from _batch_rows(batch.slice(start, ROWS_AT_ONCE))


def _batch_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Arrays straight from the columns: as lists of Python numbers they would take ten times as long."""
    facts = [name for name in batch.schema.names if name not in ARRAY_COLUMNS and name != "response_versions"]
    arrays = {name: batch.column(name) for name in ARRAY_COLUMNS}
    for place, row in enumerate(batch.select(facts).to_pylist()):
        for name, column in arrays.items():
            row[name] = np.array(column[place].values.to_numpy(zero_copy_only=False), dtype=ARRAY_COLUMNS[name])
        yield row


def _json_rows(file: Any) -> Iterator[dict[str, Any]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    for line in cast("Iterable[bytes]", file):
        row: dict[str, Any] = decoder.decode(line)
        row |= {name: np.array(row[name], dtype=kind) for name, kind in ARRAY_COLUMNS.items() if _is_given(row, name)}
        row |= {name: msgspec.json.encode(row[name]).decode() for name in ("sampling", "extra")}
        if row.get("exact") is not None:
            row["exact"] = msgspec.json.decode(msgspec.json.encode(row["exact"]), type=bytes)
        yield row


def _is_given(row: Mapping[str, Any], name: str) -> bool:
    return row["sample_index"] is not None and None not in row[name]


def _compressed_json_rows(file: Any) -> Iterator[dict[str, Any]]:
    with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as plain:
        yield from _json_rows(io.BufferedReader(plain))


_READERS: Final[dict[str, Callable[[Any], Iterator[dict[str, Any]]]]] = {
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".jsonl": _json_rows,
    ".jsonl.zst": _compressed_json_rows,
}
