"""A single-node Kafka (KRaft) from the jars: one Java process on a data folder.

It dies with the process that started it, also when that is killed, unless it was told to stay. Its data and its ports
survive: a later start on the same folder, by any process, finds every record that was acknowledged before the stop.
A kill -9 of the broker loses no acknowledged record either, as the operating system holds what the broker has written.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.local_broker import parent_watch
from rollstream.transport.local_broker.configuration import (
    LOG4J_PROPERTIES,
    Listeners,
    as_properties,
    server_properties,
)
from rollstream.transport.local_broker.jars import ensure_jars
from rollstream.transport.local_broker.java import Java, find_java
from rollstream.transport.local_broker.log_folder import ensure_log_folder
from rollstream.transport.local_broker.ports import choose_listeners
from rollstream.transport.local_broker.settings import BrokerSettings
from rollstream.transport.local_broker.startup_archive import StartupArchive, adopt, startup_archive
from rollstream.transport.local_broker.state import BrokerState, is_alive, read_state, started_ticks, write_state
from rollstream.transport.local_broker.users import BrokerUsers

logger = logging.getLogger(__name__)

RECORDS = "records"
OWNER_ONLY = 0o700
"""Of a data folder that holds passwords."""
READY = b"Kafka Server started"
PORT_TAKEN = b"Address already in use"
STARTS_ON_FRESH_PORTS = 3
LOOK_EVERY_S = 0.02
LINES_OF_LOG_IN_ERRORS = 25


@dataclass(frozen=True)
class _Runtime:
    java: Java
    jars: Path
    archive: StartupArchive


class LocalBroker:
    """A broker of ours; as a context manager it runs inside the block.

    ``start`` after ``stop`` or ``kill9`` comes back on the same ports with the same data. With ``users``, on a fresh
    data folder, one must log in as one of them.
    """

    def __init__(
        self, settings: BrokerSettings | None = None, *, stay: bool = False, users: BrokerUsers | None = None
    ) -> None:
        self._settings = settings or BrokerSettings()
        self._data_dir = self._settings.data_dir.absolute()
        self._stay = stay
        self._users = users
        self._state: BrokerState | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def state(self) -> BrokerState:
        """What is written down about it; only after the first start."""
        if self._state is None:
            raise SettingsError(f"the broker on {str(self._data_dir)!r} was never started: call start() first")
        return self._state

    @property
    def bootstrap(self) -> str:
        """Address for clients; stays the same over restarts of this object."""
        return self.state.bootstrap

    def start(self) -> str:
        """Start and return the bootstrap address once the broker takes requests.

        Raises:
            SettingsError: no Java, no jars, port taken, or the data folder is in use.
            TransientError: the broker did not come up; the message ends with its log.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        if self._users is not None:
            self._data_dir.chmod(OWNER_ONLY)
        with _lock(self._data_dir):
            former = read_state(self._data_dir)
            if former is not None and is_alive(former.pid, former.started_ticks):
                raise SettingsError(
                    f"a broker runs on {str(self._data_dir)!r} already (pid {former.pid}, {former.bootstrap}). "
                    "Use it, stop it with `rollstream broker stop`, or set another broker.data_dir"
                )
            self._state = self._start_on_free_ports(former)
        return self._state.bootstrap

    def stop(self) -> None:
        """Stop in order (killed past the time-out). Data and ports are kept; does nothing when it does not run."""
        if self._state is not None:
            stop_process(self._state, self._settings.stop_timeout_s)

    def kill9(self) -> None:
        """Kill it as a crash would, and return when it is dead."""
        kill_process(self.state)

    def _start_on_free_ports(self, former: BrokerState | None) -> BrokerState:
        runtime = _runtime(self._settings)
        cache_dir = self._settings.cache_dir.absolute()
        ensure_log_folder(self._data_dir / RECORDS, runtime.java, runtime.jars, cache_dir, users=self._users)
        for attempts_left in reversed(range(STARTS_ON_FRESH_PORTS)):
            listeners = self._listeners(former)
            _write_configuration(self._data_dir, listeners, self._users)
            state = self._spawn(runtime, listeners)
            try:
                _wait_until_ready(state, self._settings.start_timeout_s)
            except TransientError:
                kill_process(state)
                taken = PORT_TAKEN in _log_path(self._data_dir).read_bytes()
                if not (taken and attempts_left and self._state is None):
                    raise
                former = None
                continue
            logger.info("broker %s (pid %s) runs on %s", state.bootstrap, state.pid, self._data_dir)
            return state
        raise AssertionError("the last attempt raises")

    def _listeners(self, former: BrokerState | None) -> Listeners:
        if self._state is not None:
            host = self._state.bootstrap.rpartition(":")[0]
            return Listeners(host, self._state.broker_port, self._state.controller_port)
        return choose_listeners(self._settings.port, former)

    def _spawn(self, runtime: _Runtime, listeners: Listeners) -> BrokerState:
        command = _java_command(runtime, self._data_dir, self._settings.heap_mib)
        if not self._stay:
            command = [sys.executable, "-I", "-S", parent_watch.__file__, str(os.getpid()), *command]
        log = _log_path(self._data_dir)
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))
        writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), writing, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
        state = BrokerState(
            kind="jars",
            bootstrap=listeners.bootstrap,
            data_dir=str(self._data_dir),
            stays=self._stay,
            broker_port=listeners.broker_port,
            controller_port=listeners.controller_port,
            pid=pid,
            started_ticks=started_ticks(pid),
            fresh_archive=str(runtime.archive.fresh) if runtime.archive.fresh else None,
        )
        write_state(state)
        return state


