"""What a grader finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.output_text import clean

MAX_COMPONENTS = 32
MAX_REPORT_CHARS = 2000
MAX_LINES = 20


@dataclass(frozen=True)
class Verdict:
    """A finite reward, its finite named parts, and a short text for people.

    Attributes:
        reward: what the episode is worth.
        components: named parts of it.
        report: what went wrong, for people; never shown to the model.
    """

    reward: float
    components: Mapping[str, float] = field(default_factory=dict[str, float])
    report: str = ""

    def text(self) -> str:
        """As the rollout worker reads it."""
        components = dict(list(self.components.items())[:MAX_COMPONENTS])
        content = {"reward": self.reward, "components": components, "report": clean(self.report)[:MAX_REPORT_CHARS]}
        return msgspec.json.encode(content).decode()


@dataclass(frozen=True)
class Check:
    """One test or case: whether it passed, how much it counts, and why it did not."""

    name: str
    passed: bool
    message: str = ""
    weight: float = 1.0


def verdict_of(checks: Sequence[Check], *, all_or_nothing: bool) -> Verdict:
    """1 if everything passed; else 0, or the weight of what has.

    Raises:
        ToolError: there is nothing to check.
    """
    total = sum(check.weight for check in checks)
    if total <= 0:
        raise ToolError("there are no tests: a task without tests cannot be graded by them")
    passed = sum(check.weight for check in checks if check.passed)
    rate = passed / total
    failures = [f"{check.name}: {check.message or 'failed'}" for check in checks if not check.passed]
    parts = {
        "passed": float(sum(check.passed for check in checks)),
        "total": float(len(checks)),
        "pass_rate": rate,
    }
    reward = float(all(check.passed for check in checks)) if all_or_nothing else rate
    return Verdict(reward, parts, "\n".join(failures[:MAX_LINES]))
