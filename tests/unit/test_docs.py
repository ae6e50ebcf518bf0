"""The pages say what is so: commands exist, settings load, code compiles, links lead somewhere, tables agree."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_command

from rollstream.cli.command_line import CommandLine
from rollstream.cli.main import COMMANDS, build_app, globals_first
from rollstream.cli.settings import FOREIGN_VARIABLES, RollstreamSettings, load_settings
from rollstream.cli.topics import retention, size
from rollstream.schemas.registry import MESSAGES
from rollstream.schemas.tools import ToolStatus
from rollstream.schemas.trajectories import Status
from rollstream.tool_workers.registry import load_tools
from rollstream.transport.topics import SCORED, short_names, topic_table

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "deploy/README.md",
        ROOT / "examples/node-reader/README.md",
    ]
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS_OF_OTHERS = {"--enable-scale-out", "--logprobs-mode", "--build-arg", "--only"}
"""Of vLLM's server, of Docker, of the benchmarks."""
OPTIONS_OF_SLIME = {
    "--debug-train-only",
    "--global-batch-size",
    "--n-samples-per-prompt",
    "--no-save-optim",
    "--num-rollout",
    "--rollout-batch-size",
    "--rollout-global-dataset",
    "--save-hf",
    "--use-rollout-logprobs",
    "--use-tis",
}
ELLIPSES = {"…", "..."}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    language: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    found = [Block(match[1], match[2]) for match in FENCED.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language in languages]


def commands(page: Path) -> list[str]:
    lines = "".join(block.text for block in blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def spans(page: Path) -> list[str]:
    """What stands between backticks in running text and tables."""
    return re.findall(r"`([^`\n]+)`", FENCED.sub("", page.read_text(encoding="utf-8")))


# --- commands ---------------------------------------------------------------------------------------------------------


def command_tree(name: str) -> TyperGroup:
    tree = get_command(build_app([name]))
    assert isinstance(tree, TyperGroup)
    return tree


def called(words: list[str]) -> str:
    """The command a line calls; it must be one of ours."""
    name = next((word for word in words if any(word == command.name for command in COMMANDS)), None)
    assert name is not None, f"no command of rollstream in {words}"
    return name


def parses_as_rollstream(words: list[str]) -> None:
    arguments = globals_first(words[1:])
    tree = command_tree(called(arguments))
    silence(tree)
    tree.main(arguments, prog_name="rollstream", standalone_mode=False)


def silence(command: Any) -> None:
    """Let a command be parsed without being run."""
    command.callback = None
    for child in getattr(command, "commands", {}).values():
        silence(child)


def is_a_make_target(words: list[str]) -> None:
    arguments = [word for word in words[1:] if word not in ELLIPSES]
    targets = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {word for word in arguments if "=" not in word} <= set(" ".join(targets).split()), words
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    shown = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=30, check=False
    )
    assert shown.returncode == 0, shown.stderr
    for line in shown.stdout.splitlines():
        if line.startswith(".venv/bin/rollstream "):
            parses_as_rollstream(shlex.split(line))
        elif line.startswith(".venv/bin/"):
            assert line.split()[0].removeprefix(".venv/bin/") in {"pytest", "ruff", "lint-imports", "pyright", "python"}


def is_a_compose_call(words: list[str]) -> None:
    """Its files and services are there; what its producer is given is a command line of ours."""
    assert words[1] == "compose"
    files = [words[index + 1] for index, word in enumerate(words) if word == "-f"]
    services = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
    for option in (words[index + 1] for index, word in enumerate(words) if word == "--scale"):
        assert f"\n  {option.partition('=')[0]}:" in services
    if "producer" in words:
        assert "\n  producer:" in services
        parses_as_rollstream(["rollstream", *words[words.index("producer") + 1 :]])


def is_a_pinned_program(words: list[str]) -> None:
    assert f"\n{words[0]}==" in (ROOT / "requirements" / "cpu.txt").read_text(encoding="utf-8")


def exists(place: Path) -> None:
    assert place.is_file(), f"{place} is not there"


HANDLERS: dict[str, Callable[[list[str], Path], None]] = {
    "rollstream": lambda words, _: parses_as_rollstream(words),
    "make": lambda words, _: is_a_make_target(words),
    "docker": lambda words, _: is_a_compose_call(words),
    "pre-commit": lambda words, _: is_a_pinned_program(words),
    "python": lambda words, _: exists(ROOT / words[1]),
    ".ci/run": lambda words, _: exists(ROOT / words[0]),
    "npm": lambda _, page: exists(page.parent / "package.json"),
    "node": lambda words, page: exists(page.parent / words[1]),
    "export": lambda words, _: None if "=" in words[1] else pytest.fail(f"{words} sets nothing"),
}


