from __future__ import annotations

import io
import itertools
import json
import tarfile
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.tools import GRADE_TOOL, ToolCall
from rollstream.tool_workers.functions import ToolError, ToolOutput
from rollstream.tool_workers.grading.artefacts import (
    ArtefactError,
    Artefacts,
    changes_tests,
    check_paths,
    import_roots,
    is_plain,
    read_artefacts,
    shadows_library,
)
from rollstream.tool_workers.grading.cases import is_raised
from rollstream.tool_workers.grading.comparing import UndecidedError, same_output, same_value
from rollstream.tool_workers.grading.own import verdict_from
from rollstream.tool_workers.grading.rooms import GradingRooms
from rollstream.tool_workers.grading.verdict import Check, Verdict, verdict_of
from rollstream.tool_workers.sandbox.inside.plain_values import NotPlainError, decode, encode
from rollstream.tool_workers.sandbox.replies import Execution, KillCause, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.tool_runner import ToolRunner

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
    "said",
    [
        ["int", hex(1 << 14_000)],
        1 << 14_000,
        ["float", 10**400],
        ["bytes", "\u20ac"],
        ["set", [["list", [1]]]],
        ["dict", [[["int", hex(n * (2**61 - 1))], 1] for n in range(200)]],
        ["set", [["tuple", [["int", hex(n * (2**61 - 1))]]] for n in range(200)]],
    ],
    ids=["long int", "long int in digits", "no float", "no bytes", "set of lists", "keys of one hash", "one hash"],
)
def test_forged_values_are_refused(said: Any) -> None:
    with pytest.raises(NotPlainError):
        decode(said)


def test_values_nest_as_deep_as_they_are_sent_and_no_deeper() -> None:
    value: Any = 1
    for _ in range(50):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(NotPlainError):
        decode(["list", [encode(value)]])
    with pytest.raises(NotPlainError):
        encode([value])


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
        ([1, 2], {1, 2}, False),
        ([], frozenset[int](), False),
        ({1, 2}, {2, 1}, True),
        (1, 1.0 + 1e-12, True),
        (1_000_000_006, 1_000_000_007.0, False),
        (10**18, 1e18 + 1e8, False),
        (10**18, 1e18, True),
        ([[1_000_000_006]], [[1_000_000_007.0]], False),
        (1, float("inf"), False),
        (1.0, float("inf"), False),
        (1.0, float("nan"), False),
        (1, float("nan"), False),
        (1.0, 10**400, False),
        (0, -0.0, True),
        ({"1": 1}, {1: 1}, False),
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


@pytest.mark.parametrize(
    ("expected", "found", "is_same"),
    [
        ([1, 2], {2, 1}, True),
        ([1, 2], [2, 1], True),
        ([1, 2], (2, 1), True),
        ([1, 2], {True, 2}, False),
        ([1, 1, 2], {1, 2, "x"}, False),
        ([1, 1, 2], [1, 2, 2], False),
        ([[1, 2], [1, 2]], {(1, 2), 5}, False),
        ([[1, 2], [3, 4]], [[3, 4], [2, 1]], False),
        ([[1, 2], [3]], {frozenset({3}), frozenset({2, 1})}, True),
        ({"a": [1, 2]}, {"a": {2, 1}}, True),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ([0.1 + 0.2, 1], [1, 0.3], True),
        ([["a", 0.3], ["b", 0.3]], [("b", 0.1 + 0.2), ("a", 0.3)], True),
        ([None, True, 1, "1"], ["1", 1, True, None], True),
        ([1], 1, False),
    ],
)
def test_order_is_free_where_it_is_said_to_be_and_each_member_counts_once(
    expected: object, found: object, is_same: bool
) -> None:
    assert same_value(expected, found, unordered=True) is is_same


MEMBERS = st.integers(0, 6).map(lambda n: n / 10) | st.integers(0, 1) | st.sampled_from(["a", True, None])


@given(st.lists(MEMBERS | st.tuples(MEMBERS, MEMBERS), max_size=5), st.data(), st.sampled_from([None, 0.11, 0.21]))
def test_any_order_means_that_some_order_is_the_same(expected: list[Any], data: st.DataObject, near: float) -> None:
    found = data.draw(st.permutations(expected) | st.lists(MEMBERS | st.tuples(MEMBERS, MEMBERS), max_size=5))
    shifted = [item + data.draw(st.sampled_from([0, 0.1])) if type(item) is float else item for item in found]
    in_some_order = any(same_value(expected, list(each), near) for each in itertools.permutations(shifted))
    assert same_value(expected, shifted, near, unordered=True) is in_some_order


