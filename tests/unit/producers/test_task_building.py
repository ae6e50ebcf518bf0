from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.producers.columns import ColumnMapping, map_columns, render_template
from rollstream.producers.prompt_sources import SourceRow
from rollstream.producers.settings import ProducerSettings
from rollstream.producers.task_building import (
    Prompt,
    PromptBuilder,
    Rejection,
    build_group,
    group_task_ids,
    is_number,
)
from rollstream.schemas.codec import decode, encode
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.ids import group_id, trajectory_id
from rollstream.schemas.tasks import ChatMessage, PolicyPin, RolloutTask, WorkspaceSpec

GSM_ANSWER = "She sells 16 - 7 = <<16-7=9>>9 eggs, #### of them.\n#### 1,018"


def options(**changes: Any) -> ProducerSettings:
    return ProducerSettings(source="data.jsonl", run_id="run", **changes)


def build(values: dict[str, Any], settings: ProducerSettings, **columns: Any) -> Prompt | Rejection:
    mapping = map_columns(
        values,
        prompt_column=settings.prompt_column,
        answer_column=settings.answer_column,
        prompt_template=settings.prompt_template,
        **columns,
    )
    return PromptBuilder(settings, mapping).build(SourceRow("data.jsonl:17", values))


def prompt(values: dict[str, Any], settings: ProducerSettings) -> Prompt:
    built = build(values, settings)
    assert isinstance(built, Prompt), built
    return built


def rejection(values: dict[str, Any], settings: ProducerSettings, **columns: Any) -> str:
    built = build(values, settings, **columns)
    assert isinstance(built, Rejection), built
    return str(built)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["question", "answer"], ColumnMapping("question", "answer")),
        (["id", "problem", "solution"], ColumnMapping("problem", "solution")),
        (["prompt", "messages", "target"], ColumnMapping("messages", "target")),
        (["prompt"], ColumnMapping("prompt", None)),
    ],
)
def test_usual_columns_are_found(names: list[str], expected: ColumnMapping) -> None:
    assert map_columns(names) == expected


def test_no_usual_prompt_column_is_an_error_that_lists_what_is_there() -> None:
    with pytest.raises(SettingsError, match=r"the data has \['x', 'y'\].*--prompt-column"):
        map_columns(["y", "x"])


def test_a_named_column_that_is_missing_is_an_error_and_a_nested_one_is_found() -> None:
    with pytest.raises(SettingsError, match="answer column 'gold' is not in the data"):
        map_columns(["question"], answer_column="gold")
    values = {"prompt": "2+2", "reward_model": {"ground_truth": "4"}}
    settings = options(answer_column="reward_model.ground_truth", reward="numeric")
    assert prompt(values, settings).answer == "4"


def test_a_reward_that_needs_an_answer_needs_its_column() -> None:
    with pytest.raises(SettingsError, match="the reward needs an answer"):
        map_columns(["question"], answer="required")


def test_gsm8k_answers_are_what_follows_the_last_mark() -> None:
    settings = options(answer_after="####", reward="numeric")
    built = prompt({"question": "How many?", "answer": GSM_ANSWER}, settings)
    assert built == Prompt("data.jsonl:17", [ChatMessage(role="user", content="How many?")], "1,018")


@pytest.mark.parametrize(("pattern", "answer"), [(r"#### (\S+)", "1,018"), (r"\d+", "018")])
def test_an_answer_pattern_takes_its_group_of_the_last_match(pattern: str, answer: str) -> None:
    assert (
        prompt({"question": "?", "answer": GSM_ANSWER}, options(answer_regex=pattern, reward="exact")).answer == answer
    )


def test_an_answer_pattern_that_is_no_pattern_fails_at_start() -> None:
    with pytest.raises(SettingsError, match="no regular expression"):
        PromptBuilder(options(answer_regex="("), ColumnMapping("question", "answer"))


def test_chat_messages_are_taken_as_they_are_and_the_system_prompt_replaces_the_rows_own() -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "3+3"},
    ]
    assert [m.content for m in prompt({"messages": chat}, options()).messages] == ["Be brief.", "2+2", "4", "3+3"]
    replaced = prompt({"messages": chat}, options(system_prompt="Be long."))
    assert [m.content for m in replaced.messages] == ["Be long.", "2+2", "4", "3+3"]


