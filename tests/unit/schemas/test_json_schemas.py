from __future__ import annotations

from pathlib import Path

import pytest

from rollstream.schemas.json_schemas import differing_json_schemas, json_schemas, write_json_schemas

COMMITTED = Path(__file__).parents[3] / "schemas" / "json"


def test_the_committed_schemas_are_those_of_the_code() -> None:
    assert differing_json_schemas(COMMITTED) == []


def test_every_difference_is_named(tmp_path: Path) -> None:
    write_json_schemas(tmp_path)
    (tmp_path / "Pause.json").unlink()
    (tmp_path / "ToolCall.json").write_text("{}")
    (tmp_path / "Nonsense.json").write_text("{}")
    assert differing_json_schemas(tmp_path) == [
        "Pause.json is missing",
        "ToolCall.json differs from the code",
        "Nonsense.json describes no message",
    ]


def test_the_words_under_a_field_are_its_description() -> None:
    task = json_schemas()["RolloutTask"]
    assert task["x-topic"] == "tasks"
    assert task["$defs"]["RolloutTask"]["properties"]["member_index"]["description"] == "In ``[0, group_size)``."
    assert "top_k" in task["$defs"]["SamplingParams"]["properties"]


def test_arrays_say_under_which_extension_they_travel() -> None:
    sample = json_schemas()["Trajectory"]["$defs"]["Sample"]["properties"]
    codes = {name: field.get("x-msgpack-extension") for name, field in sample.items() if name.startswith("response_")}
    assert codes == {"response_ids": 1, "response_mask": 3, "response_logprobs": 2}


@pytest.mark.parametrize("arguments", [["write"], ["check"]])
def test_the_command_writes_and_checks(tmp_path: Path, arguments: list[str]) -> None:
    from typer.testing import CliRunner

    from rollstream.cli.schemas import schemas_app

    runner = CliRunner()
    assert runner.invoke(schemas_app, ["check", str(tmp_path)]).exit_code == 1
    assert runner.invoke(schemas_app, ["write", str(tmp_path)]).exit_code == 0
    again = runner.invoke(schemas_app, [*arguments, str(tmp_path)])
    assert again.exit_code == 0
    assert str(tmp_path) in again.output
