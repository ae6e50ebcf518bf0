"""Results kept for callers that ask again. Pure."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable

from rollstream.schemas.tools import ToolResult

OVERHEAD_BYTES = 1000
"""What a result takes besides its text."""


class ResultMemory:
    """Results by key. When there are too many, or they take too much memory, the oldest are forgotten.

    Args:
        max_results: None: bounded in bytes only.
        max_bytes: of the latest result at least one is kept, whatever its size.
    """

    def __init__(self, *, max_results: int | None, max_bytes: int) -> None:
        self._max_results = max_results
        self._max_bytes = max_bytes
        self._results: OrderedDict[tuple[str, str], ToolResult] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: tuple[str, str]) -> ToolResult | None:
        """The result, unless it was never kept or is forgotten."""
        return self._results.get(key)

    def keep(self, key: tuple[str, str], result: ToolResult) -> None:
        """Remember a result as the newest one."""
        self.forget([key])
        self._results[key] = result
        self.size_bytes += _size_bytes(result)
        while len(self._results) > 1 and self._is_too_much():
            _, oldest = self._results.popitem(last=False)
            self.size_bytes -= _size_bytes(oldest)

    def forget(self, keys: Iterable[tuple[str, str]]) -> None:
        """Drop results. Keys that are not there do not matter."""
        for key in keys:
            result = self._results.pop(key, None)
            if result is not None:
                self.size_bytes -= _size_bytes(result)

    def _is_too_much(self) -> bool:
        too_many = self._max_results is not None and len(self._results) > self._max_results
        return too_many or self.size_bytes > self._max_bytes


def _size_bytes(result: ToolResult) -> int:
    return OVERHEAD_BYTES + sys.getsizeof(result.content)
