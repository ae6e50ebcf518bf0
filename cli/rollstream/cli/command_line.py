"""What stood before the command's name: where settings come from. Light, so that ``--help`` need not load settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CommandLine:
    """Options of ``rollstream`` itself.

    Attributes:
        config: the settings file; None: ``rollstream.toml`` of the working directory, if there is one.
        assignments: ``section.key=value``; a later one wins.
    """

    config: Path | None = None
    assignments: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """The same options for a child process."""
        config = ["--config", str(self.config.resolve())] if self.config else []
        return [*config, *(part for assignment in self.assignments for part in ("--set", assignment))]


_given = CommandLine()


def remember(command_line: CommandLine) -> None:
    """Keep what the user typed; called once per process, before the command."""
    global _given
    _given = command_line


def given() -> CommandLine:
    """What the user typed before the command's name."""
    return _given
