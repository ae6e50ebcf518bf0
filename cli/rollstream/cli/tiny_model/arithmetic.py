"""The task the tiny model is made for: one sum, difference or product, a calculator, and an answer in fixed words.

A model this small cannot multiply in its head: reward takes a correct call and a correct copy of its result.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollstream.schemas.tasks import ToolSpec

SYSTEM_PROMPT = "You solve arithmetic with tools."
CALCULATOR_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"expression": {"type": "string"}},
    "required": ["expression"],
}
CALCULATOR = ToolSpec(
    name="calculator", description="Evaluate an arithmetic expression.", parameters=CALCULATOR_PARAMETERS
)
ANSWER_PATTERN = r"The answer is (-?\d+)\."
"""Group 1 is the answer; rewarded when it equals `ArithmeticTask.answer`."""

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SMALLEST, LARGEST = 2, 999
PHRASINGS = ("What is {}?", "Compute {}.", "Please work out {}.", "{} = ?")


@dataclass(frozen=True, slots=True)
class ArithmeticTask:
    """One question. ``expression`` is what the calculator should be given."""

    prompt: str
    answer: str
    expression: str


def make_task(rng: random.Random) -> ArithmeticTask:
    """The next random task."""
    left, right = rng.randint(SMALLEST, LARGEST), rng.randint(SMALLEST, LARGEST)
    sign = rng.choice(list(OPERATIONS))
    expression = f"{left} {sign} {right}"
    answer = str(OPERATIONS[sign](left, right))
    return ArithmeticTask(rng.choice(PHRASINGS).format(expression), answer, expression)


def make_tasks(seed: int, n: int) -> list[ArithmeticTask]:
    """``n`` random tasks, the same for the same seed; a longer list begins with the shorter one."""
    rng = random.Random(seed)
    return [make_task(rng) for _ in range(n)]
