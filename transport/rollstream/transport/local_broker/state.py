"""What is known about the broker of a data folder: a small file beside its data, and whether its process lives."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeGuard

STATE_FILE = "broker.json"


@dataclass(frozen=True)
class BrokerState:
    """The broker last started on a data folder; ``stays`` tells whether it outlives the process that started it."""

    kind: Literal["jars", "docker"]
    bootstrap: str
    data_dir: str
    stays: bool
    broker_port: int
    controller_port: int
    pid: int | None = None
    started_ticks: int | None = None
    fresh_archive: str | None = None
    """Start-up archive that Java writes when this broker stops in order; see ``startup_archive``."""
    container: str | None = None


def _is_object(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def read_state(data_dir: Path) -> BrokerState | None:
    """The state of a data folder; None where there is none or it cannot be read."""
    try:
        content: object = json.loads((data_dir / STATE_FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not _is_object(content):
        return None
    try:
        return BrokerState(**content)  # pyright: ignore[reportArgumentType]  -- our own file; a foreign one raises TypeError
    except TypeError:
        return None


def write_state(state: BrokerState) -> None:
    """Replace the state of its data folder, whole or not at all."""
    path = Path(state.data_dir) / STATE_FILE
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    fresh.rename(path)


def started_ticks(pid: int) -> int | None:
    """When a live process began, in clock ticks since boot; None for a dead one (a zombie is dead).

    Together with the pid it names a process for good: pids come round again.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = content.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def is_alive(pid: int | None, ticks: int | None) -> bool:
    """Whether exactly that process still runs; reaps it when it is a dead child of ours."""
    if pid is None:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    now = started_ticks(pid)
    return now is not None and (ticks is None or now == ticks)
