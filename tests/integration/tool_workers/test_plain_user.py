"""Sandboxes for a worker without root's rights."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.sandbox

AS_NOBODY = """
import asyncio, encodings.idna, multiprocessing.util, os, signal, stat, tempfile
from rollstream.tool_workers.sandbox.archives import compiled_archive, launcher_archive
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.self_test import check_isolation
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import SandboxSettings

async def main():
    limits = SandboxSettings()
    spawner = BubblewrapSpawner(limits)
    compiled_archive(spawner.interpreter.path); launcher_archive()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    async with SandboxFactory(spawner, limits, max_running_programs=1) as factory:
        print(len((await check_isolation(factory, limits)).held))

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as a plain user already")
def test_a_plain_user_gets_the_same_isolation() -> None:
    # The interpreter may lie where only root may go: it starts as root and drops its rights before the first sandbox.
    done = subprocess.run([sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 19
