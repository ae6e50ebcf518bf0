from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.output_text import UNSAFE, cap, clean


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("a\x00b\x07", "a\\x00b\\x07"),
        ("one\r\ntwo\rthree\tfour", "one\ntwo\nthree\tfour"),
        ("abc\u202edef", "abc\\u202edef"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("half \ud83d", "half \\ud83d"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("\x9b31m", "\\x9b31m"),
        ("Zwölf Boxkämpfer 🥊 漢字", "Zwölf Boxkämpfer 🥊 漢字"),
    ],
)
def test_text_is_cleaned(raw: str, expected: str) -> None:
    assert clean(raw) == expected


@given(st.text(alphabet=st.characters(), max_size=200))
def test_nothing_invisible_is_left_and_cleaning_again_changes_nothing(raw: str) -> None:
    cleaned = clean(raw)
    assert UNSAFE.search(cleaned) is None
    assert clean(cleaned) == cleaned
    cleaned.encode()


def test_short_text_is_kept() -> None:
    assert cap("x" * 10, 10) == ("x" * 10, False)


def test_long_text_keeps_both_ends_and_says_how_much_is_missing() -> None:
    text, is_truncated = cap("a" * 50 + "b" * 50, 10)
    assert (text, is_truncated) == ("aaaaa\n[... 90 characters omitted ...]\nbbbbb", True)
