"""The command line of one sandbox. Pure but for looking at which system folders exist."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.seccomp_filter import SeccompPrograms
from rollstream.tool_workers.settings import SandboxSettings

WORKSPACE = "/workspace"
SUPERVISOR_PATH = "/run/rollstream.pyz"
FILTER_PATH = "/run/asking.bpf"
FALLBACK_FILTER_PATH = "/run/refusing.bpf"
SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
SYSTEM_FILES = ("/etc/alternatives", "/etc/ld.so.cache")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": WORKSPACE,
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""All that programs in a sandbox find in their environment."""
SYNTHETIC_FILES = {
    "/etc/passwd": "agent:x:1000:1000::/workspace:/bin/bash\n",
    "/etc/group": "agent:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
HIDDEN_FILES = tuple(path for path in ("/proc/cmdline", "/proc/keys", "/proc/key-users") if os.path.exists(path))
"""Shown empty: what the host's kernel was started with, and names of keys of the worker's user."""
HIDDEN_FOLDERS = ("/proc/sys",)
"""Shown empty: some settings of a namespace's own can be changed from within, and make its supervisor fail."""
INSTALL_REMEDY = "install it (Debian, Ubuntu: `apt-get install bubblewrap`; Fedora: `dnf install bubblewrap`)"


@dataclass(frozen=True)
class Interpreter:
    """A Python the sandbox can see. ``root``: a folder outside of /usr that has to be shown at the same place."""

    path: str
    root: str | None = None


def find_bubblewrap() -> str:
    """Path of ``bwrap``.

    Raises:
        IsolationError: it is not installed.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise IsolationError(f"bubblewrap (bwrap) is missing: {INSTALL_REMEDY}")
    return found


def find_interpreter() -> Interpreter:
    """The system's Python, else the one this process runs on."""
    if os.access("/usr/bin/python3", os.X_OK):
        return Interpreter("/usr/bin/python3")
    executable = os.path.realpath(sys.executable)
    return Interpreter(executable, None if executable.startswith("/usr/") else sys.base_prefix)


def supervisor_limits(
    limits: SandboxSettings,
    *,
    workspace: str,
    memory_folders: tuple[str, ...],
    first_filter_path: str = "",
    filter_path: str = "",
    fallback_filter_path: str = "",
    asked_names: Mapping[int, str] | None = None,
) -> str:
    """The limits as the supervisor reads them (``inside/limits.py``)."""
    return json.dumps(
        {
            "workspace": workspace,
            "memory_folders": memory_folders,
            "memory_bytes": limits.memory_bytes,
            "address_space_bytes": limits.address_space_bytes,
            "file_bytes": limits.file_bytes,
            "open_files": limits.open_files,
            "processes": limits.processes,
            "files": limits.files,
            "sockets": limits.sockets,
            "output_bytes": limits.output_bytes,
            "flood_bytes": limits.flood_bytes,
            "call_cpu_s": limits.call_cpu_s,
            "session_cpu_s": limits.session_cpu_s,
            "first_filter_path": first_filter_path,
            "filter_path": filter_path,
            "fallback_filter_path": fallback_filter_path,
            "denied_names": dict(asked_names or {}),
        }
    )


def supervisor_command(interpreter: Interpreter, archive: str, channel: int | str, limits: str) -> list[str]:
    """Start of the supervisor: isolated from the environment and from the user's packages.

    ``channel``: a descriptor of a socket, or ``"stdio"``.
    """
    return [interpreter.path, "-I", "-B", archive, str(channel), limits]


def sandbox_command(
    bubblewrap: str,
    interpreter: Interpreter,
    limits: SandboxSettings,
    *,
    seccomp: SeccompPrograms,
    supervisor: bytes,
    channel_fd: int,
    descriptor: Callable[[bytes], int],
    system_root: Path = Path("/"),
) -> list[str]:
    """All of bwrap's arguments: what is not named here does not exist inside.

    ``descriptor`` opens a descriptor that bwrap will inherit and read the given bytes from.
    """
    line: list[str] = []
    line += [bubblewrap, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
    line += ["--clearenv", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000"]
    line += ["--disable-userns", "--cap-drop", "ALL"]
    line += _system_arguments(interpreter, system_root)
    line += ["--proc", "/proc", "--dev", "/dev"]
    for folder, size in memory_folders(limits).items():
        line += ["--size", str(size), "--tmpfs", folder]
    for path, text in SYNTHETIC_FILES.items():
        line += ["--perms", "0444", "--ro-bind-data", str(descriptor(text.encode())), path]
    line += ["--symlink", "/usr/share/zoneinfo/UTC", "/etc/localtime"]
    ours = {SUPERVISOR_PATH: supervisor, FILTER_PATH: seccomp.asking, FALLBACK_FILTER_PATH: seccomp.refusing}
    for path, content in ours.items():
        line += ["--perms", "0444", "--ro-bind-data", str(descriptor(content)), path]
    for path in HIDDEN_FILES:
        line += ["--perms", "0444", "--ro-bind-data", str(descriptor(b"")), path]
    for path in HIDDEN_FOLDERS:
        line += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    line += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORKSPACE]
    for name, value in ENVIRONMENT.items():
        line += ["--setenv", name, value]
    line += ["--seccomp", str(descriptor(seccomp.allowing)), "--"]
    limits_text = supervisor_limits(
        limits,
        workspace=WORKSPACE,
        memory_folders=tuple(memory_folders(limits)),
        filter_path=FILTER_PATH,
        fallback_filter_path=FALLBACK_FILTER_PATH,
        asked_names=seccomp.asked_names,
    )
    return line + supervisor_command(interpreter, SUPERVISOR_PATH, channel_fd, limits_text)


def memory_folders(limits: SandboxSettings) -> Mapping[str, int]:
    """Writable folders, all in memory, and their sizes in bytes."""
    return {WORKSPACE: limits.workspace_bytes, "/tmp": limits.scratch_bytes, "/dev/shm": limits.scratch_bytes}


def _system_arguments(interpreter: Interpreter, root: Path) -> list[str]:
    line = ["--ro-bind", str(root / "usr"), "/usr"]
    for name in SYSTEM_FOLDERS:
        folder = root / name
        if folder.is_symlink():
            line += ["--symlink", os.readlink(folder), f"/{name}"]
        elif folder.is_dir():
            line += ["--ro-bind", str(folder), f"/{name}"]
    for path in SYSTEM_FILES:
        line += ["--ro-bind-try", path, path]
    if interpreter.root is not None:
        line += ["--ro-bind", interpreter.root, interpreter.root]
    return line


def explain_failure(stderr: str) -> str:
    """What bwrap's complaint means and what to do about it."""
    text = stderr.lower()
    if "disable-userns" in text or "unknown option" in text:
        return "this bubblewrap is too old: version 0.8.0 or later is needed"
    if "uid map" in text or ("permitted" in text and "namespace" in text) or "no permissions to create" in text:
        return (
            "user namespaces are not allowed here: set `kernel.apparmor_restrict_unprivileged_userns=0` or an AppArmor "
            "profile for bwrap (Ubuntu), `kernel.unprivileged_userns_clone=1` (Debian), or in a container a seccomp "
            "profile that permits them"
        )
    if "mount proc" in text:
        return (
            "a private /proc cannot be mounted: in Kubernetes use `procMount: Unmasked` with `hostUsers: false`, in "
            "Docker `--security-opt systempaths=unconfined`"
        )
    return "see the message of bwrap"
