from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.producers.prompt_sources import PromptSource, open_source
from rollstream.schemas.errors import SettingsError

ROWS = [{"question": f"What is {n} + {n}?", "answer": f"It is twice {n}.\n#### {2 * n}"} for n in range(20)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  -- pyarrow is not annotated
    return path


def save_dataset(path: Path, rows: list[dict[str, Any]]) -> Path:
    import datasets

    dataset = datasets.Dataset.from_list(rows)  # pyright: ignore[reportUnknownMemberType]  -- datasets is partly annotated
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(3))}).save_to_disk(str(path))  # pyright: ignore[reportUnknownMemberType]  -- as above
    return path


def rows_of(source: PromptSource) -> list[dict[str, Any]]:
    try:
        return [source.row(index).values for index in range(len(source))]
    finally:
        source.close()


def fingerprint_of(path: Path) -> str:
    source = open_source(str(path))
    source.close()
    return source.fingerprint


@pytest.mark.parametrize("name", ["data.jsonl", "data.ndjson", "data.csv", "data.tsv", "data.parquet", "saved"])
def test_every_kind_of_source_gives_the_same_rows_in_any_order(tmp_path: Path, name: str) -> None:
    writers = {"csv": write_csv, "tsv": write_csv, "parquet": write_parquet, "saved": save_dataset}
    path = writers.get(name.rpartition(".")[2], write_jsonl)(tmp_path / name, ROWS)
    source = open_source(str(path))
    assert source.columns() == ["question", "answer"]
    assert [source.row(index).values for index in (19, 0, 7)] == [ROWS[19], ROWS[0], ROWS[7]]
    assert rows_of(source) == ROWS


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet", "saved"])
def test_the_fingerprint_follows_the_content_and_not_the_name(tmp_path: Path, name: str) -> None:
    writers = {"csv": write_csv, "parquet": write_parquet, "saved": save_dataset}
    write = writers.get(name.rpartition(".")[2], write_jsonl)
    first, same, other = (tmp_path / f"{kind}-{name}" for kind in ("first", "same", "other"))
    write(first, ROWS)
    write(same, ROWS)
    write(other, [*ROWS[:-1], {**ROWS[-1], "answer": "#### 39"}])
    prints = [fingerprint_of(path) for path in (first, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_lines_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "a"}\n\n{"question": "b"}\nnonsense\n[1]\n{"question": "c"}')
    source = open_source(str(path))
    found = [source.row(index) for index in range(len(source))]
    assert [row.place for row in found] == [f"data.jsonl:{line}" for line in (1, 3, 4, 5, 6)]
    assert found[2].problem is not None
    assert found[2].problem.startswith("is not JSON")
    assert found[3].problem == "is a JSON list, expected an object"
    assert found[4].values == {"question": "c"}
    source.close()


def test_a_csv_cell_may_span_lines_and_a_short_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\ufeffquestion,answer\n"two\nlines, ""quoted""",1\nonly one cell\nlast,3\n', encoding="utf-8")
    source = open_source(str(path))
    assert source.columns() == ["question", "answer"]
    assert source.row(0).values == {"question": 'two\nlines, "quoted"', "answer": "1"}
    assert source.row(1).place == "data.csv:4"
    assert source.row(1).problem == "has 1 cells, the header has 2"
    assert (source.row(2).place, source.row(2).values["question"]) == ("data.csv:5", "last")
    source.close()


cells = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=50)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8))
def test_any_csv_that_python_writes_is_read_back_by_row_number(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    expected = [{"question": f"q{question}", "answer": answer} for question, answer in rows]
    source = open_source(str(write_csv(tmp_path_factory.mktemp("csv") / "data.csv", expected)))
    assert [source.row(index).values for index in reversed(range(len(rows)))] == expected[::-1]
    source.close()


def test_a_broken_quote_is_found_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('question,answer\nfine,1\n"never closed,2\n')
    with pytest.raises(SettingsError, match=r"data\.csv:3: .*correct the file's quotes"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "there is no file"),
        ("empty.jsonl", b"\n", "has no rows"),
        ("header.csv", b"question,answer\n", "has no rows"),
        ("data.xlsx", b"x", r"has the suffix '\.xlsx', expected one of"),
        ("data.parquet", b"not parquet", "is not a readable Parquet file"),
        ("latin.csv", b"question\n\xff\n", "save the file as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        open_source(str(path))


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = save_dataset(tmp_path / "saved", ROWS)
    assert len(open_source(str(path), split="test")) == 3
    with pytest.raises(SettingsError, match=r"no split 'validation', only \['test', 'train'\]"):
        open_source(str(path), split="validation")


def test_a_folder_without_data_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot load dataset"):
        open_source(str(tmp_path))
