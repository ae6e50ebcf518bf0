from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rollstream.cli.demo.runs import RECORD, RunRecord, Session, choose_run, locked_run, stopped_runs
from rollstream.schemas.errors import SettingsError

WANTED = RunRecord(name="new", seed=0, steps=40)


def stopped(name: str, started_at: float, *, seed: int = 0, steps: int = 40, is_finished: bool = False) -> RunRecord:
    sessions = [Session(started_at=started_at, wall_s=5.0)]
    return RunRecord(name=name, seed=seed, steps=steps, sessions=sessions, is_finished=is_finished)


def test_the_newest_stopped_run_with_the_same_options_goes_on() -> None:
    runs = [stopped("old", 1.0), stopped("newest", 3.0), stopped("mid", 2.0)]
    assert choose_run(runs, WANTED, is_fresh=False).name == "newest"


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [stopped("other-seed", 1.0, seed=1), stopped("other-steps", 1.0, steps=3)],
        [stopped("done", 1.0, is_finished=True)],
    ],
    ids=["nothing was stopped", "other options", "finished"],
)
def test_without_such_a_run_a_new_one_begins(runs: list[RunRecord]) -> None:
    assert choose_run(runs, WANTED, is_fresh=False) is WANTED


def test_a_fresh_run_can_be_asked_for() -> None:
    assert choose_run([stopped("old", 1.0)], WANTED, is_fresh=True) is WANTED


def folder_of(runs_dir: Path, record: RunRecord) -> Path:
    folder = runs_dir / record.name
    folder.mkdir()
    record.save(folder)
    return folder


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = stopped("a", 1.5)
    folder = folder_of(tmp_path, record)
    assert RunRecord.load(folder) == record
    assert record.wall_s == 5.0
    assert RunRecord.load(tmp_path) is None
    (folder / RECORD).write_text("{")
    with pytest.raises(SettingsError, match=r"run\.json' cannot be read"):
        RunRecord.load(folder)


def test_only_runs_that_nobody_goes_on_with_are_stopped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, stopped("a", 1.0))
    folder_of(tmp_path, stopped("done", 1.0, is_finished=True))
    (tmp_path / "latest").symlink_to("a")
    with locked_run(folder):
        assert stopped_runs(tmp_path) == []
        with pytest.raises(SettingsError, match="another process goes on"), locked_run(folder):
            pytest.fail("two at once")
    assert [run.name for run in stopped_runs(tmp_path)] == ["a"]


def test_a_killed_process_gives_its_run_back(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, stopped("a", 1.0))
    program = (
        "import sys, time, pathlib\n"
        "from rollstream.cli.demo.runs import locked_run\n"
        "with locked_run(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert stopped_runs(tmp_path) == []
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
    assert [run.name for run in stopped_runs(tmp_path)] == ["a"]
