"""One row → one prompt → the tasks of its group. Pure: the same row and settings give the same tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, cast

import msgspec

from rollstream.producers.columns import ColumnMapping, look_up, render_template
from rollstream.producers.prompt_sources import SourceRow
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas import ids
from rollstream.schemas.control import WantedMember
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import ChatMessage, RewardSpec, RolloutTask, WorkspaceSpec

_ROLES = ("system", "user", "assistant", "tool")
REWARDS_WITH_ANSWER = frozenset({"exact", "numeric"})
"""Built-in rewards that compare with a reference answer."""
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, slots=True)
class Rejection:
    """A bad row: where it stands, in which column, and the rule it breaks."""

    place: str
    column: str | None
    rule: str

    def __str__(self) -> str:
        return f"{self.place}: {f'column {self.column!r} ' if self.column else ''}{self.rule}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What all members of a group have in common."""

    place: str
    messages: list[ChatMessage]
    answer: str | None
    reward_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    workspace: WorkspaceSpec | msgspec.UnsetType = msgspec.UNSET


class _BadValueError(ValueError):
    def __init__(self, column: str, rule: str) -> None:
        super().__init__(column, rule)
        self.column, self.rule = column, rule


class PromptBuilder:
    """Turns rows into prompts by one run's columns and options.

    Raises:
        SettingsError: the answer pattern is not a regular expression.
    """

    def __init__(self, settings: ProducerSettings, columns: ColumnMapping) -> None:
        self._settings = settings
        self._columns = columns
        try:
            self._answer_pattern = re.compile(settings.answer_regex) if settings.answer_regex is not None else None
        except re.error as error:
            raise SettingsError(
                f"answer pattern {settings.answer_regex!r} is no regular expression: {error}"
            ) from error

    def build(self, row: SourceRow) -> Prompt | Rejection:
        """The prompt of a row, or why there is none."""
        if row.problem is not None:
            return Rejection(row.place, None, row.problem)
        try:
            return Prompt(
                row.place,
                self._messages(row.values),
                self._answer(row.values),
                self._reward_arguments(row.values),
                self._workspace(row.values),
            )
        except _BadValueError as error:
            return Rejection(row.place, error.column, error.rule)

    def _messages(self, values: Mapping[str, Any]) -> list[ChatMessage]:
        if self._settings.prompt_template is not None:
            parts = {name: _text(name, look_up(values, name)) for name in self._columns.template}
            messages = [ChatMessage(role="user", content=render_template(self._settings.prompt_template, parts))]
        else:
            column = self._columns.prompt
            assert column is not None, "map_columns() names a prompt column when there is no template"
            value = look_up(values, column)
            if isinstance(value, list):
                messages = _chat(column, value)  # pyright: ignore[reportUnknownArgumentType]  -- checked item by item
            else:
                messages = [ChatMessage(role="user", content=_text(column, value))]
        if self._settings.system_prompt is not None:
            others = [message for message in messages if message.role != "system"]
            messages = [ChatMessage(role="system", content=self._settings.system_prompt), *others]
        return messages

    def _answer(self, values: Mapping[str, Any]) -> str | None:
        column = self._columns.answer
        if column is None:
            return None
        value = look_up(values, column)
        if value is None and not self._columns.is_answer_required:
            return None
        answer = _text(column, value).strip()
        if self._settings.answer_after is not None:
            _, found, answer = answer.rpartition(self._settings.answer_after)
            if not found:
                raise _BadValueError(column, f"does not contain {self._settings.answer_after!r}")
            answer = answer.strip()
        if self._answer_pattern is not None:
            answer = self._last_match(column, answer)
        if not answer:
            raise _BadValueError(column, "gives an empty answer")
        if self._settings.reward == "numeric" and not is_number(answer):
            raise _BadValueError(
                column,
                f"gives {_short(answer)}, which is no number (reward numeric); see --answer-after, --answer-regex",
            )
        return answer

    def _reward_arguments(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        column = self._settings.reward_arguments_column
        if column is None:
            return {}
        value = look_up(values, column)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise _BadValueError(column, f"is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise _BadValueError(column, f"is a {type(value).__name__}, expected an object of reward arguments")
        return cast("dict[str, Any]", value)

    def _workspace(self, values: Mapping[str, Any]) -> WorkspaceSpec | msgspec.UnsetType:
        column = self._settings.workspace_column
        if column is None or (value := look_up(values, column)) is None:
            return msgspec.UNSET
        if isinstance(value, str):
            uri, _, sha256 = value.rpartition("#")
            value = {"uri": uri, "sha256": sha256, "kind": "git-bundle" if uri.endswith(".bundle") else "archive"}
        try:
            spec = msgspec.convert(value, WorkspaceSpec)
        except msgspec.ValidationError as error:
            raise _BadValueError(column, f"is no workspace: {error}; expected {{uri, sha256}} or uri#sha256") from None
        if not spec.uri or not _SHA256.fullmatch(spec.sha256):
            raise _BadValueError(column, "names no uri with the 64 hexadecimal digits of its sha256")
        return spec

    def _last_match(self, column: str, text: str) -> str:
        assert self._answer_pattern is not None
        matches = list(self._answer_pattern.finditer(text))
        if not matches:
            raise _BadValueError(column, f"does not match {self._answer_pattern.pattern!r}")
        match = matches[-1]
        return ((match.group(1) if self._answer_pattern.groups else match.group()) or "").strip()


def build_group(prompt: Prompt, settings: ProducerSettings, group_index: int, *, data_source: str) -> list[RolloutTask]:
    """The ``group_size`` tasks of a prompt; ids are pure functions of (run, group, member)."""
    return [_task(prompt, settings, group_index, member, data_source) for member in range(settings.group_size)]


def build_replacement(
    prompt: Prompt, settings: ProducerSettings, member: WantedMember, *, data_source: str
) -> RolloutTask:
    """The task that takes the place of a member's: the same but for its number and its id."""
    task = _task(prompt, settings, member.group_index, member.member_index, data_source)
    number = member.replacement
    trajectory_id = ids.trajectory_id(settings.run_id, member.group_index, member.member_index, number)
    return msgspec.structs.replace(task, trajectory_id=trajectory_id, replacement=number)


def group_task_ids(settings: ProducerSettings, group_index: int) -> Iterator[str]:
    """The ids of a group's tasks, without building them."""
    return (ids.trajectory_id(settings.run_id, group_index, member) for member in range(settings.group_size))


def _task(
    prompt: Prompt, settings: ProducerSettings, group_index: int, member_index: int, data_source: str
) -> RolloutTask:
    reward = None
    if settings.reward is not None:
        arguments = {**settings.reward_arguments, **prompt.reward_arguments}
        reward = RewardSpec(name=settings.reward, answer=prompt.answer, arguments=arguments)
    return RolloutTask(
        run_id=settings.run_id,
        group_id=ids.group_id(settings.run_id, group_index),
        group_index=group_index,
        group_size=settings.group_size,
        member_index=member_index,
        trajectory_id=ids.trajectory_id(settings.run_id, group_index, member_index),
        messages=prompt.messages,
        tools=list(settings.tool_specs),
        agent=settings.agent,
        sampling=settings.sampling,
        limits=settings.limits,
        reward=reward,
        is_train=settings.is_train,
        data_source=data_source,
        data_index=prompt.place,
        workspace=prompt.workspace,
        policy=settings.policy if settings.policy is not None else msgspec.UNSET,
    )


def is_number(text: str) -> bool:
    """Whether a reference answer is one number: signs, commas, a currency or percent sign, fractions too."""
    parts = text.strip().strip("$€£%").replace(",", "").replace(" ", "").split("/")
    if len(parts) > 2 or not all(_NUMBER.fullmatch(part) for part in parts):
        return False
    numbers = [float(part) for part in parts]
    return all(isfinite(number) for number in numbers) and (len(numbers) == 1 or numbers[1] != 0.0)


def _text(column: str, value: Any) -> str:
    if value is None:
        raise _BadValueError(column, "is missing or null")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadValueError(column, f"is a {type(value).__name__}, expected text or a number")
    text = value if isinstance(value, str) else repr(value)
    if not text.strip():
        raise _BadValueError(column, "is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadValueError(column, "holds half of a surrogate pair, which no encoding can carry") from None
    return text


def _chat(column: str, value: list[Any]) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise _BadValueError(column, f"message {index} is a {type(item).__name__}, expected {{role, content}}")
        role: Any = item.get("role")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  -- untyped data
        if role not in _ROLES:
            raise _BadValueError(column, f"message {index} has the role {role!r}, expected one of {list(_ROLES)}")
        content = item.get("content")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  -- untyped data
        messages.append(ChatMessage(role=role, content=_text(f"{column}[{index}].content", content)))
    if not messages or messages[-1].role != "user":
        raise _BadValueError(
            column, f"ends with {messages[-1].role if messages else 'nothing'!r}, expected a user message"
        )
    return messages


def _short(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 1] + "…")
