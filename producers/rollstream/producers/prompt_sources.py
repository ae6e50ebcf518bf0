"""Rows from JSONL, Parquet and CSV files and from Hugging Face datasets, each with the place a person finds it at.

A source answers `row(i)` for any i without holding its text in memory (line files are indexed once by byte offset,
tables stay in Arrow), so that any order of rows costs the same.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (pyarrow and datasets are not annotated)

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final

from rollstream.schemas.errors import SettingsError

_COLUMNS_SAMPLE = 100
_CHUNK_BYTES = 1 << 20
_ARROW_BATCH_ROWS = 1000
FILE_SUFFIXES: Final = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row as it was found.

    Attributes:
        place: where a person finds it, ``test.jsonl:17`` (lines from 1, rows of tables from 0).
        values: column name to value; empty when ``problem`` is set.
        problem: why the row cannot be read; None for a good one.
    """

    place: str
    values: dict[str, Any]
    problem: str | None = None


class PromptSource(ABC):
    """Rows by number. ``name`` is short (the file's name), ``fingerprint`` a digest of the whole content."""

    name: str
    fingerprint: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows, bad ones included."""

    @abstractmethod
    def row(self, index: int) -> SourceRow:
        """The ``index``-th row, never raising for what stands in it."""

    def columns(self) -> list[str]:
        """Names of the columns; of a JSONL file those of its first rows."""
        names: dict[str, None] = {}
        for index in range(min(len(self), _COLUMNS_SAMPLE)):
            names.update(dict.fromkeys(self.row(index).values))
        return list(names)

    def close(self) -> None:  # noqa: B027  -- most sources hold nothing open
        """Release files."""


def open_source(source: str, *, dataset_config: str | None = None, split: str = "train") -> PromptSource:
    """Open a file, a folder saved by `datasets`, or a named dataset. Blocking: indexing reads the whole source once.

    Raises:
        SettingsError: it does not exist, cannot be read, is empty, or is of an unknown kind.
    """
    path = Path(source).expanduser()
    if path.is_file():
        opened = _open_file(path)
    elif path.suffix.lower() in FILE_SUFFIXES:
        raise SettingsError(f"there is no file {source!r}")
    else:
        opened = _DatasetSource(source, path, config=dataset_config, split=split)
    if not len(opened):
        opened.close()
        raise SettingsError(f"{source!r} has no rows")
    return opened


def _open_file(path: Path) -> PromptSource:
    kinds: dict[str, Callable[[Path], PromptSource]] = {
        ".jsonl": _JsonLinesSource,
        ".ndjson": _JsonLinesSource,
        ".parquet": _ParquetSource,
        ".csv": _CsvSource,
        ".tsv": _CsvSource,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise SettingsError(f"{path.name!r} has the suffix {path.suffix!r}, expected one of {list(FILE_SUFFIXES)}")
    try:
        return kind(path)
    except OSError as error:
        raise SettingsError(f"cannot read {str(path)!r}: {error}") from error


class _JsonLinesSource(PromptSource):
    """One JSON object per line; blank lines are no rows."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._offsets, self._lines = array("Q"), array("Q")
        hasher = blake2b(digest_size=16)
        self._file: BinaryIO = path.open("rb")
        offset = 0
        for number, line in enumerate(self._file, start=1):
            hasher.update(line)
            if line.strip():
                self._offsets.append(offset)
                self._lines.append(number)
            offset += len(line)
        self.fingerprint = hasher.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> SourceRow:
        self._file.seek(self._offsets[index])
        place = f"{self.name}:{self._lines[index]}"
        try:
            values = json.loads(self._file.readline())
        except ValueError as error:
            return SourceRow(place, {}, f"is not JSON: {error}")
        if not isinstance(values, dict):
            return SourceRow(place, {}, f"is a JSON {type(values).__name__}, expected an object")
        return SourceRow(place, values)

    def close(self) -> None:
        self._file.close()


