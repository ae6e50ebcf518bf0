from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.cli.command_line import CommandLine
from rollstream.cli.settings import MASK, changed_kafka, describe, load_settings, shown_settings
from rollstream.schemas.errors import SettingsError

ADDRESS = "kafka.bootstrap=here:9092"


@pytest.fixture(autouse=True)
def a_clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No settings file, no variables, no local broker but the test's own."""
    import os

    for variable in list(os.environ):
        if variable.startswith("ROLLSTREAM_"):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def line(*assignments: str, config: Path | None = None) -> CommandLine:
    return CommandLine(config, assignments)


def test_command_line_beats_environment_beats_file_beats_default(
    monkeypatch: pytest.MonkeyPatch, a_clean_place: Path
) -> None:
    def drain() -> float:
        return load_settings(command_line=line(ADDRESS)).up.drain_s

    assert drain() == 60
    (a_clean_place / "rollstream.toml").write_text("[up]\ndrain_s = 1\ntool_workers = 7\n")
    assert drain() == 1
    monkeypatch.setenv("ROLLSTREAM_UP__DRAIN_S", "2")
    assert drain() == 2
    assert load_settings(command_line=line(ADDRESS, "up.drain_s=3")).up.drain_s == 3
    settings = load_settings({"up": {"drain_s": 4, "restarts": None}}, command_line=line(ADDRESS, "up.drain_s=3"))
    assert (settings.up.drain_s, settings.up.tool_workers, settings.up.restarts) == (4, 7, 5)


def test_the_last_of_two_assignments_wins() -> None:
    assert load_settings(command_line=line(ADDRESS, "up.restarts=1", "up.restarts=2")).up.restarts == 2


def test_a_file_that_was_named_must_be_there_and_be_toml(a_clean_place: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        load_settings(command_line=line(config=a_clean_place / "absent.toml"))
    broken = a_clean_place / "broken.toml"
    broken.write_text("[up\n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(command_line=line(config=broken))


@pytest.mark.parametrize("where", ["file", "assignment", "option", "environment"])
def test_an_unknown_key_is_named_with_the_known_ones_wherever_it_comes_from(
    where: str, monkeypatch: pytest.MonkeyPatch, a_clean_place: Path
) -> None:
    given_line, options = line(ADDRESS), {}
    if where == "file":
        (a_clean_place / "rollstream.toml").write_text("[up]\ndrains = 1\n")
    elif where == "assignment":
        given_line = line(ADDRESS, "up.drains=1")
    elif where == "option":
        options = {"up": {"drains": 1}}
    else:
        monkeypatch.setenv("ROLLSTREAM_UP__DRAINS", "1")
    with pytest.raises(SettingsError, match=r"up\.drains: unknown key 'drains'; known here: .*'drain_s'"):
        load_settings(options, command_line=given_line)


def test_an_unknown_section_is_named_with_the_known_ones(a_clean_place: Path) -> None:
    (a_clean_place / "rollstream.toml").write_text("[workers]\nx = 1\n")
    with pytest.raises(SettingsError, match=r"unknown key 'workers'; known here: .*'rollout_worker'"):
        load_settings(command_line=line(ADDRESS))


def test_an_unknown_key_of_an_engine_is_named_with_the_keys_of_that_engine() -> None:
    engine = 'rollout_worker.engine={"kind": "scripted", "scrypt": "x"}'
    with pytest.raises(SettingsError, match=r"unknown key 'scrypt'; known here: .*'script'") as error:
        load_settings(command_line=line(ADDRESS, engine))
    assert "gpu_memory_utilization" not in str(error.value)


def test_a_variable_that_sets_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLSTREAM_KAFKA_BOOTSTRAP", "here:9092")
    with pytest.raises(SettingsError, match="'ROLLSTREAM_KAFKA_BOOTSTRAP' sets nothing"):
        load_settings()


def test_a_wrong_value_is_named_with_its_key() -> None:
    with pytest.raises(SettingsError, match=r"up\.restarts: .*, got '-1'"):
        load_settings(command_line=line(ADDRESS, "up.restarts=-1"))


@pytest.mark.parametrize("assignment", ["up.restarts", "restarts=1", ".restarts=1", "up.=1", 'up.log_dir="x'])
def test_an_assignment_that_is_none_is_refused(assignment: str) -> None:
    with pytest.raises(SettingsError, match="--set"):
        load_settings(command_line=line(ADDRESS, assignment))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1))
def test_any_text_can_be_assigned_as_json(text: str) -> None:
    import json

    settings = load_settings(command_line=line(ADDRESS, f"rollout_worker.model={json.dumps(text)}"))
    assert settings.rollout_worker.model == text


def test_lists_are_assigned_as_json_and_plain_text_stays_text() -> None:
    settings = load_settings(command_line=line(ADDRESS, 'up.trainer_command=["a", "b"]', "rollout_worker.model=1"))
    assert (settings.up.trainer_command, settings.rollout_worker.model) == (("a", "b"), "1")


def test_without_any_broker_the_remedy_is_said_unless_none_is_needed() -> None:
    with pytest.raises(SettingsError, match="rollstream broker start"):
        load_settings(command_line=line())
    assert not load_settings(command_line=line(), needs_broker=False).has_broker
    assert load_settings(command_line=line("broker.bootstrap=there:1")).kafka.bootstrap == "there:1"


def test_secrets_are_masked_when_settings_are_shown() -> None:
    kafka = (
        ADDRESS,
        "kafka.security_protocol=SASL_SSL",
        "kafka.sasl_username=me",
        "kafka.sasl_password=hunter2",
    )
    settings = load_settings(command_line=line(*kafka))
    text = describe(settings)
    assert "hunter2" not in text
    assert f'kafka.sasl_password = "{MASK}"' in text
    assert 'kafka.sasl_username = "me"' in text
    assert shown_settings(settings)["kafka"]["bootstrap"] == "here:9092"


def test_a_wrong_secret_is_not_repeated_in_the_error() -> None:
    with pytest.raises(SettingsError) as error:
        load_settings(command_line=line(ADDRESS, 'kafka.sasl_password=["hunter2"]'))
    assert "hunter2" not in str(error.value)


def test_what_is_derived_from_changed_kafka_settings_is_derived_anew() -> None:
    kafka = load_settings(command_line=line(ADDRESS)).kafka
    assert kafka.topic("tasks") == "rollstream.tasks"
    assert changed_kafka(kafka, prefix="other.").topic("tasks") == "other.tasks"


def test_a_child_process_resolves_the_same_options() -> None:
    assert line("a.b=1", config=Path("/x.toml")).arguments() == ["--config", "/x.toml", "--set", "a.b=1"]
