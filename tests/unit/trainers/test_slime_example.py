"""`examples/slime_grpo.sh`, with a program in slime's place that shows what it is given."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from rollstream.trainers.adapters.slime import slime_settings
from rollstream.trainers.settings import TrainerSettings

EXAMPLE = Path(__file__).parents[3] / "examples" / "slime_grpo.sh"
SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """The arguments that slime gets, in whose folder ``rollstream.yaml`` then lies."""
    (tmp_path / "train.py").write_text(SHOW)
    environment = os.environ | {
        "PYTHON": sys.executable,
        "KAFKA": "kafka:9092",
        "MODEL": "/models/qwen",
        "MEGATRON": "/models/qwen-megatron",
        "MODEL_ARGS": "--num-layers 28 --hidden-size 1024",
    }
    command = [str(EXAMPLE), "--num-rollout", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def value(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def test_slime_is_told_functions_that_exist_and_what_the_user_added(given: list[str]) -> None:
    for option in ("--rollout-function-path", "--data-source-path", "--custom-reward-post-process-path"):
        module, _, name = value(given, option).rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
    assert given[:4] == ["--num-layers", "28", "--hidden-size", "1024"]
    assert given[-2:] == ["--num-rollout", "3"]
    groups, members = value(given, "--rollout-batch-size"), value(given, "--n-samples-per-prompt")
    assert int(value(given, "--global-batch-size")) == int(groups) * int(members)


def test_its_settings_are_ours(given: list[str], tmp_path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load((tmp_path / value(given, "--custom-config-path")).read_text())
    settings = slime_settings(SimpleNamespace(**content))
    assert settings.bootstrap == "kafka:9092"
    assert TrainerSettings.model_validate(settings.stream).max_staleness == 4
