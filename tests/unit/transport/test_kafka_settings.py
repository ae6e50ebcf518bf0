"""KafkaSettings: what is wrong fails at start and names the value."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rollstream.schemas.errors import SettingsError
from rollstream.transport.settings import KafkaSettings


def settings(**values: Any) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap": "127.0.0.1:9092"} | values)


@pytest.mark.parametrize("bootstrap", ["127.0.0.1:9092", "a:1,b:2", "a:1, b:2", "[::1]:9092", "kafka.example:65535"])
def test_address_lists_are_accepted(bootstrap: str) -> None:
    assert settings(bootstrap=bootstrap).bootstrap == bootstrap


@pytest.mark.parametrize("bootstrap", ["", "localhost", "a:0", "a:65536", "a:1,", "http://a:1", "a:b", "a b:1"])
def test_what_is_no_address_is_refused(bootstrap: str) -> None:
    with pytest.raises(ValidationError, match=r"host:port"):
        settings(bootstrap=bootstrap)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"prefix": "my run."}, "my run."),
        ({"prefix": "x" * 200}, "xxx"),
        ({"toolsets": ("a/b",)}, "a/b"),
        ({"toolsets": ("a", "a")}, "distinct"),
        ({"toolsets": ("",)}, "not empty"),
        ({"partitions": {"jobs": 4}}, "jobs"),
        ({"partitions": {"tasks": 0}}, "tasks"),
        ({"security_protocol": "SASL_SSL"}, "sasl_username"),
        ({"ssl_key_file": "key.pem"}, "ssl_cert_file"),
        ({"replicas": 3}, "replicas"),
    ],
)
def test_wrong_values_fail_and_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        settings(**values)


def test_topics_and_groups_carry_the_prefix() -> None:
    kafka = settings(prefix="run-1.", toolsets=("default", "browser"))

    assert kafka.topic("tasks") == "run-1.tasks"
    assert kafka.topic("tool-calls.browser") == "run-1.tool-calls.browser"
    assert kafka.group("rollout-workers") == "run-1.rollout-workers"


def test_a_toolset_that_is_not_declared_is_refused_with_the_fix() -> None:
    with pytest.raises(SettingsError, match=r"'tool-calls.browser' is not declared.*kafka.toolsets"):
        settings().topic("tool-calls.browser")


def test_the_password_is_not_shown() -> None:
    kafka = settings(security_protocol="SASL_SSL", sasl_username="worker", sasl_password="hunter2")

    assert "hunter2" not in repr(kafka) + str(kafka) + kafka.model_dump_json()


def test_settings_cannot_be_changed() -> None:
    kafka = settings()

    with pytest.raises(ValidationError, match="frozen"):
        kafka.prefix = "other."
