"""What all messages share: how a struct becomes a record.

Rules of evolution: a field is never renamed, retyped or given a new meaning; new fields have defaults; unknown fields
are ignored by readers. ``schema_version`` grows only when an old reader would misunderstand a record.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
"""One-dimensional token ids; little-endian on the wire."""
Float32Array = NDArray[np.float32]
"""One-dimensional natural logarithms or rewards; little-endian on the wire."""
UInt8Array = NDArray[np.uint8]
"""One-dimensional flags in {0, 1}."""

SCHEMA_VERSION = 1


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A record value. The class name is the ``schema`` header; ``topic`` is the topic's short name."""

    topic: ClassVar[str]

    schema_version: int = SCHEMA_VERSION
