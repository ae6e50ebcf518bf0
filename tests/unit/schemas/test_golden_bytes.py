"""Records written under each released version are read for ever.

Golden files are never changed. ``v1`` holds records of schema version 1 as they were first written, ``v1.1`` those that
have grown by optional fields since: what is written now, while both are read. ``python test_golden_bytes.py`` writes
what differs from ``v1`` into ``v1.1``.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.control import (
    BackfillWanted,
    Pause,
    PolicyLease,
    PolicyVersion,
    ProducerProgress,
    TrainerProgress,
    TrainerStart,
    WantedMember,
    WorkerStatus,
)
from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.json_schemas import json_view
from rollstream.schemas.messages import SCHEMA_VERSION, Message
from rollstream.schemas.registry import MESSAGES
from rollstream.schemas.tasks import ChatMessage, EpisodeLimits, RewardSpec, RolloutTask, SamplingParams, ToolSpec
from rollstream.schemas.tools import SessionEnd, ToolCall, ToolResult
from rollstream.schemas.trajectories import Sample, Timing, Trajectory, Turn, VersionSpan

GOLDEN = Path(__file__).parent / "golden"
FIRST, GROWN = f"v{SCHEMA_VERSION}", f"v{SCHEMA_VERSION}.1"

EXAMPLES: dict[str, Message] = {
    "RolloutTask": RolloutTask(
        run_id="gsm8k",
        group_id="00112233445566778899aabbccddeeff",
        group_index=7,
        group_size=8,
        member_index=3,
        trajectory_id="ffeeddccbbaa99887766554433221100",
        messages=[ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="2 + 2 = ? ½")],
        tools=[
            ToolSpec(
                name="calculator",
                description="Evaluates.",
                parameters={"type": "object", "properties": {"expression": {"type": "string"}}},
            )
        ],
        sampling=SamplingParams(temperature=0.7, top_k=50, max_tokens=256),
        limits=EpisodeLimits(max_turns=4, wall_clock_s=30.5),
        reward=RewardSpec(name="numeric", answer="4", arguments={"tolerance": 0.001}),
        data_source="test.jsonl",
        data_index="test.jsonl:8",
        created_at=1700000000.25,
        deadline=1700003600.0,
        extra={"difficulty": 3, "tags": ["arithmetic"]},
    ),
    "JournalRecord": JournalRecord(
        kind="effect",
        trajectory_id="ffeeddccbbaa99887766554433221100",
        attempt=1,
        key="3.0.1",
        writer="w-1",
        birth=41,
        task_offset=17,
        digest=b"\x00\x01\xfe\xff",
        payload=b"\x81\xa1a\x01",
    ),
    "ToolCall": ToolCall(
        call_id="c0ffee",
        session_id="5e5510",
        turn=2,
        token="t0",
        tool="bash",
        arguments='{"command": "ls"}',
        deadline=1700000060.0,
        timeout_s=30.0,
        reply_topic="rollstream.tool-results",
        reply_partition=11,
        is_first=False,
    ),
    "SessionEnd": SessionEnd(session_id="5e5510"),
    "ToolResult": ToolResult(
        call_id="c0ffee",
        session_id="5e5510",
        status="timeout",
        content="killed after 30 s",
        incarnation="i1",
        token="t1",
        is_truncated=True,
        run_s=30.0,
        queue_s=0.004,
        worker_id="tools-1",
        metrics={"memory_bytes": 1048576.0},
    ),
    "Trajectory": Trajectory(
        run_id="gsm8k",
        trajectory_id="ffeeddccbbaa99887766554433221100",
        group_id="00112233445566778899aabbccddeeff",
        group_index=7,
        group_size=8,
        member_index=3,
        status="truncated",
        stop_reason="max_turns",
        samples=[
            Sample(
                prompt_ids=np.array([151644, 872, 198], dtype=np.int32),
                response_ids=np.array([17, 10, 17, 28, 19, 151645, 198, 0, 2147483647, 1, 2], dtype=np.int32),
                response_mask=np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1], dtype=np.uint8),
                response_logprobs=np.array([-0.25, -1.5, -3, -0.125, 0, -8, 0, 0, -0.5, -2, -1e-3], dtype=np.float32),
                version_spans=[VersionSpan(0, 4, 11, 5), VersionSpan(4, 6, 12, 5), VersionSpan(8, 11, 12, 5)],
                turns=[
                    Turn(start=0, end=6, finish_reason="stop", tool_calls=1, generate_s=0.5, tool_s=0.25),
                    Turn(start=8, end=11, finish_reason="length", is_malformed=True, generate_s=0.125),
                ],
            )
        ],
        reward=0.5,
        rewards={"numeric": 0.5},
        metrics={"tool_errors": 0.0},
        num_turns=2,
        attempt=2,
        birth=40,
        lineage=5,
        policy_version_min=11,
        policy_version_max=12,
        infra_failures=1,
        model="tiny",
        tokenizer_hash="abc123",
        timing=Timing(created_at=1700000000.0, started_at=1700000001.0, finished_at=1700000003.5, generate_s=0.625),
        worker_id="rollout-1",
        extra={"difficulty": 3},
    ),
    "PolicyVersion": PolicyVersion(
        version=12, lineage=5, uri="/policies/12", manifest_sha256="ab" * 32, published_at=1700000000.5, model="tiny"
    ),
    "PolicyLease": PolicyLease(
        holder="eval-gsm8k", lineage=5, version=12, manifest_sha256="ab" * 32, until=1700000600.5
    ),
    "TrainerStart": TrainerStart(trainer_id="trainer-1", parent_lineage=5, parent_version=12, started_at=1700000000.5),
    "TrainerProgress": TrainerProgress(
        trainer_id="trainer-1", lineage=5, version=12, groups_consumed=192, groups_dropped=3, emit_limit=227
    ),
    "ProducerProgress": ProducerProgress(
        run_id="gsm8k",
        groups_emitted=200,
        group_size=8,
        is_finished=True,
        fingerprints={"data": "0123456789abcdef"},
        start_offsets=[0, 17, 4, 9],
    ),
    "Pause": Pause(is_paused=True, reason="maintenance"),
    "BackfillWanted": BackfillWanted(
        run_id="gsm8k",
        members=[
            WantedMember(group_index=7, member_index=3, replacement=1),
            WantedMember(group_index=9, member_index=0, replacement=2),
        ],
        updated_at=1700000000.5,
    ),
    "WorkerStatus": WorkerStatus(
        worker_id="rollout-1", role="rollout-worker", state="running", running=64, finished=1000, policy_version=12,
        lineage=5, updated_at=1700000000.5, stats={"tokens_per_s": 1234.5},
    ),
    "DeadLetter": DeadLetter(
        origin_topic="rollstream.tasks",
        origin_partition=3,
        origin_offset=99,
        key=b"key",
        value=b"\xc1garbage",
        headers=[("schema", b"RolloutTask")],
        role="rollout-worker",
        worker_id="rollout-1",
        error_type="InvalidMessageError",
        error="not a message",
        attempts=2,
        failed_at=1700000000.5,
    ),
    "DeadLetterResolution": DeadLetterResolution(
        state="replaying", letters=["rollstream.tasks/3/99", "rollstream.tasks/3/104"],
        run_id="gsm8k.replay-0123456789ab", group_size=2, resolved_at=1700000001.5, resolved_by="ann@example",
    ),
}  # fmt: skip


def golden_names() -> list[str]:
    """The newest form of each message."""
    grown = {name for name in EXAMPLES if (GOLDEN / GROWN / f"{name}.msgpack").exists()}
    return [f"{GROWN if name in grown else FIRST}/{name}" for name in EXAMPLES]


def test_every_message_has_golden_bytes() -> None:
    assert set(EXAMPLES) == {message.__name__ for message in MESSAGES}


@pytest.mark.parametrize("name", golden_names())
def test_a_writer_of_this_version_writes_the_golden_bytes(name: str) -> None:
    record = encode(EXAMPLES[Path(name).name], compress_above_bytes=10**9)
    assert record.value.hex() == (GOLDEN / f"{name}.msgpack").read_bytes().hex()
    example = EXAMPLES[Path(name).name]
    more = [(field, str(getattr(example, field)).encode()) for field in example.header_fields]
    assert record.headers == [*headers_of(name), *more]


@pytest.mark.parametrize("name", sorted(str(p.relative_to(GOLDEN).with_suffix("")) for p in GOLDEN.rglob("*.msgpack")))
def test_a_record_of_any_version_is_read(name: str) -> None:
    example = EXAMPLES[Path(name).name]
    decoded = decode((GOLDEN / f"{name}.msgpack").read_bytes(), headers_of(name), type(example))
    assert json_view(decoded) == json_view(example)


def test_a_compressed_record_of_any_library_version_is_read() -> None:
    headers = [*headers_of("v1/Trajectory"), ("content-encoding", b"zstd")]
    decoded = decode((GOLDEN / "v1" / "Trajectory.msgpack.zst").read_bytes(), headers, Trajectory)
    assert json_view(decoded) == json_view(EXAMPLES["Trajectory"])


def test_the_first_bytes_of_an_array_are_what_the_documentation_shows() -> None:
    body = (GOLDEN / "v1" / "Trajectory.msgpack").read_bytes()
    assert b"\xaaprompt_ids\xc7\x0c\x01" + (151644).to_bytes(4, "little") in body
    assert b"\xadresponse_mask\xc7\x03\x03\x05" + bytes([0b00111111, 0b00000111]) in body


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_messages_satisfy_their_json_schema_and_nonsense_does_not(name: str) -> None:
    import jsonschema

    from rollstream.schemas.json_schemas import json_schemas

    validator = jsonschema.Draft202012Validator(json_schemas()[name])
    view = json.loads(json.dumps(json_view(EXAMPLES[name])))
    validator.validate(view)  # pyright: ignore[reportUnknownMemberType]  -- jsonschema is partly annotated
    required = next(field.name for field in msgspec.structs.fields(type(EXAMPLES[name])) if field.required)
    assert not validator.is_valid({**view, required: {"not": "this"}})  # pyright: ignore[reportUnknownMemberType]  -- as above


def headers_of(name: str) -> list[tuple[str, bytes]]:
    folder, message = name.split("/")
    return [("schema", message.encode()), ("schema_version", folder.removeprefix("v").split(".")[0].encode())]


def write_golden() -> None:
    """Write the present form of every message whose first form is another one, or none."""
    (GOLDEN / GROWN).mkdir(parents=True, exist_ok=True)
    for name, message in EXAMPLES.items():
        first, value = GOLDEN / FIRST / f"{name}.msgpack", encode(message, compress_above_bytes=10**9).value
        if not first.exists() or first.read_bytes() != value:
            (GOLDEN / GROWN / f"{name}.msgpack").write_bytes(value)


if __name__ == "__main__":
    write_golden()
