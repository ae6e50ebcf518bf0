"""A worker whose sandbox lacks a layer does not start, and says which and what to do."""

from __future__ import annotations

import json

import pytest

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bubblewrap import explain_failure
from rollstream.tool_workers.sandbox.outside.launcher import FIRST_CONTENT_FD
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.self_test import check_isolation
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

LIMITS = SandboxSettings(memory_bytes=128 * MIB)


class LackingSpawner(BubblewrapSpawner):
    """A sandbox without one of its layers."""

    def __init__(self, lacks: str, limits: SandboxSettings) -> None:
        super().__init__(limits)
        self._lacks = lacks

    def command(self) -> tuple[list[str], list[bytes]]:
        line, contents = super().command()
        limits = json.loads(line[-1])
        end = line.index("--")
        match self._lacks:
            case "system calls filtered":
                del line[line.index("--seccomp") : line.index("--seccomp") + 2]
                limits["filter_path"] = ""
            case "no network":
                place = line.index("--unshare-all")
                line[place : place + 1] = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
            case "read-only root":
                place = len(line) - 1 - line[::-1].index("--remount-ro")
                del line[place : place + 2]
            case "host files invisible":
                line[end:end] = ["--ro-bind", "/tmp", "/tmp"]
            case "empty environment":
                line[end:end] = ["--setenv", "ROLLSTREAM_SECRET", "x"]
            case "memory limit":
                limits |= {"memory_bytes": 1 << 40}
            case "number of processes":
                limits |= {"processes": 100_000}
            case "amount of output":
                limits |= {"flood_bytes": 1 << 40}
            case "sizes of folders":
                place = line.index("/workspace")
                line[place - 2] = str(1024 * MIB)
            case _:
                raise AssertionError(self._lacks)
        line[-1] = json.dumps(limits)
        assert len(contents) + FIRST_CONTENT_FD > FIRST_CONTENT_FD
        return line, contents


async def failures(lacks: str) -> str:
    without_groups = lacks in ("memory limit", "number of processes")
    limits = LIMITS.model_copy(update={"memory_enforcement": "watch"}) if without_groups else LIMITS
    spawner = LackingSpawner(lacks, limits)
    async with SandboxFactory(spawner, limits, max_running_programs=2) as factory:
        with pytest.raises(IsolationError) as caught:
            await check_isolation(factory, limits)
    return str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        "system calls filtered",
        "no network",
        "read-only root",
        "host files invisible",
        "empty environment",
        "memory limit",
        "number of processes",
        "sizes of folders",
    ],
)
async def test_a_missing_layer_is_found_and_named(layer: str) -> None:
    said = await failures(layer)
    assert f"isolation {layer}: DOES NOT HOLD" in said
    assert "unsafe-local" in said


async def test_nothing_is_found_where_nothing_is_missing() -> None:
    async with SandboxFactory(BubblewrapSpawner(LIMITS), LIMITS, max_running_programs=2) as factory:
        report = await check_isolation(factory, LIMITS)
    assert report.failed == ()
    assert len(report.held) >= 19
    assert all(str(layer).startswith(f"isolation {layer.name}: ") for layer in report.layers)


async def test_control_groups_can_be_made_a_requirement() -> None:
    limits = LIMITS.model_copy(update={"memory_enforcement": "cgroup"})
    async with SandboxFactory(BubblewrapSpawner(limits), limits, max_running_programs=2) as factory:
        await (await factory.open()).close()
        if factory.enforcement.kind != "none":
            assert "control groups" in (await check_isolation(factory, limits)).held
        else:
            with pytest.raises(IsolationError, match="control groups"):
                await check_isolation(factory, limits)


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        ("bwrap: setting up uid map: Permission denied", "apparmor_restrict_unprivileged_userns"),
        ("bwrap: No permissions to create new namespace", "unprivileged_userns_clone"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", "procMount: Unmasked"),
        ("bwrap: Unknown option --disable-userns", "too old"),
    ],
)
def test_what_machines_refuse_is_answered_with_the_remedy(complaint: str, remedy: str) -> None:
    assert remedy in explain_failure(complaint)
