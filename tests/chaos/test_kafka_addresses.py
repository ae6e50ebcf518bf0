# The protocol structs of aiokafka are built dynamically.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportMissingTypeStubs=false
from __future__ import annotations

import struct

import pytest
from aiokafka.protocol import coordination, metadata
from kafka_addresses import FIND_COORDINATOR, METADATA, correlation_of, request_head, with_ports

BROKERS = [(1, "127.0.0.1", 9092), (2, "elsewhere", 9092), (3, "127.0.0.1", 1234)]
TOPICS = [(0, "topic", False, [(0, 0, 1, [1], [1])])]
CORRELATION = struct.pack(">i", 42)


def metadata_answer(version: int, ports: list[int]) -> bytes:
    brokers = [(node, host, port) for (node, host, _), port in zip(BROKERS, ports, strict=True)]
    racked = [(*broker, None if broker[0] == 1 else "rack") for broker in brokers]
    topics = TOPICS if version < 5 else [(0, "topic", False, [(0, 0, 1, [1], [1], [])])]
    fields = {
        0: (brokers, [(0, "topic", [(0, 0, 1, [1], [1])])]),
        1: (racked, 1, topics),
        2: (racked, "cluster", 1, topics),
    }.get(version, (0, racked, "cluster", 1, topics))
    return CORRELATION + getattr(metadata, f"MetadataResponse_v{version}")(*fields).encode()


@pytest.mark.parametrize("version", range(6))
def test_the_brokers_in_metadata_are_replaced_and_nothing_else(version: int) -> None:
    answer = metadata_answer(version, [9092, 9092, 1234])
    assert with_ports(answer, METADATA, version, {9092: 7777}) == metadata_answer(version, [7777, 7777, 1234])


@pytest.mark.parametrize("message", [None, "", "text"])
@pytest.mark.parametrize("version", range(2))
def test_the_coordinator_is_replaced_and_nothing_else(version: int, message: str | None) -> None:
    def answer(port: int) -> bytes:
        fields = (0, 1, "127.0.0.1", port) if version == 0 else (0, 0, message, 1, "127.0.0.1", port)
        return CORRELATION + getattr(coordination, f"FindCoordinatorResponse_v{version}")(*fields).encode()

    assert with_ports(answer(9092), FIND_COORDINATOR, version, {9092: 7777}) == answer(7777)


def test_other_answers_pass_as_they_are() -> None:
    assert with_ports(b"anything", 1, 11, {9092: 7777}) == b"anything"


def test_an_answer_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="API 3 in version 9"):
        with_ports(b"", METADATA, 9, {})


def test_heads_are_read() -> None:
    assert request_head(struct.pack(">hhi", 3, 5, 42) + b"rest") == (3, 5, 42)
    assert correlation_of(CORRELATION + b"rest") == 42
