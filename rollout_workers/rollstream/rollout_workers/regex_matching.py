"""Regular expressions of tasks on text of models, in bounded time.

Touches the library ``regex``, whose matcher takes a time limit and releases the interpreter lock while it runs; the
standard library's does neither, and one unlucky pattern would stop the worker.
"""

# regex ships no types
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any

import regex as regex_library

MATCH_TIMEOUT_S = 1.0
"""For one search through one turn."""


class PatternError(Exception):
    """The pattern is wrong, has no such group, or is too slow on this text."""


def last_match(pattern: str, text: str, *, group: int | str | None = None, ignore_case: bool = False) -> str | None:
    """The group's text in the last match; None where the pattern or the group does not match.

    Raises:
        PatternError: see there. Returns or raises within about MATCH_TIMEOUT_S.
    """
    compiled = _compiled(pattern, ignore_case)
    if group is None:
        group = 1 if compiled.groups else 0
    deadline = time.monotonic() + MATCH_TIMEOUT_S
    last = None
    try:
        for found in compiled.finditer(text, timeout=MATCH_TIMEOUT_S, concurrent=True):
            if time.monotonic() > deadline:
                raise TimeoutError
            last = found
        return None if last is None else last.group(group)
    except TimeoutError:
        raise PatternError(
            f"the pattern {pattern!r} took longer than {MATCH_TIMEOUT_S} s on {len(text)} characters: simplify it"
        ) from None
    except IndexError:
        raise PatternError(f"the pattern {pattern!r} has no group {group!r}") from None


@lru_cache(maxsize=64)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    try:
        return regex_library.compile(pattern, regex_library.IGNORECASE if ignore_case else 0)
    except regex_library.error as error:
        raise PatternError(f"the pattern {pattern!r} is invalid: {error}") from error
