"""A broken rule, before it is known in which message it was found."""

from __future__ import annotations

_MAX_VALUE_CHARS = 120


class Violation(ValueError):
    """``field`` holds ``value`` (shortened for people), which breaks ``rule``."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        text = repr(value)
        self.field = field
        self.value = text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"
        self.rule = rule
        super().__init__(f"{field} is {self.value}: {rule}")
