from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from process_sweep import remaining_processes, sweep

SLEEP = [sys.executable, "-c", "import sys, time; print(flush=True); time.sleep(60)"]


@pytest.mark.parametrize(("environment", "is_at_home"), [({"CHAOS_RUN": "marker-1"}, False), ({}, True)])
def test_what_is_marked_or_at_home_is_found_and_ended(
    environment: dict[str, str], is_at_home: bool, tmp_path: Path
) -> None:
    home = tmp_path if is_at_home else Path("/")
    with subprocess.Popen(SLEEP, env=environment, cwd=home, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert list(remaining_processes("marker-1", tmp_path)) == [process.pid]
        assert "time.sleep(60)" in remaining_processes("marker-1", tmp_path)[process.pid]
        assert remaining_processes("marker-2", tmp_path / "elsewhere") == {}
        sweep("marker-1", tmp_path)
        assert process.wait(timeout=10) < 0
    assert os.getpid() not in remaining_processes("marker-1", tmp_path)
