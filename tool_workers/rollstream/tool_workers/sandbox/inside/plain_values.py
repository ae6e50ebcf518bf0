"""Values as JSON, so that nothing of an object but its value crosses between sandboxes.

Exact types only: a subclass of ``int`` that claims to equal everything is no ``int`` here. What is not plain is an
opaque handle, or refused.
"""

from __future__ import annotations

import binascii
import math

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from collections.abc import Callable
    from typing import Any

MAX_DEPTH = 50
MAX_INT_BITS = 14_000
"""Python writes no longer ones in digits."""
MAX_SAME_HASH = 100
"""Members of one set or dictionary. Hashes of numbers can be chosen, and then every look-up is a search."""


class NotPlainError(Exception):
    """The value is not made of plain values only."""


def encode(value: Any, handle: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """JSON of a value: itself if JSON has it, else ``[kind, ...]``.

    Args:
        value: what to encode.
        handle: encodes what is not plain; None: it is refused.
        depth: how deep we are.

    Raises:
        NotPlainError: it is not plain, or too deep, or too large.
    """
    kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] -- of anything
    if value is None or kind is bool or kind is str:
        return value
    if kind is int and value.bit_length() <= MAX_INT_BITS:
        return value if value.bit_length() < 53 else ["int", hex(value)]
    if kind is float:
        return value if math.isfinite(value) else ["float", repr(value)]
    if kind is bytes:
        return ["bytes", binascii.b2a_base64(value, newline=False).decode()]
    if depth < MAX_DEPTH:
        if kind in (list, tuple, set, frozenset):
            return [kind.__name__, [encode(item, handle, depth + 1) for item in value]]
        if kind is dict:
            pairs = [[encode(key, handle, depth + 1), encode(item, handle, depth + 1)] for key, item in value.items()]
            return ["dict", pairs]
    if handle is None:
        raise NotPlainError(f"a {kind.__name__} is not a plain value")
    return handle(value)


def decode(value: Any, handle: Callable[[Any], Any] | None = None, depth: int = 0) -> Any:
    """The value of such JSON: nothing that ``encode`` would refuse, whoever has written it.

    Raises:
        NotPlainError: it is none.
    """
    if value is None or isinstance(value, (bool, float, str)):
        return value
    if isinstance(value, int):
        return _checked_int(value)
    try:
        kind, content = value
        if kind == "int":
            return _checked_int(int(content, 16))
        if kind == "float" and isinstance(content, str):
            return float(content)
        if kind == "bytes":
            return binascii.a2b_base64(content)
        if depth < MAX_DEPTH and kind in ("list", "tuple", "set", "frozenset"):
            items = [decode(item, handle, depth + 1) for item in content]
            if kind in ("set", "frozenset"):
                _check_hashes(items)
            return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)
        if depth < MAX_DEPTH and kind == "dict":
            pairs = [(decode(key, handle, depth + 1), decode(item, handle, depth + 1)) for key, item in content]
            _check_hashes([key for key, _ in pairs])
            return dict(pairs)
        if kind == "handle" and handle is not None:
            return handle(content)
    except (TypeError, ValueError, OverflowError) as error:
        raise NotPlainError(f"not a plain value: {error}") from error
    raise NotPlainError("not a plain value: unknown kind, or too deep")


def text_of(error: BaseException, max_chars: int) -> str:
    """What an exception of the agent's code says, which may be code of the agent's again."""
    try:
        return str(error)[:max_chars]
    except BaseException:  # of the agent's code
        return ""


def _checked_int(value: int) -> int:
    if value.bit_length() > MAX_INT_BITS:
        raise NotPlainError(f"not a plain value: an int of {value.bit_length()} bits")
    return value


def _check_hashes(members: list[Any]) -> None:
    counts: dict[int, int] = {}
    for member in members:
        number = hash(member)
        counts[number] = counts.get(number, 0) + 1
        if counts[number] > MAX_SAME_HASH:
            raise NotPlainError("not a plain value: too many members of one hash")
