"""One line per generation this worker begins: what chaos runs count, and what shows which work was repeated."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rollstream.schemas.errors import SettingsError


class OnGeneration(Protocol):
    """Hears of every generation before it begins."""

    def __call__(self, *, trajectory_id: str, attempt: int, birth: int, path: str) -> None:
        """Nothing may be awaited: that the journal does not hold it and its beginning are one step."""
        ...


def unheard(*, trajectory_id: str, attempt: int, birth: int, path: str) -> None:
    """For workers that keep no such log."""


@contextmanager
def generation_log(path: Path | None, worker_id: str) -> Generator[OnGeneration]:
    """Appends JSON lines to ``path``; several workers may share it. None: nothing is kept.

    Raises:
        SettingsError: the file cannot be written.
    """
    if path is None:
        yield unheard
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SettingsError(f"rollout_worker.generation_log {str(path)!r} cannot be written: {error}") from error

    def write(*, trajectory_id: str, attempt: int, birth: int, path: str) -> None:
        line = {
            "trajectory_id": trajectory_id,
            "attempt": attempt,
            "birth": birth,
            "path": path,
            "worker": worker_id,
            "pid": os.getpid(),
            "at": time.time(),
        }
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    try:
        yield write
    finally:
        os.close(descriptor)
