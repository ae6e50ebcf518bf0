"""Which run a demo is: a new one, or one that was stopped and goes on where it was.

Everything a run needs to go on lies in its folder: the broker's data, the trainer's checkpoint and policies, and
``run.json`` with what was chosen and how far it is, written anew every few seconds, whole or not at all. A lock tells
runs that go on in another process from those that were stopped; the kernel gives it back however the process ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from rollstream.schemas.errors import SettingsError

RECORD = "run.json"
LOCK = "lock"


class Session(msgspec.Struct, kw_only=True):
    """One time that the demo ran: when it began (unix seconds), and for how long."""

    started_at: float
    wall_s: float = 0.0


class RunRecord(msgspec.Struct, kw_only=True):
    """How far a run is.

    Attributes:
        steps_done: optimizer steps of its trainer.
        trained_staleness: greatest staleness that its trainer has told of.
        sessions: every time it ran, oldest first.
        is_finished: it has come to its end, the summary is there.
    """

    name: str
    seed: int
    steps: int
    steps_done: int = 0
    trained_staleness: int = 0
    sessions: list[Session] = msgspec.field(default_factory=list[Session])
    is_finished: bool = False

    @property
    def wall_s(self) -> float:
        """Of all sessions together."""
        return sum(session.wall_s for session in self.sessions)

    def save(self, folder: Path) -> None:
        """Replace the record of the folder."""
        part = folder / f".{RECORD}"
        with part.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self)))
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / RECORD)

    @classmethod
    def load(cls, folder: Path) -> RunRecord | None:
        """The record of a folder; None where there is none.

        Raises:
            SettingsError: it cannot be read.
        """
        try:
            return msgspec.json.decode((folder / RECORD).read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise SettingsError(f"{str(folder / RECORD)!r} cannot be read ({error}): remove {str(folder)!r}") from error


def choose_run(stopped: Sequence[RunRecord], wanted: RunRecord, *, is_fresh: bool) -> RunRecord:
    """The run to go on with: the newest of ``stopped`` with the same seed and steps, else the ``wanted`` one. Pure."""
    same = [run for run in stopped if (run.seed, run.steps) == (wanted.seed, wanted.steps) and not run.is_finished]
    if is_fresh or not same:
        return wanted
    return max(same, key=lambda run: run.sessions[-1].started_at if run.sessions else 0.0)


def check_same(found: RunRecord, wanted: RunRecord) -> None:
    """Whether a run that is there may go on under these options. Pure.

    Raises:
        SettingsError: they are other ones.
    """
    if (found.seed, found.steps) != (wanted.seed, wanted.steps):
        raise SettingsError(
            f"run {found.name!r} was begun with --seed {found.seed} --steps {found.steps}, not --seed {wanted.seed} "
            f"--steps {wanted.steps}: use the same, or another --name"
        )


def stopped_runs(runs_dir: Path) -> list[RunRecord]:
    """Runs below a folder that have not finished and that no living process goes on with."""
    found: list[RunRecord] = []
    for folder in sorted(path.parent for path in runs_dir.glob(f"*/{RECORD}") if not path.parent.is_symlink()):
        record = RunRecord.load(folder)
        if record is not None and not record.is_finished and not _is_locked(folder):
            found.append(record)
    return found


@contextmanager
def locked_run(folder: Path) -> Generator[None]:
    """The run is ours for the time of the block.

    Raises:
        SettingsError: another process goes on with it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(
                f"another process goes on with the run {str(folder)!r}: wait for it, or choose another --name"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _is_locked(folder: Path) -> bool:
    try:
        with locked_run(folder):
            return False
    except SettingsError:
        return True
