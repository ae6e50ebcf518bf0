from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.sandbox.inside.archive import NOT_AN_ARCHIVE, TOO_LARGE, matches, pack, run, unpack

Mode = Literal["w:", "w:gz", "w:bz2", "w:xz"]


def tar_of(*members: tuple[tarfile.TarInfo, bytes], mode: Mode = "w:") -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode=mode) as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, mode
    return made


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_is_unpacked_with_modes_folders_and_links(mode: Mode, tmp_path: Path) -> None:
    content = tar_of(
        (member("a/run.sh", mode=0o755), b"#!/bin/sh"), (member("a/link", tarfile.SYMTYPE, "run.sh"), b""), mode=mode
    )
    unpack(str(tmp_path / "w"), content)
    assert (tmp_path / "w/a/link").read_bytes() == b"#!/bin/sh"
    assert os.access(tmp_path / "w/a/run.sh", os.X_OK)


def test_a_zip_is_unpacked(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zip_:
        zip_.writestr("folder/a.txt", "text")
        zip_.writestr("../out.txt", "text")
    unpack(str(tmp_path / "w"), archive.getvalue())
    assert (tmp_path / "w/folder/a.txt").read_text() == "text"
    assert not (tmp_path / "out.txt").exists()


def test_a_tar_of_our_own_is_nothing_else_whatever_its_first_name_begins_with(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zip_:
        zip_.writestr("test.py", "passes")
    names = ("PK\x03\x04.py", "BZh91AY.py", "\x1f\x8b\x08.py", "\udcff.py", "test.py")
    for name in names:
        folder = tmp_path / repr(name)
        content = tar_of((member(name), b"x"), (member("zz.py"), archive.getvalue()), (member("test.py"), b"fails"))
        run({"action": "unpack", "folder": str(folder)}, io.BytesIO(content))
        assert set(os.listdir(folder)) == {name, "zz.py", "test.py"}
        assert (folder / "test.py").read_bytes() == b"fails"


def test_nothing_else_is_taken_for_a_tar_of_our_own(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        run({"action": "unpack", "folder": str(tmp_path)}, io.BytesIO(tar_of((member("a"), b"x"), mode="w:gz")))
    assert stop.value.code == NOT_AN_ARCHIVE


def test_nothing_leaves_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = tar_of(
        (member("../out"), b"x"),
        (member("/tmp/rollstream-absolute"), b"x"),
        (member("up", tarfile.SYMTYPE, ".."), b""),
        (member("up/through"), b"x"),
        (member("etc", tarfile.SYMTYPE, "/etc"), b""),
        (member("hard", tarfile.LNKTYPE, "../out"), b""),
        (member("null", tarfile.CHRTYPE), b""),
        (member("good"), b"x"),
    )
    unpack(str(tmp_path / "w"), content)
    left_out = capsys.readouterr().out.splitlines()
    assert len(left_out) == 6
    assert sorted(os.listdir(tmp_path / "w")) == ["good", "up"]
    assert os.listdir(tmp_path / "w/up") == ["through"]
    assert os.listdir(tmp_path) == ["w"]


def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        unpack(str(tmp_path), b"no archive at all")
    assert stop.value.code == NOT_AN_ARCHIVE


def test_only_regular_files_that_match_are_packed(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (tmp_path / "pkg/deep").mkdir(parents=True)
    for name in ("solution.py", "pkg/a.py", "pkg/deep/b.py", "pkg/notes.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "pkg/secret.py").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pkg/pipe.py")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "pkg/socket.py"))
    pack(str(tmp_path), ["solution.py", "pkg/**/*.py"], 1000, 10)
    with tarfile.open(fileobj=io.BytesIO(capfdbinary.readouterr().out)) as packed:
        names = packed.getnames()
    assert names == ["pkg/a.py", "pkg/deep/b.py", "solution.py"]


@pytest.mark.parametrize("allowed", [(5, 10), (1000, 1)])
def test_too_much_is_refused(allowed: tuple[int, int], tmp_path: Path, capfdbinary: object) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("12345")
    with pytest.raises(SystemExit) as stop:
        pack(str(tmp_path), ["*"], *allowed)
    assert stop.value.code == TOO_LARGE


@given(st.lists(st.sampled_from(["a", "b", "c.py"]), min_size=1, max_size=4))
def test_two_stars_match_any_number_of_folders(names: list[str]) -> None:
    path = "/".join(names)
    assert matches(path, "**")
    assert matches(path, path)
    assert matches(path, "**/*.py") == path.endswith(".py")
    assert matches(path, "*") == (len(names) == 1)
