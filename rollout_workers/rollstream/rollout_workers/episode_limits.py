"""What cuts an episode short."""

from __future__ import annotations

from typing import Literal

CutReason = Literal["max_turns", "max_tokens", "context_length", "wall_clock", "malformed"]


class EpisodeCut(Exception):
    """A limit was reached: the episode ends as ``truncated``. Agents let it pass."""

    def __init__(self, reason: CutReason) -> None:
        super().__init__(reason)
        self.reason: CutReason = reason
