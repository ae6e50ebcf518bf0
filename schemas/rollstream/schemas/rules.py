"""The rules of each message, checked whenever one is encoded or decoded. An error names field, value and rule."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

from msgspec import UNSET

from rollstream.schemas.control import (
    BackfillWanted,
    PolicyLease,
    PolicyVersion,
    ProducerProgress,
    TrainerProgress,
    WorkerStatus,
)
from rollstream.schemas.dead_letters import DeadLetterResolution
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.journal import JournalRecord
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import EpisodeLimits, PolicyPin, RolloutTask, SamplingParams, ToolSpec
from rollstream.schemas.tools import SessionEnd, ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory
from rollstream.schemas.trajectory_rules import check_trajectory
from rollstream.schemas.violations import Violation

MAX_GROUP_SIZE = 65_536
MAX_ID_CHARS = 512
MAX_HELD_POLICIES = 1000
MAX_WANTED_MEMBERS = 4096


def check_message(message: Message) -> None:
    """Raise `InvalidMessageError` for the first rule the message breaks."""
    rule = _RULES.get(type(message))
    if rule is None:
        return
    try:
        rule(message)
    except Violation as violation:
        raise InvalidMessageError(
            f"{type(message).__name__}.{violation.field} is {violation.value}: {violation.rule}", field=violation.field
        ) from None


def check_sampling(sampling: SamplingParams, *, field: str = "sampling") -> None:
    """Raise `Violation` unless the parameters describe a distribution."""
    _require(
        isfinite(sampling.temperature) and sampling.temperature >= 0,
        f"{field}.temperature",
        sampling.temperature,
        "must be finite and >= 0",
    )
    _require(0 < sampling.top_p <= 1, f"{field}.top_p", sampling.top_p, "must be in (0, 1]")
    _require(sampling.top_k == -1 or sampling.top_k >= 1, f"{field}.top_k", sampling.top_k, "must be -1 (all) or >= 1")
    _require(0 <= sampling.min_p <= 1, f"{field}.min_p", sampling.min_p, "must be in [0, 1]")
    _require(sampling.max_tokens >= 1, f"{field}.max_tokens", sampling.max_tokens, "must be >= 1")


def check_limits(limits: EpisodeLimits, *, field: str = "limits") -> None:
    """Raise `Violation` unless every limit lets an episode begin."""
    for name in ("max_turns", "max_response_tokens"):
        _require(getattr(limits, name) >= 1, f"{field}.{name}", getattr(limits, name), "must be >= 1")
    for name in ("max_tool_calls_per_turn", "max_malformed_turns"):
        _require(getattr(limits, name) >= 0, f"{field}.{name}", getattr(limits, name), "must be >= 0")
    for name in ("wall_clock_s", "tool_timeout_s"):
        value = getattr(limits, name)
        _require(isfinite(value) and value > 0, f"{field}.{name}", value, "must be finite and > 0")


def _check_group(message: RolloutTask | Trajectory) -> None:
    _check_id("run_id", message.run_id)
    _check_id("group_id", message.group_id)
    _check_id("trajectory_id", message.trajectory_id)
    _require(message.group_index >= 0, "group_index", message.group_index, "must be >= 0")
    _require(
        1 <= message.group_size <= MAX_GROUP_SIZE, "group_size", message.group_size, f"must be in [1, {MAX_GROUP_SIZE}]"
    )
    _require(
        0 <= message.member_index < message.group_size,
        "member_index",
        message.member_index,
        f"must be in [0, group_size={message.group_size})",
    )
    _require(message.replacement >= 0, "replacement", message.replacement, "must be >= 0")
    check_sampling(message.sampling)


def _check_task(task: RolloutTask) -> None:
    _check_group(task)
    _require(bool(task.messages), "messages", task.messages, "must not be empty")
    check_limits(task.limits)
    _check_tools(task.tools)
    if task.reward is not None:
        _require(bool(task.reward.name), "reward.name", task.reward.name, "must not be empty")
    if task.deadline is not None:
        _require(isfinite(task.deadline), "deadline", task.deadline, "must be finite")
    if task.policy is not UNSET:
        _check_pin(task.policy)
        _require(
            not task.is_train,
            "policy",
            task.policy,
            "may be pinned for evaluation only (is_train = false): training data comes from the newest weights",
        )


def _check_pin(pin: PolicyPin) -> None:
    _require(pin.version >= 0, "policy.version", pin.version, "must be >= 0")
    _require(pin.lineage >= 0, "policy.lineage", pin.lineage, "must be >= 0")
    if (pin.lineage, pin.version) == (0, 0):
        _require(not pin.uri, "policy.uri", pin.uri, "must be empty for (0, 0), the model as the engine started")
        _require(pin.kind == "full", "policy.kind", pin.kind, "must be 'full' for (0, 0), which is no adapter")
    else:
        _require(bool(pin.uri), "policy.uri", pin.uri, "must say where the files are, as in the PolicyVersion")
        _require(
            bool(pin.manifest_sha256),
            "policy.manifest_sha256",
            pin.manifest_sha256,
            "must be that of the PolicyVersion",
        )


def _check_tools(tools: list[ToolSpec]) -> None:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        _require(bool(tool.name), f"tools[{index}].name", tool.name, "must not be empty")
        _require(tool.name not in names, f"tools[{index}].name", tool.name, "must be unique within the task")
        _require(bool(tool.toolset), f"tools[{index}].toolset", tool.toolset, "must not be empty")
        names.add(tool.name)


def _check_trajectory(trajectory: Trajectory) -> None:
    _check_group(trajectory)
    check_trajectory(trajectory)


def _check_journal(record: JournalRecord) -> None:
    _check_id("trajectory_id", record.trajectory_id)
    _require(record.attempt >= 1, "attempt", record.attempt, "must be >= 1")
    _require(bool(record.writer), "writer", record.writer, "must not be empty")
    _require(record.kind == "start" or record.birth is not None, "birth", record.birth, "may be null in a start only")


def _check_call(call: ToolCall) -> None:
    _check_id("call_id", call.call_id)
    _require(bool(call.tool), "tool", call.tool, "must not be empty")
    _require(call.turn >= 0, "turn", call.turn, "must be >= 0")
    _require(call.session_id is not None or call.token is None, "token", call.token, "must be null without a session")
    _require(isfinite(call.deadline), "deadline", call.deadline, "must be finite")
    _require(isfinite(call.timeout_s) and call.timeout_s > 0, "timeout_s", call.timeout_s, "must be finite and > 0")
    _require(bool(call.reply_topic), "reply_topic", call.reply_topic, "must not be empty")
    _require(call.reply_partition >= 0, "reply_partition", call.reply_partition, "must be >= 0")


def _check_session_end(end: SessionEnd) -> None:
    _check_id("session_id", end.session_id)


def _check_result(result: ToolResult) -> None:
    _check_id("call_id", result.call_id)
    for name in ("run_s", "queue_s"):
        value = getattr(result, name)
        _require(isfinite(value), name, value, "must be finite")


def _check_policy(policy: PolicyVersion) -> None:
    _require(policy.version >= 0, "version", policy.version, "must be >= 0")
    _require(policy.lineage >= 0, "lineage", policy.lineage, "must be >= 0")
    _require(bool(policy.uri), "uri", policy.uri, "must not be empty")


def _check_lease(lease: PolicyLease) -> None:
    _check_id("holder", lease.holder)
    _require(lease.version >= 0, "version", lease.version, "must be >= 0")
    _require(lease.lineage >= 0, "lineage", lease.lineage, "must be >= 0")
    _require(isfinite(lease.until), "until", lease.until, "must be finite")


def _check_trainer_progress(progress: TrainerProgress) -> None:
    for name in ("lineage", "version", "groups_consumed", "groups_dropped"):
        _require(getattr(progress, name) >= 0, name, getattr(progress, name), "must be >= 0")
    _require(
        progress.emit_limit is None or progress.emit_limit >= 0,
        "emit_limit",
        progress.emit_limit,
        "must be null or >= 0",
    )


def _check_producer_progress(progress: ProducerProgress) -> None:
    _check_id("run_id", progress.run_id)
    _require(progress.groups_emitted >= 0, "groups_emitted", progress.groups_emitted, "must be >= 0")
    _require(
        1 <= progress.group_size <= MAX_GROUP_SIZE,
        "group_size",
        progress.group_size,
        f"must be in [1, {MAX_GROUP_SIZE}]",
    )
    _require(
        0 <= progress.reserved_from <= progress.groups_reserved,
        "reserved_from",
        progress.reserved_from,
        f"must be in [0, groups_reserved={progress.groups_reserved}]",
    )
    _require(
        progress.reserved_at is None or progress.reserved_at >= 0, "reserved_at", progress.reserved_at, "must be >= 0"
    )


def _check_backfill(wanted: BackfillWanted) -> None:
    _check_id("run_id", wanted.run_id)
    count = len(wanted.members)
    _require(count <= MAX_WANTED_MEMBERS, "members", f"{count} items", f"must be at most {MAX_WANTED_MEMBERS}")
    places: set[tuple[int, int]] = set()
    for index, member in enumerate(wanted.members):
        for name, least in (("group_index", 0), ("member_index", 0), ("replacement", 1)):
            value = getattr(member, name)
            _require(value >= least, f"members[{index}].{name}", value, f"must be >= {least}")
        place = (member.group_index, member.member_index)
        _require(place not in places, f"members[{index}]", place, "must name a member that no other item names")
        places.add(place)


def _check_worker(status: WorkerStatus) -> None:
    _check_id("worker_id", status.worker_id)
    _require(status.running >= 0, "running", status.running, "must be >= 0")
    _require(
        len(status.held_policies) <= MAX_HELD_POLICIES,
        "held_policies",
        len(status.held_policies),
        f"must be at most {MAX_HELD_POLICIES}",
    )
    _require(
        isfinite(status.interval_s) and status.interval_s > 0, "interval_s", status.interval_s, "must be finite and > 0"
    )


def _check_resolution(resolution: DeadLetterResolution) -> None:
    count = len(resolution.letters)
    _require(0 < count == len(set(resolution.letters)), "letters", resolution.letters, "must be distinct and not empty")
    if resolution.state == "replaying":
        _check_id("run_id", resolution.run_id)
        size = resolution.group_size
        _require(
            1 <= size <= MAX_GROUP_SIZE and count % size == 0,
            "group_size",
            size,
            f"must divide {count} letters into groups",
        )


def _check_id(field: str, value: str) -> None:
    _require(0 < len(value) <= MAX_ID_CHARS, field, value, f"must have 1 to {MAX_ID_CHARS} characters")


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise Violation(field, value, rule)


_RULES: dict[type[Message], Callable[[Any], None]] = {
    RolloutTask: _check_task,
    Trajectory: _check_trajectory,
    JournalRecord: _check_journal,
    ToolCall: _check_call,
    SessionEnd: _check_session_end,
    ToolResult: _check_result,
    PolicyVersion: _check_policy,
    PolicyLease: _check_lease,
    TrainerProgress: _check_trainer_progress,
    ProducerProgress: _check_producer_progress,
    BackfillWanted: _check_backfill,
    WorkerStatus: _check_worker,
    DeadLetterResolution: _check_resolution,
}
