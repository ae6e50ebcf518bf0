"""Descriptions out of Google-style docstrings. Pure."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field

SECTION = re.compile(r"^(Args|Arguments|Returns|Raises|Yields|Example|Examples|Note|Notes):\s*$")
ARGUMENT = re.compile(r"^ {2,}(\w+)(?: \([^)]*\))?: *(.*)$")


@dataclass(frozen=True)
class Docstring:
    """The text before the first section, and the description of each argument."""

    description: str
    arguments: dict[str, str] = field(default_factory=dict[str, str])


def parse_docstring(text: str | None) -> Docstring:
    """Take a docstring apart; lines of a paragraph are joined."""
    lines = inspect.cleandoc(text or "").splitlines()
    starts = [number for number, line in enumerate(lines) if SECTION.match(line)]
    description = _joined(lines[: starts[0] if starts else len(lines)])
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        if lines[start].startswith("Arg"):
            return Docstring(description, _arguments(lines[start + 1 : end]))
    return Docstring(description)


def _joined(lines: list[str]) -> str:
    paragraphs = "\n".join(lines).strip().split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _arguments(lines: list[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current: list[str] = []
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    for line in lines:
        match = ARGUMENT.match(line)
        if match and len(line) - len(line.lstrip()) == indent:
            current = found.setdefault(match[1], [match[2]])
        else:
            current.append(line.strip())
    return {name: " ".join(part for part in parts if part) for name, parts in found.items()}
