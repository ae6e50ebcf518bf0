"""Where in a topic to begin: by offset, by time, or by the policy that drew the tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Literal

import msgspec

from rollstream.schemas.codec import read_body
from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.records import Record, record_headers

SCAN_WAIT_S = 0.2
RECORDS_PER_TURN = 64


@dataclass(frozen=True, slots=True)
class FromPolicy:
    """The first trajectory with a token of this policy version, or of a later one.

    Attributes:
        version: of the policy.
        lineage: only tokens of this lineage count; None: those of any. Version 0 of lineage 0 is the model as it came.
    """

    version: int
    lineage: int | None = None


SeekTarget = Literal["beginning", "end"] | Mapping[int, int] | datetime | float | FromPolicy
"""``{partition: offset}`` (other partitions: their beginning), a time (aware, or unix seconds), or a policy version."""


class _Versions(msgspec.Struct):
    """The only fields a search for a version reads."""

    run_id: str
    lineage: int = 0
    policy_version_max: int = 0


async def find_offsets(log: TrajectoryLog, target: SeekTarget, *, run_id: str | None) -> dict[int, int]:
    """Per partition, the offset to begin at.

    A time is compared with the records' timestamps. For a policy the topic is read from its beginning, in the order of
    training, up to the first record that fits, at most to the present end; each partition begins where reading stands
    then. That takes as long as reading does; nothing is kept of it.

    Raises:
        SettingsError: offsets that the topic does not have, a time without a zone, or no trajectory of such a policy.
    """
    match target:
        case "beginning":
            return await log.beginning_offsets()
        case "end":
            return await log.end_offsets()
        case FromPolicy():
            return await _scan(log, target, run_id)
        case datetime():
            if target.tzinfo is None:
                raise SettingsError(f"seek({target!r}): a time needs a zone, as in datetime.now(UTC)")
            return await log.offsets_at(target.timestamp())
        case int() | float():
            return await log.offsets_at(float(target))
        case Mapping():
            return await _checked(log, target)
        case _:
            raise SettingsError(
                f"seek({target!r}): give 'beginning', 'end', {{partition: offset}}, a time or FromPolicy(version)"
            )


async def _checked(log: TrajectoryLog, offsets: Mapping[int, int]) -> dict[int, int]:
    beginnings, ends = await log.beginning_offsets(), await log.end_offsets()
    for partition, offset in offsets.items():
        if partition not in beginnings:
            raise SettingsError(f"seek: {log.topic!r} has no partition {partition}, only {sorted(beginnings)}")
        if not beginnings[partition] <= offset <= ends[partition]:
            raise SettingsError(
                f"seek: {log.topic}/{partition} reaches from offset {beginnings[partition]} to {ends[partition]}, "
                f"{offset} is outside"
            )
    return {**beginnings, **offsets}


async def _scan(log: TrajectoryLog, target: FromPolicy, run_id: str | None) -> dict[int, int]:
    ends = await log.end_offsets()
    position = await log.seek({})
    while any(position[partition] < end for partition, end in ends.items()):
        records = await log.fetch(timeout_s=SCAN_WAIT_S)
        for place, record in enumerate(records):
            if record.offset < ends[record.partition] and _fits(record, target, run_id):
                return position
            position[record.partition] = record.offset + 1
            if place % RECORDS_PER_TURN == 0:
                await asyncio.sleep(0)
    of = "" if target.lineage is None else f" of lineage {target.lineage}"
    raise SettingsError(
        f"seek: no trajectory in {log.topic!r} has a token of policy version {target.version}{of}, or later"
    )


def _fits(record: Record, target: FromPolicy, run_id: str | None) -> bool:
    try:
        found = _decoder().decode(read_body(record.value, record_headers(record), Trajectory))
    except (InvalidMessageError, msgspec.MsgspecError):
        return False
    return (
        run_id in (None, found.run_id)
        and target.lineage in (None, found.lineage)
        and found.policy_version_max >= target.version
    )


@cache
def _decoder() -> msgspec.msgpack.Decoder[_Versions]:
    return msgspec.msgpack.Decoder(_Versions)
