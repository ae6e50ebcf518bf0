from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rollstream.tool_workers.sandbox.outside.cgroups import (
    Cgroups,
    GroupLimits,
    Mounts,
    find_mounts,
    group_name,
    start_ticks,
    sweep,
)

HYBRID = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
LIMITS = GroupLimits(memory_bytes=1000, processes=7, cpus=1.5)


def test_mounts_and_own_groups_are_read_for_both_versions() -> None:
    found = find_mounts(HYBRID, "5:cpu,cpuacct:/\n4:memory:/service/x\n0::/user.slice")
    assert found.v2 == Path("/sys/fs/cgroup/unified/user.slice")
    assert found.v1["memory"] == (Path("/sys/fs/cgroup/memory/service/x"), Path("/sys/fs/cgroup/memory"))
    assert found.v1["cpu"][0] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert find_mounts("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "0::/a") == Mounts(Path("/sys/fs/cgroup/a"), {})
    assert find_mounts("", "") == Mounts(None, {})


@pytest.fixture
def delegated(tmp_path: Path) -> Path:
    """A folder that looks like a delegated group; the kernel is not there to fill in the files of children."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    for name in ("cgroup.subtree_control", "cgroup.procs"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_on_version_2_controllers_are_passed_on_and_limits_written(delegated: Path) -> None:
    groups = Cgroups(Mounts(delegated, {}), "rollstream-1-1", {os.getpid()}, LIMITS)
    assert (groups.kind, groups.reason) == ("v2", "")
    assert (delegated / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    group = groups.create(3)
    assert group is not None
    folder = delegated / "rollstream-1-1" / "s3"
    assert group.folders == (folder,)
    assert (folder / "memory.max").read_text() == "1000"
    assert (folder / "pids.max").read_text() == "7"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert group.oom_file == folder / "memory.events"
    group.kill()
    assert (folder / "cgroup.kill").read_text() == "1"


def test_on_version_1_each_controller_has_a_group_and_what_is_missing_is_said(tmp_path: Path) -> None:
    for name in ("memory", "pids", "cpu"):
        (tmp_path / name / "own").mkdir(parents=True)
    v1 = {name: (tmp_path / name / "own", tmp_path / name) for name in ("memory", "pids", "cpu")}
    groups = Cgroups(Mounts(None, v1), "rollstream-1-1", (), LIMITS)
    assert groups.kind == "v1"
    group = groups.create(1)
    assert group is not None
    assert (tmp_path / "memory/own/rollstream-1-1/s1/memory.limit_in_bytes").read_text() == "1000"
    assert (tmp_path / "pids/own/rollstream-1-1/s1/pids.max").read_text() == "7"
    assert (tmp_path / "cpu/own/rollstream-1-1/s1/cpu.cfs_quota_us").read_text() == "150000"
    alone = Cgroups(Mounts(None, {"memory": v1["memory"]}), "rollstream-1-2", (), LIMITS)
    assert (alone.kind, alone.create(1)) == ("none", None)
    assert "memory and pids" in alone.reason


def test_a_group_that_is_not_ours_is_said_not_to_be(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory pids")
    (tmp_path / "cgroup.subtree_control").mkdir()  # what cannot be written
    groups = Cgroups(Mounts(tmp_path, {}), "rollstream-1-1", (), LIMITS)
    assert groups.kind == "none"
    assert "is not delegated to this worker" in groups.reason


def test_groups_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    own = group_name(os.getpid())
    for name in (f"rollstream-{ended.pid}-1", f"rollstream-{os.getpid()}-1", own, "rollstream-other", "somebody"):
        (tmp_path / name / "s1").mkdir(parents=True)
    sweep(Mounts(tmp_path, {}))
    assert {path.name for path in tmp_path.iterdir()} == {own, "rollstream-other", "somebody"}


def test_the_dead_have_no_start() -> None:
    assert start_ticks(os.getpid()) > 0
    assert start_ticks(2**22 + 1) == 0
