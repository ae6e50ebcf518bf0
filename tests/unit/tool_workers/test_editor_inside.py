from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.sandbox.inside.editor import UNDO_DEPTH, Editor, occurrences


class Desk:
    """An editor on a folder of the test."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root / "workspace"
        self.root.mkdir()
        self._editor = Editor(str(self.root), str(root / "history"))
        self._capsys = capsys

    def do(self, command: str, path: str, **arguments: Any) -> str:
        try:
            self._editor.run({"command": command, "path": path, **arguments})
        except SystemExit as stop:
            if stop.code != 1:
                raise
        return self._capsys.readouterr().out

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_a_file_is_created_viewed_edited_and_undone(desk: Desk) -> None:
    assert "was created, 3 lines" in desk.do("create", "deep/a.txt", file_text="one\ntwo\nthree")
    assert desk.do("view", "deep/a.txt").endswith("     1\tone\n     2\ttwo\n     3\tthree")
    assert desk.do("view", "deep/a.txt", view_range=[2, -1]).endswith(":\n     2\ttwo\n     3\tthree")
    assert "     2\tTWO" in desk.do("str_replace", "deep/a.txt", old_str="two", new_str="TWO")
    desk.do("insert", "deep/a.txt", insert_line=0, insert_text="zero\n")
    desk.do("insert", "deep/a.txt", insert_line=4, insert_text="four")
    assert desk.text("deep/a.txt") == "zero\none\nTWO\nthree\nfour"
    assert "2 more can be" in desk.do("undo_edit", "deep/a.txt")
    desk.do("undo_edit", "deep/a.txt")
    desk.do("undo_edit", "deep/a.txt")
    assert desk.text("deep/a.txt") == "one\ntwo\nthree"
    assert desk.do("undo_edit", "deep/a.txt").startswith("Error: there is no edit")


def test_create_says_that_it_overwrites_and_can_be_undone(desk: Desk) -> None:
    desk.do("create", "a", file_text="old")
    assert "overwritten" in desk.do("create", "a", file_text="new")
    desk.do("undo_edit", "a")
    assert desk.text("a") == "old"


def test_a_replacement_needs_exactly_one_place(desk: Desk) -> None:
    desk.do("create", "a", file_text="x\ny\nx\n")
    assert "does not appear verbatim" in desk.do("str_replace", "a", old_str="z", new_str="")
    assert "appears 2 times" in (said := desk.do("str_replace", "a", old_str="x", new_str=""))
    assert "in lines 1, 3;" in said
    assert "the same" in desk.do("str_replace", "a", old_str="y", new_str="y")
    assert desk.text("a") == "x\ny\nx\n"
    desk.do("str_replace", "a", old_str="y\n")
    assert desk.text("a") == "x\nx\n"


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("view", {"path": "missing"}, "No such file"),
        ("view", {"path": "/etc/shadow-of-nobody"}, "No such file"),
        ("view", {"path": "file:///etc/passwd"}, "no URL"),
        ("view", {"path": "~root/.ssh"}, "~ is not expanded"),
        ("view", {"path": "a\0b"}, "NUL"),
        ("view", {"path": "/dev/zero"}, "not a regular file"),
        ("view", {"path": "pipe"}, "not a regular file"),
        ("view", {"path": "big"}, "at most 1048576"),
        ("view", {"path": "binary"}, "binary file"),
        ("view", {"path": "a", "view_range": [5, 9]}, "not within the 1 lines"),
        ("view", {"path": "a", "view_range": [1, 0]}, "not within"),
        ("view", {"path": ".", "view_range": [1, 2]}, "is a folder"),
        ("create", {"path": "b"}, "create needs file_text"),
        ("create", {"path": "folder", "file_text": "x"}, "folder"),
        ("create", {"path": "a/under", "file_text": "x"}, "Not a directory|File exists"),
        ("str_replace", {"path": "a"}, "needs old_str"),
        ("str_replace", {"path": "folder", "old_str": "x"}, "is a folder"),
        ("insert", {"path": "a", "insert_text": "x"}, "needs insert_line"),
        ("insert", {"path": "a", "insert_line": 9, "insert_text": "x"}, "insert_line is 9"),
        ("insert", {"path": "a", "insert_line": 0}, "needs new_str"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(command: str, arguments: dict[str, Any], reason: str, desk: Desk) -> None:
    desk.do("create", "a", file_text="text")
    (desk.root / "folder").mkdir()
    (desk.root / "big").write_bytes(b"x" * (1024 * 1024 + 1))
    (desk.root / "binary").write_bytes(b"\x7fELF\0\0")
    os.mkfifo(desk.root / "pipe")
    said = desk.do(command, **arguments)
    assert said.startswith("Error: ")
    assert any(each in said for each in reason.split("|")), said
    assert desk.text("a") == "text"


def test_strange_names_are_names(desk: Desk) -> None:
    name = "a; touch pwn; $(id) `id` -rf\n*"
    desk.do("create", name, file_text="x")
    assert os.listdir(desk.root) == [name]


def test_an_edit_goes_through_a_link_and_keeps_link_mode_and_foreign_bytes(desk: Desk) -> None:
    (desk.root / "real").write_bytes(b"caf\xe9 one\r\n")
    (desk.root / "real").chmod(0o750)
    (desk.root / "link").symlink_to("real")
    desk.do("str_replace", "link", old_str="one", new_str="two")
    assert (desk.root / "real").read_bytes() == b"caf\xe9 two\r\n"
    assert (desk.root / "link").is_symlink()
    assert (desk.root / "real").stat().st_mode & 0o777 == 0o750


def test_so_many_edits_are_remembered_and_no_more(desk: Desk) -> None:
    desk.do("create", "a", file_text="0")
    for number in range(1, 15):
        desk.do("create", "a", file_text=str(number))
    undone = [desk.do("undo_edit", "a") for _ in range(12)]
    assert [said.startswith("Error") for said in undone] == [False] * UNDO_DEPTH + [True, True]
    assert desk.text("a") == "4"


def test_a_folder_is_listed_two_levels_deep_without_hidden_files(desk: Desk) -> None:
    for path in ("top.txt", "one/two.txt", "one/two/three.txt", ".git/config", "one/.hidden"):
        desk.do("create", path, file_text="")
    listed = [os.path.relpath(line, desk.root) for line in desk.do("view", ".").splitlines()[1:]]
    assert listed == ["one", "one/two.txt", "one/two", "top.txt"]


@given(st.text("ab\n", max_size=30), st.text("ab\n", min_size=1, max_size=3))
def test_every_occurrence_is_found(text: str, part: str) -> None:
    assert occurrences(text, part) == [n for n in range(len(text)) if text.startswith(part, n)]
