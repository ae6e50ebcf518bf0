"""A trainer's checkpoint directory watched for weights that rollout workers can load.

For trainers that only write files: ``step_7``, ``global_step_7``, ``adapter_step_7`` or ``checkpoint-7`` becomes policy
version 7 once nothing in it has changed for a while.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG

Look = frozenset[tuple[str, int, int]]
"""Name, size in bytes and time of change (ns) of every file of a checkpoint."""

CONFIGS = frozenset({"config.json", "adapter_config.json"})
"""Of a whole model, and of a PEFT adapter on the model that workers began with."""
WEIGHTS_SUFFIX = ".safetensors"
MANIFEST = "manifest.json"
SETTLE_S = 10.0

_STEP = re.compile(r"(?:global_|adapter_)?(?:step|checkpoint)[_-](\d+)")


def step_of(name: str) -> int | None:
    """The step that a directory's name says; None if it says none."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def looks_at(directory: Path) -> dict[int, Look]:
    """Every checkpoint in ``directory`` as it looks now, by step; blocking. A missing directory holds none.

    Of several directories of one step the last by name counts: ``step_7`` before ``adapter_step_7``.
    """
    looks: dict[int, Look] = {}
    for entry in sorted(directory.glob("*")):
        if (step := step_of(entry.name)) is not None and entry.is_dir():
            looks[step] = _look(entry)
    return looks


def checkpoint_path(directory: Path, step: int) -> Path | None:
    """The directory of a step that ``looks_at`` has looked at; None if it is gone."""
    found = [entry for entry in sorted(directory.glob("*")) if step_of(entry.name) == step and entry.is_dir()]
    return found[-1] if found else None


@dataclass
class CheckpointWatch:
    """Says which checkpoint is whole and newer than the published version. Pure: told what was seen, and when.

    Attributes:
        settle_s: a checkpoint is whole when all its files have looked the same for this long.
    """

    settle_s: float = SETTLE_S
    _seen: dict[int, tuple[Look, float]] = field(default_factory=dict[int, tuple[Look, float]], init=False)

    def due(self, looks: Mapping[int, Look], version: int, now_s: float) -> int | None:
        """The newest whole checkpoint after ``version``, as its step."""
        self._seen = {step: self._since(step, look, now_s) for step, look in looks.items()}
        whole = [
            step
            for step, (look, since_s) in self._seen.items()
            if step > version and _holds_weights(look) and now_s - since_s >= self.settle_s
        ]
        return max(whole, default=None)

    def _since(self, step: int, look: Look, now_s: float) -> tuple[Look, float]:
        known = self._seen.get(step)
        return known if known is not None and known[0] == look else (look, now_s)


def _holds_weights(look: Look) -> bool:
    names = {name for name, _, _ in look}
    return bool(CONFIGS & names) and any(name.endswith(WEIGHTS_SUFFIX) for name in names)


def _look(directory: Path) -> Look:
    """Nothing, if the trainer removes the directory meanwhile."""
    files: set[tuple[str, int, int]] = set()
    try:
        for path in directory.rglob("*"):
            status = path.stat()
            if S_ISREG(status.st_mode) and path.name != MANIFEST:
                files.add((str(path.relative_to(directory)), status.st_size, status.st_mtime_ns))
    except FileNotFoundError:
        return frozenset()
    return frozenset(files)
