"""Whatever either side of the supervisor's channel says, the other side ends well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollstream.tool_workers.sandbox.archives import inside_archive
from rollstream.tool_workers.sandbox.bridge import SupervisedBridge
from rollstream.tool_workers.sandbox.bubblewrap import supervisor_limits
from rollstream.tool_workers.sandbox.launching import GroupFacts
from rollstream.tool_workers.sandbox.replies import MAX_FRAME_BYTES, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SupervisedSandbox
from rollstream.tool_workers.settings import SandboxSettings

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
REPLY: dict[str, Any] = {
    "exit_code": 0, "cause": None, "head": "", "tail": "", "total_bytes": 0, "run_s": 0.0, "cpu_s": 0.0, "denied": {},
    "is_restarted": False,
}  # fmt: skip


def framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers())
MUTATIONS = st.dictionaries(st.sampled_from([*REPLY, "more"]), VALUES).map(
    lambda changed: framed(json.dumps(REPLY | changed).encode())
)
HOSTILE = (
    st.binary(max_size=300)
    | st.binary(max_size=300).map(framed)
    | MUTATIONS
    | st.integers(0, 2**32 - 1).map(lambda size: struct.pack("!I", size) + b"x" * 100)
    | st.just(framed(b"[" * 100_000))
)


class Dead:
    """Notes that it was killed."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.facts = GroupFacts()
        self.killed = False

    def kill(self) -> None:
        self.killed = True

    def dispose(self) -> None:
        self.killed = True

    def complaint(self) -> str:
        return ""


async def ended_well(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    process = Dead(ours)
    reader, writer = await asyncio.open_connection(sock=ours)
    sandbox = SupervisedSandbox(process, reader, writer, asyncio.Semaphore(1), SandboxSettings())
    theirs.sendall(said[: 2 * MAX_FRAME_BYTES])
    theirs.close()
    try:
        await sandbox.bash("true", timeout_s=1)
    except SandboxLostError:
        assert process.killed
        with pytest.raises(SandboxLostError):
            await sandbox.bash("true", timeout_s=1)
    finally:
        await sandbox.close()


@FUZZ
@given(HOSTILE)
def test_a_reply_is_taken_or_the_sandbox_is_lost_and_nothing_else(said: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    asyncio.run(ended_well(said))
    assert time.monotonic() - started < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@FUZZ
@given(st.lists(st.binary(max_size=50) | st.binary(max_size=50).map(lambda body: framed(b"o" + body)), max_size=5))
def test_what_comes_over_a_bridge_is_output_an_end_or_the_loss_of_the_sandbox(said: list[bytes]) -> None:
    async def read_all() -> None:
        ours, theirs = socket.socketpair()
        process = Dead(ours)
        reader, writer = await asyncio.open_connection(sock=ours)
        bridge = SupervisedBridge(process, reader, writer)
        theirs.sendall(b"".join(said))
        theirs.close()
        with contextlib.suppress(SandboxLostError):
            while await bridge.read(timeout_s=1):
                continue
        writer.close()

    asyncio.run(read_all())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inside") / "rollstream.pyz"
    path.write_bytes(inside_archive())
    return path


REQUESTS = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"argv": []}',
    b'{"argv": "x", "timeout_s": 1}',
    b'{"argv": ["/bin/true"]}',
    b'{"argv": ["/bin/true"], "timeout_s": "soon"}',
    b'{"argv": ["/bin/true"], "timeout_s": 1, "stdin": "no base64!"}',
    b'{"python": 3, "timeout_s": 1}',
    b'{"operation": "os", "arguments": {}, "timeout_s": 1}',
    b'{"operation": "../../x", "arguments": {}, "timeout_s": 1}',
    b'{"restart": "everything"}',
    b'{"bridge": {}}',
    b"[" * 100_000,
    os.urandom(100),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_supervisor_answers_or_ends_and_leaves_nothing(request_: bytes, archive: Path, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    limits = supervisor_limits(SandboxSettings(), workspace=str(tmp_path), memory_folders=())
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(archive), str(theirs.fileno()), limits],
            pass_fds=(theirs.fileno(),),
            stderr=subprocess.DEVNULL,
        )
    ours.settimeout(20)
    assert ours.recv(4096)
    ours.sendall(framed(request_))
    with contextlib.suppress(ConnectionError):
        ours.recv(65536)
    ours.close()
    assert process.wait(20) is not None
