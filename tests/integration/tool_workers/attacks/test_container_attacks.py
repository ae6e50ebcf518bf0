"""The same attacks on containers, by an engine that is installed here; what engines show of the machine is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile_ground import PRELUDE, Outside
from supervisor_attacks import SIGNALS
from test_attacks import ATTACKS, pytestmark, verdict
from test_sandbox_contract import container_settings, podman

from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.settings import MIB, SandboxSettings

__all__ = ["pytestmark"]

LIMITS = SandboxSettings(memory_bytes=192 * MIB, processes=48)
SHOWN_BY_ENGINES = {"count keys of users", "see hardware", "see devices"}
"""/proc/key-users, /sys and the usual devices of a container: nothing of other programs."""


async def test_containers_hold_the_same_attacks(tmp_path: Path) -> None:
    if (reason := podman()) is not None:
        pytest.skip(reason)
    places = {name: tmp_path / name for name in ("outside", "rootfs")}
    for place in places.values():
        place.mkdir()
    outside = Outside(places["outside"])
    try:
        spawner = build_spawner("docker", LIMITS, container=container_settings(places["rootfs"]))
        async with SandboxFactory(spawner, LIMITS, max_running_programs=1) as factory:
            sandbox = await factory.open()
            said = {name: await verdict(sandbox, attack, outside.facts) for name, attack in ATTACKS.items()}
            for name, attack in SIGNALS.items():
                await sandbox.python(PRELUDE + attack.code, timeout_s=10)
                assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n", name
            await sandbox.close()
        assert {name for name, output in said.items() if output != "HELD\n"} <= SHOWN_BY_ENGINES
        assert outside.is_untouched()
    finally:
        outside.close()
