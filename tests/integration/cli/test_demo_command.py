"""The demo for real: broker, vLLM, tools and trainer. Few steps, so nothing is said here about how well it learns."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

GONE_WITHIN_S = 3.0
STEPS = 2
GROUPS, GROUP_SIZE = 16, 8


@asynccontextmanager
async def a_demo(name: str | None, runs_dir: Path, *, steps: int = STEPS) -> AsyncGenerator[asyncio.subprocess.Process]:
    """``rollstream demo``, with the suite's broker or one of its own; killed if the test fails."""
    broker = os.environ.get("ROLLSTREAM_TEST_BOOTSTRAP")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rollstream.cli.main", *(("--set", f"kafka.bootstrap={broker}") if broker else ()),
        "demo", "--steps", str(steps), *(("--name", name) if name else ()), "--runs-dir", str(runs_dir),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(360):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def pids_of(name: str) -> list[int]:
    """Living processes that name the run: all but the demo itself, where it was not named on its command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if name in command:
                found.append(int(entry.name))
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
        while pids_of(name):  # noqa: ASYNC110 -- other processes' ends are no events of ours
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
        assert pids_of(name)
        process.send_signal(number)
        await process.stdout.read()
        assert await process.wait() == 130
    await no_process_is_left(name)


async def test_a_demo_that_is_killed_goes_on_where_it_was(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Everything is killed at once while it starts, and again after a step; the third one comes to the end."""
    name = f"t{uuid.uuid4().hex[:8]}"
    steps = 4
    for log, sign in (("rollout-worker.log", ""), ("trainer.log", "step 2 ")):
        async with a_demo(name, tmp_path, steps=steps) as process:
            await said_in(tmp_path / name / "logs" / log, sign)
            for victim in [process.pid, *pids_of(name)]:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            await process.wait()
        await no_process_is_left(name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert not record["is_finished"]

    async with a_demo(None, tmp_path, steps=steps) as process:
        assert process.stdout is not None
        said = (await process.stdout.read()).decode()
        assert await process.wait() == 0, said + logs(tmp_path / name)
    async with a_demo(name, tmp_path, steps=steps) as process:
        assert process.stdout is not None
        said_again = (await process.stdout.read()).decode()
        assert await process.wait() == 0

    assert f"run {name} goes on from step" in said
    assert "this run came to its end earlier" in said_again
    folder = tmp_path / name
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sessions"], summary["lost"], summary["failed"]) == (3, 0, 0)
    assert summary["trajectories_consumed"] == steps * GROUPS * GROUP_SIZE
    assert rows_in(folder / "trajectories") == summary["trajectories_produced"]
    assert trained_steps(folder) == list(range(1, steps + 1)), "no step is missing, none but a killed one came twice"
    assert not (folder / "broker").exists()


async def said_in(log: Path, sign: str) -> None:
    while not (log.exists() and sign in log.read_text()):  # noqa: ASYNC110, ASYNC240 -- another process writes it
        await asyncio.sleep(0.02)


def trained_steps(folder: Path) -> list[int]:
    """Numbers of the steps that the trainer has told of, each once."""
    log = (folder / "logs" / "trainer.log").read_text()
    return sorted({int(line.split()[1]) for line in log.splitlines() if line.startswith("step ")})


async def test_a_run_is_not_mixed_with_another(tmp_path: Path) -> None:
    """Refused before anything is started."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    async with a_demo("mine", tmp_path) as process:
        assert process.stdout is not None
        assert b"holds no run of the demo: choose another --name" in await process.stdout.read()
        assert await process.wait() == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(json.dumps({"name": "other", "seed": 7, "steps": STEPS}))
    async with a_demo("other", tmp_path) as process:
        assert process.stdout is not None
        assert b"was begun with --seed 7" in await process.stdout.read()
        assert await process.wait() == 1
