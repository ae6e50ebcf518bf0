"""Trajectories as rows of a table: one per sample, all arrays as list columns. Pure.

Rows are written to be read back: `rebuild_trajectory` makes the same trajectory of them, to the last bit.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (pyarrow is not annotated)

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final, cast

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rollstream.schemas.codec import decode, encode
from rollstream.schemas.messages import SCHEMA_VERSION
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import Sample, Timing, Trajectory, TrajectoryError, Turn, VersionSpan

_INT32: Final = (-(2**31), 2**31 - 1)
_INT64: Final = (-(2**63), 2**63 - 1)

_SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("version", pa.int64()), ("lineage", pa.int64())])
_TURN = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("finish_reason", pa.string()),
        ("tool_calls", pa.int32()),
        ("is_malformed", pa.bool_()),
        ("generate_s", pa.float64()),
        ("tool_s", pa.float64()),
    ]
)
_NAMED = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())]))
ROW_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("group_id", pa.string()),
        ("group_index", pa.int64()),
        ("group_size", pa.int32()),
        ("member_index", pa.int32()),
        ("replacement", pa.int64()),
        ("status", pa.string()),
        ("stop_reason", pa.string()),
        ("reward", pa.float64()),
        ("rewards", _NAMED),
        ("metrics", _NAMED),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("is_train", pa.bool_()),
        ("num_turns", pa.int32()),
        ("attempt", pa.int32()),
        ("birth", pa.int64()),
        ("infra_failures", pa.int32()),
        ("data_failures", pa.int32()),
        ("lineage", pa.int64()),
        ("policy_version_min", pa.int64()),
        ("policy_version_max", pa.int64()),
        ("model", pa.string()),
        ("tokenizer_hash", pa.string()),
        ("sampling", pa.string()),
        ("logprobs_mode", pa.string()),
        ("agent", pa.string()),
        ("data_source", pa.string()),
        ("data_index", pa.string()),
        ("worker_id", pa.string()),
        ("created_at", pa.float64()),
        ("started_at", pa.float64()),
        ("finished_at", pa.float64()),
        ("generate_s", pa.float64()),
        ("tool_s", pa.float64()),
        ("extra", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("sample_index", pa.int32()),
        ("is_trainable", pa.bool_()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("response_mask", pa.list_(pa.uint8())),
        ("response_logprobs", pa.list_(pa.float32())),
        ("response_versions", pa.list_(pa.int32())),
        ("version_spans", pa.list_(_SPAN)),
        ("turns", pa.list_(_TURN)),
        ("parent_sample", pa.int32()),
        ("fork_reason", pa.string()),
        ("exact", pa.binary()),
    ]
)
"""``sampling`` and ``extra`` are JSON texts; ``response_*`` lists are aligned; times are unix seconds.

