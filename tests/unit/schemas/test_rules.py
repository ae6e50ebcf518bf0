from __future__ import annotations

import pickle
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from rollstream.schemas.codec import encode
from rollstream.schemas.control import (
    BackfillWanted,
    HeldPolicy,
    PolicyVersion,
    ProducerProgress,
    TrainerProgress,
    WantedMember,
    WorkerStatus,
)
from rollstream.schemas.dead_letters import DeadLetterResolution
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.rules import MAX_HELD_POLICIES, MAX_WANTED_MEMBERS, check_message
from rollstream.schemas.tasks import (
    ChatMessage,
    EpisodeLimits,
    PolicyPin,
    RewardSpec,
    RolloutTask,
    SamplingParams,
    ToolSpec,
)
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, Turn, VersionSpan

replace = msgspec.structs.replace

SAMPLE = Sample(
    prompt_ids=np.array([1, 2], dtype=np.int32),
    response_ids=np.array([3, 4, 5, 6], dtype=np.int32),
    response_mask=np.array([1, 0, 1, 1], dtype=np.uint8),
    response_logprobs=np.array([-0.5, 0, -1.5, 0.0], dtype=np.float32),
    version_spans=[VersionSpan(0, 1, 3), VersionSpan(2, 3, 3), VersionSpan(3, 4, 4)],
    turns=[Turn(start=0, end=1, finish_reason="stop"), Turn(start=2, end=4, finish_reason="stop")],
)
GROUP: dict[str, Any] = {
    "run_id": "run",
    "group_id": "g",
    "trajectory_id": "t",
    "group_index": 0,
    "group_size": 2,
    "member_index": 1,
}
TRAJECTORY = Trajectory(
    **GROUP,
    status="completed",
    stop_reason="stop",
    samples=[SAMPLE],
    reward=1.0,
    policy_version_min=3,
    policy_version_max=4,
)
TASK = RolloutTask(**GROUP, messages=[ChatMessage(role="user", content="?")])
PIN = PolicyPin(lineage=5, version=12, uri="/policies/12", manifest_sha256="ab" * 32)
PINNED = replace(TASK, is_train=False, policy=PIN)
AS_IT_CAME = PolicyPin(lineage=0, version=0)
FAILED = replace(TRAJECTORY, status="failed", samples=[], reward=None, error=TrajectoryError(type="x", message="y"))
CALL = ToolCall(
    call_id="c",
    session_id="s",
    turn=0,
    token="t",
    tool="bash",
    arguments="{}",
    deadline=1.0,
    timeout_s=1.0,
    reply_topic="r",
    reply_partition=0,
)
TOOL = ToolSpec(name="bash", description="", parameters={})
RESULT = ToolResult(call_id="c", session_id=None, status="ok", content="")
TRAINER = TrainerProgress(trainer_id="t", lineage=0, version=0, groups_consumed=0, groups_dropped=0, emit_limit=None)
JOURNAL = JournalRecord(kind="effect", trajectory_id="t", attempt=1, key="0", writer="w", birth=3)
PRODUCER = ProducerProgress(run_id="r", groups_emitted=0, group_size=1)
WANTED = WantedMember(group_index=0, member_index=0, replacement=1)
BACKFILL = BackfillWanted(run_id="r", members=[WANTED])
POLICY = PolicyVersion(version=0, lineage=0, uri="u", manifest_sha256="")
WORKER = WorkerStatus(worker_id="w", role="trainer", state="running")
REPLAY = DeadLetterResolution(state="replaying", letters=["t/0/1", "t/0/2"], run_id="r.replay", group_size=2)


def with_sample(**changes: Any) -> Trajectory:
    return replace(TRAJECTORY, samples=[replace(SAMPLE, **changes)])


def int32(*values: int) -> Any:
    return np.array(values, dtype=np.int32)


