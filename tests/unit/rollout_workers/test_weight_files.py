from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rollstream.rollout_workers.weight_files import (
    check_model_folder,
    check_weights_fit,
    has_tied_head,
    read_shapes,
)
from rollstream.schemas.errors import PolicyFilesError, SettingsError

SHAPES = {"a": (2, 3), "b": (4,)}


def safetensors_bytes(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(position)


def folder(path: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(safetensors_bytes(shapes))
    return path


def test_the_same_tensors_fit(tmp_path: Path) -> None:
    check_weights_fit(folder(tmp_path / "m"), SHAPES)


def test_tensors_of_several_files_are_one_model(tmp_path: Path) -> None:
    sharded = folder(tmp_path / "m", {"a": (2, 3)})
    (sharded / "model-2.safetensors").write_bytes(safetensors_bytes({"b": (4,)}))
    assert read_shapes(sharded) == SHAPES


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"a": (2, 3)}, "missing tensors: b"),
        (SHAPES | {"c": (1,)}, "unknown tensors: c"),
        ({"a": (3, 2), "b": (4,)}, r"other shapes: a \(3, 2\) not \(2, 3\)"),
        ({f"x{n}": (1,) for n in range(5)}, "x0, x1, x2 and 2 more"),
    ],
)
def test_another_model_is_refused_and_the_difference_named(
    shapes: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(PolicyFilesError, match=words):
        check_weights_fit(folder(tmp_path / "m", shapes), SHAPES)


@pytest.mark.parametrize("kept_bytes", [0, 4, 8, 40, 100, len(safetensors_bytes(SHAPES)) - 1])
def test_a_torn_file_is_refused_wherever_it_is_torn(kept_bytes: int, tmp_path: Path) -> None:
    torn = folder(tmp_path / "m")
    (torn / "model.safetensors").write_bytes(safetensors_bytes(SHAPES)[:kept_bytes])
    with pytest.raises(PolicyFilesError, match="torn or corrupt"):
        check_weights_fit(torn, SHAPES)


@pytest.mark.parametrize("content", ["", "[]", "{", "nonsense"])
def test_a_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    (model / "config.json").write_text(content)
    with pytest.raises(PolicyFilesError, match=r"config\.json"):
        check_weights_fit(model, SHAPES)


def test_a_model_folder_that_is_none_is_a_wrong_setting(tmp_path: Path) -> None:
    for model in ("", str(tmp_path / "gone"), str(tmp_path)):
        with pytest.raises(SettingsError):
            check_model_folder(model)
    assert check_model_folder(str(folder(tmp_path / "m"))) == ({}, SHAPES)


@pytest.mark.parametrize(
    ("config", "names", "is_tied"),
    [
        ({"tie_word_embeddings": True}, ["lm_head.weight"], True),
        ({"tie_word_embeddings": False}, [], False),
        ({}, ["lm_head.weight"], False),
        ({}, ["embed"], True),
    ],
)
def test_tied_heads_are_recognised(config: dict[str, Any], names: list[str], is_tied: bool) -> None:
    assert has_tied_head(config, dict.fromkeys(names, (1,))) is is_tied
