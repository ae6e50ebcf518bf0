"""Bytes per token on the wire and codec rates, beside the field layouts of two other systems.

The layouts are re-created from their published field lists: a positional msgpack struct of Python lists per sample
(prime-rl), and one JSON object of lists read back through a validating model (PipelineRL). All decode to the same
numpy arrays; rates are the best of several rounds, all in one process, interleaved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from figures import Figure, figure
from pydantic import BaseModel

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.ids import group_id, trajectory_id
from rollstream.schemas.trajectories import Sample, Trajectory, Turn, VersionSpan

COMMAND = "python benchmarks/wire.py"
VOCABULARY = 150_000
RESPONSE_TOKENS = 5_000
PROMPT_TOKENS = 300
TOKENS = RESPONSE_TOKENS + PROMPT_TOKENS
TRAJECTORIES = 16
ROUNDS = 15
Arrays = tuple[Any, ...]


class PackedSample(msgspec.Struct, array_like=True, omit_defaults=True):
    """The fields of a prime-rl training sample, in its order of meaning."""

    token_ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    temperatures: list[float]
    advantages: list[float]
    env_name: str = ""
    reward: float = 0.0


class TrainingText(BaseModel):
    """The fields of a PipelineRL training text."""

    text: str
    n_predicted: int
    reward: float
    logprobs: list[float]
    ref_logprobs: list[float]
    input_ids: list[int]
    labels: list[int]
    group_id: str
    finished: bool
    prompt_tokens: int
    output_tokens: int
    metadata: dict[str, int]


@dataclass(frozen=True)
class Codec:
    """One way to put a trajectory on the wire and to get its arrays back."""

    name: str
    encode: Callable[[Trajectory], tuple[bytes, Any]]
    decode: Callable[[bytes, Any], Arrays]


def make_trajectory(index: int) -> Trajectory:
    """A realistic trajectory: ten or so turns of 100 to 400 sampled tokens, 40 % observations, Zipf-distributed ids."""
    random = np.random.default_rng(index)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    names = np.random.default_rng(12345).permutation(VOCABULARY)
    ids = names[random.choice(VOCABULARY, size=TOKENS, p=weights / weights.sum())].astype(np.int32)
    mask = np.zeros(RESPONSE_TOKENS, dtype=np.uint8)
    turns: list[Turn] = []
    start = 0
    while start < RESPONSE_TOKENS:
        end = min(RESPONSE_TOKENS, start + int(random.integers(100, 400)))
        mask[start:end] = 1
        turns.append(
            Turn(start=start, end=end, finish_reason="stop", tool_calls=1, generate_s=random.random(), tool_s=0.25)
        )
        start = end + (end - start) * 2 // 3
    certain = random.random(RESPONSE_TOKENS) < 0.3
    logprobs = -np.where(certain, random.exponential(1e-3, RESPONSE_TOKENS), random.exponential(0.7, RESPONSE_TOKENS))
    return Trajectory(
        run_id="bench",
        trajectory_id=trajectory_id("bench", index, 0),
        group_id=group_id("bench", index),
        group_index=index,
        group_size=8,
        member_index=0,
        status="completed",
        stop_reason="stop",
        samples=[
            Sample(
                prompt_ids=ids[:PROMPT_TOKENS],
                response_ids=ids[PROMPT_TOKENS:],
                response_mask=mask,
                response_logprobs=(logprobs * mask).astype(np.float32),
                version_spans=[VersionSpan(turn.start, turn.end, 7, 3) for turn in turns],
                turns=turns,
            )
        ],
        reward=1.0,
        rewards={"numeric": 1.0},
        num_turns=len(turns),
        lineage=3,
        policy_version_min=7,
        policy_version_max=7,
        model="Qwen/Qwen3-8B",
        tokenizer_hash="0123456789abcdef",
        data_source="train.jsonl",
        data_index=f"train.jsonl:{index}",
        worker_id="rollout-node7-1234",
    )


def codecs() -> list[Codec]:
    """Ours without and with compression, and the two others."""
    packed = msgspec.msgpack.Decoder(PackedSample)
    return [
        Codec("ours", lambda t: _ours(t, compress_above_bytes=1 << 30), _ours_decoded),
        Codec("ours, zstd", lambda t: _ours(t, compress_above_bytes=0), _ours_decoded),
        Codec(
            "prime-rl layout",
            lambda t: (msgspec.msgpack.encode(_packed_sample(t)), None),
            lambda body, _: _packed_decoded(packed.decode(body)),
        ),
        Codec(
            "PipelineRL layout",
            lambda t: (json.dumps(_training_text(t)).encode(), None),
            lambda body, _: _text_decoded(TrainingText.model_validate(json.loads(body))),
        ),
    ]


def measure() -> list[Figure]:
    """All figures of the wire."""
    trajectories = [make_trajectory(index) for index in range(TRAJECTORIES)]
    ways = codecs()
    bodies = {way.name: [way.encode(trajectory) for trajectory in trajectories] for way in ways}
    for way in ways:
        _check_arrays(way, bodies[way.name][0], trajectories[0])
    encode_s = dict.fromkeys(bodies, float("inf"))
    decode_s = dict.fromkeys(bodies, float("inf"))
    for _ in range(ROUNDS):
        for way in ways:
            encode_s[way.name] = min(
                encode_s[way.name], _seconds(lambda way=way: [way.encode(t) for t in trajectories])
            )
            decode_s[way.name] = min(
                decode_s[way.name], _seconds(lambda way=way: [way.decode(*body) for body in bodies[way.name]])
            )
    size = {
        name: sum(len(body) for body, _ in all_bodies) / TOKENS / TRAJECTORIES for name, all_bodies in bodies.items()
    }
    mega_tokens = TOKENS * TRAJECTORIES / 1e6
    return _figures(
        size,
        {name: mega_tokens / seconds for name, seconds in encode_s.items()},
        {name: mega_tokens / seconds for name, seconds in decode_s.items()},
    )


def _figures(size: dict[str, float], encode_rate: dict[str, float], decode_rate: dict[str, float]) -> list[Figure]:
    note = f"{RESPONSE_TOKENS} response tokens, 40 % observations; rules checked in encode and decode"
    figures = [
        figure(
            "wire, uncompressed", size["ours"], "B/token", bar=9, higher_is_better=False, command=COMMAND, note=note
        ),
        figure(
            "wire, compressed", size["ours, zstd"], "B/token", bar=5, higher_is_better=False, command=COMMAND, note=note
        ),
    ]
    for other in ("prime-rl layout", "PipelineRL layout"):
        ratio = decode_rate["ours"] / decode_rate[other]
        figures.append(
            figure(
                "decode to numpy", ratio, "x", bar=10, versus=other, command=COMMAND,
                note=f"{decode_rate['ours']:.0f} against {decode_rate[other]:.1f} Mtoken/s, both uncompressed",
            )
        )  # fmt: skip
        compressed_ratio = decode_rate["ours, zstd"] / decode_rate[other]
        figures.append(figure("decode to numpy, compressed", compressed_ratio, "x", versus=other, command=COMMAND))
        figures.append(figure("wire size", size["ours, zstd"] / size[other], "x", higher_is_better=False, versus=other,
                              command=COMMAND, note=f"{size[other]:.1f} B/token"))  # fmt: skip
    for name in ("ours", "ours, zstd"):
        figures.append(figure(f"encode rate, {name}", encode_rate[name], "Mtoken/s", command=COMMAND))
        figures.append(figure(f"decode rate, {name}", decode_rate[name], "Mtoken/s", command=COMMAND))
    return figures


def _ours(trajectory: Trajectory, *, compress_above_bytes: int) -> tuple[bytes, Any]:
    record = encode(trajectory, compress_above_bytes=compress_above_bytes)
    return record.value, record.headers


def _ours_decoded(body: bytes, headers: Any) -> Arrays:
    sample = decode(body, headers, Trajectory).samples[0]
    return sample.prompt_ids, sample.response_ids, sample.response_mask, sample.response_logprobs


def _packed_sample(trajectory: Trajectory) -> PackedSample:
    sample = trajectory.samples[0]
    prompt = [0] * len(sample.prompt_ids)
    return PackedSample(
        token_ids=[*sample.prompt_ids.tolist(), *sample.response_ids.tolist()],
        mask=[*map(bool, prompt), *sample.response_mask.astype(bool).tolist()],
        logprobs=[*map(float, prompt), *sample.response_logprobs.tolist()],
        temperatures=[1.0] * TOKENS,
        advantages=[0.5] * TOKENS,
        env_name=trajectory.data_source,
        reward=trajectory.reward or 0.0,
    )


def _packed_decoded(sample: PackedSample) -> Arrays:
    ids = np.array(sample.token_ids, dtype=np.int32)
    mask = np.array(sample.mask, dtype=np.uint8)
    logprobs = np.array(sample.logprobs, dtype=np.float32)
    return ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:], mask[PROMPT_TOKENS:], logprobs[PROMPT_TOKENS:]


def _training_text(trajectory: Trajectory) -> dict[str, Any]:
    sample = trajectory.samples[0]
    ids = [*sample.prompt_ids.tolist(), *sample.response_ids.tolist()]
    sampled = [False] * PROMPT_TOKENS + sample.response_mask.astype(bool).tolist()
    logprobs = sample.response_logprobs.tolist()
    return {
        "text": " word" * TOKENS,
        "n_predicted": RESPONSE_TOKENS,
        "reward": trajectory.reward,
        "logprobs": logprobs,
        "ref_logprobs": [],
        "input_ids": ids,
        "labels": [token if is_sampled else -100 for token, is_sampled in zip(ids, sampled, strict=True)],
        "group_id": trajectory.group_id,
        "finished": True,
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": RESPONSE_TOKENS,
        "metadata": {"model_version": 7, "rollout_index": 0, "step_index": 0},
    }


def _text_decoded(text: TrainingText) -> Arrays:
    ids = np.array(text.input_ids, dtype=np.int32)
    mask = (np.array(text.labels, dtype=np.int32) != -100).astype(np.uint8)
    logprobs = np.array(text.logprobs, dtype=np.float32)
    return ids[:PROMPT_TOKENS], ids[PROMPT_TOKENS:], mask[PROMPT_TOKENS:], logprobs


def _check_arrays(way: Codec, body: tuple[bytes, Any], trajectory: Trajectory) -> None:
    sample = trajectory.samples[0]
    expected = (sample.prompt_ids, sample.response_ids, sample.response_mask, sample.response_logprobs)
    for ours, theirs in zip(way.decode(*body), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    for line in measure():
        verdict = "" if line.bar is None else f"  bar {line.bar:g}: {'met' if line.met else 'MISSED'}"
        print(f"{line.name:30} {line.value:9.2f} {line.unit:9} {line.versus:18}{verdict}  {line.note}")
