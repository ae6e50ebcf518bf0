"""Ids are pure functions of (run, group, member), so emitting twice makes the same task and the same trajectory."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def _digest(*parts: str | int) -> str:
    """32 hex digits over length-prefixed parts, so that ("ab", "c") and ("a", "bc") differ."""
    hasher = blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode()
        hasher.update(len(data).to_bytes(4, "little") + data)
    return hasher.hexdigest()


def group_id(run_id: str, group_index: int) -> str:
    """The id of the ``group_index``-th prompt of a run."""
    return _digest("group", run_id, group_index)


def trajectory_id(run_id: str, group_index: int, member_index: int, replacement: int = 0) -> str:
    """The id of one task and of its one trajectory; of a member's ``replacement``-th replacement from 1 on."""
    number = (replacement,) if replacement else ()
    return _digest("trajectory", run_id, group_index, member_index, *number)


def session_id(trajectory_id: str, birth: int, lane: str = "") -> str:
    """The tool session of one attempt and lane (parallel branches never share one)."""
    return _digest("session", trajectory_id, birth, lane)


def call_id(trajectory_id: str, birth: int, path: str, index: int, arguments: str) -> str:
    """The idempotency key of one tool call: attempt, effect path, place in the turn, arguments."""
    return _digest("call", trajectory_id, birth, path, index, arguments)


def group_partition(group_id: str, partitions: int) -> int:
    """The partition of a group in a topic of ``partitions`` partitions: all its members are neighbours."""
    return int(group_id[:8], 16) % partitions


def session_token(incarnation: str, call_ids: Iterable[str]) -> str:
    """The state of a tool session: its sandbox and the set of all calls it has run, in whatever order."""
    return _digest("token", incarnation, *sorted(call_ids))
