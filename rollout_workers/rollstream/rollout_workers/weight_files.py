"""Whether a directory of weights fits the model an engine runs, read from the headers alone.

An engine that fails in the middle of loading is lost, so everything that can be known before is checked before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rollstream.schemas.errors import PolicyFilesError, SettingsError

Shape = tuple[int, ...]
HEADER_LENGTH_BYTES = 8
LARGEST_HEADER_BYTES = 100_000_000
ITEM_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
SHOWN = 3


def read_config(directory: Path) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        PolicyFilesError: directory or file is missing, or it is not a JSON object.
    """
    if not directory.is_dir():
        raise PolicyFilesError(f"the directory {str(directory)!r} does not exist")
    path = directory / "config.json"
    if not path.is_file():
        raise PolicyFilesError(f"{str(directory)!r} is not a model: it has no config.json")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PolicyFilesError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise PolicyFilesError(f"{str(path)!r} does not hold a JSON object")
    return cast("dict[str, Any]", config)


def read_shapes(directory: Path) -> dict[str, Shape]:
    """Shape of every tensor in the safetensors files of a directory, each file checked for completeness.

    Raises:
        PolicyFilesError: there is none, or one is torn or corrupt.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise PolicyFilesError(f"{str(directory)!r} has no weights: no *.safetensors file")
    shapes: dict[str, Shape] = {}
    for file in files:
        try:
            shapes |= _read_file(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PolicyFilesError(f"the weights {str(file)!r} are torn or corrupt: {error}") from error
    return shapes


def check_weights_fit(directory: Path, expected: Mapping[str, Shape]) -> None:
    """Nothing, if the engine can load the directory in place of a model with the ``expected`` tensors.

    Raises:
        PolicyFilesError: it cannot; the message names what differs.
    """
    read_config(directory)
    shapes = read_shapes(directory)
    missing = sorted(expected.keys() - shapes.keys())
    surplus = sorted(shapes.keys() - expected.keys())
    differing = sorted(name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name])
    if missing or surplus or differing:
        parts = [
            *listed("missing tensors", missing),
            *listed("unknown tensors", surplus),
            *listed("other shapes", [f"{name} {shapes[name]} not {expected[name]}" for name in differing]),
        ]
        raise PolicyFilesError(f"the weights in {str(directory)!r} are of another model: {'; '.join(parts)}")


def has_tied_head(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> bool:
    """Whether output layer and embeddings are one tensor."""
    tied = config.get("tie_word_embeddings")
    return "lm_head.weight" not in shapes if tied is None else bool(tied)


def check_model_folder(model: str) -> tuple[dict[str, Any], dict[str, Shape]]:
    """Config and tensor shapes of the model an engine is to start with.

    Raises:
        SettingsError: the folder is missing or is not a model.
    """
    if not model:
        raise SettingsError("no model is set: give the folder of a model (`model`)")
    try:
        return read_config(Path(model)), read_shapes(Path(model))
    except PolicyFilesError as error:
        raise SettingsError(f"the model cannot be used: {error}") from error


def _read_file(file: Path) -> dict[str, Shape]:
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        header_bytes = int.from_bytes(opened.read(HEADER_LENGTH_BYTES), "little")
        data_bytes = size_bytes - HEADER_LENGTH_BYTES - header_bytes
        if header_bytes > LARGEST_HEADER_BYTES or data_bytes < 0:
            raise ValueError(f"{size_bytes} bytes are too few for its header")
        header: dict[str, dict[str, Any]] = json.loads(opened.read(header_bytes))
    shapes: dict[str, Shape] = {}
    last = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        start, end = tensor["data_offsets"]
        shape = tuple(int(length) for length in tensor["shape"])
        bits = ITEM_BITS.get(tensor["dtype"])
        if bits is not None and (end - start) * 8 != math.prod(shape) * bits:
            raise ValueError(f"tensor {name!r} holds {end - start} bytes, its shape {shape} says otherwise")
        shapes[name] = shape
        last = max(last, end)
    if data_bytes != last:
        raise ValueError(f"it holds {data_bytes} bytes of tensors, its header says {last}")
    return shapes


def listed(what: str, names: list[str]) -> list[str]:
    """A part of a message: what it is about and the first of the names; nothing without any."""
    if not names:
        return []
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return [f"{what}: {', '.join(names[:SHOWN])}{more}"]