class _CsvSource(PromptSource):
    """Comma- or tab-separated (by suffix), the first row names the columns; quoted cells may span lines."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self._offsets, self._lines = array("Q"), array("Q")
        self._header: list[str] = []
        self._file: BinaryIO = path.open("rb")
        try:
            self.fingerprint = self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> str:
        hasher = blake2b(digest_size=16)
        lines = _CountedLines(self._file, hasher.update, may_have_mark=True)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            start, line = lines.offset, lines.number + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise SettingsError(f"{self.name}:{line}: {error}; correct the file's quotes") from error
            except UnicodeDecodeError as error:
                raise SettingsError(f"{self.name}:{lines.number}: {error}; save the file as UTF-8") from error
            if cells is None:
                break
            if not self._header:
                self._header = cells
            elif cells:
                self._offsets.append(start)
                self._lines.append(line)
        return hasher.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def row(self, index: int) -> SourceRow:
        self._file.seek(self._offsets[index])
        cells = next(csv.reader(_CountedLines(self._file), delimiter=self._delimiter, strict=True))
        place = f"{self.name}:{self._lines[index]}"
        if len(cells) != len(self._header):
            return SourceRow(place, {}, f"has {len(cells)} cells, the header has {len(self._header)}")
        return SourceRow(place, dict(zip(self._header, cells, strict=True)))

    def columns(self) -> list[str]:
        return self._header

    def close(self) -> None:
        self._file.close()


class _CountedLines(Iterator[str]):
    """Decoded lines of a binary file, with the byte offset and number reached."""

    def __init__(
        self, file: BinaryIO, on_bytes: Callable[[bytes], object] | None = None, *, may_have_mark: bool = False
    ) -> None:
        self._file = file
        self._may_have_mark = may_have_mark
        self._on_bytes = on_bytes
        self.offset = 0
        self.number = 0

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        if self._on_bytes is not None:
            self._on_bytes(line)
        encoding = "utf-8-sig" if self._may_have_mark and self.offset == 0 else "utf-8"
        self.offset += len(line)
        self.number += 1
        return line.decode(encoding)


class _ParquetSource(PromptSource):
    """A Parquet file as an Arrow table (memory-mapped where its encoding allows)."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.name = path.name
        hasher = blake2b(digest_size=16)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
        self.fingerprint = hasher.hexdigest()
        try:
            self._table = pq.read_table(path, memory_map=True)
        except pa.ArrowException as error:
            raise SettingsError(f"{path.name!r} is not a readable Parquet file: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> SourceRow:
        return SourceRow(f"{self.name}:{index}", self._table.slice(index, 1).to_pylist()[0])

    def columns(self) -> list[str]:
        return list(self._table.column_names)


class _DatasetSource(PromptSource):
    """A Hugging Face dataset: a folder it was saved to, a folder of data files, or a name on the hub."""

    def __init__(self, source: str, path: Path, *, config: str | None, split: str) -> None:
        self.name = path.name if path.is_dir() else source
        self._rows = _load_dataset(source, path, config=config, split=split)
        self._split = split
        self.fingerprint = _arrow_fingerprint(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> SourceRow:
        return SourceRow(f"{self.name}[{self._split}]:{index}", dict(self._rows[index]))

    def columns(self) -> list[str]:
        return list(self._rows.column_names)


def _load_dataset(source: str, path: Path, *, config: str | None, split: str) -> Any:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise SettingsError(
            f"{source!r} is no file, and Hugging Face datasets are not installed: install rollstream[datasets]"
        ) from error
    datasets.disable_progress_bars()
    is_saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(str(path)) if is_saved else datasets.load_dataset(source, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        raise SettingsError(f"cannot load dataset {source!r} (config {config!r}, split {split!r}): {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise SettingsError(
                f"dataset {source!r} has no split {split!r}, only {sorted(loaded)}; choose with --split"
            )
        loaded = loaded[split]
    return loaded


def _arrow_fingerprint(rows: Any) -> str:
    """Digest of all values through Arrow's own serialisation: the same on every machine and from every cache."""
    import pyarrow as pa

    hasher = blake2b(digest_size=16)
    for table in rows.with_format("arrow").iter(batch_size=_ARROW_BATCH_ROWS):
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata(None).combine_chunks()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        hasher.update(sink.getvalue())
    hasher.update(repr(rows.column_names).encode())
    return hasher.hexdigest()
