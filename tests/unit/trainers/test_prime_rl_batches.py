from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers.adapters.prime_rl import PrimeRlOptions
from rollstream.trainers.adapters.prime_rl_batches import deal, packed_micro_batches, rank_files
from rollstream.trainers.adapters.prime_rl_folders import newest_broadcast, policy_directory
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup

Make = Callable[..., Trajectory]
FIELDS = (
    "input_ids",
    "loss_mask",
    "advantages",
    "inference_logprobs",
    "position_ids",
    "sequence_lengths",
    "temperatures",
    "env_names",
    "seq_lens",
)
"""As prime-rl's source lists them; what is behind has defaults."""
PER_TOKEN = [name for name in FIELDS if name not in ("sequence_lengths", "seq_lens")]


def batch_of(*groups: tuple[Trajectory, ...]) -> TrainingBatch:
    return TrainingBatch(
        0, 1, 0, tuple(TrajectoryGroup(g[0].run_id, g[0].group_id, g[0].group_index, len(g), g) for g in groups)
    )


def decoded(content: bytes) -> list[dict[str, Any]]:
    return [dict(zip(FIELDS, fields, strict=True)) for fields in msgspec.msgpack.decode(content)]


def test_every_field_of_a_micro_batch_is_at_its_place(make_trajectory: Make) -> None:
    sample = Sample(
        prompt_ids=np.array([1, 2], dtype=np.int32),
        response_ids=np.array([10, 20, 12], dtype=np.int32),
        response_mask=np.array([1, 0, 1], dtype=np.uint8),
        response_logprobs=np.array([-0.5, 0.0, -0.25], dtype=np.float32),
        version_spans=[VersionSpan(0, 1, 4), VersionSpan(2, 3, 5)],
        turns=[],
    )
    long = msgspec.structs.replace(
        make_trajectory(0, 0, reward=1.0),
        samples=[sample],
        data_source="maths",
        sampling=SamplingParams(temperature=0.5),
    )
    short = msgspec.structs.replace(make_trajectory(0, 1, reward=0.0, tokens=1), data_source="all")
    (content,) = rank_files(batch_of((long, short)), ranks=1, seq_len=16, pad_to_multiple_of=4)
    assert decoded(content) == [
        {
            "input_ids": [1, 2, 10, 20, 12, 1, 2, 3, 100, 1, 1, 1],
            "loss_mask": [False, False, True, False, True, False, False, False, True, False, False, False],
            "advantages": [0, 0, 0.5, 0, 0.5, 0, 0, 0, -0.5, 0, 0, 0],
            "inference_logprobs": [0, 0, -0.5, 0, -0.25, 0, 0, 0, -0.5, 0, 0, 0],
            "position_ids": [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2],
            "sequence_lengths": [5, 7],
            "temperatures": [0.5] * 5 + [1.0] * 7,
            "env_names": ["maths"] * 5 + ["rollstream"] * 4 + [""] * 3,
            "seq_lens": [5, 7],
        }
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    tokens=st.lists(st.integers(1, 20), min_size=2, max_size=20), ranks=st.integers(1, 4), pad=st.sampled_from([1, 8])
)
def test_ranks_get_equally_many_micro_batches_and_each_sample_is_in_one(
    tokens: list[int], ranks: int, pad: int, make_trajectory: Make
) -> None:
    group = tuple(make_trajectory(0, n, tokens=count, reward=float(n)) for n, count in enumerate(tokens))
    files = rank_files(batch_of(group), ranks=ranks, seq_len=32, pad_to_multiple_of=pad)
    micro_batches = [decoded(content) for content in files]
    assert len(micro_batches) == ranks
    assert len({len(rank) for rank in micro_batches}) == 1
    trained = 0
    for micro_batch in (m for rank in micro_batches for m in rank):
        length = len(micro_batch["input_ids"])
        assert 0 < length <= 32
        assert length % pad == 0
        assert {len(micro_batch[name]) for name in PER_TOKEN} == {length}
        assert sum(micro_batch["seq_lens"]) == length
        assert not micro_batch["loss_mask"][0]
        trained += sum(micro_batch["loss_mask"])
    assert trained == sum(tokens), "what fills in has no loss"


