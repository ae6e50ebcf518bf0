"""Whether the answers an episode was given are the history of exactly its own calls. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rollstream.schemas.trajectories import Sample

NOTES = re.compile(r"notes:((?: [\w.\-]+)*)")

Decode = Callable[[Sequence[int]], str]
NotesOf = Callable[[str, int, int], Sequence[str]]
"""From the text of a turn, its number and its number of calls: the notes it asked for, in call order."""


@dataclass(frozen=True, slots=True)
class Page:
    """One turn: the notes its calls ask for, and what each call was answered, in call order."""

    notes: Sequence[str]
    answers: Sequence[Sequence[str]]


def pages_of(sample: Sample, decode: Decode, notes_of: NotesOf) -> list[Page]:
    """The turns of a sample, from its sampled and observed tokens alone."""
    ids = sample.response_ids.tolist()
    ends = [*(turn.start for turn in sample.turns[1:]), len(ids)]
    pages: list[Page] = []
    for number, (turn, observed_to) in enumerate(zip(sample.turns, ends, strict=True)):
        answers = [found.split() for found in NOTES.findall(decode(ids[turn.end : observed_to]))]
        pages.append(Page(notes_of(decode(ids[turn.start : turn.end]), number, turn.tool_calls), answers))
    return pages


def broken_history(pages: Sequence[Page], *, is_complete: bool) -> str | None:
    """What is wrong; None: every answer is what one session says that has run these calls, once, and no others.

    Calls of one turn run beside one another: their order among themselves is free, but all have to agree on it.

    Args:
        pages: the turns in order.
        is_complete: whether every call must have an answer; in a cut episode those of the last turn may have none.
    """
    history: list[str] = []
    for number, page in enumerate(pages):
        if not page.answers and (not page.notes or (not is_complete and number == len(pages) - 1)):
            continue
        if len(page.answers) != len(page.notes):
            return f"turn {number}: {len(page.notes)} calls, {len(page.answers)} answers"
        longest = list(max(page.answers, key=len))
        if longest[: len(history)] != history or sorted(longest[len(history) :]) != sorted(page.notes):
            return f"turn {number}: after {history} and the calls {list(page.notes)} the session says {longest}"
        for text, answer in zip(page.notes, page.answers, strict=True):
            if list(answer) != longest[: longest.index(text) + 1]:
                return f"turn {number}: the answer to {text!r} is {list(answer)}, the session says {longest}"
        history = longest
    return None
