from __future__ import annotations

import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.settings import StreamOptions, TrainerSettings, kafka_settings, trainer_settings
from rollstream.transport.settings import KafkaSettings


def test_the_options_of_a_stream_are_the_fields_of_the_settings() -> None:
    assert set(StreamOptions.__annotations__) == set(TrainerSettings.model_fields)


def test_an_address_and_a_prefix_are_enough() -> None:
    assert kafka_settings("host:9092", None).topic("trajectories") == "rollstream.trajectories"
    assert kafka_settings("host:9092", "mine.").topic("trajectories") == "mine.trajectories"


def test_a_prefix_replaces_that_of_complete_settings_and_nothing_else() -> None:
    complete = KafkaSettings.model_validate(
        {
            "bootstrap": "host:9092",
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_username": "me",
            "sasl_password": "secret",
        }
    )
    moved = kafka_settings(complete, "mine.")
    assert moved.prefix == "mine."
    assert moved.sasl_password is not None
    assert moved.sasl_password.get_secret_value() == "secret"


def test_wrong_options_and_addresses_are_settings_errors() -> None:
    with pytest.raises(SettingsError, match="pipeline_depth"):
        trainer_settings({"pipeline_depth": -1})
    with pytest.raises(SettingsError, match="not host:port"):
        kafka_settings("nowhere", None)