def test_long_honest_answers_in_another_order_are_compared() -> None:
    floats = [n / 7 for n in range(20_000)]
    assert same_value(floats, [each * (1 + 1e-12) for each in reversed(floats)], unordered=True)
    orders = [list(each) for each in itertools.permutations(range(7))]
    assert same_value(orders, {tuple(each) for each in orders}, unordered=True)
    pairs = [[n // 100, n / 3] for n in range(10_000)]
    assert same_value(pairs, [[one, other + 1e-12] for one, other in reversed(pairs)], unordered=True)
    subsets = [list(each) for each in itertools.combinations(range(14), 5)]
    assert same_value(subsets, {frozenset(each) for each in subsets}, unordered=True)


@pytest.mark.parametrize(
    ("expected", "found", "tolerance"),
    [
        ([[n / 1e6, -n / 1e6] for n in range(5000)], [[n / 1e6, n / -1e6] for n in range(4999)] + [[9, 9]], 0.5),
        (list(range(20_000)), [n * (2**61 - 1) for n in range(20_000)], None),
        ([0.5] * 20_000, [0.5 + 1e-12] * 19_999 + [7.0], None),
        ([[0] * 200] * 200, [{*range(199), "x"} for _ in range(200)], None),
    ],
    ids=["a cloud", "one hash", "one number", "sets"],
)
def test_hostile_answers_are_compared_in_bounded_time(expected: Any, found: Any, tolerance: float | None) -> None:
    started = time.thread_time()
    try:
        is_same = same_value(expected, found, tolerance, unordered=True)
    except UndecidedError:
        is_same = False
    assert not is_same
    assert time.thread_time() - started < 5


@pytest.mark.parametrize(
    ("wanted", "names", "is_it"),
    [
        ("ValueError", ["JSONDecodeError", "ValueError", "Exception"], True),
        ("LookupError", ["KeyError", "LookupError", "Exception"], True),
        ("IOError", ["FileNotFoundError", "OSError", "Exception"], True),
        ("TypeError", ["KeyError", "ValueError", "TypeError", "Exception"], False),
        ("Mine", ["Other", "Mine", "Exception"], True),
        ("Mine", ["Exception"], False),
        ("ValueError", ["Mine"], False),
        ("ValueError", [], False),
        ("object", ["ValueError", "Exception", "BaseException"], False),
    ],
)
def test_of_built_in_exceptions_the_first_decides(wanted: str, names: list[str], is_it: bool) -> None:
    assert is_raised(wanted, names) is is_it


def test_output_is_compared_as_asked() -> None:
    assert same_output("a b\n", "a b  \n\n", "exact")
    assert not same_output("a b", "a  b", "exact")
    assert same_output("a b", " a\nb ", "tokens")
    assert same_output("x 1.0", "x 1.0000000001", "float")
    assert not same_output("x 1.0", "y 1.0", "float")
    assert not same_output("a\nb", "a\x85b", "exact")


@pytest.mark.parametrize(
    ("expected", "found", "is_same"),
    [
        ("4", "3.9999999", True),
        ("4", "4.0", True),
        ("4", "+04", True),
        ("1000000", "1000001", False),
        ("1000000", "1000001.0", False),
        ("1000000.0", "1000000.5", True),
        ("1000", "1_000", False),
        ("12", "\uff11\uff12", False),
        ("inf", "inf", True),
        ("inf", "1e999", False),
        ("1e999", "1e998", False),
        ("1.5", "nan", False),
        ("0.5", "0x.8", False),
        ("1" * 5000, "1" * 4999 + "2", False),
        ("1" * 5000, "1" * 5000, True),
        ("1" * 400, "1.5", False),
    ],
)
def test_words_are_numbers_only_in_plain_digits_and_integers_are_exact(
    expected: str, found: str, is_same: bool
) -> None:
    assert same_output(expected, found, "float") is is_same


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
     "lib.so", "pytest.toml", "conftest/__init__.py", ".local/lib/python3/site-packages/pytest.py", "src/.git",
     "x-1.0.dist-info/METADATA", "src/X.EGG-INFO/entry_points.txt", "x.egg-info", ".coveragerc.toml", ".pdbrc"],
)  # fmt: skip
def test_what_changes_how_tests_run_is_left_out(path: str) -> None:
    assert changes_tests(path)


@pytest.mark.parametrize("path", ["src/solution.py", "conftest.txt", ".gitignore", "local/x.py", "x.pth.py", "a.so.1"])
def test_what_is_called_nearly_so_is_not(path: str) -> None:
    assert not changes_tests(path)


def test_what_stands_in_for_the_library_is_left_out_beside_tests() -> None:
    shadows = ("unittest/__init__.py", "unittest/__main__.py", "pytest.py", "pytest_cov/__init__.py", "packaging.py")
    others = ("test/a.py", "solution.py", "code/a.py", "calendar.csv", "packaging/a.deb", "pkg/json.py", "Queue.py")
    artefacts = Artefacts(dict.fromkeys((*shadows, *others), b""))
    found = artefacts.beside_tests()
    assert (set(found.files), set(found.left_out)) == (set(others), set(shadows))
    assert shadows_library("json.py")


