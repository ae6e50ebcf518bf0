"""Finding an answer in what a model said, and comparing it with the right one. Pure, in time linear in the text."""

from __future__ import annotations

import re
from decimal import Context, Decimal

MAX_NUMBER_LENGTH = 400
"""Characters; longer strings of digits are not answers."""
_EXACT = Context(prec=3000)
"""Digits enough to subtract any two numbers of the accepted form without rounding."""

_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_])
    (?P<sign>[-+\N{MINUS SIGN}]?) [$€£]? (?P<inner_sign>[-+\N{MINUS SIGN}]?)
    (?P<digits>
        (?: [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ ) (?:\.[0-9]+)?
        | \.[0-9]+
    )
    (?P<exponent>(?:[eE][-+]?[0-9]{1,3}(?![0-9]))?)""",
    re.VERBOSE | re.ASCII,
)
_MARKER = re.compile(r"####|\banswer\s+is\b|\banswer\s*:", re.IGNORECASE)


def spoken_text(text: str) -> str:
    """What a turn says after thinking; empty if it never stopped thinking."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def final_number(text: str) -> Decimal | None:
    """The number an answer comes to: the first after the last ``####``, "answer is" or "answer:", else the last one."""
    markers = list(_MARKER.finditer(text))
    if markers:
        for found in _NUMBER.finditer(text, markers[-1].end()):
            return _value(found)
    last: re.Match[str] | None = None
    for found in _NUMBER.finditer(text):
        last = found
    return None if last is None else _value(last)


def same_number(left: Decimal, right: Decimal, tolerance: Decimal) -> bool:
    """Whether two numbers differ by at most ``tolerance``."""
    return _EXACT.subtract(left, right).copy_abs() <= tolerance


def same_text(left: str, right: str, *, ignore_case: bool = False) -> bool:
    """Whether two texts are equal up to runs of white space, and case if asked."""
    left, right = " ".join(left.split()), " ".join(right.split())
    return left.casefold() == right.casefold() if ignore_case else left == right


def _value(found: re.Match[str]) -> Decimal | None:
    digits = found["digits"].replace(",", "") + found["exponent"]
    if len(digits) > MAX_NUMBER_LENGTH:
        return None
    is_negative = (found["sign"] in ("-", "\N{MINUS SIGN}")) != (found["inner_sign"] in ("-", "\N{MINUS SIGN}"))
    number = Decimal(digits)
    return number.copy_negate() if is_negative else number  # the operator - would round
