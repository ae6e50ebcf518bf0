"""A command of the task's own, in a fresh sandbox, for repositories with a test runner of their own.

Tests are laid over what the agent has left, and files that would change how they are run are gone. Home is an empty
folder: nothing that the agent has left is anybody's settings there. The exit code is the kernel's word. Still the code
under test shares the command's process: code that goes looking for its tests can end them well. Where tests can be
written as ``unit_tests``, that grader is the safer one.
"""

from __future__ import annotations

import re

import msgspec

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import Artefacts, check_paths
from rollstream.tool_workers.grading.rooms import Room
from rollstream.tool_workers.grading.verdict import Verdict

EMPTY_HOME = 'export HOME="$(mktemp -d)"\n'


class CommandTests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of the grader ``command_tests``.

    Attributes:
        command: a command line for bash.
        tests: files that are put there first, by relative path.
        must_print: a regular expression its output must match too, e.g. ``12 passed``; code that ends the process of
            its tests early does not print what they would have.
        timeout_s: of the command.
    """

    command: str
    tests: dict[str, str] = {}
    must_print: str | None = None
    timeout_s: float = 120.0


async def grade_command(given: CommandTests, artefacts: Artefacts, room: Room) -> Verdict:
    """Run the command. Raises SandboxLostError, ToolError."""
    check_paths(given.tests, "tests")
    try:
        wanted = re.compile(given.must_print) if given.must_print is not None else None
    except re.error as error:
        raise ToolError(f"must_print {given.must_print!r} is no regular expression: {error}") from error
    sandbox = await room.open(artefacts.beside_tests(given.tests), given.tests)
    execution = await sandbox.bash(EMPTY_HOME + given.command, timeout_s=given.timeout_s)
    passed = execution.cause is None and execution.exit_code == 0
    if passed and wanted is not None:
        passed = wanted.search(execution.output) is not None
    said = f"exit code {execution.exit_code}, {execution.cause or 'ended by itself'}\n{execution.output[-1000:]}"
    return Verdict(float(passed), {"passed": float(passed)}, "" if passed else said)
