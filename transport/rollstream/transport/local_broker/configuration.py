"""What a single-node KRaft broker is told: pure functions from ports and folders to file contents."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

MAX_RECORD_BYTES = 20 * 1024 * 1024
"""Largest record batch taken, over the largest trajectory that clients send."""

NODE_ID = 1


@dataclass(frozen=True)
class Listeners:
    """The two addresses of a node that is broker and controller in one."""

    host: str
    broker_port: int
    controller_port: int

    @property
    def bootstrap(self) -> str:
        """What clients connect to."""
        return f"{self.host}:{self.broker_port}"


def server_properties(listeners: Listeners, log_dir: str) -> dict[str, str]:
    """Settings of the node: small, quick to come back after a crash, no topic created by accident."""
    broker, controller = listeners.broker_port, listeners.controller_port
    return {
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@{listeners.host}:{controller}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": f"PLAINTEXT://{listeners.host}:{broker},CONTROLLER://{listeners.host}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{listeners.host}:{broker}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": log_dir,
        "auto.create.topics.enable": "false",
        "num.partitions": "1",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "message.max.bytes": str(MAX_RECORD_BYTES),
        "replica.fetch.max.bytes": str(MAX_RECORD_BYTES),
        "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # A killed broker comes back only when its old registration has run out.
        "broker.session.timeout.ms": "1000",
        "broker.heartbeat.interval.ms": "200",
    }


def as_properties(settings: Mapping[str, str]) -> str:
    """A Java properties file."""
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def as_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The same settings as environment variables of the ``apache/kafka`` image."""
    return {f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()}


def kafka_uuid(sixteen_bytes: bytes) -> str:
    """Kafka's spelling of an id: url-safe base64 without padding, 22 characters. A leading dash is not allowed."""
    text = base64.urlsafe_b64encode(sixteen_bytes).rstrip(b"=").decode()
    return "A" + text[1:] if text.startswith("-") else text


def meta_properties(cluster_id: str, directory_id: str) -> str:
    """``meta.properties`` of a formatted log folder."""
    return as_properties(
        {"version": "1", "cluster.id": cluster_id, "node.id": str(NODE_ID), "directory.id": directory_id}
    )


LOG4J_PROPERTIES = """\
rootLogger.level=WARN
rootLogger.appenderRef.stdout.ref=STDOUT
appender.stdout.type=Console
appender.stdout.name=STDOUT
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=[%d] %p %m (%c)%n
logger.started.name=kafka.server.KafkaRaftServer
logger.started.level=INFO
"""
