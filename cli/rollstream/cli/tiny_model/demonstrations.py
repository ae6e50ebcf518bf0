"""What the tiny model is shown: episodes as text, some of them flawed, so that reinforcement has something to mend.

The mix of flaws, not an early end of training, sets the reward it starts with: that is repeatable.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from rollstream.cli.tiny_model.arithmetic import CALCULATOR, OPERATIONS, ArithmeticTask, make_task

DIRECT_ANSWER_SHARE = 0.35
"""Gives the first operand as the answer at once: wrong, but it practises copying, which noise would drown."""
WRONG_OPERATOR_SHARE = 0.10
BROKEN_JSON_SHARE = 0.10
GIVING_UP = "I do not know."
ERRORS = (
    "malformed tool call: the JSON object is not closed",
    "malformed tool call: the tool_call tag is not closed",
    "malformed tool call: 'arguments' is missing",
    "malformed tool call: text between the JSON and the closing tag",
    "malformed tool call: invalid JSON: Expecting ',' delimiter at character 31",
    "invalid arguments: missing a required argument: 'expression'",
    "unknown tool 'calc'; the tools are: calculator",
    "the expression is not valid",
    "invalid syntax",
    "division by zero",
)
"""What tools and worker may answer after ``Error:``; the model has to cope with any."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode. ``turns`` are the model's, without the stop token; ``observations[i]`` answers ``turns[i]``."""

    question: str
    turns: tuple[str, ...]
    observations: tuple[str, ...]


def call_text(expression: str) -> str:
    """A call of the calculator as the model writes it."""
    call = {"name": CALCULATOR.name, "arguments": {"expression": expression}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def clean_demonstration(task: ArithmeticTask) -> Demonstration:
    """A call and the copied result."""
    turns = (call_text(task.expression), f"The answer is {task.answer}.")
    return Demonstration(task.prompt, turns, (task.answer,))


def flawed_demonstration(rng: random.Random) -> Demonstration:
    """A random task, done well or with one of the three flaws."""
    task = make_task(rng)
    draw = rng.random()
    if draw < DIRECT_ANSWER_SHARE:
        return Demonstration(task.prompt, (f"The answer is {task.expression.split()[0]}.",), ())
    draw -= DIRECT_ANSWER_SHARE
    if draw < WRONG_OPERATOR_SHARE:
        return _with_wrong_operator(task, rng)
    draw -= WRONG_OPERATOR_SHARE
    if draw < BROKEN_JSON_SHARE:
        broken = call_text(task.expression).replace('"}}', '"}')
        return Demonstration(task.prompt, (broken, GIVING_UP), (f"Error: {rng.choice(ERRORS)}",))
    return clean_demonstration(task)


def _with_wrong_operator(task: ArithmeticTask, rng: random.Random) -> Demonstration:
    left, right_sign, right = task.expression.split()
    sign = rng.choice([other for other in OPERATIONS if other != right_sign])
    answer = str(OPERATIONS[sign](int(left), int(right)))
    return Demonstration(task.prompt, (call_text(f"{left} {sign} {right}"), f"The answer is {answer}."), (answer,))
