from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from rollstream.cli.restart_policy import RestartPolicy
from rollstream.cli.supervisor import ProcessFailedError, ProcessSpec, Supervisor, drain_on_signals

FAST = RestartPolicy(budget=2, first_delay_s=0.01, max_delay_s=0.02)


class Lines:
    """Collects what the processes say and wakes who waits for a line."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._changed = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        self.seen.append((name, line))
        self._changed.set()

    async def wait_for(self, text: str, count: int = 1) -> str:
        async with asyncio.timeout(20):
            while len(found := [line for _, line in self.seen if text in line]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found[-1]


def shell(name: str, script: str, folder: Path, *, may_finish: bool = False) -> ProcessSpec:
    return ProcessSpec(name, ("sh", "-c", script), folder / f"{name}.log", may_finish=may_finish, restarts=FAST)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def wait_gone(pid: int) -> None:
    """Wait for the end of a process that is no child of ours."""
    async with asyncio.timeout(10):
        while is_alive(pid):  # noqa: ASYNC110  -- the kernel tells only parents
            await asyncio.sleep(0.01)


async def test_a_role_that_cannot_be_kept_alive_is_named_with_its_last_words(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [shell("engine", "echo no such model; exit 3", tmp_path), shell("other", "sleep 60", tmp_path)], drain_s=5
    )
    with pytest.raises(
        ProcessFailedError, match=r"engine could not be kept alive: ended with exit code 3 after 2"
    ) as e:
        await supervisor.run()
    assert "no such model" in str(e.value)
    assert (tmp_path / "engine.log").read_text().count("no such model") == 3
    assert [state.phase for state in supervisor.states()] == ["failed", "stopped"]


async def test_a_process_that_dies_is_started_again(tmp_path: Path) -> None:
    lines = Lines()
    supervisor = Supervisor([shell("worker", "echo pid $$; exec sleep 60", tmp_path)], on_line=lines, drain_s=5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run())
        first = int((await lines.wait_for("pid")).split()[1])
        os.kill(first, signal.SIGKILL)
        second = int((await lines.wait_for("pid", 2)).split()[1])
        assert is_alive(second)
        supervisor.stop.set()
    assert first != second
    assert not is_alive(second)
    assert supervisor.states()[0].restarts == 1


async def test_what_a_process_leaves_behind_dies_with_it(tmp_path: Path) -> None:
    lines = Lines()
    script = "sleep 60 & echo left $!; exit 0"
    supervisor = Supervisor([shell("producer", script, tmp_path, may_finish=True)], on_line=lines)
    await supervisor.run()
    await wait_gone(int((await lines.wait_for("left")).split()[1]))
    assert supervisor.states()[0].phase == "finished"


async def test_a_drain_lets_a_process_finish_what_it_does(tmp_path: Path) -> None:
    lines = Lines()
    script = "trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    supervisor = Supervisor([shell("worker", script, tmp_path)], on_line=lines, drain_s=10)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run())
        await lines.wait_for("up")
        supervisor.stop.set()
    assert ("worker", "drained") in lines.seen
    assert supervisor.states()[0].phase == "stopped"


@pytest.mark.parametrize("how", ["deadline", "second signal"])
async def test_a_process_that_ignores_the_drain_is_killed(tmp_path: Path, how: str) -> None:
    lines = Lines()
    script = "trap '' TERM; echo up; while :; do sleep 0.05; done"
    drain_s = 0.1 if how == "deadline" else 60
    supervisor = Supervisor([shell("worker", script, tmp_path)], on_line=lines, drain_s=drain_s)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run())
        await lines.wait_for("up")
        supervisor.stop.set()
        if how == "second signal":
            supervisor.kill.set()


async def test_the_first_signal_drains_and_the_second_kills() -> None:
    stop, kill = asyncio.Event(), asyncio.Event()
    with drain_on_signals(stop, kill):
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(5):
            await stop.wait()
        assert not kill.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(5):
            await kill.wait()


async def test_processes_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio
from pathlib import Path
from rollstream.cli.supervisor import ProcessSpec, Supervisor
say = lambda name, line: print(line, flush=True)
spec = ProcessSpec("worker", ("sh", "-c", "echo pid $$; exec sleep 60"), Path({str(tmp_path / "worker.log")!r}))
asyncio.run(Supervisor([spec], on_line=say).run())
"""
    supervisor = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert supervisor.stdout is not None
    async with asyncio.timeout(20):
        child = int((await supervisor.stdout.readline()).split()[1])
        assert is_alive(child)
        supervisor.kill()
        await supervisor.wait()
    await wait_gone(child)


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    spec = ProcessSpec("trainer", ("/nonexistent/train",), tmp_path / "t.log", restarts=RestartPolicy(budget=0))
    with pytest.raises(ProcessFailedError, match="cannot start '/nonexistent/train'"):
        await Supervisor([spec]).run()


async def test_a_line_without_an_end_cannot_fill_the_memory(tmp_path: Path) -> None:
    lines = Lines()
    spec = shell("noisy", "head -c 300000 /dev/zero | tr '\\0' x", tmp_path, may_finish=True)
    await Supervisor([spec], on_line=lines).run()
    assert sum(len(line) for _, line in lines.seen) == 300_000
    assert max(len(line) for _, line in lines.seen) < 100_000
    assert (tmp_path / "noisy.log").stat().st_size == 300_000
