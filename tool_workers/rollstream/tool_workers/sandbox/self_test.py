"""Tries to get out of a sandbox, and to exceed its limits, before any model-written code is let in."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bubblewrap import ENVIRONMENT
from rollstream.tool_workers.sandbox.escape_probe import PROBE
from rollstream.tool_workers.sandbox.isolation_report import IsolationReport, Layer
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox, SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.sandbox.spawning import Enforcement
from rollstream.tool_workers.settings import MIB, SandboxSettings

PROBE_TIMEOUT_S = 15.0
SECONDS_OF_A_LONG_PROGRAM = 600
KILL_TIMEOUT_S = 0.3
SHELL_VARIABLES = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", "container", "HOSTNAME"})
"""What a shell, a container's engine or Python itself adds."""
MOST_MEMORY_TRIED_BYTES = 2048 * MIB
SIZE_TOLERANCE = 1.1


@dataclass(frozen=True)
class Probe:
    """One property of a sandbox, and whether what was found there shows it."""

    name: str
    holds: Callable[[dict[str, Any]], bool]
    remedy: str = ""


PROBES = (
    Probe("empty environment", lambda f: set(f["environment"]) <= ENVIRONMENT.keys() | SHELL_VARIABLES),
    Probe("no secrets in processes", lambda f: not f["word_in_processes"]),
    Probe(
        "host processes invisible",
        lambda f: max(f["pids"]) < 1000 and len(f["pids"]) < 6,
        "a private /proc is needed: in Kubernetes `procMount: Unmasked` with `hostUsers: false`, in Docker "
        "`--security-opt systempaths=unconfined`",
    ),
    Probe("host files invisible", lambda f: not f["host_files"]),
    Probe("no open descriptors", lambda f: set(f["open_files"]) <= {0, 1, 2, 3}),
    Probe(
        "no network",
        lambda f: f["loopback_refused"] and f["internet_refused"] and f["ipv6_refused"] and f["sockets_refused"],
    ),
    Probe("read-only root", lambda f: f["writes_refused"] and f["workspace_writable"]),
    Probe("system calls filtered", lambda f: f["seccomp"] == "2" and not f["calls_allowed"]),
    Probe("no namespaces inside", lambda f: f["unshare"] == -1 and not f["clones_allowed"]),
    Probe("no keys of the host", lambda f: f["keyring_refused"]),
    Probe("no privileges", lambda f: f["capabilities"] == 0 and f["no_new_privileges"] == "1" and f["uid"] != 0),
)


async def check_isolation(factory: SandboxFactory, limits: SandboxSettings, *, level: str = "bwrap") -> IsolationReport:
    """Open sandboxes and try to get out.

    Args:
        factory: opens them.
        limits: what they are allowed.
        level: for the report.

    Raises:
        IsolationError: a sandbox does not start, or a required layer does not hold; names each, and the remedy.
    """
    with _canaries() as canaries:
        layers = await _layers(factory, limits, canaries)
    report = IsolationReport(level, (*layers, _group_layer(limits, factory.enforcement)))
    if report.failed:
        raise IsolationError(
            f"the sandbox does not hold: {', '.join(str(layer) for layer in report.failed)}; run the tool worker where "
            "namespaces, seccomp and a private /proc are available, serve only tools without a sandbox (tools = "
            '["calculator"]), or choose isolation = "unsafe-local" by name on a machine you can lose'
        )
    return report


def _group_layer(limits: SandboxSettings, enforcement: Enforcement) -> Layer:
    return Layer(
        "control groups",
        holds=enforcement.kind != "none",
        detail=enforcement.kind,
        remedy=f"{enforcement.reason or 'none are used'}: memory is watched ten times a second instead; run as root, "
        "or under systemd with Delegate=yes, to have it enforced by the kernel",
        is_required=limits.memory_enforcement == "cgroup",
    )


async def _layers(factory: SandboxFactory, limits: SandboxSettings, canaries: tuple[str, str, int]) -> list[Layer]:
    first = await factory.open()
    second = await factory.open()
    try:
        found = await _findings(first, canaries)
        probed = [Layer(probe.name, probe.holds(found), remedy=probe.remedy) for probe in PROBES]
        return [
            *probed,
            Layer(
                "refusals counted",
                factory.counts_denials and first.denied_before > 0,
                detail="" if factory.counts_denials else "this kernel cannot ask",
                is_required=False,
            ),
            *await _behaviour(first, second),
            *await _limits_hold(second, limits, found),
        ]
    except (SandboxLostError, ValueError, KeyError) as error:
        raise IsolationError(f"the isolation self-test could not be completed: {error}") from error
    finally:
        await asyncio.gather(first.close(), second.close())


