"""What the command refuses before it talks to anybody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rollstream.cli.evaluation.command import read_report, write_report
from rollstream.cli.main import build_app
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation.report import make_report

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
        ([*OPTIONS, "--output", "."], "name a file"),
        ([*OPTIONS, "--output", "sums.jsonl/report.json"], "cannot be written"),
        ([*OPTIONS, "--suite", "suite.toml"], "leave them out beside --suite"),
        (["--suite", "suite.toml"], "there is no such file"),
        (["show", "sums.jsonl"], "is no report of `rollstream eval`"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(arguments: list[str], message: str) -> None:
    called = CliRunner().invoke(build_app(["eval"]), ["eval", *arguments])
    assert isinstance(called.exception, SettingsError), called.output
    assert message in str(called.exception)


def test_a_report_replaces_the_one_before_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, make_report([], {"rollstream": "1"}))
    before = path.read_bytes()
    (tmp_path / "report.json.part").mkdir()
    with pytest.raises(SettingsError, match="run the same command again"):
        write_report(path, make_report([], {"rollstream": "2"}))
    assert path.read_bytes() == before
    (tmp_path / "report.json.part").rmdir()
    write_report(path, make_report([], {"rollstream": "2"}))
    assert read_report(path).versions == {"rollstream": "2"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["report.json", "sums.jsonl"]
