"""The demo for real: broker, vLLM, tools and trainer. Few steps, so nothing is said here about how well it learns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

GONE_WITHIN_S = 3.0
STEPS = 2
GROUPS, GROUP_SIZE = 16, 8


@asynccontextmanager
async def a_demo(name: str, runs_dir: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    """``rollstream demo``, with the suite's broker or one of its own; killed if the test fails."""
    broker = os.environ.get("ROLLSTREAM_TEST_BOOTSTRAP")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rollstream.cli.main", *(("--set", f"kafka.bootstrap={broker}") if broker else ()),
        "demo", "--steps", str(STEPS), "--name", name, "--runs-dir", str(runs_dir),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(360):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def processes_of(name: str) -> list[str]:
    """Command lines of living processes that name the run."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if name in command:
                found.append(command)
    return found


def logs(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in (folder / "logs").iterdir())


async def test_the_demo_goes_from_nothing_to_its_summary(tiny_model_dir: Path, tmp_path: Path) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    async with a_demo(name, tmp_path) as process:
        assert process.stdout is not None
        said = (await process.stdout.read()).decode()
        assert await process.wait() == 0, said + logs(tmp_path / name)
    folder = tmp_path / "latest"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["name"], summary["steps"], summary["policy_versions"]) == (name, STEPS, STEPS)
    assert (summary["lost"], summary["failed"], summary["duplicates_dropped"]) == (0, 0, 0)
    assert summary["trajectories_consumed"] == STEPS * GROUPS * GROUP_SIZE
    assert summary["trajectories_produced"] >= summary["trajectories_consumed"]
    assert summary["tokens_per_s"] > 0
    assert 0 < summary["reward_first"] < 1
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert rows_in(folder / "trajectories") == summary["trajectories_produced"]
    await no_process_is_left(name)


async def no_process_is_left(name: str) -> None:
    """The broker's watcher looks five times a second whether there is still something to watch."""
    async with asyncio.timeout(GONE_WITHIN_S):
        while processes_of(name):  # noqa: ASYNC110 -- other processes' ends are no events of ours
            await asyncio.sleep(0.05)


def rows_in(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(int(pq.ParquetFile(part).metadata.num_rows) for part in folder.glob("*.parquet"))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]  -- pyarrow is not annotated


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_demo_that_is_interrupted_leaves_no_process_behind(
    tiny_model_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    name = f"t{uuid.uuid4().hex[:8]}"
    async with a_demo(name, tmp_path) as process:
        assert process.stdout is not None
        while b"rollout-worker: running" not in (line := await process.stdout.readline()):
            assert line, logs(tmp_path / name)
        assert processes_of(name)
        process.send_signal(number)
        await process.stdout.read()
        assert await process.wait() == 130
    await no_process_is_left(name)


async def test_a_run_that_exists_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    async with a_demo("mine", tmp_path) as process:
        assert process.stdout is not None
        assert b"exists: choose another --name" in await process.stdout.read()
        assert await process.wait() == 1
