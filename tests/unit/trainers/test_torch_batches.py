# pyright: reportPrivateUsage=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch and transformers are annotated in part only)
from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

import rollstream.trainers.torch_data as torch_data
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrainingBatch, TrajectoryGroup, TrajectoryStream
from rollstream.trainers.torch_data import TrajectoryDataset, packed_tensors, padded_tensors, row_tensors

Make = Callable[..., Trajectory]


@pytest.fixture
def batch(make_trajectory: Make) -> TrainingBatch:
    """Three groups of two; rewards 0 and 1, and responses of 1 to 6 tokens."""
    groups = tuple(
        TrajectoryGroup("run", f"g{group}", group, 2, tuple(
            make_trajectory(group, member, reward=float(member), tokens=1 + 2 * group + member) for member in range(2)
        ))
        for group in range(3)
    )  # fmt: skip
    return TrainingBatch(0, 0, 0, groups)


def test_padded_tensors_are_the_arrays_with_a_mask_of_booleans(batch: TrainingBatch) -> None:
    tensors, arrays = padded_tensors(batch, 9, advantages="dr_grpo"), batch.to_padded(9, advantages="dr_grpo")
    assert tensors["response_mask"].dtype == torch.bool
    for name, tensor in tensors.items():
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), getattr(arrays, name))
    assert "advantages" not in padded_tensors(batch, 9)


def test_packed_tensors_are_rows_as_batches_of_one(batch: TrainingBatch) -> None:
    rows = packed_tensors(batch, 12, advantages="dr_grpo")
    arrays = batch.to_packed(12, advantages="dr_grpo")
    assert len(rows) == len(arrays) > 1
    for tensors, row in zip(rows, arrays, strict=True):
        assert tensors["input_ids"].tolist() == [row.input_ids.tolist()]
        assert tensors["position_ids"].tolist() == [row.position_ids.tolist()]
        assert tensors["response_mask"].tolist() == [row.response_mask.astype(bool).tolist()]
        assert tensors.get("advantages", torch.zeros(0)).tolist() == [row.token_advantages.tolist()]
        assert tensors["cu_seqlens"].dtype == torch.int32
        assert tensors["cu_seqlens"].tolist() == row.cu_seqlens.tolist()
        assert tensors["max_seqlen"] == max(row.sequence_lengths)


def test_on_the_cpu_tensors_are_the_memory_of_the_arrays(batch: TrainingBatch) -> None:
    packed = batch.to_packed(12)
    for row, tensors in zip(packed, row_tensors(packed), strict=True):
        for name in ("input_ids", "response_mask", "logprobs", "cu_seqlens", "rewards"):
            assert np.shares_memory(tensors[name].numpy(), getattr(row, name))


def test_they_come_to_the_device_that_is_named(batch: TrainingBatch) -> None:
    assert padded_tensors(batch, 0, device="meta")["input_ids"].device.type == "meta"
    assert packed_tensors(batch, 99, device=torch.device("meta"))[0]["logprobs"].device.type == "meta"


def test_a_model_gives_packed_samples_the_log_probabilities_of_padded_ones(batch: TrainingBatch) -> None:
    """Positions that begin again part the samples of a row for transformers: no token sees another sample."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    config._attn_implementation = "sdpa"
    model = LlamaForCausalLM(config).eval()

    def of_sampled_tokens(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scored = torch.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
        return scored[mask[:, 1:]]

    padded = padded_tensors(batch, 0)
    expected: dict[tuple[int, int], list[float]] = {}
    with torch.no_grad():
        logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        for n, key in enumerate(zip(padded["groups"].tolist(), padded["members"].tolist(), strict=True)):
            one = slice(n, n + 1)
            found = of_sampled_tokens(logits[one], padded["input_ids"][one], padded["response_mask"][one])
            expected[key] = found.tolist()
        rows = packed_tensors(batch, 24)
        assert len(rows) < len(expected)
        for row in rows:
            logits = model(input_ids=row["input_ids"], position_ids=row["position_ids"], use_cache=False).logits
            found = of_sampled_tokens(logits, row["input_ids"], row["response_mask"]).tolist()
            keys = zip(row["groups"].tolist(), row["members"].tolist(), strict=True)
            np.testing.assert_allclose(found, [value for key in keys for value in expected[key]], atol=1e-5)


def test_the_dataset_does_not_travel_to_other_processes() -> None:
    dataset = TrajectoryDataset(TrajectoryStream("127.0.0.1:1"), partial(padded_tensors, pad_token_id=0))
    assert isinstance(dataset, torch.utils.data.IterableDataset)
    with pytest.raises(SettingsError, match="num_workers=0"):
        pickle.dumps(dataset)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    from rollstream.trainers.torch_data import trajectory_dataset

    for module in (torch_data, trajectory_dataset):
        with pytest.raises(AttributeError, match="no attribute 'TrajectoryDatset'"):
            _ = module.TrajectoryDatset  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]  -- wrong on purpose
