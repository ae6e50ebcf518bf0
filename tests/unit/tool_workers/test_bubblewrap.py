from __future__ import annotations

from pathlib import Path

import pytest

from rollstream.tool_workers.sandbox.bubblewrap import (
    ENVIRONMENT,
    HIDDEN_FILES,
    SYNTHETIC_FILES,
    Interpreter,
    explain_failure,
    sandbox_command,
)
from rollstream.tool_workers.sandbox.seccomp_filter import SeccompPrograms
from rollstream.tool_workers.settings import SandboxSettings


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("usr/bin", "lib64", "root", "home"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    return tmp_path


def command(root: Path, interpreter: Interpreter = Interpreter("/usr/bin/python3")) -> tuple[list[str], list[bytes]]:  # noqa: B008 -- frozen
    contents: list[bytes] = []

    def descriptor(content: bytes) -> int:
        contents.append(content)
        return 50 + len(contents)

    line = sandbox_command(
        "/usr/bin/bwrap",
        interpreter,
        SandboxSettings(),
        seccomp=SeccompPrograms(b"allowing", b"asking", b"refusing", {101: "ptrace"}),
        supervisor=b"source",
        channel_fd=9,
        descriptor=descriptor,
        system_root=root,
    )
    return line, contents


def test_every_layer_is_asked_for(root: Path) -> None:
    line, _ = command(root)
    for option in (
        "--unshare-user",
        "--unshare-all",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--as-pid-1",
        "--seccomp",
    ):
        assert option in line
    assert line[line.index("--cap-drop") + 1] == "ALL"


def test_of_the_host_only_system_folders_are_shown_and_read_only(root: Path) -> None:
    line, _ = command(root)
    assert "--bind" not in line
    shown = [line[i + 1] for i, word in enumerate(line) if word.startswith("--ro-bind") and "data" not in word]
    assert shown == [str(root / "usr"), str(root / "lib64"), "/etc/alternatives", "/etc/ld.so.cache"]
    assert line[line.index("--symlink") : line.index("--symlink") + 3] == ["--symlink", "usr/bin", "/bin"]
    assert line.index("--remount-ro") > max(i for i, word in enumerate(line) if word == "--ro-bind-data")


def test_writable_folders_are_sized_memory(root: Path) -> None:
    line, _ = command(root)
    writable = [line[i - 2 : i + 2] for i, word in enumerate(line) if word == "--tmpfs"]
    sizes = {folder: int(size) for _, size, _, folder in writable}
    limits = SandboxSettings()
    assert sizes == {
        "/workspace": limits.workspace_bytes,
        "/tmp": limits.scratch_bytes,
        "/dev/shm": limits.scratch_bytes,
        "/proc/sys": 4096,
    }
    assert line[line.index("/proc/sys") + 1 :][:2] == ["--remount-ro", "/proc/sys"]


def test_filter_supervisor_and_files_come_through_descriptors(root: Path) -> None:
    line, contents = command(root)
    ours = [b"source", b"asking", b"refusing"]
    hidden = [b""] * len(HIDDEN_FILES)
    assert contents == [*(text.encode() for text in SYNTHETIC_FILES.values()), *ours, *hidden, b"allowing"]
    assert line[line.index("--seccomp") + 1] == str(50 + len(contents))


def test_the_environment_is_what_is_declared(root: Path) -> None:
    line, _ = command(root)
    assert {line[i + 1]: line[i + 2] for i, word in enumerate(line) if word == "--setenv"} == ENVIRONMENT


def test_an_interpreter_outside_of_usr_is_shown_too(root: Path) -> None:
    line, _ = command(root, Interpreter("/opt/python/bin/python3", "/opt/python"))
    place = line.index("/opt/python")
    assert line[place - 1 : place + 2] == ["--ro-bind", "/opt/python", "/opt/python"]
    assert "/opt/python/bin/python3" in line


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: No permissions to create new namespace, likely because", "unprivileged_userns_clone"),
        ("bwrap: Creating new namespace failed: Operation not permitted", "user namespaces"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "procMount"),
        ("bwrap: Unknown option --disable-userns", "0.8.0"),
        ("something new", "see the message"),
    ],
)
def test_a_failure_is_explained_with_its_remedy(complaint: str, remedy: str) -> None:
    assert remedy in explain_failure(complaint)
