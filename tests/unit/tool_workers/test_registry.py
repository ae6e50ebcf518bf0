from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.registry import BUILTIN_TOOLS, load_tools

OWN_TOOLS = '''
from rollstream.tool_workers.builtin_tools.calculator import calculator
from rollstream.tool_workers.functions import tool

@tool
def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()
'''


def test_built_in_tools_are_found_by_name() -> None:
    assert load_tools(BUILTIN_TOOLS).names == list(BUILTIN_TOOLS)


def test_a_file_serves_its_own_tools_and_not_those_it_imports(tmp_path: Path) -> None:
    file = tmp_path / "own_tools.py"
    file.write_text(OWN_TOOLS)
    assert load_tools([str(file)]).names == ["shout"]


def test_a_module_of_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shouting_tools.py").write_text(OWN_TOOLS)
    monkeypatch.chdir(tmp_path)
    assert load_tools(["calculator", "shouting_tools"]).names == ["calculator", "shout"]


def test_specs_are_given_in_the_order_asked_for() -> None:
    registry = load_tools(BUILTIN_TOOLS)
    assert [spec.name for spec in registry.specs(["python", "calculator"], toolset="x")] == ["python", "calculator"]
    assert {spec.toolset for spec in registry.specs(toolset="x")} == {"x"}
    with pytest.raises(SettingsError, match=r"unknown tools \['pyhton'\]"):
        registry.specs(["pyhton"])


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "declares no tool"), ("def", "cannot be loaded: SyntaxError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_file_that_is_no_use_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "broken_tools.py"
    file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_tools([str(file)])


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match="neither a built-in tool"):
        load_tools(["calcualtor"])
    with pytest.raises(SettingsError, match="does not exist"):
        load_tools(["no/such.py"])


def test_two_tools_of_one_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other_bash.py"
    file.write_text(OWN_TOOLS.replace("def shout", "def bash"))
    with pytest.raises(SettingsError, match="two tools are named 'bash'"):
        load_tools(["bash", str(file)])


def test_a_tool_worker_loads_no_model_library() -> None:
    script = (
        "import sys, rollstream.tool_workers.service, rollstream.transport.tool_client\n"
        "from rollstream.tool_workers.registry import BUILTIN_TOOLS, load_tools\n"
        "load_tools(BUILTIN_TOOLS)\n"
        "print(sorted({'vllm', 'torch', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr
