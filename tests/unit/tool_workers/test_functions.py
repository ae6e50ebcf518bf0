from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.arguments import InvalidArgumentsError
from rollstream.tool_workers.functions import TimeLimit, Tool, declared_tool, tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox


@tool
def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C", tags: list[str] | None = None) -> str:
    """Tell the weather
    of a city.

    More about it.

    Args:
        city: Where; a name
            known to the service.
        days: How far ahead.

    Returns:
        Nothing a model reads here.
    """
    return f"{city} {days} {unit} {tags}"


def tool_of(function: object) -> Tool:
    found = declared_tool(function)
    assert found is not None
    return found


def test_docstring_and_annotations_become_the_schema() -> None:
    declared = tool_of(weather)
    assert declared.description == "Tell the weather of a city.\n\nMore about it."
    properties: dict[str, Any] = declared.parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "Where; a name known to the service."}
    assert properties["days"] == {"type": "integer", "description": "How far ahead.", "default": 1}
    assert properties["unit"] == {"enum": ["C", "F"], "default": "C"}
    assert declared.parameters["required"] == ["city"]


def test_a_declared_function_can_still_be_called() -> None:
    assert weather("Oslo") == "Oslo 1 C None"


def test_arguments_are_parsed_with_defaults() -> None:
    assert tool_of(weather).parse('{"city": "Oslo", "days": 3}') == {
        "city": "Oslo",
        "days": 3,
        "unit": "C",
        "tags": None,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"city": 5}', "Expected `str`, got `int` - at `$.city`"),
        ('{"city": "Oslo", "days": "3"}', "Expected `int`, got `str` - at `$.days`"),
        ('{"city": "Oslo", "days": 3.5}', "Expected `int`"),
        ('{"city": "Oslo", "days": true}', "Expected `int`, got `bool`"),
        ('{"city": "Oslo", "unit": "K"}', "Invalid enum value 'K'"),
        ('{"city": "Oslo", "planet": "Earth"}', "unknown field `planet`"),
        ("{}", "missing required field `city`"),
        ('["Oslo"]', "expected one JSON object, got an array"),
        ("null", "expected one JSON object, got null"),
        ('{"city": ', "at character 9"),
        ("", "at character 0"),
        ('{"city": "Oslo"} more', "Extra data"),
        ('{"city": NaN}', "NaN is no JSON number"),
        ('{"city": "\\ud800"}', "half of a surrogate pair"),
        ('{"city": "Oslo", "tags": ' + "[" * 100_000 + "]" * 100_000 + "}", "64 levels deep"),
        ('{"city": "' + "x" * 1_000_001 + '"}', "at most 1000000"),
        ('{"city": "\ud800"}', "surrogate pair"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_wrong(arguments: str, said: str) -> None:
    with pytest.raises(InvalidArgumentsError, match=said.replace("$", r"\$")):
        tool_of(weather).parse(arguments)


def test_sandbox_and_time_limit_are_given_and_no_arguments() -> None:
    @tool(is_idempotent=False, timeout_s=5)
    async def build(box: Sandbox, limit: TimeLimit, target: str) -> str:
        """Build a target."""
        return f"{box} {limit} {target}"

    declared = tool_of(build)
    assert list(declared.parameters["properties"]) == ["target"]
    assert (declared.sandbox_parameter, declared.time_limit_parameter) == ("box", "limit")
    spec = declared.spec("builders")
    assert (spec.is_stateful, spec.is_idempotent, spec.toolset, declared.timeout_s) == (True, False, "builders", 5)


def test_a_sandboxed_tool_may_do_without_state() -> None:
    @tool(name="run-once", stateful=False)
    async def run(box: Sandbox, source: str) -> str:
        """Run it."""
        return f"{box} {source}"

    assert tool_of(run).needs_sandbox
    assert not tool_of(run).is_stateful
    assert tool_of(run).name == "run-once"


def test_declarations_that_cannot_work_are_refused() -> None:
    def no_docstring(text: str) -> str:
        return text

    def no_annotation(text: str) -> str:
        """Say it."""
        return text

    del no_annotation.__annotations__["text"]

    def anything(*texts: str) -> str:
        """Say them."""
        return "".join(texts)

    def wrong_names(text: str) -> str:
        """Say it.

        Args:
            txt: What to say.
        """
        return text

    cases: list[tuple[Callable[..., str], str]] = [
        (no_docstring, "no docstring"),
        (no_annotation, "'text' has no annotation"),
        (anything, "'texts' cannot be given by name"),
        (wrong_names, "describes \\['txt'\\]"),
    ]
    for function, message in cases:
        with pytest.raises(SettingsError, match=message):
            tool(function)
    with pytest.raises(SettingsError, match="takes no parameter of type Sandbox"):
        tool(stateful=True)(wrong_names)
    with pytest.raises(SettingsError, match="timeout_s is 0"):
        tool(timeout_s=0)(weather)
