"""Which column is what, and how values are found in a row."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from rollstream.schemas.errors import SettingsError

PROMPT_COLUMNS: Final = ("messages", "prompt", "question", "problem", "instruction", "query")
"""Usual names of prompts, the first that is there wins."""
ANSWER_COLUMNS: Final = ("answer", "solution", "ground_truth", "target", "expected_answer", "final_answer")
"""Usual names of reference answers, the first that is there wins."""


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """Where a row keeps its parts.

    Attributes:
        prompt: column with text or chat messages; None when a template makes the prompt.
        answer: column with the reference answer; None: there is none.
        is_answer_required: whether a row without an answer is a bad row.
        template: columns the template names.
    """

    prompt: str | None
    answer: str | None
    is_answer_required: bool = False
    template: tuple[str, ...] = ()


def map_columns(
    names: Iterable[str],
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    prompt_template: str | None = None,
    answer: Literal["unused", "optional", "required"] = "optional",
) -> ColumnMapping:
    """Choose the columns of a source whose columns are ``names``.

    Args:
        names: columns of the source.
        prompt_column: the prompt's column, when it was named.
        answer_column: the answer's column, when it was named; rows without it are then bad.
        prompt_template: text with columns in braces, in place of a prompt column.
        answer: what the reward makes of an answer.

    Raises:
        SettingsError: a named column is not there, none was named and no usual name is there, or the template is wrong.
    """
    known = sorted(set(names))
    template = template_columns(prompt_template) if prompt_template is not None else ()
    for column, option in [(prompt_column, "prompt column"), (answer_column, "answer column")] + [
        (name, "prompt template column") for name in template
    ]:
        if column is not None and not _is_known(column, known):
            raise SettingsError(f"{option} {column!r} is not in the data, which has {known}")
    prompt = prompt_column
    if prompt is None and prompt_template is None:
        prompt = next((name for name in PROMPT_COLUMNS if name in known), None)
        if prompt is None:
            raise SettingsError(
                f"no prompt column found: the data has {known}, none of {list(PROMPT_COLUMNS)}; "
                "name one with --prompt-column or use --prompt-template"
            )
    if answer == "unused":
        return ColumnMapping(prompt=None if prompt_template is not None else prompt, answer=None, template=template)
    found = answer_column or next((name for name in ANSWER_COLUMNS if name in known and name != prompt), None)
    if found is None and answer == "required":
        raise SettingsError(
            f"the reward needs an answer, but the data has {known}, none of {list(ANSWER_COLUMNS)}; "
            "name one with --answer-column"
        )
    return ColumnMapping(
        prompt=None if prompt_template is not None else prompt,
        answer=found,
        is_answer_required=answer == "required" or answer_column is not None,
        template=template,
    )


def template_columns(template: str) -> tuple[str, ...]:
    """The columns in braces, in order of appearance.

    Raises:
        SettingsError: the braces do not match, or there are no columns.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SettingsError(f"prompt template {template!r}: {error}; write {{{{ and }}}} for braces") from error
    columns: list[str] = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name or spec or conversion:
            raise SettingsError(f"prompt template {template!r}: write a column in braces, as in {{question}}")
        if name not in columns:
            columns.append(name)
    if not columns:
        raise SettingsError(f"prompt template {template!r} names no column: every task would be the same")
    return tuple(columns)


def render_template(template: str, values: Mapping[str, str]) -> str:
    """Fill in columns; braces inside values stay what they are."""
    parts: list[str] = []
    for literal, name, _, _ in string.Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            parts.append(values[name])
    return "".join(parts)


def look_up(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, None where it is missing; dots go into nested columns unless the whole name is there."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  -- nested rows are untyped
    return value  # pyright: ignore[reportUnknownVariableType]  -- checked by the caller


def _is_known(column: str, known: list[str]) -> bool:
    return column in known or column.split(".")[0] in known
