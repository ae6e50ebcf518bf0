"""Sandboxes as containers: one per session, started by the command of a container engine, by gVisor if it is asked to.

The engine's daemon is as mighty as root: give it to nobody else on the machine. Containers of workers that are dead are
removed at the next start.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import secrets
import subprocess

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bubblewrap import ENVIRONMENT, memory_folders
from rollstream.tool_workers.sandbox.container_settings import ContainerSettings
from rollstream.tool_workers.sandbox.outside.cgroups import is_gone, process_identity
from rollstream.tool_workers.sandbox.spawning import Enforcement, SupervisorProcess
from rollstream.tool_workers.sandbox.streamed_supervisor import END_TIMEOUT_S, StreamedSupervisor, bootstrap_command
from rollstream.tool_workers.settings import SandboxSettings

logger = logging.getLogger(__name__)

LABEL = "rollstream.worker"
NAME = re.compile(r"rollstream-(\d+-\d+)-.+")
SUPERVISOR_PROCESSES = 8
SUPERVISOR_BYTES = 64 * 1024 * 1024
USER = "1000:1000"
DESCRIPTORS = 1024


class ContainerSpawner:
    """Starts containers.

    Raises:
        IsolationError: neither an image nor a root folder is named.
    """

    is_isolated = True

    def __init__(self, settings: ContainerSettings, limits: SandboxSettings) -> None:
        if bool(settings.image) == bool(settings.rootfs):
            raise IsolationError(
                'isolation = "docker" needs tool_worker.container.image, with bash and Python in it (or, with podman, '
                "tool_worker.container.rootfs)"
            )
        self._settings = settings
        self._limits = limits
        self._numbers = itertools.count(1)
        self._worker = process_identity(os.getpid())
        self._is_swept = False

    @property
    def enforcement(self) -> Enforcement:
        """The engine's."""
        return Enforcement(self._settings.program)

    def spawn(self) -> SupervisorProcess:
        """Start one."""
        if not self._is_swept:
            self._sweep()
            self._is_swept = True
        name = f"rollstream-{self._worker}-{next(self._numbers)}-{secrets.token_hex(4)}"
        return StreamedSupervisor(self.command(name), lambda: self._remove(name))

    def command(self, name: str) -> list[str]:
        """The engine's command line. Pure."""
        limits, settings = self._limits, self._settings
        line = [settings.program, "run", "--interactive", "--rm", "--name", name, "--label", f"{LABEL}={self._worker}"]
        line += ["--network", "none", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        line += ["--user", USER, "--hostname", "sandbox", "--ipc", "private", "--workdir", "/workspace"]
        line += ["--memory", str(limits.memory_bytes + SUPERVISOR_BYTES)]
        line += ["--memory-swap", str(limits.memory_bytes + SUPERVISOR_BYTES)]
        line += ["--pids-limit", str(limits.processes + SUPERVISOR_PROCESSES)]
        line += ["--ulimit", f"nofile={DESCRIPTORS}:{DESCRIPTORS}", "--ulimit", "core=1:1"]  # see `_dump_nothing`
        line += ["--ulimit", f"nproc={limits.processes * 64}:{limits.processes * 64}"]
        if limits.cpus:
            line += ["--cpus", str(limits.cpus)]
        if settings.runtime:
            line += ["--runtime", settings.runtime]
        owner = "U" if "podman" in settings.program else "uid=1000,gid=1000,mode=0755"
        for folder, size in memory_folders(limits).items():
            if folder != "/dev/shm":
                line += ["--tmpfs", f"{folder}:rw,nosuid,nodev,exec,size={size},{owner}"]
        line += ["--shm-size", str(limits.scratch_bytes)]
        for variable, value in ENVIRONMENT.items():
            line += ["--env", f"{variable}={value}"]
        for mount in settings.mounts:
            line += ["--volume", f"{mount}:ro"]
        line += settings.options
        line += ["--rootfs", settings.rootfs] if settings.rootfs else [settings.image]
        return line + bootstrap_command(settings.interpreter, limits, memory_folders=tuple(memory_folders(limits)))

    def explain(self, complaint: str) -> str:
        """What the engine's complaint means and what to do about it."""
        return explain_engine(complaint, self._settings)

    def close(self) -> None:
        """Remove what is left of ours."""
        for name, worker in self._containers():
            if worker == self._worker:
                self._remove(name)

    def _sweep(self) -> None:
        for name, worker in self._containers():
            if is_gone(worker):
                logger.info("removing container %s of a worker that is dead", name)
                self._remove(name)

    def _containers(self) -> list[tuple[str, str]]:
        """Names and workers of all containers with our label."""
        listed = self._run("ps", "--all", "--filter", f"label={LABEL}", "--format", "{{.Names}}")
        return [(match[0], match[1]) for line in listed.splitlines() if (match := NAME.fullmatch(line.strip()))]

    def _remove(self, name: str) -> None:
        self._run("rm", "--force", "--volumes", name)

    def _run(self, *arguments: str) -> str:
        command = [self._settings.program, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, timeout=END_TIMEOUT_S, check=False, text=True)
        except (OSError, subprocess.SubprocessError) as error:
            logger.warning("%s %s failed: %s", self._settings.program, arguments[0], error)
            return ""
        return done.stdout


def explain_engine(complaint: str, settings: ContainerSettings) -> str:
    """The remedy for an engine's complaint. Pure."""
    text = complaint.lower()
    if "permission denied" in text and "sock" in text:
        return f"this user may not talk to {settings.program}: add it to the engine's group, or use rootless podman"
    if "cannot connect" in text or "is the docker daemon running" in text:
        return f"the daemon of {settings.program} does not run: start it"
    if "no such image" in text or "unable to find image" in text or "manifest unknown" in text or "short-name" in text:
        return f"fetch the image first: `{settings.program} pull {settings.image}`"
    if "runtime" in text and settings.runtime:
        return f"the runtime {settings.runtime!r} is not known to {settings.program}: install and register it"
    if "executable file not found" in text or "no such file" in text:
        return f"the image needs {settings.interpreter!r} and bash: take another image, or set the interpreter"
    return f"see the message of {settings.program}"
