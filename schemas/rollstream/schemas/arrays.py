"""Arrays on the wire: msgpack extension types that say what they hold, so a reader needs no table of fields.

==== ========================= ==============================================================
code decoded as                data
==== ========================= ==============================================================
1    int32 [n]                 4 n bytes, little-endian
2    float32 [n]               4 n bytes, little-endian IEEE 754
3    uint8 [n], flags {0, 1}   1 byte: unused bits of the last byte (0-7); then the flags, 8 per byte, lowest bit first
17   as 1, in byte planes      n lowest bytes, n second, n third, n highest bytes
18   as 2, in byte planes      n lowest bytes, n second, n third, n highest bytes
==== ========================= ==============================================================

Byte planes stand in compressed bodies only: equal bytes become neighbours, which zstd packs better and faster.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

INT32_CODE: Final = 1
FLOAT32_CODE: Final = 2
FLAGS_CODE: Final = 3
PLANES: Final = 16
"""Added to the code of an array in byte planes."""

_INT32, _FLOAT32, _UINT8 = np.dtype("<i4"), np.dtype("<f4"), np.dtype("u1")
_CODES = {_INT32: INT32_CODE, _FLOAT32: FLOAT32_CODE}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def pack_array(value: Any) -> msgspec.msgpack.Ext:
    """Encode hook: a one-dimensional int32, float32 or flag array as it lies in memory."""
    return _pack(value, in_planes=False)


def pack_array_in_planes(value: Any) -> msgspec.msgpack.Ext:
    """Encode hook: the same with numbers in byte planes, for bodies that are compressed."""
    return _pack(value, in_planes=True)


def unpack_array(code: int, data: memoryview) -> Any:
    """Extension hook: a new, writable, aligned array; it does not keep the record's bytes alive.

    Raises:
        ValueError: the data do not fit the code. Unknown codes stay msgpack extensions (a newer writer's field).
    """
    if code == FLAGS_CODE:
        return _unpack_flags(data)
    dtype = _DTYPES.get(code & ~PLANES)
    if dtype is None or code < 0:
        return msgspec.msgpack.Ext(code, bytes(data))
    if len(data) % 4:
        raise ValueError(f"array of {len(data)} bytes under extension code {code}, expected a multiple of 4")
    if not code & PLANES:
        return np.frombuffer(data, dtype=dtype).copy()
    planes = np.frombuffer(data, dtype=_UINT8).reshape(4, -1)
    interleaved = np.empty((planes.shape[1], 4), dtype=_UINT8)
    for place in range(4):
        interleaved[:, place] = planes[place]
    return interleaved.reshape(-1).view(dtype)


def check_array_type(array_type: Any, value: Any) -> Any:
    """Decode hook: the array must have the dtype its field declares.

    Raises:
        ValueError: it is no array, or one of another dtype.
    """
    expected = _declared_dtype(array_type)
    if not isinstance(value, np.ndarray):
        raise ValueError(f"expected an array of {expected.name}, got {type(value).__name__}")
    array = cast("NDArray[Any]", value)
    if array.dtype != expected:
        raise ValueError(f"expected an array of {expected.name}, got {array.dtype.name}")
    return array


@cache
def _declared_dtype(array_type: Any) -> np.dtype[Any]:
    return np.dtype(get_args(get_args(array_type)[1])[0])


def _pack(value: Any, *, in_planes: bool) -> msgspec.msgpack.Ext:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot encode {type(value).__name__} {value!r}")
    array = cast("NDArray[Any]", value)
    if array.ndim != 1:
        raise TypeError(f"cannot encode an array of shape {array.shape}, expected one dimension")
    if array.dtype == _UINT8:
        return msgspec.msgpack.Ext(FLAGS_CODE, _pack_flags(array))
    little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    code = _CODES.get(little_endian.dtype)
    if code is None:
        raise TypeError(f"cannot encode an array of {array.dtype.name}, expected int32, float32 or uint8 flags")
    if not in_planes:
        return msgspec.msgpack.Ext(code, little_endian.tobytes())
    planes = np.empty((4, len(array)), dtype=_UINT8)
    octets = little_endian.view(_UINT8).reshape(-1, 4)
    for place in range(4):
        planes[place] = octets[:, place]
    return msgspec.msgpack.Ext(code | PLANES, planes.tobytes())


def _pack_flags(flags: NDArray[np.uint8]) -> bytes:
    if len(flags) and flags.max() > 1:
        raise ValueError(f"flags hold the value {int(flags.max())}, expected only 0 and 1")
    return bytes([-len(flags) % 8]) + np.packbits(flags, bitorder="little").tobytes()


def _unpack_flags(data: memoryview) -> NDArray[np.uint8]:
    unused = data[0] if len(data) else 8
    count = (len(data) - 1) * 8 - unused
    if unused > 7 or count < 0:
        raise ValueError(f"flags of {len(data)} bytes with {unused} unused bits")
    return np.unpackbits(np.frombuffer(data, dtype=_UINT8, offset=1), count=count, bitorder="little")