@pytest.mark.parametrize(
    ("test", "packages", "roots"),
    [
        ("test_x.py", {"__init__.py"}, {""}),
        ("tests/unit/test_x.py", set[str](), {"tests/unit/"}),
        ("tests/unit/test_x.py", {"tests/unit/__init__.py"}, {"tests/unit/", "tests/"}),
        ("a/b/test_x.py", {"a/b/__init__.py", "a/__init__.py"}, {"a/b/", ""}),
    ],
)
def test_a_test_imports_from_its_folder_and_that_of_its_package(test: str, packages: set[str], roots: set[str]) -> None:
    assert import_roots(test, packages) == roots
    files = dict.fromkeys((*packages, *(f"{root}json.py" for root in roots), "c/json.py", "solution.py"), b"")
    left = Artefacts(files).beside_tests([test]).files
    assert set(left) == {*packages, "c/json.py", "solution.py"}


def test_what_is_in_the_way_of_a_test_gives_way() -> None:
    artefacts = Artefacts({"test_x.py/inner": b"", "tests": b"", "keep": b""})
    assert set(artefacts.with_files({"test_x.py": b"", "tests/test_y.py": b""}).files) == {
        "test_x.py", "tests/test_y.py", "keep",
    }  # fmt: skip


def test_what_would_be_imported_in_place_of_a_test_gives_way() -> None:
    instead = {"x/__init__.py": b"", "tests/y/__init__.py": b"", "tests.py": b""}
    beside = {"x.txt": b"", "x_y/__init__.py": b"", "tests/z/__init__.py": b"", "main": b"", "tests/x.py": b""}
    tests = {"x.py": b"", "tests/y.py": b"", "main.py": b""}
    assert set(Artefacts({**instead, **beside}).with_files(tests).files) == {*beside, *tests}


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


def test_a_grade_is_whole_however_little_a_model_reads_of_a_result() -> None:
    runner = ToolRunner(worker_id="w", max_output_chars=100)
    grade = Verdict(0.5, {"passed": 1.0}, "x" * 1900).text()
    call = ToolCall(
        call_id="c", session_id=None, turn=1, token=None, tool=GRADE_TOOL, arguments="{}", deadline=0.0, timeout_s=1.0,
        reply_topic="", reply_partition=0,
    )  # fmt: skip
    whole = runner.result(call, ToolOutput(grade))
    assert (whole.content, whole.is_truncated) == (grade, False)
    failed = runner.result(call, ToolOutput(grade, "error"))
    read = runner.result(msgspec.structs.replace(call, tool="bash"), ToolOutput(grade))
    assert (failed.is_truncated, read.is_truncated) == (True, True)


class FullSandbox(Sandbox):
    """Unpacks as it is told to."""

    def __init__(self, exit_code: int | None, cause: KillCause | None) -> None:
        self._done = Execution(exit_code, cause, "no room", "", 7, 0.0)

    async def operate(
        self,
        operation: str,
        arguments: Mapping[str, Any],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        output_bytes: int | None = None,
    ) -> Execution:
        return self._done

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    ("exit_code", "cause", "of_agents", "of_tasks"),
    [
        (1, None, ArtefactError, ToolError),
        (0, None, ArtefactError, ToolError),
        (None, "files", ArtefactError, ToolError),
        (None, "timeout", ArtefactError, SandboxLostError),
        (None, "failed_to_start", SandboxLostError, SandboxLostError),
    ],
    ids=["failed", "left out", "too many", "too long", "not started"],
)
async def test_who_leaves_what_cannot_be_unpacked_is_to_blame(
    exit_code: int | None, cause: KillCause | None, of_agents: type[Exception], of_tasks: type[Exception]
) -> None:
    class Opener:
        async def open(self) -> FullSandbox:
            return FullSandbox(exit_code, cause)  # pyright: ignore[reportAbstractUsage] -- no other call is made

    async with GradingRooms(Opener(), max_gradings=1).room() as room:
        with pytest.raises(of_agents) as agents:
            await room.open(Artefacts({"solution.py": b""}), {"test.py": ""})
        with pytest.raises(of_tasks) as tasks:
            await room.open(None, {"test.py": ""})
    assert (type(agents.value), type(tasks.value)) == (of_agents, of_tasks)


@pytest.mark.parametrize("outcome", [float("nan"), {"reward": 1.0, "part": float("inf")}, {"part": 1.0}])
def test_an_own_grader_that_returns_no_number_is_wrong(outcome: Any) -> None:
    with pytest.raises(ToolError, match="finite number"):
        verdict_from("mine", outcome)
