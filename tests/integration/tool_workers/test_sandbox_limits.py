"""What a program in a sandbox may use, how long, and what is left of it afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.bubblewrap import Interpreter
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

LIMITS = SandboxSettings(
    memory_bytes=128 * MIB,
    processes=32,
    file_bytes=4 * MIB,
    workspace_bytes=8 * MIB,
    scratch_bytes=2 * MIB,
    output_bytes=2000,
    flood_bytes=100_000,
)


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[SupervisedSandbox]:
    async with SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=2) as factory:
        opened = await factory.open()
        yield opened
        await opened.close()


async def test_files_outlive_a_call_and_processes_do_not(sandbox: SupervisedSandbox) -> None:
    first = await sandbox.bash("echo kept > note; (trap '' TERM; setsid nohup sleep 600) & sleep 600 &", timeout_s=10)
    assert first.cause is None
    second = await sandbox.bash("cat note; cat /proc/[0-9]*/comm", timeout_s=10)
    assert "kept" in second.output
    assert "sleep" not in second.output


async def test_a_call_returns_although_its_children_hold_the_output_open(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.bash("sleep 600 & echo done", timeout_s=10)
    assert (execution.output, execution.cause) == ("done\n", None)
    assert execution.run_s < 5


async def test_time_is_up_for_a_program_that_ignores_signals(sandbox: SupervisedSandbox) -> None:
    started = time.monotonic()
    execution = await sandbox.bash("trap '' TERM INT HUP; echo begun; while :; do :; done", timeout_s=0.5)
    assert (execution.cause, execution.output) == ("timeout", "begun\n")
    assert time.monotonic() - started < 2
    assert (await sandbox.bash("echo next", timeout_s=10)).output == "next\n"


async def test_a_flood_of_output_is_cut_and_keeps_both_ends(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.bash("echo first; yes", timeout_s=10)
    assert execution.cause == "output"
    assert execution.head.startswith("first\n")
    assert len(execution.head) + len(execution.tail) == 2000
    assert "bytes omitted" in execution.output


async def test_output_that_is_no_text_arrives_as_escapes(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.bash(r"printf '\xff\xfe ok'", timeout_s=10)
    assert execution.output == "\\xff\\xfe ok"


async def test_one_greedy_program_is_stopped(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.python("import time\nblock = bytearray(1 << 30)\ntime.sleep(9)", timeout_s=10)
    assert execution.cause == "memory"


async def test_many_modest_programs_together_are_stopped(sandbox: SupervisedSandbox) -> None:
    source = (
        "import os, time\nfor _ in range(5):\n  if os.fork() == 0: break\nblock = bytearray(40 << 20)\ntime.sleep(9)"
    )
    execution = await sandbox.python(source, timeout_s=10)
    assert execution.cause == "memory"


async def test_shared_memory_counts(sandbox: SupervisedSandbox) -> None:
    source = (
        "import os, mmap, time\nfor _ in range(5):\n  if os.fork() == 0: break\n"
        "m = mmap.mmap(-1, 40 << 20)\nm.write(bytes(40 << 20))\ntime.sleep(9)"
    )
    execution = await sandbox.python(source, timeout_s=10)
    assert execution.cause == "memory"


async def test_a_fork_bomb_burns_out(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.python(
        "import os, time\nn = 0\ntry:\n  while os.fork(): n += 1\n  time.sleep(60)\nexcept OSError: print(n < 32)",
        timeout_s=10,
    )
    assert execution.output == "True\n"
    shell = await sandbox.bash("bomb() { bomb | bomb & }; bomb; sleep 60", timeout_s=1)
    assert shell.cause is not None or shell.exit_code != 0
    assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"


@pytest.mark.parametrize(("folder", "mebibytes"), [("/workspace", 8), ("/tmp", 2), ("/dev/shm", 2)])
async def test_a_folder_is_full_at_its_size(sandbox: SupervisedSandbox, folder: str, mebibytes: int) -> None:
    fill = f"for i in $(seq 12); do head -c 1M /dev/zero > {folder}/$i || break; done 2>&1; du -sm {folder} | cut -f1"
    execution = await sandbox.bash(fill, timeout_s=10)
    assert "No space left" in execution.output
    assert int(execution.output.split()[-1]) <= mebibytes


async def test_a_file_does_not_grow_beyond_its_limit(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.bash("truncate -s 10T big; head -c 6M /dev/zero > big; stat -c %s big", timeout_s=10)
    assert execution.output.split()[-1] == str(4 * MIB)


async def test_the_supervisor_survives_what_shares_its_user(sandbox: SupervisedSandbox) -> None:
    await sandbox.bash("kill -9 1; kill -STOP 1; kill -9 -1", timeout_s=10)
    probe = "import os\ntry: open('/proc/1/mem', 'rb'); print('open')\nexcept OSError: print('closed')"
    assert (await sandbox.python(probe, timeout_s=10)).output == "closed\n"


async def test_code_cannot_answer_in_the_supervisors_place(sandbox: SupervisedSandbox) -> None:
    source = (
        "import os\nfor fd in range(3, 256):\n"
        "  try: os.write(fd, b'\\0\\0\\0\\2{}'); print('wrote', fd)\n  except OSError: pass"
    )
    execution = await sandbox.python(source, timeout_s=10)
    assert execution.output == ""


async def test_python_reports_errors_like_python(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.python("def f():\n    return 1 / 0\nf()", timeout_s=10)
    assert execution.exit_code == 1
    assert execution.output == (
        "Traceback (most recent call last):\n"
        '  File "<python>", line 3, in <module>\n    f()\n'
        '  File "<python>", line 2, in f\n    return 1 / 0\n           ~~^~~\n'
        "ZeroDivisionError: division by zero\n"
    )
    assert (await sandbox.python("import sys; sys.exit(7)", timeout_s=10)).exit_code == 7
    assert (await sandbox.python("def", timeout_s=10)).exit_code == 1


async def test_standard_input_is_empty(sandbox: SupervisedSandbox) -> None:
    assert (await sandbox.bash("read line || echo end", timeout_s=10)).output == "end\n"


async def test_calls_of_one_sandbox_wait_for_one_another(sandbox: SupervisedSandbox) -> None:
    executions = await asyncio.gather(
        *(sandbox.bash(f"echo {n} >> log; sleep 0.05; tail -1 log", timeout_s=10) for n in range(4))
    )
    assert [execution.output for execution in executions] == ["0\n", "1\n", "2\n", "3\n"]


async def test_a_cancelled_call_ends_the_sandbox(sandbox: SupervisedSandbox) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await sandbox.bash("sleep 600", timeout_s=600)
    with pytest.raises(SandboxLostError, match="died before"):
        await sandbox.bash("echo too late", timeout_s=10)


async def test_a_program_that_does_not_exist_is_said_to_fail_at_the_start(sandbox: SupervisedSandbox) -> None:
    execution = await sandbox.run("/usr/bin/no-such-program", timeout_s=10)
    assert (execution.cause, execution.exit_code) == ("failed_to_start", 71)
    assert "No such file" in execution.tail


async def test_a_sandbox_that_cannot_start_says_why() -> None:
    spawner = BubblewrapSpawner(LIMITS)
    spawner.interpreter = Interpreter("/usr/bin/no-such-python")
    async with SandboxFactory(spawner, LIMITS, max_running_programs=1) as factory:
        with pytest.raises(IsolationError, match="no-such-python"):
            await factory.open()
