"""What every level of isolation has in common, and what the isolated ones hold besides."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path

import pytest
import pytest_asyncio

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.container_settings import ContainerSettings, KubernetesSettings
from rollstream.tool_workers.sandbox.containers import ContainerSpawner, explain_engine
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.pods import PodSpawner, is_ready
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.sandbox.self_test import check_isolation
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

LIMITS = SandboxSettings(memory_bytes=192 * MIB, processes=48, output_bytes=4000, flood_bytes=100_000)
LEVELS = ["bwrap", "docker", "kubernetes", "unsafe-local"]
ISOLATED = ["bwrap", "docker"]

FAKE_KUBECTL = """#!{python}
# Keeps claims as files and runs what is executed in a pod as a process of this machine.
import json, os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
words = sys.argv[1:]
assert words[:2] == ["--namespace", "sandboxes"], words
verb, rest = words[2], words[3:]
if verb == "apply":
    claim = json.load(sys.stdin)
    assert claim["spec"] == {{"warmPoolRef": {{"name": "pool"}}}}, claim
    (folder / claim["metadata"]["name"]).write_text(json.dumps(claim))
elif verb == "get" and rest[0].startswith("sandboxclaims") and rest[1] != "--selector":
    claim = json.loads((folder / rest[1]).read_text())
    claim["status"] = {{"sandbox": {{"name": rest[1]}}, "conditions": [{{"type": "Ready", "status": "True"}}]}}
    print(json.dumps(claim))
elif verb == "get" and rest[0].startswith("sandboxclaims"):
    print(json.dumps({{"items": [json.loads(path.read_text()) for path in folder.iterdir()]}}))
elif verb == "get":
    print(json.dumps({{"metadata": {{"annotations": {{"agents.x-k8s.io/pod-name": "pod-of-" + rest[1]}}}}}}))
elif verb == "exec":
    assert rest[2].startswith("pod-of-rollstream-"), rest
    os.execv({python!r}, [{python!r}, *rest[rest.index("--") + 2:]])
elif verb == "delete":
    if rest[1] != "--selector":
        (folder / rest[1]).unlink(missing_ok=True)
"""


@cache
def podman() -> str | None:
    """Why it cannot be used; None: it can."""
    program = shutil.which("podman")
    if program is None:
        return "podman is not installed"
    if os.geteuid() != 0:
        return "podman's root folders need root here"
    done = subprocess.run([program, "info"], capture_output=True, timeout=60, check=False)
    return None if done.returncode == 0 else f"podman does not work: {done.stderr.decode()[-200:]}"


def container_settings(folder: Path) -> ContainerSettings:
    """A root folder with the machine's own programs: no image can be fetched here."""
    folder.chmod(0o755)
    for name in ("usr", "proc", "dev", "sys", "tmp", "run", "etc", "workspace"):
        (folder / name).mkdir(exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"usr/{name}")
    return ContainerSettings(
        program="podman", rootfs=str(folder), mounts=("/usr:/usr",), interpreter="/usr/bin/python3"
    )


@pytest_asyncio.fixture
async def factory(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SandboxFactory]:
    level: str = request.param
    container = kubernetes = None
    if level == "docker":
        if (reason := podman()) is not None:
            pytest.skip(reason)
        container = container_settings(tmp_path)
    if level == "kubernetes":
        claims = tmp_path / "claims"
        claims.mkdir()
        kubectl = tmp_path / "kubectl"
        kubectl.write_text(FAKE_KUBECTL.format(python=sys.executable, folder=str(claims)))
        kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
        kubernetes = KubernetesSettings(
            program=str(kubectl), namespace="sandboxes", warm_pool="pool", workspace=str(tmp_path)
        )
    spawner = build_spawner(level, LIMITS, container=container, kubernetes=kubernetes)
    async with SandboxFactory(spawner, LIMITS, max_running_programs=2) as opened:
        yield opened


@pytest_asyncio.fixture
async def sandbox(factory: SandboxFactory) -> AsyncIterator[SupervisedSandbox]:
    opened = await factory.open()
    yield opened
    await opened.close()


every_level = pytest.mark.parametrize("factory", LEVELS, indirect=True)
every_isolated_level = pytest.mark.parametrize("factory", ISOLATED, indirect=True)


