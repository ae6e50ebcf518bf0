from __future__ import annotations

import errno
import os

import pytest

from rollstream.tool_workers.sandbox.outside.scarcity import explain_scarcity


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EAGAIN, "ulimit -u"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENFILE, "fs.file-max"),
        (errno.ETOOMANYREFS, "ulimit -n"),
        (errno.ENOMEM, "no memory is left"),
        (errno.ENOSYS, "Linux 5.3"),
    ],
)
def test_what_has_run_out_is_named_with_its_remedy(number: int, remedy: str) -> None:
    explained = explain_scarcity(OSError(number, os.strerror(number)))
    assert explained.startswith(f"[Errno {number}] {os.strerror(number)}; ")
    assert remedy in explained


def test_other_errors_speak_for_themselves() -> None:
    assert explain_scarcity(PermissionError(errno.EACCES, "no", "/a")) == f"[Errno {errno.EACCES}] no: '/a'"
    assert explain_scarcity(OSError("this kernel lets no process collect what its children leave")) == (
        "this kernel lets no process collect what its children leave"
    )
