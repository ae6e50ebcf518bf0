"""Which letters are meant: by topic, who buried them, why, when, and what stands in them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rollstream.schemas.codec import read_body
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.registry import MESSAGES


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """All that is set must fit.

    Attributes:
        topic: of the original record: full name, short name, or ``tool-calls`` for those of all toolsets.
        since_s, until_s: unix seconds; when it was buried.
        text: anywhere in cause, stack, key, headers or value (decompressed), in upper or lower case.
    """

    prefix: str = ""
    topic: str | None = None
    role: str | None = None
    error_type: str | None = None
    worker_id: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    text: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it lets everything through."""
        return self == LetterFilter(prefix=self.prefix)

    def fits(self, letter: DeadLetter) -> bool:
        """Whether the letter is meant."""
        return (
            self._fits_topic(letter.origin_topic)
            and self.role in (None, letter.role)
            and self.error_type in (None, letter.error_type)
            and self.worker_id in (None, letter.worker_id)
            and (self.since_s is None or letter.failed_at >= self.since_s)
            and (self.until_s is None or letter.failed_at < self.until_s)
            and (self.text is None or _contains(letter, self.text))
        )

    def _fits_topic(self, origin: str) -> bool:
        if self.topic is None:
            return True
        short = origin.removeprefix(self.prefix)
        return self.topic in (origin, short) or short.startswith(f"{self.topic}.")


def record_body(letter: DeadLetter) -> bytes:
    """The value of the record, decompressed where it can be."""
    for message in MESSAGES:
        try:
            return read_body(letter.value, letter.headers, message)
        except InvalidMessageError:
            continue
    return letter.value or b""


def _contains(letter: DeadLetter, text: str) -> bool:
    wanted = text.lower()
    if any(wanted in place.lower() for place in (letter.error_type, letter.error, letter.stack)):
        return True
    # Lower case of bytes changes ASCII letters only; so does that of the text, for what is not ASCII.
    sought = text.encode(errors="replace").lower()
    places = (record_body(letter), letter.key or b"", *(name.encode() + b"=" + data for name, data in letter.headers))
    return any(sought in place.lower() for place in places)
