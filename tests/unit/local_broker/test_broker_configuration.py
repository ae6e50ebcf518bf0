from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from rollstream.transport.local_broker.configuration import (
    MAX_RECORD_BYTES,
    Listeners,
    as_environment,
    as_properties,
    kafka_uuid,
    meta_properties,
    server_properties,
)
from rollstream.transport.local_broker.container import container_environment

LISTENERS = Listeners("127.0.0.1", 20_001, 20_002)


def test_the_broker_creates_no_topic_by_accident_and_takes_large_records() -> None:
    settings = server_properties(LISTENERS, "/records")

    assert settings["auto.create.topics.enable"] == "false"
    assert int(settings["message.max.bytes"]) == MAX_RECORD_BYTES > 16 * 1024 * 1024
    assert settings["replica.fetch.max.bytes"] == settings["message.max.bytes"]


def test_clients_are_told_the_address_they_can_reach() -> None:
    settings = server_properties(LISTENERS, "/records")

    assert settings["advertised.listeners"] == f"PLAINTEXT://{LISTENERS.bootstrap}" == "PLAINTEXT://127.0.0.1:20001"
    assert "CONTROLLER://127.0.0.1:20002" in settings["listeners"]
    assert settings["controller.quorum.voters"] == "1@127.0.0.1:20002"


def test_properties_are_one_line_per_setting() -> None:
    assert as_properties({"a.b": "1", "c": "x,y"}) == "a.b=1\nc=x,y\n"


def test_the_image_is_told_the_same_settings_in_its_own_spelling() -> None:
    assert as_environment({"log.dirs": "/d", "node.id": "1"}) == {"KAFKA_LOG_DIRS": "/d", "KAFKA_NODE_ID": "1"}


def test_a_container_listens_everywhere_and_advertises_its_host() -> None:
    environment = container_environment(Listeners("10.0.0.7", 20_001, 20_002), "A" * 22)

    assert environment["KAFKA_LISTENERS"] == "PLAINTEXT://0.0.0.0:20001,CONTROLLER://127.0.0.1:20002"
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == "PLAINTEXT://10.0.0.7:20001"
    assert environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == "1@127.0.0.1:20002"
    assert environment["CLUSTER_ID"] == "A" * 22


@given(st.binary(min_size=16, max_size=16))
def test_an_id_has_the_spelling_that_kafka_takes(sixteen_bytes: bytes) -> None:
    text = kafka_uuid(sixteen_bytes)

    assert len(text) == 22
    assert not text.startswith("-")
    decoded = base64.urlsafe_b64decode(text + "==")
    assert decoded[1:] == sixteen_bytes[1:]


def test_a_log_folder_names_its_cluster_and_itself() -> None:
    assert meta_properties("c", "d") == "version=1\ncluster.id=c\nnode.id=1\ndirectory.id=d\n"