@every_page
def test_every_command_of_a_page_is_one_that_exists(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command, comments=True)
        if "|" in words:
            words = words[: words.index("|")]
        words[0] = words[0].removeprefix(".venv/bin/")
        assert words[0] in HANDLERS, f"no test handles {command!r}"
        HANDLERS[words[0]](words, page)


@every_page
def test_no_command_hides_from_the_tests(page: Path) -> None:
    """Commands stand behind `$ ` in blocks marked `console`."""
    for block in blocks(page, "console"):
        assert all(line.startswith(("$ ", "    ")) for line in block.text.splitlines()), block.text
    elsewhere = "".join(block.text for block in blocks(page, "", "bash", "sh", "shell", "text"))
    assert re.findall(rf"^(?:\$|{'|'.join(map(re.escape, HANDLERS))}) .*", elsewhere, re.MULTILINE) == []


@every_page
def test_commands_named_in_the_text_exist_with_their_options(page: Path) -> None:
    for span in spans(page):
        words = [word.strip("[]") for word in span.removeprefix(".venv/bin/").split()]
        if len(words) < 2 or words[1] in ELLIPSES:
            continue
        if words[0] == "make":
            is_a_make_target(shlex.split(span))
        elif words[0] == "rollstream" and words[1] != "--help":
            is_mentioned_rightly(words[1:])


def is_mentioned_rightly(words: list[str]) -> None:
    place: Any = command_tree(called(words))
    group: Any = place
    options = {"--config", "--set"}
    for before, word in zip(["", *words], words, strict=False):
        if before in ("--config", "--set"):
            continue
        if before == "|":
            assert word in group.commands, f"{word!r} in {words} is no command"
        elif word.startswith("--"):
            options |= {option for parameter in place.params for option in (*parameter.opts, *parameter.secondary_opts)}
            assert word.partition("=")[0] in options, f"{word!r} in {words} is no option"
        elif hasattr(place, "commands") and word not in ELLIPSES | {"|"}:
            assert word in place.commands, f"{word!r} in {words} is no command"
            group, place = place, place.commands[word]


@every_page
def test_options_named_in_the_text_exist(page: Path) -> None:
    trees = [command_tree(command.name).commands[command.name] for command in COMMANDS]
    below: list[Any] = [leaf for tree in trees for leaf in getattr(tree, "commands", {}).values()]
    leaves: list[Any] = [*trees, *below]
    known = {o for leaf in leaves for p in leaf.params for o in (*p.opts, *p.secondary_opts)} | {"--config", "--set"}
    named = {word for span in spans(page) if span.startswith("--") for word in re.findall(r"--[a-z][a-z-]+", span)}
    assert named - known - OPTIONS_OF_OTHERS - OPTIONS_OF_SLIME == set()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads_as_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RollstreamSettings]:
    for name in [name for name in os.environ if name.startswith("ROLLSTREAM_")]:
        monkeypatch.delenv(name)

    def load(toml: str) -> RollstreamSettings:
        file = tmp_path / "rollstream.toml"
        file.write_text(toml, encoding="utf-8")
        return load_settings({"kafka": {"bootstrap": "localhost:9"}}, command_line=CommandLine(config=file))

    return load


@every_page
def test_every_toml_block_is_a_settings_file(
    page: Path, loads_as_settings: Callable[[str], RollstreamSettings]
) -> None:
    for block in blocks(page, "toml"):
        loads_as_settings(block.text)


