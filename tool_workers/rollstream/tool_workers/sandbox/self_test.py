"""Tries to get out of a sandbox before any model-written code is let in."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bubblewrap import ENVIRONMENT
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox, SandboxFactory, SupervisedSandbox

PROBE_TIMEOUT_S = 15.0
SECONDS_OF_A_LONG_PROGRAM = 600
KILL_TIMEOUT_S = 0.3
SHELL_VARIABLES = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"})

PROBE = r"""
import ctypes, glob, json, os, socket
canary_file, canary_word, port = {canaries!r}
libc = ctypes.CDLL(None, use_errno=True)

def refused(action):
    try:
        action()
    except OSError:
        return True
    return False

def readable(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""

def write(path):
    with open(path, "w") as file:
        file.write("x")

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
word = canary_word.encode()
print(json.dumps({{
    "environment": sorted(os.environ),
    "word_in_processes": any(
        word in readable(p + "/environ") + readable(p + "/cmdline") for p in glob.glob("/proc/[0-9]*")
    ),
    "pids": [int(p) for p in os.listdir("/proc") if p.isdecimal()],
    "host_files": [p for p in (canary_file, "/root", "/home", "/etc/shadow", "/var", "/sys") if os.path.exists(p)],
    "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else [],
    "loopback_refused": refused(lambda: socket.create_connection(("127.0.0.1", port), 2)),
    "internet_refused": refused(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
    "families_refused": all(refused(lambda: socket.socket(family)) for family in (16, 38, 40)),
    "writes_refused": all(refused(lambda: write(p)) for p in ("/x", "/usr/x", "/etc/x", "/dev/x", "/proc/sys/x")),
    "workspace_writable": not refused(lambda: write("/workspace/probe")),
    "seccomp": status["Seccomp"].strip(),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapAmb"], 16),
    "unshare": libc.unshare(0x10000000),
    "open_files": sorted(int(f) for f in os.listdir("/proc/self/fd")),
    "uid": os.getuid(),
}}))
"""


@dataclass(frozen=True)
class Probe:
    """One property of a sandbox, and whether what was found there shows it."""

    name: str
    holds: Callable[[dict[str, Any]], bool]


PROBES = (
    Probe("empty environment", lambda f: set(f["environment"]) <= ENVIRONMENT.keys() | SHELL_VARIABLES),
    Probe("no secrets in processes", lambda f: not f["word_in_processes"]),
    Probe("host processes invisible", lambda f: max(f["pids"]) < 1000 and len(f["pids"]) < 5),
    Probe("host files invisible", lambda f: not f["host_files"]),
    Probe("no network", lambda f: f["loopback_refused"] and f["internet_refused"] and f["families_refused"]),
    Probe("read-only root", lambda f: f["writes_refused"] and f["workspace_writable"]),
    Probe("system calls filtered", lambda f: f["seccomp"] == "2" and f["unshare"] == -1),
    Probe("no privileges", lambda f: f["capabilities"] == 0 and f["no_new_privileges"] == "1" and f["uid"] != 0),
)


async def check_isolation(factory: SandboxFactory) -> list[str]:
    """Open sandboxes and try to get out; returns the names of what holds.

    Raises:
        IsolationError: a sandbox does not start, or something gets out; names everything that does.
    """
    with _canaries() as canaries:
        results = await _results(factory, canaries)
    if failed := [name for name, holds in results if not holds]:
        raise IsolationError(
            f"the sandbox does not hold: {', '.join(failed)}; run the tool worker where namespaces, seccomp and a "
            'private /proc are available, serve only tools without a sandbox (tools = ["calculator"]), or choose '
            'isolation = "unsafe-local" by name on a machine you can lose'
        )
    return [name for name, _ in results]


async def _results(factory: SandboxFactory, canaries: tuple[str, str, int]) -> list[tuple[str, bool]]:
    first = await factory.open()
    second = await factory.open()
    try:
        found = await _findings(first, canaries)
        return [(probe.name, probe.holds(found)) for probe in PROBES] + await _behaviour(first, second)
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


async def _behaviour(first: SupervisedSandbox, second: SupervisedSandbox) -> list[tuple[str, bool]]:
    """What takes more than one call, and more than one sandbox."""
    found = [("kill of the whole tree", await _kills_the_tree(first)), ("time limit", await _keeps_the_time(first))]
    await first.bash("echo x > /workspace/only-here; echo x > /dev/shm/only-here", timeout_s=PROBE_TIMEOUT_S)
    looked = await second.bash("cat /workspace/only-here /dev/shm/only-here /tmp/only-here", timeout_s=PROBE_TIMEOUT_S)
    return [*found, ("sessions apart", "x\n" not in looked.output and looked.exit_code != 0)]