@every_level
async def test_programs_run_alike(sandbox: SupervisedSandbox) -> None:
    assert (await sandbox.bash("echo out; echo err >&2; exit 3", timeout_s=20)).exit_code == 3
    assert (await sandbox.bash("read line || echo end", timeout_s=20)).output == "end\n"
    assert (await sandbox.bash(r"printf '\xff ok'", timeout_s=20)).output == "\\xff ok"
    assert (await sandbox.python("print(6 * 7)", timeout_s=20)).output == "42\n"
    failed = await sandbox.python("1 / 0", timeout_s=20)
    assert (failed.exit_code, failed.output.splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")
    assert (await sandbox.run("/bin/cat", timeout_s=20, stdin=b"through")).output == "through"


@every_level
async def test_limits_hold_alike(sandbox: SupervisedSandbox) -> None:
    started = time.monotonic()
    late = await sandbox.bash("trap '' TERM; setsid sleep 600 & sleep 600", timeout_s=0.5)
    assert (late.cause, time.monotonic() - started < 5) == ("timeout", True)
    assert (await sandbox.bash("yes", timeout_s=20)).cause == "output"
    greedy = "import time\nb = bytearray(400 << 20)\ntime.sleep(30)"
    assert (await sandbox.python(greedy, timeout_s=20)).cause == "memory"
    assert (await sandbox.bash("echo next", timeout_s=20)).output == "next\n"


@every_level
async def test_sessions_keep_alike_what_they_keep(sandbox: SupervisedSandbox) -> None:
    await sandbox.bash("echo kept > note-of-the-contract", timeout_s=20)
    assert (await sandbox.bash("cat note-of-the-contract; rm note-of-the-contract", timeout_s=20)).output == "kept\n"
    await sandbox.shell("x=5; cd /tmp", timeout_s=20)
    assert (await sandbox.shell("echo $x $PWD", timeout_s=20)).output == "5 /tmp\n"
    await sandbox.interpreter("y = 20", timeout_s=20)
    assert (await sandbox.interpreter("y + 1", timeout_s=20)).output == "21\n"
    assert (await sandbox.shell("exit 4", timeout_s=20)).is_restarted
    arguments = {"command": "create", "path": "/tmp/contract.txt", "file_text": "text", "history": "/tmp/contract"}
    assert "created" in (await sandbox.operate("editor", arguments, timeout_s=20)).output
    await sandbox.bash("rm -rf /tmp/contract*", timeout_s=20)


@every_level
async def test_a_program_that_is_bridged_ends_with_its_sandbox(factory: SandboxFactory) -> None:
    sandbox = await factory.open()
    bridge = await sandbox.bridge("/bin/bash", "-c", "cat; sleep 600")
    await bridge.write(b"hello\n")
    assert await bridge.read(timeout_s=20) == b"hello\n"
    await sandbox.close()
    with pytest.raises(SandboxLostError):
        await sandbox.bash("true", timeout_s=5)


@every_level
async def test_sandboxes_are_opened_and_closed_beside_one_another(factory: SandboxFactory) -> None:
    opened = await asyncio.gather(*(factory.open() for _ in range(3)))
    outputs = await asyncio.gather(*(each.bash(f"echo {n}", timeout_s=20) for n, each in enumerate(opened)))
    assert [each.output for each in outputs] == ["0\n", "1\n", "2\n"]
    await asyncio.gather(*(each.close() for each in opened))


@every_isolated_level
async def test_isolated_levels_withstand_the_self_test(factory: SandboxFactory) -> None:
    report = await check_isolation(factory, LIMITS, level="any")
    assert {"no network", "no privileges", "system calls filtered", "refusals counted", "memory limit"} <= set(
        report.held
    )


async def test_containers_of_dead_workers_are_removed(tmp_path: Path) -> None:
    if (reason := podman()) is not None:
        pytest.skip(reason)
    settings = container_settings(tmp_path)
    left = ContainerSpawner(settings, LIMITS)
    command = left.command("rollstream-999999-1-left-behind")
    command = [*command[: command.index(settings.rootfs) + 1], "/bin/sleep", "600"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    names = ["podman", "ps", "--all", "--format", "{{.Names}}"]
    async with asyncio.timeout(30):
        while b"left-behind" not in (await asyncio.to_thread(subprocess.check_output, names)):  # noqa: ASYNC110 -- the engine tells nobody
            await asyncio.sleep(0.1)
    async with SandboxFactory(
        build_spawner("docker", LIMITS, container=settings), LIMITS, max_running_programs=1
    ) as factory:
        sandbox = await factory.open()
        assert b"left-behind" not in await asyncio.to_thread(subprocess.check_output, names)
        await sandbox.close()
    assert b"rollstream-" not in await asyncio.to_thread(subprocess.check_output, names)
    await process.wait()


def test_the_command_of_a_container_leaves_nothing_open() -> None:
    settings = ContainerSettings(image="sandbox:1", runtime="runsc")
    line = ContainerSpawner(settings, LIMITS).command("name")
    text = " ".join(line)
    for part in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "no-new-privileges",
        "--user 1000:1000",
        "--runtime runsc",
    ):
        assert part in text
    assert "sandbox:1" in line
    assert "--privileged" not in line
    assert "docker.sock" not in text


@pytest.mark.parametrize(
    ("complaint", "remedy"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "start it",
        ),
        ("permission denied while trying to connect to the docker socket", "may not talk"),
        ("Unable to find image 'sandbox:1' locally", "pull sandbox:1"),
        ("unknown or invalid runtime name: runsc", "'runsc' is not known"),
        ('exec: "python3": executable file not found in $PATH', "the image needs"),
        ("something else", "see the message"),
    ],
)
def test_complaints_of_an_engine_are_explained(complaint: str, remedy: str) -> None:
    assert remedy in explain_engine(complaint, ContainerSettings(image="sandbox:1", runtime="runsc"))


def test_levels_that_cannot_be_are_refused_with_what_to_do() -> None:
    with pytest.raises(IsolationError, match=r"container\.image"):
        build_spawner("docker", LIMITS)
    with pytest.raises(IsolationError, match="one of bwrap, docker"):
        build_spawner("chroot", LIMITS)
    missing = build_spawner("kubernetes", LIMITS, kubernetes=KubernetesSettings(program="/no/such/kubectl"))
    with pytest.raises(IsolationError, match="cannot be run"):
        missing.spawn()


def test_claims_name_what_their_version_of_the_api_asks_for() -> None:
    beta = PodSpawner(KubernetesSettings(warm_pool="w"), LIMITS).claim("n")
    alpha = PodSpawner(KubernetesSettings(warm_pool="t", api_version="v1alpha1"), LIMITS).claim("n")
    assert beta["spec"] == {"warmPoolRef": {"name": "w"}}
    assert alpha["spec"] == {"sandboxTemplateRef": {"name": "t"}}
    assert not is_ready({})
    assert is_ready({"conditions": [{"type": "Ready", "status": "True"}]})
