from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from rollstream.schemas.errors import SettingsError
from rollstream.transport.local_broker import BrokerSettings, BrokerState, ensure_broker, running_broker, start_to_stay
from rollstream.transport.local_broker.ports import CANDIDATES, HOST, choose_listeners, free_ports
from rollstream.transport.local_broker.state import is_alive, read_state, started_ticks, write_state


def state_of(data_dir: Path, **changes: object) -> BrokerState:
    ports = free_ports(2)
    fields: dict[str, object] = {
        "kind": "jars",
        "bootstrap": f"{HOST}:{ports[0]}",
        "data_dir": str(data_dir),
        "stays": True,
        "broker_port": ports[0],
        "controller_port": ports[1],
        "pid": os.getpid(),
        "started_ticks": started_ticks(os.getpid()),
    }
    return BrokerState(**{**fields, **changes})  # pyright: ignore[reportArgumentType]  -- a factory with defaults


def test_a_given_address_is_used_and_nothing_is_started(tmp_path: Path) -> None:
    with ensure_broker(BrokerSettings(bootstrap="kafka.example:9092", data_dir=tmp_path)) as bootstrap:
        assert bootstrap == "kafka.example:9092"

    assert list(tmp_path.iterdir()) == []


def test_a_broker_that_stays_is_used(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    write_state(state)

    with ensure_broker(BrokerSettings(data_dir=tmp_path)) as bootstrap:
        assert bootstrap == state.bootstrap
    assert start_to_stay(BrokerSettings(data_dir=tmp_path)) == state


def test_a_given_address_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"kafka\.example:9092"):
        start_to_stay(BrokerSettings(bootstrap="kafka.example:9092", data_dir=tmp_path))


def test_a_folder_in_use_by_a_broker_of_another_owner_is_refused(tmp_path: Path) -> None:
    write_state(state_of(tmp_path, stays=False))

    with (
        pytest.raises(SettingsError, match=rf"pid {os.getpid()}.*broker\.data_dir"),
        ensure_broker(BrokerSettings(data_dir=tmp_path, source="jars")),
    ):
        pass


def test_a_dead_process_is_no_running_broker(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ticks = started_ticks(process.pid)
    assert is_alive(process.pid, ticks)
    write_state(state_of(tmp_path, pid=process.pid, started_ticks=ticks))
    assert running_broker(BrokerSettings(data_dir=tmp_path)) is not None

    process.send_signal(signal.SIGKILL)
    process.communicate()

    assert running_broker(BrokerSettings(data_dir=tmp_path)) is None


def test_another_process_under_the_same_pid_is_not_the_broker(tmp_path: Path) -> None:
    write_state(state_of(tmp_path, started_ticks=1))

    assert running_broker(BrokerSettings(data_dir=tmp_path)) is None


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"kind": "jars"}', '{"unknown": 1}'])
def test_a_torn_or_foreign_state_file_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "broker.json").write_text(content, encoding="utf-8")

    assert read_state(tmp_path) is None


def test_a_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    state = state_of(tmp_path, fresh_archive="archive")
    write_state(state)

    assert read_state(tmp_path) == state


def test_docker_that_is_asked_for_and_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")

    with (
        pytest.raises(SettingsError, match="Docker engine that answers"),
        ensure_broker(BrokerSettings(data_dir=tmp_path, source="docker")),
    ):
        pass


def test_a_folder_without_kafka_jars_is_refused(tmp_path: Path) -> None:
    settings = BrokerSettings(data_dir=tmp_path / "data", cache_dir=tmp_path, jars_dir=tmp_path, source="jars")

    with pytest.raises(SettingsError, match="holds no Kafka jars"), ensure_broker(settings):
        pass


def test_former_ports_are_kept_while_they_are_free(tmp_path: Path) -> None:
    former = state_of(tmp_path)

    listeners = choose_listeners(None, former)

    assert (listeners.broker_port, listeners.controller_port) == (former.broker_port, former.controller_port)


def test_a_former_port_that_is_taken_is_replaced(tmp_path: Path) -> None:
    former = state_of(tmp_path)
    with socket.create_server((HOST, former.broker_port)):
        listeners = choose_listeners(None, former)

    assert listeners.broker_port != former.broker_port
    assert {listeners.broker_port, listeners.controller_port} <= set(CANDIDATES)


def test_a_port_asked_for_that_is_taken_is_an_error() -> None:
    port = free_ports(1)[0]

    with socket.create_server((HOST, port)), pytest.raises(SettingsError, match=str(port)):
        choose_listeners(port, None)


def test_folders_follow_the_users_conventions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    settings = BrokerSettings()

    assert settings.cache_dir == tmp_path / "cache" / "rollstream"
    assert settings.data_dir == tmp_path / "state" / "rollstream" / "broker"


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(ValidationError, match="portt"):
        BrokerSettings.model_validate({"portt": 1})
