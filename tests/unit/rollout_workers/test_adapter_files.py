"""Which directories of LoRA adapters an engine may be given, and which of them it still needs."""

# safetensors is partly annotated:
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.adapter_files import check_adapter_fits, write_null_adapter
from rollstream.rollout_workers.adapter_shelf import AdapterShelf
from rollstream.rollout_workers.engine import AS_IT_CAME, PolicyChangedError, PolicyRef
from rollstream.rollout_workers.weight_files import read_shapes
from rollstream.schemas.errors import PolicyFilesError

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
MODEL = {f"{Q}.weight": (6, 4), f"{DOWN}.weight": (4, 8), "model.norm.weight": (4,), "model.embed.weight": (9, 4)}


def adapter(folder: Path, tensors: Mapping[str, tuple[int, ...]], **config: Any) -> Path:
    """A directory as PEFT saves it, with tensors of these shapes; names without PEFT's prefix."""
    from safetensors.numpy import save_file

    folder.mkdir()
    arrays = {f"base_model.model.{name}": np.zeros(shape, np.float32) for name, shape in tensors.items()}
    save_file(arrays, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


def matrices(layer: str, rank: int, in_size: int, out_size: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.lora_A.weight": (rank, in_size), f"{layer}.lora_B.weight": (out_size, rank)}


GOOD = matrices(Q, 2, 4, 6) | matrices(DOWN, 2, 8, 4)


def test_an_adapter_of_the_model_fits_and_ranks_may_differ_by_layer(tmp_path: Path) -> None:
    check_adapter_fits(adapter(tmp_path / "a", GOOD), MODEL, max_rank=2)
    mixed = matrices(Q, 1, 4, 6) | matrices(DOWN, 3, 8, 4)
    check_adapter_fits(adapter(tmp_path / "b", mixed, rank_pattern={"down_proj": 3}), MODEL, max_rank=3)


@pytest.mark.parametrize(
    ("tensors", "config", "names"),
    [
        (matrices(Q, 8, 4, 6), {}, ["rank 8", "up to 2", "max_lora_rank"]),
        (matrices(Q, 2, 5, 6), {}, ["other shapes", Q, "(2, 5)", "(6, 4)"]),
        (matrices("model.layers.7.self_attn.q_proj", 2, 4, 6), {}, ["does not have", "layers.7"]),
        (matrices("model.norm", 2, 4, 4), {}, ["does not have", "model.norm"]),
        ({f"{Q}.lora_A.weight": (2, 4)}, {}, ["without one of A and B", Q]),
        ({"model.embed.lora_embedding_A": (2, 9)}, {}, ["no LoRA matrices", "lora_embedding_A"]),
        ({}, {}, ["adapts nothing"]),
        (GOOD, {"use_dora": True}, ["use_dora", "plain LoRA"]),
        (GOOD, {"modules_to_save": ["lm_head"]}, ["modules_to_save"]),
        (GOOD, {"bias": "all"}, ["bias = 'all'"]),
        (GOOD, {"init_lora_weights": "pissa"}, ["init_lora_weights = 'pissa'"]),
        (GOOD, {"peft_type": "IA3"}, ["kind 'IA3'"]),
        (GOOD, {"r": 0}, ["r = 0"]),
    ],
)
def test_what_differs_is_named(
    tmp_path: Path, tensors: Mapping[str, tuple[int, ...]], config: dict[str, Any], names: list[str]
) -> None:
    directory = adapter(tmp_path / "odd", tensors, **config)
    with pytest.raises(PolicyFilesError) as caught:
        check_adapter_fits(directory, MODEL, max_rank=2)
    assert all(name in str(caught.value) for name in [str(directory), *names])


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors", None])
def test_a_missing_or_torn_file_is_named(tmp_path: Path, missing: str | None) -> None:
    directory = adapter(tmp_path / "odd", GOOD)
    if missing is None:
        shutil.rmtree(directory)
    else:
        (directory / missing).unlink()
    with pytest.raises(PolicyFilesError, match=missing or "does not exist"):
        check_adapter_fits(directory, MODEL, max_rank=2)


def test_a_torn_adapter_is_refused(tmp_path: Path) -> None:
    directory = adapter(tmp_path / "torn", GOOD)
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(PolicyFilesError, match="torn or corrupt"):
        check_adapter_fits(directory, MODEL, max_rank=2)


def test_the_adapter_that_changes_nothing_fits_and_is_all_zeros(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    directory = write_null_adapter(tmp_path / "null", MODEL)
    check_adapter_fits(directory, MODEL, max_rank=1)
    assert len(read_shapes(directory)) == 2
    assert not any(array.any() for array in load_file(directory / "adapter_model.safetensors").values())
    with pytest.raises(PolicyFilesError, match="no linear layer"):
        write_null_adapter(tmp_path / "none", {"model.norm.weight": (4,)})


POLICIES = [PolicyRef(1, version) for version in range(1, 5)]


@given(st.lists(st.tuples(st.sampled_from(["serve", "hold", "take", "back"]), st.sampled_from(POLICIES)), max_size=60))
def test_an_adapter_stays_exactly_as_long_as_somebody_needs_it(steps: list[tuple[str, PolicyRef]]) -> None:
    shelf = AdapterShelf()
    loaded: set[PolicyRef] = set()
    numbers: set[int] = set()
    uses = dict.fromkeys(POLICIES, 0)
    for step, policy in steps:
        if step in ("serve", "hold") and policy not in loaded:
            new = shelf.prepare(policy, Path(str(policy)))
            assert new.number not in numbers
            numbers.add(new.number)
            shelf.put(new)
            loaded.add(policy)
        if step == "serve":
            shelf.serving = policy
        elif step == "hold":
            shelf.hold(policy)
            uses[policy] += 1
        elif step == "take" and policy not in loaded:
            with pytest.raises(PolicyChangedError):
                shelf.take(policy, "r")
        elif step == "take":
            assert shelf.take(policy, "r").policy == policy
            uses[policy] += 1
        elif uses[policy]:
            shelf.give_back(policy)
            uses[policy] -= 1
        loaded -= {adapter.policy for adapter in shelf.pop_idle()}
        assert loaded == {each for each in POLICIES if uses[each]} | ({shelf.serving} - {AS_IT_CAME})
        assert shelf.in_use() == {each for each in POLICIES if uses[each]}
    assert shelf.take(None, "r").policy == shelf.serving
    assert shelf.take(AS_IT_CAME, "r").path is None
