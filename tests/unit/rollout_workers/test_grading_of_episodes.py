from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.grading import checked, grading_arguments, is_graded, last_code_block
from rollstream.rollout_workers.tool_calling import Observation, ToolCalls, ToolRequest
from rollstream.schemas import ids
from rollstream.schemas.errors import DataError, SessionLostError, TransientError
from rollstream.schemas.tasks import ChatMessage, RewardSpec, RolloutTask, ToolSpec
from rollstream.schemas.tools import GRADE_TOOL, ToolCall, ToolResult, ToolStatus

TASK = RolloutTask(
    run_id="run",
    group_id=ids.group_id("run", 0),
    group_index=0,
    group_size=1,
    member_index=0,
    trajectory_id=ids.trajectory_id("run", 0, 0),
    messages=[ChatMessage(role="user", content="x")],
    tools=[
        ToolSpec(name="bash", description="", parameters={}, is_stateful=True, toolset="code"),
        ToolSpec(name=GRADE_TOOL, description="", parameters={}),
    ],
)


class Caller:
    """Answers every call with one status."""

    def __init__(self, status: ToolStatus = "ok") -> None:
        self.status: ToolStatus = status
        self.sent: list[tuple[ToolCall, str]] = []

    async def call(self, call: ToolCall, toolset: str) -> ToolResult:
        self.sent.append((call, toolset))
        return ToolResult(call_id=call.call_id, session_id=call.session_id, status=self.status, content="{}")

    def end_session(self, session_id: str, toolset: str) -> None:
        """Nobody listens."""


def spec(**arguments: Any) -> RewardSpec:
    return RewardSpec(name="call_cases", arguments={"artefacts": ["*.py"], "cases": [1], **arguments})


def test_graders_are_told_from_rewards() -> None:
    assert all(is_graded(RewardSpec(name=name)) for name in ("unit_tests", "call_cases", "grader:mine"))
    assert not any(is_graded(RewardSpec(name=name)) for name in ("exact", "numeric", "my:reward", "grader"))


def test_what_is_the_graders_goes_to_the_grader_and_the_rest_stays() -> None:
    said = "First:\n```python\nold\n```\nNo:\n```py\ndef f(): pass\n```\nDone."
    text, timeout_s, toolset = grading_arguments(
        spec(from_text="solution.py", grading_timeout_s=7, toolset="graders"), said
    )
    assert json.loads(text) == {
        "grader": "call_cases",
        "arguments": {"cases": [1]},
        "artefacts": ["*.py"],
        "files": {"solution.py": "def f(): pass\n"},
    }
    assert (timeout_s, toolset) == (7.0, "graders")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"artefacts": "solution.py"}, "not a list of patterns"),
        ({"artefacts": [1]}, "not a list of patterns"),
        ({"artefacts": []}, "grades nothing"),
        ({"grading_timeout_s": 0}, "grading_timeout_s = 0"),
        ({"grading_timeout_s": True}, "grading_timeout_s = True"),
        ({"toolset": 3}, "toolset = 3"),
    ],
)
def test_a_task_that_asks_for_the_impossible_is_said_to(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        grading_arguments(spec(**arguments), "")


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("no code", "no code"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\n```\nb\n```\n", "b\n"),
        ("```\nnever closed", "```\nnever closed"),
        ("```\na\n```\n```\nopen", "a\n"),
        ("<think>```\nx\n```</think>y", "y"),
        ("", ""),
    ],
)
def test_the_last_closed_code_block_counts(text: str, block: str) -> None:
    assert last_code_block(text) == block


def test_code_blocks_are_found_in_linear_time() -> None:
    started = time.process_time()
    last_code_block("```a\n" * 50_000)
    assert time.process_time() - started < 1


def test_a_grade_is_a_reward_with_its_parts() -> None:
    result = checked("call_cases", '{"reward": 0.5, "components": {"passed": 1}, "report": "x"}')
    assert (result.reward, dict(result.components)) == (0.5, {"passed": 1.0})


@given(st.text(max_size=60) | st.sampled_from(["{}", '{"reward": NaN}', '{"reward": 1e999}', '{"reward": "1"}']))
def test_what_is_no_grade_is_infrastructure_and_never_a_reward(content: str) -> None:
    with pytest.raises(TransientError):
        checked("call_cases", content)


async def test_the_worker_that_holds_the_session_grades_it_in_the_state_the_episode_knows() -> None:
    caller = Caller()
    calls = ToolCalls(TASK, 7, caller)
    await calls.grade(3, "{}", timeout_s=5, toolset=None)
    alone, where = caller.sent[-1]
    assert (alone.tool, alone.session_id, alone.token, where) == (GRADE_TOOL, None, None, "code")
    await calls.grade(3, "{}", timeout_s=5, toolset="graders")
    assert caller.sent[-1][1] == "graders"
    requests = [ToolRequest("bash", "{}")]
    calls.advance(0, requests, [Observation(status="ok", content="", incarnation="i", token="t")])
    await calls.grade(3, "{}", timeout_s=5, toolset="graders")
    call, where = caller.sent[-1]
    ran = ids.call_id(TASK.trajectory_id, 7, "0", 0, "{}")
    assert (call.session_id, call.token, where) == (
        ids.session_id(TASK.trajectory_id, 7),
        ids.session_token("i", [ran]),
        "code",
    )
    assert call.is_first is False


@pytest.mark.parametrize(
    ("status", "error"),
    [("session_lost", SessionLostError), ("worker_error", TransientError), ("expired", TransientError)],
)
async def test_a_grading_that_did_not_happen_is_infrastructure(status: ToolStatus, error: type[Exception]) -> None:
    with pytest.raises(error):
        await ToolCalls(TASK, 7, Caller(status)).grade(3, "{}", timeout_s=5, toolset=None)


def test_no_model_can_have_itself_graded() -> None:
    calls = ToolCalls(TASK, 7, Caller())
    assert calls.refusal("bash", 0) is None
    refused = calls.refusal(GRADE_TOOL, 0)
    assert refused is not None
    assert refused.startswith("Error: unknown tool 'rollstream.grade'")
