"""Text of users and tools inside a template, encoded so that none of it becomes an added token.

A held text has a break character inside every string of an added token, and at an end that could complete one together
with its neighbour. The template is rendered with held texts; so the added tokens in what it renders are its own. They
are cut out first; then the breaks are removed and the runs between are encoded without any knowledge of added tokens.
The model reads the text unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from rollstream.rollout_workers.tokenizer_files import AddedToken

BREAK = "\ufdd0"
"""A noncharacter: never part of exchanged text, and no tokenizer has a token for it."""


class InertText:
    """Holds and encodes texts for one vocabulary.

    Args:
        added_tokens: all of the vocabulary's; those of white space only are harmless and left alone.
        encode_plain: ids of text without recognising added tokens.
    """

    def __init__(self, added_tokens: Sequence[AddedToken], encode_plain: Callable[[str], list[int]]) -> None:
        self._encode_plain = encode_plain
        self._tokens = {token.content: token for token in added_tokens}
        self._added = any_of(self._tokens)
        markers = [token for token in added_tokens if not token.content.isspace()]
        self.marker_ids = frozenset(token.id for token in markers)
        """What text of users and tools must never become."""
        self._markers = _Breaker([token.content for token in markers])
        self._controls = _Breaker([token.content for token in markers if token.is_control])

    def hold(self, text: str) -> str:
        """Text of users and tools: every marker is broken."""
        return self._markers.hold(_exchangeable(text))

    def hold_controls(self, text: str) -> str:
        """Text in the operator's or the model's voice: markers may be meant, control tokens never are."""
        return self._controls.hold(_exchangeable(text))

    def encode(self, rendered: str) -> list[int]:
        """The ids of what a template made of held texts."""
        ids: list[int] = []
        position, swallows = 0, False
        for found in self._added.finditer(rendered):
            token = self._tokens[found.group()]
            self._append_run(ids, rendered[position : found.start()], swallows, token.strips_left)
            ids.append(token.id)
            position, swallows = found.end(), token.strips_right
        self._append_run(ids, rendered[position:], swallows, False)
        return ids

    def _append_run(self, ids: list[int], run: str, strips_start: bool, strips_end: bool) -> None:
        run = run.lstrip() if strips_start else run
        run = run.rstrip() if strips_end else run
        if not run:
            return
        plain = self._encode_plain(run.replace(BREAK, ""))
        if not self.marker_ids.isdisjoint(plain):  # the model itself knows a marker as a whole
            plain = [token for character in run.replace(BREAK, "") for token in self._encode_plain(character)]
        ids += plain


class _Breaker:
    """Separates the first character of every given string from its second, wherever it occurs in a text."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._start = re.compile(f"(?=(?:{any_of(strings).pattern}))(.)", re.DOTALL)
        self._prefixes = {string[:end] for string in strings for end in range(1, len(string))}
        self._suffixes = {string[start:] for string in strings for start in range(1, len(string))}
        self._longest = max(map(len, strings), default=0)

    def hold(self, text: str) -> str:
        held = self._start.sub(lambda found: found.group(1) + BREAK, text)
        lengths = range(1, min(self._longest, len(held) + 1))
        before = BREAK if any(held[:length] in self._suffixes for length in lengths) else ""
        after = BREAK if any(held[-length:] in self._prefixes for length in lengths) else ""
        return before + held + after


def any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the strings; nothing if there are none."""
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")


def _exchangeable(text: str) -> str:
    return text.encode(errors="replace").decode().replace(BREAK, "\ufffd")