def float32(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


def flags(*values: int) -> Any:
    return np.array(values, dtype=np.uint8)


@pytest.mark.parametrize(
    "message",
    [
        TRAJECTORY,
        FAILED,
        TASK,
        CALL,
        RESULT,
        TRAINER,
        JOURNAL,
        PRODUCER,
        BACKFILL,
        POLICY,
        WORKER,
        REPLAY,
        PINNED,
        replace(PINNED, policy=AS_IT_CAME),
        replace(PINNED, policy=replace(PIN, kind="lora")),
    ],
    ids=lambda m: type(m).__name__,
)
def test_an_honest_message_passes(message: Message) -> None:
    check_message(message)


@pytest.mark.parametrize(
    "trajectory",
    [
        replace(TRAJECTORY, status="truncated", stop_reason="wall_clock", samples=[]),
        replace(TRAJECTORY, reward=None),
        with_sample(response_logprobs=float32(5e-7, 0, -1.5, -1e30)),
        with_sample(turns=[Turn(start=0, end=1, finish_reason="stop"), Turn(start=9, end=9, finish_reason="abort")]),
        with_sample(is_trainable=False, version_spans=[], response_logprobs=float32(0, -1, 0, 0)),
        with_sample(version_spans=[VersionSpan(0, 1, 99, lineage=7), VersionSpan(2, 4, 4)]),
        replace(TRAJECTORY, samples=[SAMPLE, replace(SAMPLE, parent_sample=0, fork_reason="context")]),
    ],
)
def test_unusual_and_honest_trajectories_pass(trajectory: Trajectory) -> None:
    check_message(trajectory)


BROKEN: dict[str, tuple[Message, str, str, str]] = {
    "empty prompt": (with_sample(prompt_ids=int32()), "samples[0].prompt_ids", "'empty'", "at least one item"),
    "empty response": (with_sample(response_ids=int32()), "samples[0].response_ids", "'empty'", "at least one item"),
    "negative id": (with_sample(response_ids=int32(3, 4, -1, 6)), "samples[0].response_ids", "-1", ">= 0"),
    "wide ids": (with_sample(prompt_ids=np.array([1])), "samples[0].prompt_ids", "'int64[1]'", "int32 [n]"),
    "matrix": (
        with_sample(prompt_ids=np.ones((1, 1), np.int32)), "samples[0].prompt_ids", "'int32[1, 1]'", "int32 [n]",
    ),
    "list": (with_sample(prompt_ids=[1]), "samples[0].prompt_ids", "'list'", "numpy array of int32"),
    "short mask": (with_sample(response_mask=flags(1, 0)), "samples[0].response_mask", "2 items", "response_ids (4)"),
    "long logprobs": (
        with_sample(response_logprobs=float32(0, 0, 0, 0, 0)), "samples[0].response_logprobs", "5 items", "(4)",
    ),
    "mask of 2": (with_sample(response_mask=flags(2, 0, 1, 1)), "samples[0].response_mask", "2", "only 0 and 1"),
    "positive logprob": (
        with_sample(response_logprobs=float32(-1, 0, 0.5, 0)), "samples[0].response_logprobs[2]", "0.5", "<= 1e-6",
    ),
    "nan": (
        with_sample(response_logprobs=float32(-1, 0, np.nan, 0)), "samples[0].response_logprobs[2]", "nan", "finite",
    ),
    "minus infinity": (
        with_sample(response_logprobs=float32(-np.inf, 0, 0, 0)), "samples[0].response_logprobs[0]", "-inf", "finite",
    ),
    "observed logprob": (
        with_sample(response_logprobs=float32(-1, -2, 0, 0)), "samples[0].response_logprobs[1]", "-2.0", "must be 0.0",
    ),
    "nan in a sample for people": (
        with_sample(is_trainable=False, response_mask=flags(3, 0, 0, 0)), "samples[0].response_mask", "3", "0 and 1",
    ),
    "span over an observation": (
        with_sample(version_spans=[VersionSpan(0, 4, 3)]), "samples[0].version_spans", "covering token 1", "exactly",
    ),
    "token without a version": (
        with_sample(version_spans=[VersionSpan(0, 1, 3)]),
        "samples[0].version_spans", "not covering token 2", "exactly",
    ),
    "overlapping spans": (
        with_sample(version_spans=[VersionSpan(0, 1, 3), VersionSpan(0, 1, 4)]),
        "samples[0].version_spans[1]", "version=4", "in order",
    ),
    "span beyond the end": (
        with_sample(version_spans=[VersionSpan(0, 5, 3)]), "samples[0].version_spans[0]", "end=5", "within [0, 4]",
    ),
    "empty span": (
        with_sample(version_spans=[VersionSpan(0, 0, 3)]), "samples[0].version_spans[0]", "end=0", "non-empty",
    ),
    "negative version": (
        with_sample(version_spans=[VersionSpan(0, 1, -1)]), "samples[0].version_spans[0]", "version=-1", ">= 0",
    ),
    "version out of range": (
        with_sample(version_spans=[VersionSpan(0, 1, 5), VersionSpan(2, 4, 4)]),
        "samples[0].version_spans[0].version", "5", "[3, 4]",
    ),
    "turns out of order": (
        with_sample(turns=[Turn(start=2, end=4, finish_reason="stop"), Turn(start=0, end=1, finish_reason="stop")]),
        "samples[0].turns[1]", "[0, 1)", "in order",
    ),
    "turn beyond the end": (
        with_sample(turns=[Turn(start=2, end=5, finish_reason="stop")]), "samples[0].turns[0]", "[2, 5)", "[0, 4]",
    ),
    "own parent": (with_sample(parent_sample=0), "samples[0].parent_sample", "0", "earlier sample"),
    "versions reversed": (replace(TRAJECTORY, policy_version_min=5), "policy_version_min", "5", "policy_version_max=4"),
    "reward nan": (replace(TRAJECTORY, reward=float("nan")), "reward", "nan", "finite or null"),
    "part of a reward": (replace(TRAJECTORY, rewards={"a": float("inf")}), "rewards['a']", "inf", "finite"),
    "failed with samples": (replace(FAILED, samples=[SAMPLE]), "samples", "1 samples", "empty when status is 'failed'"),
    "failed without a reason": (replace(FAILED, error=None), "error", "None", "must say why"),
    "failed with reward 0": (replace(FAILED, reward=0.0), "reward", "0.0", "null when status is 'failed'"),
    "completed from nothing": (replace(TRAJECTORY, samples=[]), "samples", "[]", "not be empty"),
    "member outside": (replace(TASK, member_index=2), "member_index", "2", "[0, group_size=2)"),
    "negative group": (replace(TASK, group_index=-1), "group_index", "-1", ">= 0"),
    "no group": (replace(TASK, group_size=0), "group_size", "0", "[1, 65536]"),
    "no id": (replace(TASK, trajectory_id=""), "trajectory_id", "''", "1 to 512"),
    "long id": (replace(TASK, run_id="x" * 513), "run_id", "'xxx", "1 to 512"),
    "no messages": (replace(TASK, messages=[]), "messages", "[]", "not be empty"),
    "cold": (replace(TASK, sampling=SamplingParams(temperature=-1)), "sampling.temperature", "-1", ">= 0"),
    "no nucleus": (replace(TASK, sampling=SamplingParams(top_p=0)), "sampling.top_p", "0", "(0, 1]"),
    "top_k 0": (replace(TASK, sampling=SamplingParams(top_k=0)), "sampling.top_k", "0", "-1 (all) or >= 1"),
    "no turns": (replace(TASK, limits=EpisodeLimits(max_turns=0)), "limits.max_turns", "0", ">= 1"),
    "no time": (replace(TASK, limits=EpisodeLimits(wall_clock_s=float("inf"))), "limits.wall_clock_s", "inf", "finite"),
    "twin tools": (replace(TASK, tools=[TOOL, TOOL]), "tools[1].name", "'bash'", "unique"),
    "nameless reward": (replace(TASK, reward=RewardSpec(name="")), "reward.name", "''", "not be empty"),
    "token without session": (replace(CALL, session_id=None), "token", "'t'", "null without a session"),
    "call without end": (replace(CALL, deadline=float("inf")), "deadline", "inf", "finite"),
    "call without time": (replace(CALL, timeout_s=0.0), "timeout_s", "0.0", "> 0"),
    "reply nowhere": (replace(CALL, reply_partition=-1), "reply_partition", "-1", ">= 0"),
    "result in nan seconds": (replace(RESULT, run_s=float("nan")), "run_s", "nan", "finite"),
    "effect without birth": (replace(JOURNAL, birth=None), "birth", "None", "start only"),
    "negative limit": (replace(TRAINER, emit_limit=-1), "emit_limit", "-1", "null or >= 0"),
    "a resolution of nothing": (replace(REPLAY, letters=[]), "letters", "[]", "not empty"),
    "a letter resolved twice": (replace(REPLAY, letters=["t/0/1"] * 2), "letters", "['t/0/1', 't/0/1']", "distinct"),
    "a replay without a run": (replace(REPLAY, run_id=""), "run_id", "''", "characters"),
    "groups that are not whole": (replace(REPLAY, group_size=3), "group_size", "3", "must divide 2 letters"),
    "groups of nobody": (replace(REPLAY, group_size=0), "group_size", "0", "must divide 2 letters"),
    "negative progress": (replace(PRODUCER, groups_emitted=-1), "groups_emitted", "-1", ">= 0"),
    "negative replacement": (replace(TASK, replacement=-1), "replacement", "-1", ">= 0"),
    "replacement number 0": (
        replace(BACKFILL, members=[replace(WANTED, replacement=0)]), "members[0].replacement", "0", ">= 1",
    ),
    "member wanted twice": (
        replace(BACKFILL, members=[WANTED, replace(WANTED, replacement=2)]), "members[1]", "(0, 0)", "no other item",
    ),
    "too much wanted": (
        replace(BACKFILL, members=[WANTED] * (MAX_WANTED_MEMBERS + 1)), "members", "4097 items", "at most 4096",
    ),
    "policy nowhere": (replace(POLICY, uri=""), "uri", "''", "not be empty"),
    "pinned training": (replace(PINNED, is_train=True), "policy", "version=12", "for evaluation only"),
    "pin of a negative version": (
        replace(PINNED, policy=replace(PIN, version=-1)), "policy.version", "-1", ">= 0",
    ),
    "pin nowhere": (replace(PINNED, policy=replace(PIN, uri="")), "policy.uri", "''", "where the files are"),
    "pin without a digest": (
        replace(PINNED, policy=replace(PIN, manifest_sha256="")), "policy.manifest_sha256", "''", "PolicyVersion",
    ),
    "pin on files of the model as it came": (
        replace(PINNED, policy=replace(AS_IT_CAME, uri="u")), "policy.uri", "'u'", "empty for (0, 0)",
    ),
    "pin on the model as it came as an adapter": (
        replace(PINNED, policy=replace(AS_IT_CAME, kind="lora")), "policy.kind", "'lora'", "no adapter",
    ),
    "hoarding worker": (
        replace(WORKER, held_policies=[HeldPolicy(lineage=1, version=1)] * (MAX_HELD_POLICIES + 1)),
        "held_policies", "1001", "at most 1000",
    ),
    "silent worker": (replace(WORKER, interval_s=0.0), "interval_s", "0.0", "> 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_rule_names_field_value_and_rule_before_anything_is_written(name: str) -> None:
    message, field, value, rule = BROKEN[name]
    with pytest.raises(InvalidMessageError) as caught:
        encode(message)
    text = str(caught.value)
    assert text.startswith(f"{type(message).__name__}.{field} is ")
    assert value in text
    assert rule in text
    assert caught.value.field == field


def test_an_invalid_message_error_survives_a_process_border() -> None:
    error = InvalidMessageError("text", field="reward")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.field) == ("text", "reward")


def test_checking_5000_tokens_costs_microseconds() -> None:
    mask = np.tile(flags(*[1] * 60, *[0] * 40), 50)
    spans = [VersionSpan(start, start + 60, 3) for start in range(0, 5000, 100)]
    big = with_sample(
        response_ids=np.arange(5000, dtype=np.int32),
        response_mask=mask,
        response_logprobs=np.where(mask, -1.0, 0.0).astype(np.float32),
        version_spans=spans,
        turns=[Turn(start=span.start, end=span.end, finish_reason="stop") for span in spans],
    )
    check_message(big)
    times: list[float] = []
    for _ in range(200):
        begin = time.perf_counter()
        check_message(big)
        times.append(time.perf_counter() - begin)
    assert min(times) < 200e-6, "four times the bar of 50 µs is a loop over tokens, not a slow machine"
