from __future__ import annotations

import contextlib
import json
import math
import time
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from rollstream.tool_workers.arguments import InvalidArgumentsError, parse_object
from rollstream.tool_workers.functions import declared_tool, tool

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES, max_size=4)


@given(OBJECTS, st.booleans())
def test_an_object_is_what_every_reader_of_json_takes_it_for(value: dict[str, Any], ascii_only: bool) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        text = json.dumps(value, ensure_ascii=ascii_only)
        text.encode()
        assert parse_object(text) == json.loads(text)


@given(st.text() | st.text(st.sampled_from('{}[]":,0eE+-.\\untf\ud800 ')))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgumentsError):
        assert isinstance(parse_object(text), dict)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"command": ', "not valid JSON: Expecting value at character 12"),
        ("", "Expecting value at character 0"),
        ("[1]", "expected one JSON object, got an array"),
        ('"x"', "got a string"),
        ("null", "got null"),
        ("3", "got a number"),
        ("true", "got a boolean"),
        ('{"a": 1, "a": 2}', "the key 'a' comes twice"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' comes twice"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": 1' + "0" * 500 + "}", "501 digits"),
        ('{"a": "\\ud800"}', "field 'a' holds half of a surrogate pair"),
        ('{"a": ["\\udc00x"]}', "field 'a'\\[0\\] holds half"),
        ('{"\\ud800": 1}', "a key holds half"),
        ('{"a": "\ud800"}', "half of a surrogate pair at character 7"),
        ("[" * 100_000, "nested more than 64 levels"),
        ('{"a":' * 100_000, "nested more than 64 levels"),
        ('{"a": "x"} {"b": 1}', "Extra data at character 11"),
        ("{'a': 1}", "Expecting property name"),
        ('{"a": "tab\there"}', "Invalid control character at character 10"),
        ('{"a": [' + "0," * 49_999 + "0]}", "more than 50000 values"),
        ('{"a": [' + "[]," * 25_000 + "0]}", "more than 50000 values"),
        ('{"a": {' + ",".join(f'"k{number}": 1' for number in range(50_000)) + "}}", "more than 50000 values"),
        (
            "{" + ",".join(f'"k{number}": 1' for number in range(49_000)) + ', "k48999": 1}',
            "the key 'k48999' comes twice",
        ),
        ("x" * 1_000_001, "1000001 characters, at most 1000000"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentsError, match=reason):
        parse_object(text)


def test_as_many_values_as_are_read_are_read() -> None:
    given = parse_object('{"a": [' + "0," * 49_997 + '0], "b": "' + "," * 100_000 + '"}')
    assert (len(given["a"]), len(given["b"])) == (49_998, 100_000)


def test_brackets_in_strings_are_not_nesting() -> None:
    assert parse_object(json.dumps({"a": '[{"\\' * 1000}))["a"].startswith("[{")


@pytest.mark.parametrize(
    "text",
    [
        *(
            '{"a": [' + piece * (900_000 // len(piece))
            for piece in ('"', "\\", "[", '"\\', '{"a":"', "\\u", "0", '"a",', "]")
        ),
        '{"a": "' + "\\n" * 450_000 + '"}',
        '{"a": 0.' + "3" * 900_000 + "}",
        '{"a": [' + '{"abcdefghijklmnopqrstuvwxyz": 1},' * 24_000 + "0]}",
        "{" + ",".join(f'"{number:015}": 1' for number in range(45_000)) + "}",
        "{" + ",".join(f'"{number:015}": 1' for number in range(45_000)) + ',"x": 1, "x": 1}',
    ],
    ids=lambda text: text[:16],
)
def test_time_grows_with_the_length_only(text: str) -> None:
    started = time.process_time()
    with contextlib.suppress(InvalidArgumentsError):
        parse_object(text)
    assert time.process_time() - started < 1


def test_a_limit_in_an_annotation_is_shown_to_the_model_and_kept() -> None:
    @tool
    def shout(text: Annotated[str, Meta(min_length=1, max_length=5)], times: Annotated[float, Meta(gt=0)] = 1) -> str:
        """Say something loudly."""
        return text * int(times)

    declared = declared_tool(shout)
    assert declared is not None
    assert declared.parameters["properties"]["text"]["maxLength"] == 5
    assert declared.parse('{"text": "abc"}') == {"text": "abc", "times": 1}
    for wrong, named in (
        ('{"text": ""}', "text"),
        ('{"text": "abcdef"}', "text"),
        ('{"text": "a", "times": 0}', "times"),
    ):
        with pytest.raises(InvalidArgumentsError, match=named):
            declared.parse(wrong)
    assert math.isclose(declared.parse('{"text": "a", "times": 1e3}')["times"], 1000)