def stop_process(state: BrokerState, timeout_s: float) -> None:
    """Stop the broker of a state in order, whoever started it; killed past ``timeout_s``."""
    orderly = True
    if state.pid is not None and is_alive(state.pid, state.started_ticks):
        os.kill(state.pid, signal.SIGTERM)
        orderly = _wait_until_dead(state, timeout_s)
        if not orderly:
            logger.warning("broker (pid %s) did not stop within %.0f s: killing it", state.pid, timeout_s)
            kill_process(state)
    if state.fresh_archive is not None:
        adopt(Path(state.fresh_archive), orderly=orderly)


def kill_process(state: BrokerState) -> None:
    """Kill the broker of a state and return when it is dead."""
    if state.pid is not None and is_alive(state.pid, state.started_ticks):
        os.kill(state.pid, signal.SIGKILL)
        if not _wait_until_dead(state, timeout_s=10.0):
            raise TransientError(f"broker (pid {state.pid}) is still there 10 s after a kill: see its state in /proc")


def _runtime(settings: BrokerSettings) -> _Runtime:
    java = find_java(settings.java)
    cache_dir = settings.cache_dir.absolute()
    jars = settings.jars_dir.absolute() if settings.jars_dir else ensure_jars(cache_dir)
    if not any(jars.glob("kafka-server-*.jar")):
        raise SettingsError(
            f"{str(jars)!r} holds no Kafka jars: set broker.jars_dir to a Kafka's libs folder, or unset it"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    return _Runtime(java, jars, startup_archive(java, jars, cache_dir))


def _java_command(runtime: _Runtime, data_dir: Path, heap_mib: int) -> list[str]:
    return [
        str(runtime.java.executable),
        f"-Xmx{heap_mib}m",
        "-Xms128m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:MaxDirectMemorySize=256m",
        f"-XX:ErrorFile={data_dir}/java-crash.log",
        *runtime.archive.flags,
        "-Djava.awt.headless=true",
        f"-Dlog4j2.configurationFile={data_dir}/log4j2.properties",
        "-cp",
        f"{runtime.jars}/*",
        "kafka.Kafka",
        f"{data_dir}/server.properties",
    ]


def _write_configuration(data_dir: Path, listeners: Listeners, users: BrokerUsers | None) -> None:
    settings = server_properties(listeners, str(data_dir / RECORDS)) | (users.properties(listeners) if users else {})
    (data_dir / "server.properties").write_text(as_properties(settings), encoding="utf-8")
    (data_dir / "log4j2.properties").write_text(LOG4J_PROPERTIES, encoding="utf-8")


def _log_path(data_dir: Path) -> Path:
    return data_dir / "broker.log"


def _wait_until_ready(state: BrokerState, timeout_s: float) -> None:
    log = _log_path(Path(state.data_dir))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        alive = is_alive(state.pid, state.started_ticks)
        content = log.read_bytes() if log.exists() else b""
        if READY in content:
            return
        if not alive:
            raise TransientError(f"the broker ended while starting; {str(log)!r} ends with:\n{_tail(content)}")
        time.sleep(LOOK_EVERY_S)
    raise TransientError(
        f"the broker was not ready within {timeout_s:.0f} s (broker.start_timeout_s); {str(log)!r} ends with:\n"
        f"{_tail(log.read_bytes() if log.exists() else b'')}"
    )


def _tail(log: bytes) -> str:
    return "\n".join(log.decode(errors="replace").splitlines()[-LINES_OF_LOG_IN_ERRORS:])


def _wait_until_dead(state: BrokerState, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_alive(state.pid, state.started_ticks):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_EVERY_S)
    return True


@contextmanager
def _lock(data_dir: Path) -> Generator[None]:
    """One starter at a time per data folder."""
    with (data_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