def test_a_template_joins_columns_and_leaves_their_braces_alone() -> None:
    settings = options(prompt_template="{context}\nQ: {question} {{json}}")
    built = prompt({"context": "set {x}", "question": "{y}?", "n": 1}, settings)
    assert built.messages[0].content == "set {x}\nQ: {y}? {json}"


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.text(), min_size=3))
def test_whatever_stands_in_a_column_stands_in_the_prompt(values: dict[str, str]) -> None:
    assert render_template("<{a}|{b}|{c}>", values) == f"<{values['a']}|{values['b']}|{values['c']}>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no columns", "names no column"),
        ("{question", "write {{ and }} for braces"),
        ("{}", "write a column in braces"),
        ("{question!r}", "write a column in braces"),
        ("{missing}", "column 'missing' is not in the data"),
    ],
)
def test_a_wrong_template_is_an_error(template: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message.replace("{", r"\{").replace("}", r"\}")):
        map_columns(["question"], prompt_template=template)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        ({"question": None}, {}, "data.jsonl:17: column 'question' is missing or null"),
        ({"question": " \n"}, {}, "column 'question' is empty"),
        ({"question": {"a": 1}}, {}, "column 'question' is a dict, expected text or a number"),
        ({"question": "\ud800"}, {}, "column 'question' holds half of a surrogate pair"),
        ({"question": "?", "answer": "4"}, {"answer_after": "####"}, "column 'answer' does not contain '####'"),
        ({"question": "?", "answer": "####  "}, {"answer_after": "####"}, "column 'answer' gives an empty answer"),
        ({"question": "?", "answer": "x"}, {"answer_regex": r"\d"}, r"column 'answer' does not match '\\d'"),
        (
            {"question": "?", "answer": "four"},
            {"reward": "numeric"},
            "column 'answer' gives 'four', which is no number",
        ),
        ({"messages": []}, {}, "column 'messages' ends with 'nothing', expected a user message"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {},
            "ends with 'assistant'",
        ),
        ({"messages": [{"role": "robot", "content": "a"}]}, {}, "message 0 has the role 'robot'"),
        ({"messages": ["hello"]}, {}, "message 0 is a str"),
        ({"messages": [{"role": "user", "content": None}]}, {}, "column 'messages[0].content' is missing or null"),
    ],
)
def test_a_bad_row_names_its_place_column_and_rule(
    values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    assert message in rejection(values, options(**changes))


def test_a_missing_answer_is_bad_only_where_one_is_needed() -> None:
    values = {"question": "?", "answer": None}
    optional = build(values, options(reward="module:function"), answer="optional")
    assert isinstance(optional, Prompt)
    assert optional.answer is None
    assert "'answer' is missing or null" in rejection(values, options(reward="exact"), answer="required")


@pytest.mark.parametrize("text", ["4", "-4.50", "1,018", "$70,000", "50%", "3/4", "1e-3", " +.5 "])
def test_these_are_numbers(text: str) -> None:
    assert is_number(text)


@pytest.mark.parametrize("text", ["", "four", "4 apples", "1/0", "1/2/3", "nan", "inf", "1e999", "--4", "."])
def test_these_are_no_numbers(text: str) -> None:
    assert not is_number(text)


@given(group_index=st.integers(0, 10**9), group_size=st.integers(1, 16))
def test_a_group_is_a_pure_function_of_run_group_and_member(group_index: int, group_size: int) -> None:
    settings = options(group_size=group_size)
    source = Prompt("data.jsonl:1", [ChatMessage(role="user", content="?")], None)
    tasks = build_group(source, settings, group_index, data_source="data.jsonl")
    assert tasks == build_group(source, settings, group_index, data_source="data.jsonl")
    assert [task.trajectory_id for task in tasks] == list(group_task_ids(settings, group_index))
    assert {task.group_id for task in tasks} == {group_id("run", group_index)}
    assert [task.trajectory_id for task in tasks] == [trajectory_id("run", group_index, m) for m in range(group_size)]


def test_a_task_carries_every_option_and_survives_the_wire() -> None:
    tool = {"name": "calculator", "description": "adds", "parameters": {"type": "object"}}
    settings = options(
        group_size=2,
        tools=[tool],
        agent="mine:agent",
        sampling={"temperature": 0.7, "max_tokens": 64},
        limits={"max_turns": 3, "wall_clock_s": 5},
        reward="regex",
        reward_arguments={"pattern": "x"},
        is_train=False,
    )
    source = Prompt("data.jsonl:1", [ChatMessage(role="user", content="?")], "4")
    task = build_group(source, settings, 3, data_source="mine")[1]
    record = encode(task)
    assert decode(record.value, record.headers, RolloutTask) == task
    assert (task.group_index, task.member_index, task.group_size) == (3, 1, 2)
    assert (task.tools[0].name, task.agent, task.is_train) == ("calculator", "mine:agent", False)
    assert (task.sampling.temperature, task.limits.max_turns, task.limits.wall_clock_s) == (0.7, 3, 5.0)
    assert task.reward is not None
    assert (task.reward.name, task.reward.answer, task.reward.arguments) == ("regex", "4", {"pattern": "x"})
    assert (task.data_source, task.data_index) == ("mine", "data.jsonl:1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"temperatur": 1}}, "unknown keys"),
        ({"limits": {"max_turns": "many"}}, "Expected `int`"),
        ({"group_size": 0}, "group_size"),
        ({"colour": "red"}, "colour"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"limits": {"max_turns": 0}}, "max_turns"),
    ],
)
def test_wrong_settings_fail_when_they_are_made(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)


