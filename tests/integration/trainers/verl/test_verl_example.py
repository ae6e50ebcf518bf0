from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rollstream.trainers.adapters.verl import RollStreamManager

EXAMPLE = Path(__file__).parents[4] / "examples" / "verl_grpo.sh"


@pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed: the dependency group `trainers`")
def test_the_examples_overrides_fit_verls_configuration_and_the_manager_finds_its_part() -> None:
    script = Path(__file__).with_name("verl_configuration.py")
    command = [sys.executable, str(script), str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rollout = report["rollout"]
    assert (rollout["n"], rollout["val_n"], rollout["temperature"], rollout["response_length"]) == (8, 1, 1.0, 4096)
    assert rollout["checkpoint_dir"] == "checkpoints"
    assert (report["limits"]["max_turns"], report["limits"]["max_response_tokens"]) == (4, 4096)
    assert report["bootstrap"] == "kafka:9092"
    assert "hf_model" in report["saves"]
    module, _, name = report["manager"].rpartition(".")
    assert getattr(import_module(module), name) is RollStreamManager


def test_the_example_is_a_script_that_the_shell_can_read() -> None:
    assert subprocess.run(["bash", "-n", str(EXAMPLE)], check=False).returncode == 0
    assert EXAMPLE.stat().st_mode & 0o111
