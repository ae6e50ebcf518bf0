"""The hidden tool that grades. Rollout workers call it when an episode has ended; no model can: it is in no task.

It is given the sandbox of the episode's session to take artefacts from, and never runs anything else there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

from rollstream.schemas.tools import GRADE_TOOL, GRADERS, OWN_GRADER
from rollstream.tool_workers.functions import TimeLimit, Tool, ToolError, ToolOutput, build_tool
from rollstream.tool_workers.grading.artefacts import (
    MAX_BYTES,
    MAX_FILES,
    ArtefactError,
    Artefacts,
    check_paths,
    read_artefacts,
    sorted_out,
)
from rollstream.tool_workers.grading.cases import CallCases, ProgramCases, grade_calls, grade_programs
from rollstream.tool_workers.grading.command_tests import CommandTests, grade_command
from rollstream.tool_workers.grading.own import Grading, OwnGrader, verdict_from
from rollstream.tool_workers.grading.rooms import GradingRooms, Room
from rollstream.tool_workers.grading.unit_tests import UnitTests, grade_unit_tests
from rollstream.tool_workers.grading.verdict import Verdict
from rollstream.tool_workers.sandbox.bubblewrap import WORKSPACE
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox

PACK_TIMEOUT_S = 30.0
MAX_GRADING_S = 1800.0
TAR_OVERHEAD_BYTES = 4 * 1024 * 1024
TOO_LARGE = 3


def build_grade_tool(rooms: GradingRooms, own: Mapping[str, OwnGrader]) -> Tool:
    """The tool, for one worker."""

    async def grade(
        sandbox: Sandbox,
        limit: TimeLimit,
        grader: str,
        arguments: dict[str, Any],
        artefacts: list[str],
        files: dict[str, str],
    ) -> ToolOutput:
        """Grade what an episode has left behind."""
        started = time.monotonic()
        try:
            left = (await taken(sandbox, artefacts)).with_files(given_files(files))
            async with rooms.room() as room:
                verdict = await run_grader(grader, arguments, left, room, own, limit.timeout_s)
        except ArtefactError as error:  # the agent's doing: worth nothing, and no failure of the task
            return ToolOutput(Verdict(0.0, {}, str(error)).text())
        signals = {"grade_s": time.monotonic() - started, "artefacts_left_out": float(len(left.left_out))}
        return ToolOutput(verdict.text(), metrics=signals)

    return build_tool(grade, name=GRADE_TOOL, timeout_s=MAX_GRADING_S, is_idempotent=True, stateful=None)


async def taken(sandbox: Sandbox, patterns: list[str]) -> Artefacts:
    """The artefacts that an agent's sandbox holds.

    Raises:
        ArtefactError: they are too many, or their sandbox answers rubbish.
        SandboxLostError: the sandbox is gone.
    """
    if not patterns:
        return Artefacts()
    arguments = {
        "action": "pack",
        "folder": WORKSPACE,
        "patterns": patterns,
        "max_bytes": MAX_BYTES,
        "max_files": MAX_FILES,
    }
    packed = await sandbox.operate(
        "archive", arguments, timeout_s=PACK_TIMEOUT_S, output_bytes=2 * (MAX_BYTES + TAR_OVERHEAD_BYTES)
    )
    if packed.cause == "failed_to_start":
        raise SandboxLostError(f"the artefacts cannot be taken: {packed.output}")
    if packed.cause is not None or packed.exit_code == TOO_LARGE:
        raise ArtefactError(f"the artefacts are more than {MAX_FILES} files or {MAX_BYTES} bytes")
    if packed.exit_code != 0 or packed.total_bytes != len(packed.raw):
        raise ArtefactError(f"the artefacts cannot be packed: {packed.output[-200:]}")
    return read_artefacts(packed.raw)


def given_files(files: Mapping[str, str]) -> dict[str, bytes]:
    """Files out of what the model said. Raises ToolError."""
    check_paths(files, "files")
    return dict(sorted_out({path: text.encode() for path, text in files.items()}).files)


async def run_grader(
    name: str,
    arguments: Mapping[str, Any],
    artefacts: Artefacts,
    room: Room,
    own: Mapping[str, OwnGrader],
    timeout_s: float,
) -> Verdict:
    """What the named grader finds.

    Raises:
        ToolError: there is no such grader, or its arguments are not what it needs.
        SandboxLostError, IsolationError: infrastructure.
    """
    try:
        if name == "call_cases":
            return await grade_calls(msgspec.convert(arguments, CallCases), artefacts, room, timeout_s)
        if name == "program_cases":
            return await grade_programs(msgspec.convert(arguments, ProgramCases), artefacts, room, timeout_s)
        if name == "unit_tests":
            return await grade_unit_tests(msgspec.convert(arguments, UnitTests), artefacts, room)
        if name == "command_tests":
            return await grade_command(msgspec.convert(arguments, CommandTests), artefacts, room)
    except msgspec.ValidationError as error:
        raise ToolError(f"grader {name!r}: {error}") from error
    if name.startswith(OWN_GRADER) and (function := own.get(name.removeprefix(OWN_GRADER))) is not None:
        return verdict_from(name, await function(Grading(artefacts, arguments, room, timeout_s)))
    known = [*GRADERS, *(OWN_GRADER + each for each in own)]
    raise ToolError(f"there is no grader {name!r}: this worker has {known}")