``exact`` is null unless the other columns cannot say everything (bytes in ``extra``, numbers that are not finite or out
of a column's range); then the first row of a trajectory has its whole message there, in msgpack.
"""
ARRAY_COLUMNS: Final = {
    "prompt_ids": np.int32,
    "response_ids": np.int32,
    "response_mask": np.uint8,
    "response_logprobs": np.float32,
}
"""What a sample is made of, and its types."""

_FACTS: Final = tuple(
    name
    for name in ROW_SCHEMA.names
    if name in Trajectory.__struct_fields__ and name not in ("rewards", "metrics", "sampling", "extra")
)
_TIMES: Final = Timing.__struct_fields__


def trajectory_rows(trajectory: Trajectory, partition: int, offset: int) -> Iterator[dict[str, Any]]:
    """One row per sample; without samples one row whose ``sample_index`` is null and whose lists are empty."""
    extra = _json_of(trajectory.extra)
    facts: dict[str, Any] = {name: getattr(trajectory, name) for name in _FACTS}
    facts |= {
        "rewards": _named(trajectory.rewards),
        "metrics": _named(trajectory.metrics),
        "error_type": trajectory.error.type if trajectory.error else None,
        "error_message": trajectory.error.message if trajectory.error else None,
        "sampling": msgspec.json.encode(trajectory.sampling).decode(),
        "extra": extra or "{}",
        "partition": partition,
        "offset": offset,
        **msgspec.structs.asdict(trajectory.timing),
    }
    samples = [_sample_columns(index, sample) for index, sample in enumerate(trajectory.samples)] or [_NO_SAMPLE]
    rows = [facts | columns for columns in samples]
    is_plain = extra is not None and all(_is_plain(row) for row in rows)
    for place, row in enumerate(rows):
        if is_plain:
            yield row
        else:
            exact = encode(trajectory, compress_above_bytes=2**63).value if place == 0 else None
            yield _clipped(row) | {"exact": exact}


def rebuild_trajectory(rows: Sequence[Mapping[str, Any]]) -> Trajectory:
    """The trajectory that these rows were made of, in the order of its samples.

    Columns that an older table lacks have their defaults.

    Raises:
        InvalidMessageError: the exact message of a row is damaged.
        KeyError, ValueError: the rows are no trajectory.
    """
    first = rows[0]
    if (exact := first.get("exact")) is not None:
        headers = [("schema", b"Trajectory"), ("schema_version", str(SCHEMA_VERSION).encode())]
        return decode(exact, headers, Trajectory)
    facts = {name: first[name] for name in _FACTS if name in first}
    error = first["error_type"]
    return Trajectory(
        **facts,
        rewards=_values(first["rewards"]),
        metrics=_values(first["metrics"]),
        error=None if error is None else TrajectoryError(type=error, message=first["error_message"]),
        sampling=msgspec.json.decode(first["sampling"], type=SamplingParams),
        extra=msgspec.json.decode(first["extra"]),
        timing=Timing(**{name: first[name] for name in _TIMES}),
        samples=[_sample(row) for row in rows if row["sample_index"] is not None],
    )


def _sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        **{name: row[name] for name in ARRAY_COLUMNS},
        version_spans=[VersionSpan(**span) for span in row["version_spans"]],
        turns=[Turn(**turn) for turn in row["turns"]],
        is_trainable=row["is_trainable"],
        parent_sample=row.get("parent_sample"),
        fork_reason=row.get("fork_reason"),
    )


def _sample_columns(index: int, sample: Sample) -> dict[str, Any]:
    return {
        "sample_index": index,
        "is_trainable": sample.is_trainable,
        "prompt_ids": sample.prompt_ids,
        "response_ids": sample.response_ids,
        "response_mask": sample.response_mask,
        "response_logprobs": sample.response_logprobs,
        "response_versions": _versions(sample),
        "version_spans": [
            {"start": span.start, "end": span.end, "version": span.version, "lineage": span.lineage}
            for span in sample.version_spans
        ],
        "turns": [msgspec.structs.asdict(turn) for turn in sample.turns],
        "parent_sample": sample.parent_sample,
        "fork_reason": sample.fork_reason,
        "exact": None,
    }


_NO_SAMPLE: dict[str, Any] = {
    "sample_index": None,
    "is_trainable": False,
    "prompt_ids": [],
    "response_ids": [],
    "response_mask": [],
    "response_logprobs": [],
    "response_versions": [],
    "version_spans": [],
    "turns": [],
    "parent_sample": None,
    "fork_reason": None,
    "exact": None,
}


def _versions(sample: Sample) -> NDArray[np.int32] | None:
    """Null where a version is beyond 32 bits: its spans say it."""
    return sample.response_versions if all(_is_within(span.version, _INT32) for span in sample.version_spans) else None


def _json_of(extra: dict[str, Any]) -> str | None:
    """None if JSON cannot say it."""
    try:
        text = msgspec.json.encode(extra)
        return text.decode() if _is_same(msgspec.json.decode(text), extra) else None
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return None


def _is_same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are three things."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        mapping = cast("dict[Any, Any]", left)
        return mapping.keys() == right.keys() and all(_is_same(value, right[name]) for name, value in mapping.items())
    if isinstance(left, list):
        items = cast("list[Any]", left)
        return len(items) == len(right) and all(map(_is_same, items, right))
    return bool(left == right)


def _is_plain(value: Any, kind: Any = None) -> bool:
    """Whether every number of a row, or of a part of it, is finite and within the range of its column."""
    match value:
        case dict():
            return all(_is_plain(item, _KINDS.get(name)) for name, item in cast("dict[str, Any]", value).items())
        case list():
            return all(_is_plain(item) for item in cast("list[Any]", value))
        case np.ndarray():
            numbers = cast("NDArray[Any]", value)
            return numbers.dtype.kind != "f" or bool(np.isfinite(numbers).all())
        case float():
            return isfinite(value)
        case int():
            return _is_within(value, kind or _INT64)
        case _:
            return True


def _clipped(value: Any, kind: Any = None) -> Any:
    """The nearest that the columns can say."""
    match value:
        case dict():
            mapping = cast("dict[str, Any]", value)
            return {name: _clipped(item, _KINDS.get(name)) for name, item in mapping.items()}
        case list():
            return [_clipped(item) for item in cast("list[Any]", value)]
        case bool():
            return value
        case int():
            lowest, highest = kind or _INT64
            return min(max(value, lowest), highest)
        case _:
            return value


def _is_within(number: int, limits: tuple[int, int]) -> bool:
    return limits[0] <= number <= limits[1]


_KINDS: Final = {
    field.name: _INT32 for fields in (ROW_SCHEMA, _SPAN, _TURN) for field in fields if field.type == pa.int32()
}


def _named(values: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _values(named: Sequence[Mapping[str, Any]] | Mapping[str, float]) -> dict[str, float]:
    """A list of pairs in a table, an object in JSON."""
    if isinstance(named, Mapping):
        return dict(named)
    return {item["name"]: item["value"] for item in named}


def json_row(row: dict[str, Any]) -> bytes:
    """One line of JSON: as in the table, but ``rewards``, ``metrics``, ``sampling`` and ``extra`` are objects."""
    readable = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}
    readable |= {name: _values(row[name]) for name in ("rewards", "metrics")}
    readable |= {name: msgspec.Raw(row[name].encode()) for name in ("sampling", "extra")}
    return msgspec.json.encode(readable) + b"\n"
