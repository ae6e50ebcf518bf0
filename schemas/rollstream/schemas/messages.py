"""What all messages share: how a struct becomes a record.

Rules of evolution: a field is never renamed, retyped or given a new meaning; new fields have defaults; unknown fields
are ignored by readers. ``schema_version`` grows only when an old reader would misunderstand a record.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray


def _array_of(items: dict[str, Any], extension: int) -> msgspec.Meta:
    return msgspec.Meta(extra_json_schema={"type": "array", "items": items, "x-msgpack-extension": extension})


Int32Array = Annotated[NDArray[np.int32], _array_of({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, 1)]
"""One-dimensional token ids."""
Float32Array = Annotated[NDArray[np.float32], _array_of({"type": "number"}, 2)]
"""One-dimensional natural logarithms or rewards."""
UInt8Array = Annotated[NDArray[np.uint8], _array_of({"type": "integer", "enum": [0, 1]}, 3)]
"""One-dimensional flags in {0, 1}."""

SCHEMA_VERSION = 1


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A record value. The class name is the ``schema`` header; ``topic`` is the topic's short name."""

    topic: ClassVar[str]
    header_fields: ClassVar[tuple[str, ...]] = ()
    """Text fields that also stand in headers, for readers that must not touch the body."""

    schema_version: int = SCHEMA_VERSION
