"""A broker in Docker: the ``apache/kafka`` image through testcontainers.

Inside and outside use the same port number, so that the address the broker advertises is right for both. One that dies
with its owner is removed by testcontainers' reaper, however the owner ends; one that stays is kept with its data when
it stops, and started again.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingModuleSource=false
# (docker and testcontainers are only partly annotated)

from __future__ import annotations

import logging
import socket
import time
import uuid
from dataclasses import replace

import docker
from docker.errors import DockerException, NotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from rollstream.schemas.errors import TransientError
from rollstream.transport.local_broker.configuration import (
    NODE_ID,
    Listeners,
    as_environment,
    kafka_uuid,
    server_properties,
)
from rollstream.transport.local_broker.ports import choose_listeners
from rollstream.transport.local_broker.settings import BrokerSettings
from rollstream.transport.local_broker.state import BrokerState, read_state, write_state

logger = logging.getLogger(__name__)

DEFAULT_SOCKET = "unix:///var/run/docker.sock"
PING_TIMEOUT_S = 3
REQUEST_TIMEOUT_S = 60
LOOK_EVERY_S = 0.2
READY = "Kafka Server started"
LOG_DIR = "/var/lib/kafka/data"


def engine_answers() -> bool:
    """Whether a Docker engine can be reached from here."""
    path = (get_docker_host() or DEFAULT_SOCKET).removeprefix("unix://")
    if path.startswith("/") and not _socket_answers(path):
        return False
    try:
        client = _client(timeout=PING_TIMEOUT_S)
    except (DockerException, OSError):
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


def _socket_answers(path: str) -> bool:
    """Asked first, as the docker client leaks its socket when nobody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PING_TIMEOUT_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _client(timeout: int = REQUEST_TIMEOUT_S) -> docker.DockerClient:
    """A client of the engine that testcontainers would use."""
    return DockerClient(timeout=timeout).client


def container_environment(listeners: Listeners, cluster_id: str) -> dict[str, str]:
    """Environment of the image: listen on every interface of the container, advertise the address of its host."""
    broker, controller = listeners.broker_port, listeners.controller_port
    settings = server_properties(listeners, LOG_DIR) | {
        "listeners": f"PLAINTEXT://0.0.0.0:{broker},CONTROLLER://127.0.0.1:{controller}",
        "controller.quorum.voters": f"{NODE_ID}@127.0.0.1:{controller}",
    }
    return as_environment(settings) | {"CLUSTER_ID": cluster_id}


class DockerBroker:
    """The container of one data folder (the folder holds only its state; the records are in the container)."""

    def __init__(self, settings: BrokerSettings, *, stay: bool) -> None:
        self._settings = settings
        self._stay = stay
        self._container: DockerContainer | None = None

    def start(self) -> BrokerState:
        """Start the container, the former one where it stayed, and return once the broker takes requests.

        Raises:
            TransientError: the engine, the image or the broker failed.
        """
        data_dir = self._settings.data_dir.absolute()
        data_dir.mkdir(parents=True, exist_ok=True)
        former = read_state(data_dir)
        try:
            if self._stay and former is not None and _start_again(former, self._settings.start_timeout_s):
                return former
            state = self._create(former)
        except (DockerException, OSError, RuntimeError) as error:
            self.remove()
            raise TransientError(
                f"no broker from the image {self._settings.image!r}: {error}. Remedy: see that `docker pull` can fetch "
                "it, or set broker.source to 'jars'"
            ) from error
        write_state(state)
        return state

    def remove(self) -> None:
        """Remove the container and its records; does nothing where none was started."""
        if self._container is not None:
            self._container.stop()
            self._container = None

    def _create(self, former: BrokerState | None) -> BrokerState:
        # The reaper would also remove a broker that is to stay.
        testcontainers_config.ryuk_disabled = self._stay
        container = DockerContainer(self._settings.image)
        host = container.get_docker_client().host()
        listeners = replace(
            choose_listeners(self._settings.port, former), host="127.0.0.1" if host == "localhost" else host
        )
        container.with_bind_ports(listeners.broker_port, listeners.broker_port)
        container.with_envs(**container_environment(listeners, kafka_uuid(uuid.uuid4().bytes)))
        container.waiting_for(LogMessageWaitStrategy(READY).with_startup_timeout(int(self._settings.start_timeout_s)))
        self._container = container
        container.start()
        return BrokerState(
            kind="docker",
            bootstrap=listeners.bootstrap,
            data_dir=str(self._settings.data_dir.absolute()),
            stays=self._stay,
            broker_port=listeners.broker_port,
            controller_port=listeners.controller_port,
            container=container.get_container_id(),
        )


def _start_again(former: BrokerState, timeout_s: float) -> bool:
    """Start a container that was stopped; False where there is none any more."""
    if former.container is None:
        return False
    client = _client()
    try:
        container = client.containers.get(former.container)
        before = int(time.time())
        container.start()
        deadline = time.monotonic() + timeout_s
        while READY.encode() not in container.logs(since=before):
            if time.monotonic() > deadline:
                raise TimeoutError(f"container {former.container} was not ready within {timeout_s:.0f} s")
            time.sleep(LOOK_EVERY_S)
    except NotFound:
        return False
    finally:
        client.close()
    return True


def container_runs(container_id: str) -> bool:
    """Whether a container is up."""
    if not engine_answers():
        return False
    client = _client()
    try:
        return client.containers.get(container_id).status == "running"
    except NotFound:
        return False
    finally:
        client.close()


def stop_container(container_id: str, timeout_s: float) -> None:
    """Stop a container and keep its data."""
    client = _client()
    try:
        client.containers.get(container_id).stop(timeout=int(timeout_s))
    except NotFound:
        logger.warning("container %s is gone, and its data with it", container_id)
    finally:
        client.close()
