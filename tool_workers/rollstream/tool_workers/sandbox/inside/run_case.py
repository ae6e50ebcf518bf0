"""Runs a program of the agent's with the standard input it was given; what it writes to standard error goes nowhere."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """Become the program."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        os.execvp(arguments["argv"][0], arguments["argv"])
    except OSError as error:
        sys.stdout.write(f"{arguments['argv'][0]}: {error.strerror}")
        sys.exit(127)
