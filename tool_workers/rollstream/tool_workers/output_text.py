"""What a tool wrote, made fit to be read by a model: no control characters, no invisible ones, bounded. Pure.

Control tokens of a model's template are not this module's business: rollout workers encode observations so that no
text becomes one.
"""

from __future__ import annotations

import re

ANSI_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC: titles, links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?"  # DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]"
)
UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"  # no width, direction
    "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # marks before numbers, invisible alone
    "\u115f\u1160\u17b4\u17b5\u3164\uffa0"  # fillers
    "\u2028\u2029"  # separators that some take for line ends
    "\u180b-\u180d\u180f\ufe00-\ufe0e"  # variation selectors but the one of emoji
    "\U00013430-\U0001345f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # joiners and beams of scripts and scores
    "\ud800-\udfff"  # lone surrogates
    "\ue000-\uf8ff\U000f0000-\U0010ffff"  # private use: means what somebody has agreed on
    f"\ufdd0-\ufdef{''.join(f'{chr(end - 1)}{chr(end)}' for end in range(0xFFFF, 0x110000, 0x10000))}"  # no characters
    "\U000e0000-\U000e0fff"  # tags, variation selectors, what is kept for more that nobody sees
    "]"
)
COMBINING = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe0f\ufe20-\ufe2f"
MAX_COMBINING = 8
_PILES = re.compile(f"([{COMBINING}]{{{MAX_COMBINING}}})[{COMBINING}]+")
_ESCAPE = re.compile(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_LONGEST_ESCAPE = 10


def clean(text: str) -> str:
    """Terminal sequences are removed, line ends become newlines, other invisible characters are shown as escapes.

    Of marks piled on one character, eight are kept.
    """
    text = ANSI_SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _PILES.sub(r"\1", UNSAFE.sub(_escape, text))


def cap(text: str, max_chars: int) -> tuple[str, bool]:
    """The text, or its beginning and end around a note of what is missing; and whether something is.

    No escape is cut in two.
    """
    if len(text) <= max_chars:
        return text, False
    head = _before_escape(text, max_chars // 2)
    tail = _after_escape(text, len(text) - (max_chars - max_chars // 2))
    return f"{text[:head]}\n[... {tail - head} characters omitted ...]\n{text[tail:]}", True


def _before_escape(text: str, cut: int) -> int:
    found = _escape_across(text, cut)
    return cut if found is None else found.start()


def _after_escape(text: str, cut: int) -> int:
    found = _escape_across(text, cut)
    return cut if found is None else found.end()


def _escape_across(text: str, cut: int) -> re.Match[str] | None:
    for found in _ESCAPE.finditer(text, max(0, cut - _LONGEST_ESCAPE), cut + _LONGEST_ESCAPE):
        if found.start() < cut < found.end():
            return found
    return None


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