async def _findings(sandbox: Sandbox, canaries: tuple[str, str, int]) -> dict[str, Any]:
    execution = await sandbox.python(PROBE.format(canaries=canaries), timeout_s=PROBE_TIMEOUT_S)
    if execution.exit_code != 0:
        raise ValueError(f"the probe failed: {execution.output[-500:]}")
    return json.loads(execution.output)


@contextmanager
def _canaries() -> Generator[tuple[str, str, int]]:
    """A file, a word in this process's environment and a listening port that must all be out of reach."""
    word = uuid.uuid4().hex
    os.environ["ROLLSTREAM_SELF_TEST"] = word
    with tempfile.NamedTemporaryFile(prefix="rollstream-self-test-") as file, socket.socket() as listener:
        os.chmod(file.name, 0o644)
        file.write(word.encode())
        file.flush()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        try:
            yield file.name, word, listener.getsockname()[1]
        finally:
            del os.environ["ROLLSTREAM_SELF_TEST"]


async def _kills_the_tree(sandbox: Sandbox) -> bool:
    seconds = SECONDS_OF_A_LONG_PROGRAM
    await sandbox.bash(f"setsid nohup sleep {seconds} & (trap '' TERM; sleep {seconds}) &", timeout_s=PROBE_TIMEOUT_S)
    left = await sandbox.bash("cat /proc/[0-9]*/comm", timeout_s=PROBE_TIMEOUT_S)
    return left.exit_code == 0 and "sleep" not in left.output


async def _keeps_the_time(sandbox: Sandbox) -> bool:
    stuck = await sandbox.bash(f"sleep {SECONDS_OF_A_LONG_PROGRAM}", timeout_s=KILL_TIMEOUT_S)
    return stuck.cause == "timeout"


async def _behaviour(first: SupervisedSandbox, second: SupervisedSandbox) -> list[Layer]:
    """What takes more than one call, and more than one sandbox."""
    found = [Layer("kill of the whole tree", await _kills_the_tree(first))]
    found.append(Layer("time limit", await _keeps_the_time(first)))
    await first.bash("echo x > /workspace/only-here; echo x > /dev/shm/only-here", timeout_s=PROBE_TIMEOUT_S)
    looked = await second.bash("cat /workspace/only-here /dev/shm/only-here /tmp/only-here", timeout_s=PROBE_TIMEOUT_S)
    return [*found, Layer("sessions apart", "x\n" not in looked.output and looked.exit_code != 0)]


async def _limits_hold(sandbox: SupervisedSandbox, limits: SandboxSettings, found: dict[str, Any]) -> list[Layer]:
    sizes = {"/workspace": limits.workspace_bytes, "/tmp": limits.scratch_bytes, "/dev/shm": limits.scratch_bytes}
    are_right = all(found["sizes"][path] <= size * SIZE_TOLERANCE for path, size in sizes.items())
    bomb = await sandbox.python(
        f"import os, signal\nfor n in range({limits.processes + 50}):\n"
        "  try:\n    if os.fork() == 0: signal.pause()\n"
        "  except OSError: print('bounded'); break",
        timeout_s=PROBE_TIMEOUT_S,
    )
    flood = await sandbox.bash("yes", timeout_s=PROBE_TIMEOUT_S)
    memory = Layer("memory limit", True, detail=f"not tried beyond {MOST_MEMORY_TRIED_BYTES // MIB} MiB")
    if limits.memory_bytes <= MOST_MEMORY_TRIED_BYTES:
        greedy = await sandbox.python(
            f"import time\nblocks = [bytearray(8 << 20) for _ in range({limits.memory_bytes // (8 * MIB) + 8})]\n"
            "time.sleep(5)",
            timeout_s=PROBE_TIMEOUT_S,
        )
        memory = replace(memory, holds=greedy.cause == "memory" or "MemoryError" in greedy.output, detail="")
    return [
        Layer("sizes of folders", are_right),
        Layer("number of processes", "bounded" in bomb.output),
        Layer("amount of output", flood.cause == "output"),
        memory,
    ]
