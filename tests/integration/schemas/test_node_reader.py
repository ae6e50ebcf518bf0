"""A reader in another language sees what Python sees, arrays included."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollstream.schemas.codec import decode
from rollstream.schemas.ids import group_id, trajectory_id
from rollstream.schemas.json_schemas import json_view
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, Turn, VersionSpan
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

ROOT = Path(__file__).parents[3]
READER = ROOT / "examples" / "node-reader"
GOLDEN = ROOT / "tests" / "unit" / "schemas" / "golden"

missing = [program for program in ("node", "npm") if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs Node: {missing} not installed")

DECODE_FILE = """
import { readFileSync } from "node:fs";
import { decodeRecord } from "./decode.js";
const [path, encoding] = process.argv.slice(2);
const headers = { schema: Buffer.from("Trajectory"), schema_version: Buffer.from("1") };
if (encoding) headers["content-encoding"] = Buffer.from(encoding);
const { message } = decodeRecord(readFileSync(path), headers);
const types = Object.fromEntries(Object.entries(message.samples[0]).map(([k, v]) => [k, v?.constructor.name]));
const asList = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
console.log(JSON.stringify({ message, types }, asList));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a script of the reader, installed in a folder of the test's own; returns its output."""
    folder = tmp_path_factory.mktemp("node") / "reader"
    shutil.copytree(READER, folder, ignore=shutil.ignore_patterns("node_modules", "package-lock.json"))
    (folder / "decode-file.js").write_text(DECODE_FILE)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder, check=True, timeout=100
    )

    def run(*arguments: str) -> str:
        finished = subprocess.run(
            ["node", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        return finished.stdout

    return run


@pytest.mark.parametrize(
    ("name", "encoding", "added_later"),
    [
        ("v1.1/Trajectory.msgpack", "", set[str]()),
        ("v1/Trajectory.msgpack", "", {"replacement"}),
        ("v1/Trajectory.msgpack.zst", "zstd", {"replacement"}),
    ],
)
def test_node_reads_the_golden_bytes_as_python_does(
    node: Callable[..., str], name: str, encoding: str, added_later: set[str]
) -> None:
    shown = json.loads(node("decode-file.js", str(GOLDEN / name), encoding))
    headers = [("schema", b"Trajectory"), ("schema_version", b"1")]
    expected = json_view(decode((GOLDEN / name.removesuffix(".zst")).read_bytes(), headers, Trajectory))
    assert expected.keys() - shown["message"].keys() == added_later
    assert shown["message"] == {field: value for field, value in expected.items() if field not in added_later}
    arrays = {name: shown["types"][name] for name in ("prompt_ids", "response_mask", "response_logprobs")}
    assert arrays == {"prompt_ids": "Int32Array", "response_mask": "Uint8Array", "response_logprobs": "Float32Array"}


def trajectory(group_index: int, tokens: int, **changes: Any) -> Trajectory:
    random = np.random.default_rng(group_index)
    sampled = tokens * 3 // 5
    mask = np.concatenate([np.ones(sampled, np.uint8), np.zeros(tokens - sampled, np.uint8)])
    sample = Sample(
        prompt_ids=random.integers(0, 2**31 - 1, 10).astype(np.int32),
        response_ids=random.integers(0, 2**31 - 1, tokens).astype(np.int32),
        response_mask=mask,
        response_logprobs=(-random.exponential(size=tokens) * mask).astype(np.float32),
        version_spans=[VersionSpan(0, sampled, 3, 1)],
        turns=[Turn(start=0, end=sampled, finish_reason="stop", tool_calls=1)],
    )
    fields: dict[str, Any] = {
        "run_id": "run",
        "trajectory_id": trajectory_id("run", group_index, 0),
        "group_id": group_id("run", group_index),
        "group_index": group_index,
        "group_size": 1,
        "member_index": 0,
        "status": "completed",
        "stop_reason": "stop",
        "samples": [sample],
        "reward": 0.25,
        "policy_version_min": 3,
        "policy_version_max": 3,
        "extra": {"text": "½ 🎲", "none": None, "nested": [1, {"a": -2.5}]},
    }
    return Trajectory(**{**fields, **changes})


@pytest.mark.broker
async def test_node_reads_a_whole_topic_as_python_wrote_it(node: Callable[..., str], kafka: KafkaSettings) -> None:
    written = [trajectory(index, tokens) for index, tokens in enumerate([5, 8, 9, 500, 20_000])]
    error = TrajectoryError(type="EngineError", message="gone")
    written.append(
        trajectory(9, 5, status="failed", stop_reason="infrastructure", samples=[], reward=None, error=error)
    )
    async with Publisher(kafka, profile="durable") as publisher:
        places = [await publisher.publish(one, key=one.group_id) for one in written]
    lines = [
        json.loads(line)
        for line in node("read-trajectories.js", kafka.bootstrap, kafka.topic("trajectories")).splitlines()
    ]
    shown = {(line["partition"], line["offset"]): line["trajectory"] for line in lines}
    expected = {(place.partition, place.offset): json_view(one) for place, one in zip(places, written, strict=True)}
    assert shown.keys() == expected.keys()
    for place, one in expected.items():
        assert with_float32(shown[place]) == with_float32(one)


def with_float32(view: dict[str, Any]) -> dict[str, Any]:
    """The same with logprobs as the float32 they are: both languages print shortest decimals, of different widths."""
    for sample in view["samples"]:
        sample["response_logprobs"] = np.array(sample["response_logprobs"], dtype=np.float32).tolist()
    return view
