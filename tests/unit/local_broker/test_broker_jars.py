from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.transport.local_broker.jars import JarPin, ensure_jars, jar_folder, parse_pins, pinned_jars


def pin_of(content: bytes, artifact: str = "one") -> JarPin:
    return JarPin("org.example", artifact, "1.0", hashlib.sha256(content).hexdigest())


def write_jar(pin: JarPin, repository: Path) -> Path:
    """A repository in which every jar holds its artifact's name."""
    path = repository / pin.group / pin.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pin.artifact.encode())
    return path


def test_every_pinned_jar_has_a_digest_and_the_clients_match_the_server() -> None:
    pins = pinned_jars()

    assert len({pin.file_name for pin in pins}) == len(pins) > 40
    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in pins)
    versions = {pin.artifact: pin.version for pin in pins}
    assert versions["kafka-clients"] == versions["kafka-server"] == versions["kafka_2.13"]


def test_pins_are_read_back_from_their_lines() -> None:
    pin = pin_of(b"x")

    assert parse_pins(f"{pin.coordinate} {pin.sha256}\n") == (pin,)


def test_jars_are_fetched_once(tmp_path: Path) -> None:
    pins = [pin_of(b"one", "one"), pin_of(b"two", "two")]
    fetched: list[str] = []

    def fetch(pin: JarPin, repository: Path) -> Path:
        fetched.append(pin.artifact)
        return write_jar(pin, repository)

    first = ensure_jars(tmp_path, pins, fetch)
    second = ensure_jars(tmp_path, pins, fetch)

    assert first == second == jar_folder(tmp_path, pins)
    assert sorted(fetched) == ["one", "two"]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {"one-1.0.jar": b"one", "two-1.0.jar": b"two"}
    assert list(tmp_path.iterdir()) == [first]


def test_a_jar_with_other_bytes_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    pins = [pin_of(b"one", "one"), pin_of(b"something else", "two")]

    with pytest.raises(SettingsError, match=r"org\.example:two:1\.0.*SHA-256"):
        ensure_jars(tmp_path, pins, write_jar)

    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_fetch_at_once_end_with_one_set(tmp_path: Path) -> None:
    pins = [pin_of(b"one", "one")]

    def fetch_while_another_finishes(pin: JarPin, repository: Path) -> Path:
        ensure_jars(tmp_path, pins, write_jar)
        return write_jar(pin, repository)

    folder = ensure_jars(tmp_path, pins, fetch_while_another_finishes)

    assert (folder / "one-1.0.jar").read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [folder]


def test_another_set_of_pins_lives_in_another_folder(tmp_path: Path) -> None:
    assert jar_folder(tmp_path, [pin_of(b"one")]) != jar_folder(tmp_path, [pin_of(b"two")])
