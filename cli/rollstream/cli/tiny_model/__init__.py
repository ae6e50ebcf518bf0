"""A tiny Qwen3 that calls a calculator, made on the spot: the model of the demo and of the tests."""

from rollstream.cli.tiny_model.arithmetic import (
    ANSWER_PATTERN,
    CALCULATOR,
    CALCULATOR_PARAMETERS,
    SYSTEM_PROMPT,
    ArithmeticTask,
    make_tasks,
)
from rollstream.cli.tiny_model.model_cache import ensure_tiny_model

__all__ = [
    "ANSWER_PATTERN",
    "CALCULATOR",
    "CALCULATOR_PARAMETERS",
    "SYSTEM_PROMPT",
    "ArithmeticTask",
    "ensure_tiny_model",
    "make_tasks",
]
