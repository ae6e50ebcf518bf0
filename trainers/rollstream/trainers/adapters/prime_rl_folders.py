"""The folders that prime-rl's trainer reads from and writes to.

``rollouts/step_<n>/rank_<r>.bin`` is what it trains on in step n, ``broadcasts/step_<n>`` are its weights after it,
whole once they hold a file ``STABLE``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.progress_file import ProgressFile
from rollstream.transport.policy_manifest import ADAPTER_CONFIG, MANIFEST

STATE_FILE = "rollstream.json"
STABLE = "STABLE"
FIRST_STEP = 1
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".gguf")


def newest_broadcast(directory: Path) -> int | None:
    """The newest step whose weights are all there; None: there is none. Blocking."""
    return max((step for step, path in _steps(directory).items() if (path / STABLE).exists()), default=None)


def policy_directory(broadcast: Path, model_dir: Path, target: Path) -> None:
    """Make a directory that rollout workers can load: broadcast weights, and the model's other files. Blocking.

    prime-rl removes old broadcasts; weights are linked, so that the data stays, and copied where links do not reach. A
    broadcast LoRA adapter needs nothing of the model.
    """
    target.mkdir(parents=True)
    is_adapter = (broadcast / ADAPTER_CONFIG).exists()
    for path in () if is_adapter else sorted(model_dir.iterdir()):
        if path.is_file() and not path.name.endswith(WEIGHTS) and path.name != MANIFEST:
            shutil.copy(path, target / path.name)
    for path in sorted(broadcast.iterdir()):
        if path.is_file() and path.name != STABLE:
            _link(path, target / path.name)


def last_step(rollouts: Path, resume_step: int | None) -> int:
    """The step to go on after; what follows it is removed, with what was being written. Blocking.

    Raises:
        SettingsError: ``resume_step`` is not there.
    """
    for part in rollouts.glob("step_*.part"):
        shutil.rmtree(part)
    steps = _steps(rollouts)
    if resume_step is None:
        return max(steps, default=0)
    if resume_step >= FIRST_STEP and resume_step not in steps:
        raise SettingsError(
            f"resume_step={resume_step}: {str(rollouts)!r} has no step_{resume_step}, only {sorted(steps)!r}; go on "
            "from a checkpoint whose step is there"
        )
    for step in sorted(steps, reverse=True):
        if step > resume_step:
            shutil.rmtree(steps[step])
    return resume_step


def load_state(directory: Path) -> dict[str, Any]:
    """The stream's state after a step. Blocking.

    Raises:
        SettingsError: somebody else wrote this step.
    """
    state = ProgressFile(directory / STATE_FILE).load()
    if state is None:
        raise SettingsError(
            f"{str(directory)!r} has no {STATE_FILE}: prime-rl's own orchestrator wrote it; use another output_dir"
        )
    return state


def put_step(directory: Path, files: list[bytes], state: dict[str, Any]) -> None:
    """One file for each rank, and the stream's state after the step, all at once. Blocking."""
    part = directory.with_name(f"{directory.name}.part")
    part.mkdir(parents=True)
    contents = {f"rank_{rank}.bin": content for rank, content in enumerate(files)}
    contents[STATE_FILE] = json.dumps(state).encode()
    for name, content in contents.items():
        with (part / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    part.rename(directory)


def _steps(directory: Path) -> dict[int, Path]:
    return {
        int(match[1]): path
        for path in directory.glob("step_*")
        if (match := re.fullmatch(r"step_(\d+)", path.name)) and path.is_dir()
    }


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy(source, target)
