"""Ports for a broker: its former ones while they are free, else free ones that no outgoing connection can take."""

from __future__ import annotations

import random
import socket

from rollstream.schemas.errors import SettingsError
from rollstream.transport.local_broker.configuration import Listeners
from rollstream.transport.local_broker.state import BrokerState

HOST = "127.0.0.1"
CANDIDATES = range(20_000, 32_000)
"""Below the range from which Linux takes the ports of outgoing connections: a broker that is down for a moment must
find its port free when it comes back."""


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def choose_listeners(wanted_port: int | None, former: BrokerState | None) -> Listeners:
    """Two free ports.

    Raises:
        SettingsError: the port asked for is taken.
    """
    if wanted_port is not None and not is_free(wanted_port):
        raise SettingsError(f"port {wanted_port!r} is taken by another program: free it or leave broker.port out")
    if former is not None and wanted_port in {None, former.broker_port}:
        both = former.broker_port, former.controller_port
        if all(map(is_free, both)):
            return Listeners(HOST, *both)
    ports = free_ports(2)
    return Listeners(HOST, ports[0] if wanted_port is None else wanted_port, ports[1])


def free_ports(count: int) -> list[int]:
    """That many different free ports.

    Raises:
        SettingsError: there are not so many.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(CANDIDATES, len(CANDIDATES)):
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise SettingsError(f"no {count} free ports between {CANDIDATES.start} and {CANDIDATES.stop} on {HOST}")
