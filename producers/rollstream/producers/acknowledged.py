"""How far acknowledgements reach without a gap. Pure."""

from __future__ import annotations


class AcknowledgedPrefix:
    """Group indices acknowledged in any order; ``count`` is the length of the gapless beginning."""

    def __init__(self) -> None:
        self.count = 0
        self._ahead: set[int] = set()

    def add(self, group_index: int) -> None:
        """Group ``group_index`` is in the topic, all its members."""
        self._ahead.add(group_index)
        while self.count in self._ahead:
            self._ahead.remove(self.count)
            self.count += 1