def test_too_few_samples_are_filled_up_with_what_has_no_loss(make_trajectory: Make) -> None:
    first, filling = packed_micro_batches(batch_of((make_trajectory(0, 0),)), ranks=2, seq_len=16)
    assert first[0] == filling[0]
    assert any(first[1])
    assert not any(filling[1])
    assert not any(filling[2])


def test_a_sample_that_does_not_fit_is_left_out_and_named(
    make_trajectory: Make, caplog: pytest.LogCaptureFixture
) -> None:
    group = (make_trajectory(0, 0, tokens=40), make_trajectory(0, 1, tokens=4))
    (content,) = rank_files(batch_of(group), ranks=1, seq_len=16)
    assert [m["seq_lens"] for m in decoded(content)] == [[7]]
    assert group[0].trajectory_id in caplog.text
    assert rank_files(batch_of(group[:1]), ranks=1, seq_len=16) == []


def test_tokens_are_dealt_evenly(make_trajectory: Make) -> None:
    lengths = [29, 29, 9, 9]
    group = tuple(make_trajectory(0, n, tokens=count) for n, count in enumerate(lengths))
    dealt = deal(packed_micro_batches(batch_of(group), ranks=4, seq_len=32), 2)
    assert [sum(len(m[0]) for m in rank) for rank in dealt] == [44, 44]


@pytest.mark.skipif(
    find_spec("prime_rl") is None, reason="prime-rl is on no package registry; install it from its source"
)
def test_prime_rls_own_decoder_reads_the_file(make_trajectory: Make) -> None:
    micro_batch_type: Any = import_module("prime_rl.transports.rollouts.types").MicroBatch
    group = (make_trajectory(0, 0, reward=1.0), make_trajectory(0, 1, reward=0.0))
    (content,) = rank_files(batch_of(group), ranks=1, seq_len=16)
    (theirs,) = msgspec.msgpack.Decoder(list[micro_batch_type]).decode(content)
    (ours,) = decoded(content)
    assert {name: getattr(theirs, name) for name in FIELDS} == ours


def test_only_a_broadcast_that_is_marked_stable_counts(tmp_path: Path) -> None:
    assert newest_broadcast(tmp_path) is None
    for name in ("step_2", "step_10", "step_11", "step_x"):
        (tmp_path / name).mkdir()
        if name != "step_11":
            (tmp_path / name / "STABLE").touch()
    assert newest_broadcast(tmp_path) == 10


def test_a_policy_has_the_broadcast_weights_and_the_models_other_files(tmp_path: Path) -> None:
    broadcast, model, target = tmp_path / "step_1", tmp_path / "model", tmp_path / "policies" / "v1"
    for folder, files in {
        broadcast: ("STABLE", "model-00001-of-00001.safetensors"),
        model: ("config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"),
    }.items():
        folder.mkdir()
        for name in files:
            (folder / name).write_text(f"{folder.name}/{name}")
    policy_directory(broadcast, model, target)
    assert {p.name: p.read_text() for p in target.iterdir()} == {
        "config.json": "model/config.json",
        "tokenizer.json": "model/tokenizer.json",
        "model-00001-of-00001.safetensors": "step_1/model-00001-of-00001.safetensors",
    }


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ranks": 0}, "ranks=0"),
        ({"estimator": "best"}, "no advantage estimator 'best'"),
        ({"max_ahead": -1}, "max_ahead=-1"),
        ({"seq_len": 100, "pad_to_multiple_of": 8}, "no multiple"),
    ],
)
def test_wrong_options_say_what_is_wrong(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        PrimeRlOptions(output_dir=tmp_path, model_dir=tmp_path, policies=tmp_path, **wrong)
