"""Ends what a run may have left behind: children of processes that were killed before they could end them."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def remaining_processes(marker: str, folder: Path) -> dict[int, str]:
    """Command lines of living processes with the marker in their environment or their home in the folder.

    Sandboxes have an empty environment. This process is left out.
    """
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                is_at_home = (entry / "cwd").readlink().is_relative_to(folder)
                if is_at_home or marker.encode() in (entry / "environ").read_bytes():
                    words = (entry / "cmdline").read_bytes().decode(errors="replace")
                    found[int(entry.name)] = words.replace("\0", " ").strip()
    return found


def sweep(marker: str, folder: Path) -> None:
    """Kill them all."""
    for pid in remaining_processes(marker, folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGKILL)
