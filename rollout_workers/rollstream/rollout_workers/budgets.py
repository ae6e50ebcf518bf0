"""How often an episode is begun again. Pure.

Infrastructure failures (engine, session, time-outs of ours) and data failures (the agent raises, is not deterministic)
have budgets of their own: a bad task must not eat five tries, a bad night must not fail a good task.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rollstream.schemas.errors import TransientError

FailureKind = Literal["infrastructure", "data"]

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True, slots=True)
class AttemptBudgets:
    """Failed attempts a task may have before it ends as ``failed``."""

    infra: int = 5
    data: int = 2


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """What has gone wrong so far with one task."""

    infra: int = 0
    data: int = 0

    @property
    def next_attempt(self) -> int:
        """1 for the first."""
        return self.infra + self.data + 1

    def after(self, kind: FailureKind) -> AttemptHistory:
        """The history with one more failure."""
        if kind == "infrastructure":
            return replace(self, infra=self.infra + 1)
        return replace(self, data=self.data + 1)

    def is_spent(self, budgets: AttemptBudgets) -> bool:
        """Whether the task ends as ``failed`` now."""
        return self.infra >= budgets.infra or self.data >= budgets.data

    @property
    def pause_s(self) -> float:
        """How long to wait before the next attempt: doubles with every infrastructure failure."""
        if self.infra == 0:
            return 0.0
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self.infra - 1))


def failure_kind(error: Exception) -> FailureKind:
    """Infrastructure says so by its type; whatever else an agent lets escape is its own doing."""
    return "infrastructure" if isinstance(error, TransientError) else "data"
