from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from rollstream.tool_workers.sandbox.descriptors import KeptFile, ProcessHandle


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        yield process
        process.kill()


def answers(program: subprocess.Popen[bytes]) -> bool:
    """Whether it still runs: one that has been killed never does again."""
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        program.stdin.write(b"there?\n")
        program.stdin.flush()
    except BrokenPipeError:
        return False
    return program.stdout.readline() == b"there?\n"


def memory_file(content: bytes) -> int:
    fd = os.memfd_create("kept")
    os.write(fd, content)
    return fd


def test_a_file_is_read_as_it_is_now() -> None:
    fd = memory_file(b"first")
    kept = KeptFile(fd, 100)
    assert kept.read() == b"first"
    os.write(fd, b" and second")
    assert kept.read() == b"first and second"
    kept.close()


def test_a_closed_file_says_what_it_said_last_and_nothing_of_what_has_its_number_now() -> None:
    fd = memory_file(b"what was said last")
    kept = KeptFile(fd, 8)
    kept.close()
    another = memory_file(b"of somebody else")
    os.dup2(another, fd)
    assert kept.read() == b"what was"
    kept.close()
    assert os.pread(fd, 100, 0) == b"of somebody else"
    os.close(fd)
    if another != fd:
        os.close(another)


def test_a_file_that_can_no_longer_be_read_says_what_it_said_last() -> None:
    fd = memory_file(b"still there")
    kept = KeptFile(fd, 100)
    assert kept.read() == b"still there"
    unreadable = os.open(os.devnull, os.O_WRONLY)
    os.dup2(unreadable, fd)
    os.close(unreadable)
    assert kept.read() == b"still there"
    kept.close()


def test_a_process_is_killed_through_its_handle_and_a_dead_one_is_no_error(program: subprocess.Popen[bytes]) -> None:
    handle = ProcessHandle(os.pidfd_open(program.pid))
    assert answers(program)
    handle.kill()
    assert program.wait(timeout=10) == -signal.SIGKILL
    handle.kill()
    handle.close()


def test_a_closed_handle_kills_nobody_whose_handle_has_its_number_now(program: subprocess.Popen[bytes]) -> None:
    own = os.pidfd_open(os.getpid())
    handle = ProcessHandle(own)
    handle.close()
    another = os.pidfd_open(program.pid)
    os.dup2(another, own)
    handle.kill()
    assert answers(program)
    handle.close()
    os.fstat(own)
    for fd in {own, another}:
        os.close(fd)
