"""Programs of a sandbox where the machine has no more processes to give."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from rollstream.tool_workers.sandbox.bubblewrap import supervisor_limits
from rollstream.tool_workers.sandbox.inside.channel import Channel
from rollstream.tool_workers.sandbox.inside.denials import Denials
from rollstream.tool_workers.sandbox.inside.limits import Limits
from rollstream.tool_workers.sandbox.inside.processes import Processes
from rollstream.tool_workers.settings import SandboxSettings


def test_a_program_that_cannot_be_forked_has_failed_to_start_and_nobody_is_signalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    ours, theirs = socket.socketpair()
    limits = Limits(supervisor_limits(SandboxSettings(), workspace=str(tmp_path), memory_folders=(str(tmp_path),)))
    processes = Processes(limits, Channel(ours.fileno(), ours.fileno()), Denials({}, None))
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fork", refuse)
    with ours, theirs:
        started = processes.start(lambda: os._exit(0), cpu_s=1.0)
        assert b"Resource temporarily unavailable" in started.failure
        processes.kill_one(started.pid)
        for fd in (started.input_fd, started.output_fd):
            os.close(fd)
        assert len(os.listdir("/proc/self/fd")) == before
