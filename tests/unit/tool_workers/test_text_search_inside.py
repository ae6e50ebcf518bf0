from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollstream.tool_workers.sandbox.inside.text_search import run

Find = Callable[..., str]


@pytest.fixture
def find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Find:
    (tmp_path / "src").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "src" / "a.py").write_text("import os\nx = 1 + 1\n# TODO(x): a.b\n")
    (tmp_path / "src" / "b.txt").write_text("axb\nimport nothing\n" + "import y" * 200)
    (tmp_path / ".git" / "config").write_text("import hidden")
    (tmp_path / "binary").write_bytes(b"import\0import")
    (tmp_path / "latin").write_bytes(b"caf\xe9 import")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")

    def search(pattern: str, **options: Any) -> str:
        given = {"path": ".", "glob": None, "regex": False, "max_results": 50, "root": str(tmp_path)} | options
        try:
            run({"pattern": pattern, **given}, io.BytesIO())
        except SystemExit as stop:
            if stop.code != 1:
                raise
        return capsys.readouterr().out

    return search


def test_lines_are_found_with_path_and_number_and_long_ones_are_cut(find: Find) -> None:
    lines = find("import").splitlines()
    assert lines[:2] == ["latin:1: caf\\xe9 import", "src/a.py:1: import os"]
    assert lines[2] == "src/b.txt:2: import nothing"
    assert lines[3].endswith(" ...")
    assert len(lines) == 4


def test_a_plain_pattern_is_no_expression(find: Find) -> None:
    assert find("a.b") == "src/a.py:3: # TODO(x): a.b\n"
    assert find("a.b", regex=True).splitlines() == ["src/a.py:3: # TODO(x): a.b", "src/b.txt:1: axb"]


def test_path_and_glob_narrow(find: Find) -> None:
    assert find("import", glob="*.py") == "src/a.py:1: import os\n"
    assert find("import", path="src/a.py") == "src/a.py:1: import os\n"


def test_more_matches_are_counted(find: Find) -> None:
    assert find("import", max_results=1).splitlines()[1].startswith("[3 more matches")


@pytest.mark.parametrize("pattern", ["--pre=sh", "-e", "-rf", "$(id)", "`id`", "\\d"])
def test_what_looks_like_an_option_is_a_pattern(pattern: str, find: Find) -> None:
    assert find(pattern) == "no matches\n"


def test_what_is_wrong_is_said(find: Find) -> None:
    assert find("(", regex=True).startswith("Error: pattern '('")
    assert find("x", path="-rf").startswith("Error: ")
    assert find("x", path="../../nowhere").startswith("Error: ")
    assert find("x", glob="-e") == "no matches\n"
