"""A Kafka broker on this machine, for those who have none: from Docker, or from the Kafka jars and any Java."""

from rollstream.transport.local_broker.choice import (
    ensure_broker,
    running_bootstrap,
    running_broker,
    start_to_stay,
    stop_staying,
)
from rollstream.transport.local_broker.kraft import LocalBroker
from rollstream.transport.local_broker.settings import BrokerSettings
from rollstream.transport.local_broker.state import BrokerState

__all__ = [
    "BrokerSettings",
    "BrokerState",
    "LocalBroker",
    "ensure_broker",
    "running_bootstrap",
    "running_broker",
    "start_to_stay",
    "stop_staying",
]
