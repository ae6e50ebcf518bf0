"""Between verl's tensors and the pure parts: batches to rows of plain values, rows into the TransferQueue."""
# torch, tensordict and the TransferQueue are only partly typed, and are not always installed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.verl.rows import SettledGroup, VerlRow

MISSING = "the verl adapter runs inside verl's trainer and needs TransferQueue, tensordict and torch: {error}"


def attach() -> None:
    """Connect this process to the TransferQueue that verl has started.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        transfer_queue = import_module("transfer_queue")
        import_module("tensordict")
    except ImportError as error:
        raise SettingsError(MISSING.format(error=error)) from error
    transfer_queue.init()


def batch_rows(batch: Any) -> list[dict[str, Any]]:
    """A ``TensorDict`` of verl's data loader, row by row; tensors of one number become that number."""
    from tensordict import NonTensorData, NonTensorStack

    size = int(batch.batch_size[0])
    rows: list[dict[str, Any]] = [{} for _ in range(size)]
    for key in batch.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
        column = batch.get(key)
        if isinstance(column, NonTensorStack):
            values = [element.data if isinstance(element, NonTensorData) else element for element in column.unbind(0)]
        elif isinstance(column, NonTensorData):
            values = [column.data] * size
        else:
            values = [cell.item() if cell.numel() == 1 and cell.dim() == 0 else cell for cell in column.unbind(0)]
        for row, value in zip(rows, values, strict=True):
            row[str(key)] = value
    return rows


def put_group(group: SettledGroup) -> None:
    """Rows first, then the group's status, so that verl never sees a finished group without them. Safe to repeat."""
    import transfer_queue

    if group.rows:
        transfer_queue.kv_batch_put(
            keys=[row.key for row in group.rows],
            partition_id=group.prompt.partition_id,
            fields=_tensors(group.rows),
            tags=[dict(row.tag) for row in group.rows],
        )
    put_status(group.prompt.uid, group.prompt.partition_id, group.status)


def put_status(uid: str, partition_id: str, status: str) -> None:
    """Tell verl where a group is; what else its tag holds stays."""
    import transfer_queue

    transfer_queue.kv_put(key=uid, partition_id=partition_id, tag={"status": status})


def _tensors(rows: Sequence[VerlRow]) -> Any:
    from tensordict import TensorDict

    return TensorDict(
        {key: _column([row.fields[key] for row in rows]) for key in rows[0].fields}, batch_size=[len(rows)]
    )


def _column(values: Sequence[Any]) -> Any:
    """Arrays of one shape stacked, of several shapes ragged; everything else as it is."""
    import torch
    from tensordict import NonTensorStack

    if not all(isinstance(value, np.ndarray | torch.Tensor) and _is_numeric(value) for value in values):
        return NonTensorStack(*values)
    tensors = [torch.as_tensor(value) for value in values]
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(tensors)
    return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)


def _is_numeric(value: Any) -> bool:
    return not isinstance(value, np.ndarray) or value.dtype != object