def test_the_example_file_loads_also_with_what_is_commented_out(
    loads_as_settings: Callable[[str], RollstreamSettings],
) -> None:
    text = (ROOT / "examples" / "rollstream.toml").read_text(encoding="utf-8")
    assert loads_as_settings(text).producer is not None
    everything, uncommented = re.subn(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert uncommented
    assert loads_as_settings(everything).up.trainer_command


@every_page
def test_settings_named_in_the_text_exist(page: Path) -> None:
    sections = "|".join(RollstreamSettings.model_fields)
    text = page.read_text(encoding="utf-8")
    found = set(re.findall(r"ROLLSTREAM_[A-Z]+(?:__?[A-Z]+)*", text)) - FOREIGN_VARIABLES
    variables = {variable for variable in found if not variable.startswith("ROLLSTREAM_SECRET")}
    named = [variable.removeprefix("ROLLSTREAM_").lower().split("__") for variable in variables]
    named += [span.split(".") for span in spans(page) if re.fullmatch(rf"(?:{sections})(?:\.[a-z_]+)+", span)]
    assert [path for path in named if not is_setting(RollstreamSettings, path)] == []


def is_setting(model: type[BaseModel], path: list[str]) -> bool:
    if not path or path[0] not in model.model_fields:
        return not path
    inner = list(models_in(model.model_fields[path[0]].annotation))
    return len(path) == 1 or not inner or any(is_setting(each, path[1:]) for each in inner)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


# --- code -------------------------------------------------------------------------------------------------------------


@every_page
def test_every_python_block_compiles_and_finds_its_imports(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text, filename=str(page))):
            if isinstance(node, ast.Import):
                assert all(importlib.util.find_spec(alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@every_page
def test_tools_and_agents_of_a_page_are_accepted(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "python")):
        names = re.findall(r"^(?:async )?def (\w+)", block.text, re.MULTILINE)
        if "@tool" in block.text:
            file = tmp_path / f"block_{number}.py"
            file.write_text(block.text, encoding="utf-8")
            assert load_tools([str(file)]).names == names
        elif "episode" in block.text:
            namespace: dict[str, Any] = {}
            exec(compile(block.text, str(page), "exec"), namespace)
            assert all(callable(namespace[name]) for name in names)
            assert names


# --- links and tables -------------------------------------------------------------------------------------------------


@every_page
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), f"{target!r} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_files_named_in_the_text_are_there(page: Path) -> None:
    folders = "|".join(entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name != "runs")
    for span in spans(page):
        if re.fullmatch(rf"(?:{folders})/[\w./…-]*", span):
            assert list(ROOT.glob(span.rstrip("/").replace("…", "**"))), f"{span!r} is not there"


def rows(page: Path, header: str) -> list[list[str]]:
    """Cells of the table whose first line is ``header``, without backticks."""
    table = page.read_text(encoding="utf-8").partition(f"{header}\n")[2].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in table]


def carries(short: str, topic: str) -> bool:
    """Whether messages of ``topic`` are in it: toolsets have their own, and scored trajectories lie in another."""
    return short.startswith(topic) or (short == SCORED and topic == "trajectories")


def test_the_table_of_topics_is_the_one_in_the_code() -> None:
    shown = rows(ROOT / "docs/topics.md", "| topic | messages | key | partitions | kept | largest record |")
    declared = {
        short: [
            ", ".join(message.__name__ for message in MESSAGES if carries(short, message.topic)),
            str(topic.partitions),
            retention({"retention.bytes": "-1", **topic.config}),
            size(int(topic.config["max.message.bytes"])),
        ]
        for short, topic in topic_table().items()
    }
    assert {topic: [messages, *rest] for topic, messages, _, *rest in shown} == declared
    assert [row[0] for row in shown] == list(declared)


def test_every_topic_has_writers_and_readers() -> None:
    shown = rows(ROOT / "docs/topics.md", "| topic | written by | read by | partition |")
    assert tuple(row[0] for row in shown) == short_names(("<toolset>",))
    assert all(all(row) for row in shown)


@pytest.mark.parametrize(
    ("page", "header", "values"),
    [
        ("docs/tool-workers.md", "| status | text for the model | when |", ToolStatus),
        ("docs/rollout-workers.md", "| status | means | samples | reward |", Status),
    ],
)
def test_a_table_of_statuses_has_all_of_them(page: str, header: str, values: Any) -> None:
    named = [status for row in rows(ROOT / page, header) for status in row[0].split(", ")]
    assert sorted(named) == sorted(get_args(values))


def test_the_readme_names_every_source_folder() -> None:
    shown = rows(ROOT / "README.md", "| folder | what | page |")
    holding_source = {place.parent.name for place in ROOT.glob("*/rollstream")}
    assert {row[0].rstrip("/") for row in shown} == holding_source


def test_make_is_there_to_check_its_targets_with() -> None:
    assert shutil.which("make"), "make is missing: apt-get install make"


NAMED_TEST = re.compile(r"`(tests/[\w/.]+\.py)::(\w+)`")


@every_page
def test_every_test_a_page_names_exists(page: Path) -> None:
    for path, name in NAMED_TEST.findall(page.read_text(encoding="utf-8")):
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    promises = [
        part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:] if not part.startswith("What it needs")
    ]
    assert len(promises) >= 8
    assert [part.splitlines()[0] for part in promises if not NAMED_TEST.search(part)] == []
