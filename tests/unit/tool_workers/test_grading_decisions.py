from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.functions import ToolError
from rollstream.tool_workers.grading.artefacts import (
    ArtefactError,
    Artefacts,
    changes_tests,
    check_paths,
    is_plain,
    read_artefacts,
    shadows_library,
)
from rollstream.tool_workers.grading.comparing import same_output, same_value
from rollstream.tool_workers.grading.own import verdict_from
from rollstream.tool_workers.grading.verdict import Check, Verdict, verdict_of
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode, encode

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(PLAIN)
def test_plain_values_cross_as_they_are(value: Any) -> None:
    crossed = decode(json.loads(json.dumps(encode(value))))
    assert repr(crossed) == repr(value)


@given(JSON)
def test_whatever_comes_is_a_plain_value_or_refused(said: Any) -> None:
    try:
        value = decode(said)
    except NotPlainError:
        return
    encode(value)


@pytest.mark.parametrize(
    "value",
    [object(), type("I", (int,), {})(1), type("S", (str,), {})("x"), [object()], 1 << 20_000],
    ids=["object", "int subclass", "str subclass", "object inside", "huge int"],
)
def test_nothing_else_crosses(value: object) -> None:
    with pytest.raises(NotPlainError):
        encode(value)


@pytest.mark.parametrize(
    ("expected", "found", "is_same"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (True, 1, False),
        (None, 0, False),
        (0.1 + 0.2, 0.3, True),
        ([1, 2], (1, 2), True),
        ([1, 2], {1, 2}, True),
        ([1, 2], {True, 2}, False),
        ([1, 2], [2, 1], False),
        ({"a": [1]}, {"a": (1,)}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ("1", 1, False),
        ("x", "x", True),
        ("x", b"x", False),
        (10**400, 1e308, False),
    ],
)
def test_values_are_compared_by_value_and_kind(expected: object, found: object, is_same: bool) -> None:
    assert same_value(expected, found) is is_same


@given(JSON.filter(lambda value: "nan" not in repr(value)))
def test_a_value_is_the_same_as_itself(value: object) -> None:
    assert same_value(value, value)


def test_output_is_compared_as_asked() -> None:
    assert same_output("a b\n", "a b  \n\n", "exact")
    assert not same_output("a b", "a  b", "exact")
    assert same_output("a b", " a\nb ", "tokens")
    assert same_output("x 1.0", "x 1.0000000001", "float")
    assert not same_output("x 1.0", "y 1.0", "float")


@given(st.binary(max_size=2000))
def test_an_archive_of_an_agent_is_read_or_refused(content: bytes) -> None:
    try:
        artefacts = read_artefacts(content)
    except ArtefactError:
        return
    assert all(is_plain(path) for path in artefacts.files)


def test_only_regular_files_with_plain_paths_are_taken() -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind in (
            ("good/a.py", tarfile.REGTYPE),
            ("../out", tarfile.REGTYPE),
            ("/etc/passwd", tarfile.REGTYPE),
            ("a//b", tarfile.REGTYPE),
            ("link", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("conftest.py", tarfile.REGTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    found = read_artefacts(archive.getvalue())
    assert set(found.files) <= {"good/a.py", "a/b"}
    assert found.left_out == ("conftest.py",)


@pytest.mark.parametrize(
    "path",
    ["conftest.py", "a/CONFTEST.PY", "sitecustomize.py", "x.pth", "pytest.ini", ".git/config", "a/__pycache__/x.py",
     "lib.so", "pytest.toml", "conftest/__init__.py"],
)  # fmt: skip
def test_what_changes_how_tests_run_is_left_out(path: str) -> None:
    assert changes_tests(path)
    assert not changes_tests("src/solution.py")


def test_what_stands_in_for_the_library_is_left_out_beside_tests() -> None:
    artefacts = Artefacts({"unittest/__main__.py": b"", "pytest.py": b"", "test/a.py": b"", "solution.py": b""})
    assert set(artefacts.beside_tests().files) == {"test/a.py", "solution.py"}
    assert shadows_library("json.py")


def test_what_is_in_the_way_of_a_test_gives_way() -> None:
    artefacts = Artefacts({"test_x.py/inner": b"", "tests": b"", "keep": b""})
    assert set(artefacts.with_files({"test_x.py": b"", "tests/test_y.py": b""}).files) == {
        "test_x.py", "tests/test_y.py", "keep",
    }  # fmt: skip


def test_paths_of_a_task_are_checked() -> None:
    check_paths(["a/b.py"], "tests")
    for path in ("../a", "/a", "a/../b", "", "a\0"):
        with pytest.raises(ToolError, match="not a relative path"):
            check_paths([path], "tests")


@given(st.lists(st.booleans(), min_size=1))
def test_all_or_nothing_is_one_only_if_everything_passed(outcomes: list[bool]) -> None:
    checks = [Check(str(n), passed) for n, passed in enumerate(outcomes)]
    assert verdict_of(checks, all_or_nothing=True).reward == float(all(outcomes))
    assert verdict_of(checks, all_or_nothing=False).reward == sum(outcomes) / len(outcomes)


def test_a_verdict_is_text_a_rollout_worker_reads_whatever_its_report_holds() -> None:
    text = Verdict(1.0, {"passed": 1.0}, "\x7f\x9f\x00\u202e\ud800\x1b[31m" + "x" * 5000).text()
    found = json.loads(text)
    assert (found["reward"], found["components"]) == (1.0, {"passed": 1.0})
    assert len(found["report"]) == 2000


@pytest.mark.parametrize("outcome", [float("nan"), {"reward": 1.0, "part": float("inf")}, {"part": 1.0}])
def test_an_own_grader_that_returns_no_number_is_wrong(outcome: Any) -> None:
    with pytest.raises(ToolError, match="finite number"):
        verdict_from("mine", outcome)
