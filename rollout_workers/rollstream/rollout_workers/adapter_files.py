"""Whether a directory of a PEFT LoRA adapter fits the model an engine runs, read from the headers alone.

The layout is PEFT's: ``adapter_config.json`` and ``adapter_model.safetensors`` with, per adapted linear layer, ``A``
``[rank, in]`` and ``B`` ``[out, rank]``; the layer then computes ``W x + scale · B A x``.
"""

# safetensors is partly annotated:
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rollstream.rollout_workers.weight_files import Shape, listed, read_shapes
from rollstream.schemas.errors import PolicyFilesError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
OTHER_METHODS = ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
"""Of PEFT's configuration: what makes more of an adapter than two matrices per layer, and what no engine here runs."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Named initialisations that leave the base model's weights as they are."""


def check_adapter_fits(directory: Path, expected: Mapping[str, Shape], max_rank: int) -> None:
    """Nothing, if an engine whose model has the ``expected`` tensors can load the adapter.

    Raises:
        PolicyFilesError: it cannot; the message names what differs.
    """
    _check_config(directory, _read_config(directory))
    if not (directory / WEIGHTS).is_file():
        raise PolicyFilesError(f"the adapter {str(directory)!r} has no {WEIGHTS}: save it with save_pretrained of PEFT")
    shapes = read_shapes(directory)
    matrices, unknown = _by_layer(shapes)
    missing = sorted(layer for layer, pair in matrices.items() if len(pair) != 2)
    foreign = sorted(layer for layer in matrices if len(expected.get(f"{layer}.weight", ())) != 2)
    differing: list[str] = []
    ranks: list[int] = []
    for layer, pair in sorted(matrices.items()):
        if layer in missing or layer in foreign:
            continue
        out_size, in_size = expected[f"{layer}.weight"]
        rank = pair[A][0] if pair[A] else 0
        ranks.append(rank)
        if (pair[A], pair[B]) != ((rank, in_size), (out_size, rank)):
            differing.append(f"{layer} A {pair[A]} B {pair[B]} on {(out_size, in_size)}")
    parts = [
        *listed("tensors that are no LoRA matrices of linear layers", unknown),
        *listed("layers the model does not have", foreign),
        *listed("layers without one of A and B", missing),
        *listed("other shapes", differing),
    ]
    if parts:
        raise PolicyFilesError(f"the adapter {str(directory)!r} is not one of this model: {'; '.join(parts)}")
    if not ranks:
        raise PolicyFilesError(f"the adapter {str(directory)!r} adapts nothing: {WEIGHTS} holds no layer")
    if max(ranks) > max_rank:
        raise PolicyFilesError(
            f"the adapter {str(directory)!r} has rank {max(ranks)}, the engine takes up to {max_rank}: raise "
            "rollout_worker.engine.max_lora_rank"
        )


def write_null_adapter(directory: Path, shapes: Mapping[str, Shape]) -> Path:
    """An adapter of rank 1 that changes nothing, on the model's first projection. Blocking.

    Raises:
        PolicyFilesError: the model has no linear layer an adapter can be put on.
    """
    import numpy as np
    from safetensors.numpy import save_file

    name = next(
        (name for name, shape in sorted(shapes.items()) if name.endswith("proj.weight") and len(shape) == 2), ""
    )
    if not name:
        raise PolicyFilesError("the model has no linear layer called …proj: adapters cannot be put on it")
    out_size, in_size = shapes[name]
    layer = name.removesuffix(".weight")
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            f"{PREFIX}{layer}{A}": np.zeros((1, in_size), np.float32),
            f"{PREFIX}{layer}{B}": np.zeros((out_size, 1), np.float32),
        },
        directory / WEIGHTS,
    )
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": [layer.rpartition(".")[2]],
        "bias": "none",
    }
    (directory / CONFIG).write_text(json.dumps(config))
    return directory


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise PolicyFilesError(f"the directory {str(directory)!r} does not exist")
    path = directory / CONFIG
    if not path.is_file():
        raise PolicyFilesError(f"{str(directory)!r} is not a LoRA adapter: it has no {CONFIG}")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PolicyFilesError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise PolicyFilesError(f"{str(path)!r} does not hold a JSON object")
    return cast("dict[str, Any]", config)


def _check_config(directory: Path, config: Mapping[str, Any]) -> None:
    kind, rank, start = config.get("peft_type", "LORA"), config.get("r"), config.get("init_lora_weights", True)
    if kind != "LORA":
        raise PolicyFilesError(f"the adapter {str(directory)!r} is of kind {kind!r}: only 'LORA' can be served")
    if not isinstance(rank, int) or rank < 1:
        raise PolicyFilesError(f"the adapter {str(directory)!r} has r = {rank!r} in {CONFIG}: it must be at least 1")
    used = [name for name in OTHER_METHODS if config.get(name)]
    used += ["modules_to_save"] if config.get("modules_to_save") else []
    used += [f"bias = {config['bias']!r}"] if config.get("bias", "none") != "none" else []
    used += [f"init_lora_weights = {start!r}"] if isinstance(start, str) and start not in PLAIN_STARTS else []
    if used:
        raise PolicyFilesError(
            f"the adapter {str(directory)!r} uses {', '.join(used)}, which cannot be served beside the model: train a "
            "plain LoRA, or merge it and publish the whole model"
        )


def _by_layer(shapes: Mapping[str, Shape]) -> tuple[dict[str, dict[str, Shape]], list[str]]:
    """(layer → its matrices, names of everything else)."""
    matrices: dict[str, dict[str, Shape]] = {}
    unknown: list[str] = []
    for name, shape in sorted(shapes.items()):
        suffix = next((suffix for suffix in (A, B) if name.endswith(suffix)), "")
        if suffix and name.startswith(PREFIX) and len(shape) == 2:
            matrices.setdefault(name.removeprefix(PREFIX).removesuffix(suffix), {})[suffix] = shape
        else:
            unknown.append(name)
    return matrices, unknown