DIGEST = "a" * 64


def test_a_row_brings_arguments_of_its_own_reward_and_a_workspace() -> None:
    settings = options(
        reward="call_cases",
        reward_arguments={"artefacts": ["*.py"]},
        reward_arguments_column="tests",
        workspace_column="start",
        group_size=1,
    )
    row: dict[str, Any] = {"question": "Do it.", "tests": '{"cases": [1]}', "start": f"s3://b/a.bundle#{DIGEST}"}
    (task,) = build_group(prompt(row, settings), settings, 0, data_source="d")
    assert task.reward is not None
    assert task.reward.arguments == {"artefacts": ["*.py"], "cases": [1]}
    assert task.workspace == WorkspaceSpec(uri="s3://b/a.bundle", sha256=DIGEST, kind="git-bundle")
    again = decode(encode(task).value, encode(task).headers, RolloutTask)
    assert again.workspace == task.workspace
    row = row | {"tests": {"cases": []}, "start": {"uri": "s3://b/a.tar", "sha256": DIGEST}}
    (other,) = build_group(prompt(row, settings), settings, 0, data_source="d")
    assert other.workspace == WorkspaceSpec(uri="s3://b/a.tar", sha256=DIGEST)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tests": "{"}, "column 'tests' is no JSON"),
        ({"tests": [1]}, "column 'tests' is a list"),
        ({"start": "s3://b/a.tar"}, "column 'start' names no uri"),
        ({"start": {"uri": "x"}}, "column 'start' is no workspace"),
        ({"start": {"uri": "x", "sha256": "short"}}, "64 hexadecimal digits"),
    ],
)
def test_arguments_and_workspaces_that_are_none_are_rejected(changed: dict[str, Any], said: str) -> None:
    settings = options(reward="call_cases", reward_arguments_column="tests", workspace_column="start")
    row: dict[str, Any] = {"question": "x", "tests": {}, "start": f"u#{DIGEST}", **changed}
    assert said in rejection(row, settings)


def test_a_task_without_a_workspace_says_nothing_of_one() -> None:
    settings = options(group_size=1)
    (task,) = build_group(prompt({"question": "x"}, settings), settings, 0, data_source="d")
    assert b"workspace" not in encode(task).value


def test_tasks_of_an_evaluation_carry_their_pinned_policy_and_others_carry_none() -> None:
    pin = PolicyPin(lineage=3, version=7, uri="s3://b/v7", manifest_sha256=DIGEST)
    row = {"question": "Why?"}
    pinned = options(is_train=False, policy={"lineage": 3, "version": 7, "uri": "s3://b/v7", "manifest_sha256": DIGEST})
    assert {task.policy for task in build_group(prompt(row, pinned), pinned, 0, data_source="d")} == {pin}
    free = options(is_train=False)
    (task, *_) = build_group(prompt(row, free), free, 0, data_source="d")
    assert b"policy" not in encode(task).value
