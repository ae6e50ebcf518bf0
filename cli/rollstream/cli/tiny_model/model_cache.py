"""Makes the tiny model once per recipe and seed, and keeps it.

The folder's name holds the digest of the recipe's source: a changed recipe makes a new model. It appears by a rename,
complete or not at all; of two processes that make it at once the first wins, and both return the same folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from rollstream.schemas.errors import SettingsError, TransientError

RECIPE = Path(__file__).parent
TRAINING_DEADLINE_S = 900.0
NEEDED = ("torch", "transformers")
LAST_LINES = 15


def ensure_tiny_model(
    cache_dir: Path | None = None, seed: int = 0, progress: Callable[[str], None] | None = None
) -> Path:
    """The folder with model and tokenizer, trained now (half a minute of one core) unless it is there.

    Args:
        cache_dir: default: ``rollstream`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        seed: of the weights and of the demonstrations.
        progress: called with one line of text at a time while it is trained.

    Raises:
        SettingsError: torch or transformers is not installed.
        TransientError: the training failed or took longer than ``TRAINING_DEADLINE_S``.
    """
    home = cache_dir or default_cache_dir()
    target = home / f"tiny-model-{recipe_digest(seed)}"
    if (target / "config.json").exists():
        return target
    _require_libraries()
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tiny-model-", dir=home) as scratch:
        made = Path(scratch) / "model"
        _train_in_subprocess(made, seed, progress or _ignore)
        _move_unless_there(made, target)
    return target


def default_cache_dir() -> Path:
    """``rollstream`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rollstream"


def recipe_digest(seed: int) -> str:
    """16 hex digits of everything that decides what the model becomes."""
    digest = hashlib.sha256(f"seed {seed}\n".encode())
    for source in sorted(RECIPE.iterdir()):
        if source.suffix in {".py", ".jinja"} and source.name != Path(__file__).name:
            digest.update(f"{source.name}\n".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _require_libraries() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"the tiny model is trained with {' and '.join(missing)}, which this environment lacks: "
            "install the extra 'cpu' or 'gpu' of rollstream"
        )


def _train_in_subprocess(out: Path, seed: int, progress: Callable[[str], None]) -> None:
    command = [sys.executable, "-P", "-m", "rollstream.cli.tiny_model", str(out), "--seed", str(seed)]
    complaints = out.with_name("stderr")
    with complaints.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    deadline = threading.Timer(TRAINING_DEADLINE_S, process.kill)
    deadline.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            progress(line.rstrip())
        code = process.wait()
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    if code != 0:
        tail = "\n".join(complaints.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise TransientError(f"training the tiny model with {command!r} ended with code {code}:\n{tail}")


def _move_unless_there(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        if not (target / "config.json").exists():
            raise
        shutil.rmtree(made)


def _ignore(_: str) -> None:
    return
