"""One process per static member on this host. Kafka never fences a twin: both would steal the partitions for ever."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from rollstream.schemas.errors import SettingsError


class InstanceLock:
    """Held from ``__enter__`` to ``__exit__``, and given back by the kernel if the process dies.

    Raises:
        SettingsError: a living process on this host already uses the instance id.
    """

    def __init__(self, group_id: str, instance_id: str) -> None:
        self._instance_id = instance_id
        name = hashlib.sha256(f"{group_id}\0{instance_id}".encode()).hexdigest()[:24]
        self._path = Path(tempfile.gettempdir()) / f"rollstream-{os.getuid()}-{name}.lock"
        self._stack = ExitStack()

    def __enter__(self) -> InstanceLock:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stack.close()
            raise SettingsError(
                f"instance_id {self._instance_id!r} is in use by another process on this host; stop it, or give this "
                "worker an instance_id of its own"
            ) from error
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stack.close()
