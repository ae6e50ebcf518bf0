"""The tool ``calculator``: arithmetic on numbers, with a few functions and constants, and without any other name."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# (simpleeval is annotated in part only)

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable
from typing import Any, cast

from simpleeval import InvalidExpression, SimpleEval

from rollstream.tool_workers.functions import ToolError, tool

Number = int | float
MAX_EXPRESSION_CHARS = 1000
MAX_BITS = 4096
"""Of any integer on the way: 1,233 digits."""
MAX_DIGITS = 1300
"""Places that can be rounded to, before and behind the point: more than any number here has."""
NO_ARITHMETIC = (ast.Attribute, ast.JoinedStr, ast.FormattedValue)
"""Attributes lead to everything there is, and a format's width to as much memory as one likes."""


def _bounded(operation: Callable[[Number, Number], Number]) -> Callable[[object, object], Number]:
    def run(left: object, right: object) -> Number:
        return _checked(operation(_number(left), _number(right)))

    return run


def _number(value: object) -> Number:
    if type(value) is int or type(value) is float:
        return value
    raise ToolError("only numbers can be calculated with")


def _checked(value: object) -> Number:
    number = _number(value)
    if isinstance(number, int) and number.bit_length() > MAX_BITS:
        raise ToolError("the result is too large")
    if isinstance(number, float) and not math.isfinite(number):
        raise ToolError("the result is too large")
    return number


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > 2 * MAX_BITS:
        raise ToolError("the result is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ToolError("the result is not a real number")
    return result


def _power_sign_hint(left: object, right: object) -> Number:
    raise ToolError("^ is not supported, use ** for powers")


def _plus(value: object) -> Number:
    return _number(value)


def _minus(value: object) -> Number:
    return -_number(value)


OPERATORS = {
    ast.Add: _bounded(operator.add),
    ast.Sub: _bounded(operator.sub),
    ast.Mult: _bounded(operator.mul),
    ast.Div: _bounded(operator.truediv),
    ast.FloorDiv: _bounded(operator.floordiv),
    ast.Mod: _bounded(operator.mod),
    ast.Pow: _bounded(_power),
    ast.BitXor: _power_sign_hint,
    ast.UAdd: _plus,
    ast.USub: _minus,
}


def _function(operation: Callable[..., Number]) -> Callable[..., Number]:
    def run(*arguments: object) -> Number:
        return _checked(operation(*map(_number, arguments)))

    return run


def _absolute(number: Number) -> Number:
    return abs(number)


def _rounded(number: Number, digits: object = None) -> Number:
    if digits is None:
        return round(number)
    if not isinstance(digits, int):
        raise TypeError(digits)
    # Beyond these nothing changes any more, but Python would compute 10 ** -digits.
    return round(number, min(max(digits, -MAX_DIGITS), MAX_DIGITS))


def _unbounded(*_: object) -> Number:
    raise ToolError("factorial and comb are not supported, their results have no bound")


FUNCTIONS: dict[str, Callable[..., Number]] = {
    **{
        name: _function(getattr(math, name))
        for name in (
            "sqrt",
            "exp",
            "log",
            "log2",
            "log10",
            "sin",
            "cos",
            "tan",
            "asin",
            "acos",
            "atan",
            "floor",
            "ceil",
        )
    },
    "abs": _function(_absolute),
    "round": _function(_rounded),
    "min": _function(min),
    "max": _function(max),
    "factorial": _unbounded,
    "comb": _unbounded,
    "perm": _unbounded,
}
NAMES = {"pi": math.pi, "e": math.e}
KNOWN = "+ - * / // % ** parentheses, pi, e, " + ", ".join(
    each for each in FUNCTIONS if FUNCTIONS[each] is not _unbounded
)


@tool(timeout_s=5.0)
async def calculator(expression: str) -> str:
    """Evaluate an arithmetic expression."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ToolError(f"the expression is {len(expression)} characters, at most {MAX_EXPRESSION_CHARS}")
    evaluator = SimpleEval(operators=OPERATORS, functions=FUNCTIONS, names=NAMES)
    for kind in NO_ARITHMETIC:
        cast("dict[type[ast.AST], Any]", evaluator.nodes).pop(kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # several expressions, numbers run into words
            value = _checked(evaluator.eval(expression.strip()))
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise ToolError("the result is too large") from None
    except (RecursionError, MemoryError):
        raise ToolError("the expression is nested too deeply") from None
    except (InvalidExpression, KeyError, AttributeError, TypeError):
        raise ToolError(f"only numbers, {KNOWN} are supported") from None
    except UnicodeError:
        raise ToolError(f"not a valid arithmetic expression: {expression[:100]!r}") from None
    except ValueError as error:
        said = "not a valid arithmetic expression" if "null bytes" in str(error) else str(error)
        raise ToolError(f"{said}: {expression[:100]!r}") from None
    except (SyntaxError, Warning):
        raise ToolError(f"not a valid arithmetic expression: {expression[:100]!r}") from None
    return str(value) if isinstance(value, int) else repr(value)
