"""Where verl has saved weights that rollout workers can load. Blocking."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

LATEST = "latest_checkpointed_iteration.txt"
"""Written by verl after everything else of a checkpoint."""
WEIGHTS = Path("actor") / "huggingface"


@dataclass(frozen=True, slots=True)
class SavedWeights:
    """A directory with a model in Hugging Face's format, and the step whose weights it holds."""

    step: int
    directory: Path


def newest_weights(checkpoints: Path) -> SavedWeights | None:
    """The weights of verl's newest whole checkpoint; None if there is none, or it has none in this format."""
    try:
        step = int((checkpoints / LATEST).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        logger.warning("%s holds no number, so nothing is published", checkpoints / LATEST)
        return None
    directory = checkpoints / f"global_step_{step}" / WEIGHTS
    if not any(directory.glob("*.safetensors")):
        logger.warning(
            "%s holds no weights: add hf_model to actor_rollout_ref.actor.checkpoint.save_contents, or rollout workers "
            "stay on the policy that they have",
            directory,
        )
        return None
    return SavedWeights(step, directory)
