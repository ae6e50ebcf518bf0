"""What the command refuses before it talks to anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rollstream.cli.main import build_app
from rollstream.schemas.errors import SettingsError

OPTIONS = ["--data", "sums.jsonl", "--name", "sums", "--samples", "4", "--reward", "numeric"]


@pytest.fixture(autouse=True)
def a_folder_with_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLLSTREAM_KAFKA__BOOTSTRAP", "localhost:9")
    Path("sums.jsonl").write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}) + "\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "sums.jsonl", "--name", "x"], "nothing would score"),
        (["--name", "x"], "has no data"),
        ([*OPTIONS, "--name", "a b"], "letters, digits, dots"),
        ([*OPTIONS, "--k", "8"], "pass@8 needs at least as many samples"),
        ([*OPTIONS, "--temperature", "-1"], "temperature"),
        ([*OPTIONS, "--reward-arg", "tolerance"], "expected KEY=VALUE"),
        ([*OPTIONS, "--baseline", "absent.json"], "'absent.json' cannot be read"),
        ([*OPTIONS, "--every", "2"], "belong to --follow"),
        ([*OPTIONS, "--follow"], "give it an --output"),
        ([*OPTIONS, "--suite", "suite.toml"], "leave them out beside --suite"),
        (["--suite", "suite.toml"], "there is no such file"),
        (["show", "sums.jsonl"], "is no report of `rollstream eval`"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments: list[str], message: str) -> None:
    called = CliRunner().invoke(build_app(["eval"]), ["eval", *arguments])
    assert isinstance(called.exception, SettingsError), called.output
    assert message in str(called.exception)
