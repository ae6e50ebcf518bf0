"""Which broker to use: the address given, one that stays already, Docker, the Kafka jars, in this order."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Generator
from contextlib import contextmanager

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.local_broker.kraft import LocalBroker, stop_process
from rollstream.transport.local_broker.settings import BrokerSettings
from rollstream.transport.local_broker.state import BrokerState, is_alive, read_state
from rollstream.transport.local_broker.watchdog import kept_alive

logger = logging.getLogger(__name__)

DOCKER_PACKAGES = ("docker", "testcontainers")


@contextmanager
def ensure_broker(settings: BrokerSettings | None = None) -> Generator[str]:
    """Bootstrap address of a broker, for as long as the block runs.

    A broker that had to be started is started again if it dies, and ends with the block, or with this process, however
    that ends. Blocking: from a coroutine, enter and leave it in a thread.

    Raises:
        SettingsError: no broker can be had with these settings; the message says what is missing and how to get it.
        TransientError: it was fetched or started in vain; the message says why.
    """
    settings = settings or BrokerSettings()
    if settings.bootstrap is not None:
        yield settings.bootstrap
        return
    staying = running_broker(settings)
    if staying is not None and staying.stays:
        logger.info("using the broker %s that stays on %s", staying.bootstrap, staying.data_dir)
        yield staying.bootstrap
        return
    with _own_broker(settings) as bootstrap:
        yield bootstrap


def start_to_stay(settings: BrokerSettings | None = None) -> BrokerState:
    """A broker that outlives this process: the one that runs on the data folder, else a new one.

    Raises:
        SettingsError: see ``ensure_broker``; also when an address is given, as there is nothing to start then.
        TransientError: see ``ensure_broker``.
    """
    settings = settings or BrokerSettings()
    if settings.bootstrap is not None:
        raise SettingsError(
            f"the broker {settings.bootstrap!r} is given: start it where it lives, or unset broker.bootstrap"
        )
    running = running_broker(settings)
    if running is not None and running.stays:
        return running
    if running is None and _use_docker(settings):
        from rollstream.transport.local_broker.container import DockerBroker

        try:
            return DockerBroker(settings, stay=True).start()
        except TransientError:
            if settings.source == "docker":
                raise
            logger.warning("no broker from Docker, trying the Kafka jars", exc_info=True)
    broker = LocalBroker(settings, stay=True)
    broker.start()
    return broker.state


def stop_staying(settings: BrokerSettings | None = None) -> BrokerState | None:
    """Stop the broker that runs on the data folder, keep its data; None where none runs."""
    settings = settings or BrokerSettings()
    running = running_broker(settings)
    if running is None:
        return None
    if running.container is not None:
        from rollstream.transport.local_broker.container import stop_container

        stop_container(running.container, settings.stop_timeout_s)
    else:
        stop_process(running, settings.stop_timeout_s)
    return running


def running_broker(settings: BrokerSettings | None = None) -> BrokerState | None:
    """The broker that runs on the data folder now."""
    settings = settings or BrokerSettings()
    state = read_state(settings.data_dir.absolute())
    if state is None:
        return None
    if state.container is None:
        return state if is_alive(state.pid, state.started_ticks) else None
    if not _has_docker_packages():
        return None
    from rollstream.transport.local_broker.container import container_runs

    return state if container_runs(state.container) else None


def running_bootstrap(settings: BrokerSettings | None = None) -> str | None:
    """Address of the broker that runs on the data folder now."""
    state = running_broker(settings)
    return None if state is None else state.bootstrap


@contextmanager
def _own_broker(settings: BrokerSettings) -> Generator[str]:
    if _use_docker(settings):
        from rollstream.transport.local_broker.container import DockerBroker

        docker_broker = DockerBroker(settings, stay=False)
        try:
            bootstrap = docker_broker.start().bootstrap
        except TransientError:
            if settings.source == "docker":
                raise
            logger.warning("no broker from Docker, trying the Kafka jars", exc_info=True)
        else:
            try:
                yield bootstrap
            finally:
                docker_broker.remove()
            return
    with LocalBroker(settings) as broker, kept_alive(broker):
        yield broker.bootstrap


def _use_docker(settings: BrokerSettings) -> bool:
    if settings.source == "jars":
        return False
    if not _has_docker_packages():
        missing = "the packages docker and testcontainers: `uv pip install 'rollstream[broker]'`"
    else:
        from rollstream.transport.local_broker.container import engine_answers

        if engine_answers():
            return True
        missing = "a Docker engine that answers: start it, or set DOCKER_HOST"
    if settings.source == "docker":
        raise SettingsError(f"broker.source is 'docker' and this needs {missing}")
    return False


def _has_docker_packages() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in DOCKER_PACKAGES)
