"""Scripts for the scripted engine: they read conversations of bytes and answer in the Hermes form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import cast

from rollstream.rollout_workers.byte_chat_format import END_OF_MESSAGE_ID, ROLE_IDS
from rollstream.rollout_workers.named_functions import import_function
from rollstream.rollout_workers.scripted_engine import Script, ScriptPrompt, decode_bytes

EXPRESSION = re.compile(r"\d+ [-+*/] \d+")
MEDIAN_WORDS = 60
WORDS_SIGMA = 1.0
CALL_PROBABILITY = 0.6


def conversation(ids: Sequence[int]) -> list[tuple[str, str]]:
    """(role, content) of every message a `ByteChatFormat` rendered, the one being written not included."""
    roles = {role_id: role for role, role_id in ROLE_IDS.items()}
    messages: list[tuple[str, str]] = []
    start = 0
    for index, token in enumerate(ids):
        if token in roles:
            start = index
        elif token == END_OF_MESSAGE_ID:
            messages.append((roles.get(ids[start], ""), decode_bytes(ids[start + 1 : index])))
    return messages


def calculator_call(expression: str) -> str:
    """The text of one call of the calculator."""
    body = json.dumps({"name": "calculator", "arguments": {"expression": expression}})
    return f"<tool_call>\n{body}\n</tool_call>"


def arithmetic(prompt: ScriptPrompt) -> str:
    """Give the first expression of the question to the calculator, then say what it answered."""
    messages = conversation(prompt.ids)
    role, content = messages[-1]
    if role == "tool":
        return f"The answer is {content}."
    expression = EXPRESSION.search(content)
    return calculator_call(expression[0]) if expression else "I do not know."


def long_tailed(prompt: ScriptPrompt) -> str:
    """Think for a lognormal number of words, then call the calculator or end: lengths and turns have long tails."""
    rng = prompt.rng
    words = max(1, round(MEDIAN_WORDS * rng.lognormvariate(0.0, WORDS_SIGMA)))
    thought = " ".join(f"w{rng.randrange(100)}" for _ in range(words))
    if rng.random() < CALL_PROBABILITY:
        return f"{thought}\n{calculator_call(f'{rng.randrange(1000)} + {rng.randrange(1000)}')}"
    return f"{thought}\nThe answer is {rng.randrange(1000)}."


SCRIPTS: dict[str, Script] = {"arithmetic": arithmetic, "long_tailed": long_tailed}


def load_script(name: str) -> Script:
    """A script by its name, or by ``module:function``.

    Raises:
        SettingsError: there is no such script.
    """
    if name in SCRIPTS:
        return SCRIPTS[name]
    return cast("Script", import_function(name, kind="script", known=SCRIPTS))
