"""Trajectories as rows of a table: one per sample, all arrays as list columns. Pure."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (pyarrow is not annotated)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from rollstream.schemas.trajectories import Sample, Trajectory

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
ROW_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("group_id", pa.string()),
        ("group_index", pa.int64()),
        ("group_size", pa.int32()),
        ("member_index", pa.int32()),
        ("status", pa.string()),
        ("stop_reason", pa.string()),
        ("reward", pa.float64()),
        ("rewards", pa.map_(pa.string(), pa.float64())),
        ("metrics", pa.map_(pa.string(), pa.float64())),
        ("error_type", pa.string()),
        ("error_message", pa.string()),
        ("is_train", pa.bool_()),
        ("num_turns", pa.int32()),
        ("attempt", pa.int32()),
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
    ]
)
"""``sampling`` and ``extra`` are JSON texts; ``response_*`` lists are aligned; times are unix seconds."""


def trajectory_rows(trajectory: Trajectory, partition: int, offset: int) -> Iterator[dict[str, Any]]:
    """One row per sample; without samples one row whose ``sample_index`` is null and whose lists are empty."""
    facts = {
        name: getattr(trajectory, name)
        for name in ROW_SCHEMA.names
        if name in Trajectory.__struct_fields__ and name not in ("rewards", "metrics", "sampling", "extra")
    }
    facts |= {
        "rewards": list(trajectory.rewards.items()),
        "metrics": list(trajectory.metrics.items()),
        "error_type": trajectory.error.type if trajectory.error else None,
        "error_message": trajectory.error.message if trajectory.error else None,
        "sampling": msgspec.json.encode(trajectory.sampling).decode(),
        "extra": msgspec.json.encode(trajectory.extra).decode(),
        "partition": partition,
        "offset": offset,
        **msgspec.structs.asdict(trajectory.timing),
    }
    if not trajectory.samples:
        yield facts | _NO_SAMPLE
    for index, sample in enumerate(trajectory.samples):
        yield facts | _sample_columns(index, sample)


def _sample_columns(index: int, sample: Sample) -> dict[str, Any]:
    return {
        "sample_index": index,
        "is_trainable": sample.is_trainable,
        "prompt_ids": sample.prompt_ids,
        "response_ids": sample.response_ids,
        "response_mask": sample.response_mask,
        "response_logprobs": sample.response_logprobs,
        "response_versions": sample.response_versions,
        "version_spans": [
            {"start": span.start, "end": span.end, "version": span.version, "lineage": span.lineage}
            for span in sample.version_spans
        ],
        "turns": [msgspec.structs.asdict(turn) for turn in sample.turns],
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
}


def json_row(row: dict[str, Any]) -> bytes:
    """One line of JSON: as in the table, but ``rewards``, ``metrics``, ``sampling`` and ``extra`` are objects."""
    readable = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in row.items()
        if name not in ("sampling", "extra")
    }
    readable |= {name: dict(row[name]) for name in ("rewards", "metrics")}
    readable |= {name: msgspec.Raw(row[name].encode()) for name in ("sampling", "extra")}
    return msgspec.json.encode(readable) + b"\n"
