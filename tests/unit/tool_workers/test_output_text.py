from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.output_text import UNSAFE, cap, clean

ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


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
        ("soft\u00adhyphen\u2028line", "soft\\xadhyphen\\u2028line"),
        ("hidden \U000e0100\ufe01", "hidden \\U000e0100\\ufe01"),
        ("\ue000private", "\\ue000private"),
        ("z\u0301" + "\u0302" * 100, "z\u0301" + "\u0302" * 7),
        ("👩\u200d🚀 ❤\ufe0f", "👩\\u200d🚀 ❤\ufe0f"),
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


@given(st.text(alphabet=st.characters(), max_size=200))
def test_no_format_or_control_character_is_left(raw: str) -> None:
    left = {unicodedata.category(character) for character in clean(raw)} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert left <= {"Cc"}
    assert all(character in "\t\n" for character in clean(raw) if unicodedata.category(character) == "Cc")


@given(st.lists(st.sampled_from(["a", "\u202e", "\x00", "\U000e0041", "é"]), max_size=60), st.integers(2, 60))
def test_no_escape_is_cut_in_two(pieces: list[str], max_chars: int) -> None:
    text, is_truncated = cap(clean("".join(pieces)), max_chars)
    head, _, tail = text.partition("\n[... ")
    assert "\\" not in ESCAPE.sub("", head)
    if is_truncated:
        assert set(ESCAPE.sub("", tail.partition(" ...]\n")[2])) <= {"a", "é"}


IGNORED = (
    "00ad 034f 061c 115f-1160 17b4-17b5 180b-180f 200b-200f 202a-202e 2060-206f 3164 fe00-fe0e feff ffa0 fff0-fff8"
)
IGNORED_FAR = "1bca0-1bca3 1d173-1d17a e0000-e0fff"
NO_CHARACTERS = "fdd0-fdef " + " ".join(f"{plane:x}fffe-{plane:x}ffff" for plane in range(17))


@pytest.mark.parametrize("span", f"{IGNORED} {IGNORED_FAR} {NO_CHARACTERS}".split())
def test_what_nothing_is_drawn_for_is_shown_assigned_or_not(span: str) -> None:
    first, _, last = span.partition("-")
    for code in range(int(first, 16), int(last or first, 16) + 1):
        assert clean(f"a{chr(code)}b") in (f"a\\x{code:02x}b", f"a\\u{code:04x}b", f"a\\U{code:08x}b")


def test_short_text_is_kept() -> None:
    assert cap("x" * 10, 10) == ("x" * 10, False)


def test_long_text_keeps_both_ends_and_says_how_much_is_missing() -> None:
    text, is_truncated = cap("a" * 50 + "b" * 50, 10)
    assert (text, is_truncated) == ("aaaaa\n[... 90 characters omitted ...]\nbbbbb", True)
