"""The session's long-lived shell and interpreter, and programs whose streams are ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = pytest.mark.sandbox

LIMITS = SandboxSettings(memory_bytes=128 * MIB, processes=32, flood_bytes=100_000, output_bytes=4000)


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[SupervisedSandbox]:
    async with SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=2) as factory:
        opened = await factory.open()
        yield opened
        await opened.close()


async def test_a_shell_keeps_its_folder_variables_and_functions(sandbox: SupervisedSandbox) -> None:
    await sandbox.shell("mkdir deep; cd deep; x=5; twice() { echo $((2 * $1)); }", timeout_s=10)
    assert (await sandbox.shell("pwd; twice $x", timeout_s=10)).output == "/workspace/deep\n10\n"
    assert (await sandbox.bash("pwd; echo [$x]", timeout_s=10)).output == "/workspace\n[]\n"


async def test_an_interpreter_keeps_its_variables_and_shows_the_last_value(sandbox: SupervisedSandbox) -> None:
    assert (await sandbox.interpreter("import math\nx = 3\nx + 1", timeout_s=10)).output == "4\n"
    assert (await sandbox.interpreter("print(math.floor(x * 2.5))", timeout_s=10)).output == "7\n"
    failed = await sandbox.interpreter("def f():\n    return 1 / 0\nf()", timeout_s=10)
    assert (failed.exit_code, failed.is_restarted) == (1, False)
    assert failed.output.endswith("ZeroDivisionError: division by zero\n")
    assert (await sandbox.interpreter("x", timeout_s=10)).output == "3\n"


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [("exit 7", 7), ("set -e; false", 1), ("exec true", 0), ("exec 3<&- 4>&-; exit 5", 5), ("break", None)],
)
async def test_a_shell_that_ends_is_said_to_and_a_fresh_one_follows(
    command: str, exit_code: int | None, sandbox: SupervisedSandbox
) -> None:
    await sandbox.shell("x=kept", timeout_s=10)
    ended = await sandbox.shell(command, timeout_s=10)
    if exit_code is not None:
        assert (ended.exit_code, ended.is_restarted, ended.cause) == (exit_code, True, None)
        assert (await sandbox.shell("echo [$x]", timeout_s=10)).output == "[]\n"
    assert (await sandbox.shell("echo alive", timeout_s=10)).output == "alive\n"


@pytest.mark.parametrize("command", ["echo 'open", "cat <<END\nnever closed", "if true; then", ")"])
async def test_a_command_that_is_no_command_leaves_the_shell_usable(command: str, sandbox: SupervisedSandbox) -> None:
    await sandbox.shell("x=kept", timeout_s=10)
    await sandbox.shell(command, timeout_s=10)
    assert (await sandbox.shell("echo $x", timeout_s=10)).output == "kept\n"


@pytest.mark.parametrize(
    "source",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit('over')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os; os.close(4)",
        "import ctypes; ctypes.string_at(0)",
    ],
)
async def test_an_interpreter_that_ends_is_followed_by_a_fresh_one(source: str, sandbox: SupervisedSandbox) -> None:
    await sandbox.interpreter("x = 1", timeout_s=10)
    await sandbox.interpreter(source, timeout_s=2)
    fresh = await sandbox.interpreter("'x' in globals()", timeout_s=10)
    assert fresh.output == "False\n" or (await sandbox.interpreter("1", timeout_s=10)).output == "1\n"


async def test_a_fork_that_comes_back_answers_no_call_twice(sandbox: SupervisedSandbox) -> None:
    await sandbox.interpreter("import os\npid = os.fork()", timeout_s=10)
    assert (await sandbox.interpreter("print(pid > 0)", timeout_s=10)).output == "True\n"
    assert (await sandbox.interpreter("print('once')", timeout_s=10)).output == "once\n"


async def test_time_is_up_for_a_long_lived_program_too(sandbox: SupervisedSandbox) -> None:
    for run, busy in ((sandbox.shell, "while :; do :; done"), (sandbox.interpreter, "while True: pass")):
        late = await run(busy, timeout_s=0.4)
        assert (late.cause, late.is_restarted) == ("timeout", True)
        assert (await run("1", timeout_s=10)).cause is None


async def test_nothing_runs_between_calls(sandbox: SupervisedSandbox) -> None:
    await sandbox.shell("setsid nohup sleep 600 & (while :; do echo x >> /tmp/grows; done) &", timeout_s=10)
    await sandbox.interpreter(
        "import threading, time\n"
        "def work():\n    while True: open('/tmp/ticks', 'a').write('x')\n"
        "threading.Thread(target=work, daemon=True).start()",
        timeout_s=10,
    )
    seen = [await sandbox.bash("cat /tmp/grows /tmp/ticks | wc -c; sleep 0.3", timeout_s=10) for _ in range(2)]
    assert seen[0].output == seen[1].output
    names = await sandbox.bash("cat /proc/[0-9]*/comm", timeout_s=10)
    assert "sleep" not in names.output


async def test_what_a_program_prints_cannot_end_its_call(sandbox: SupervisedSandbox) -> None:
    forged = "for fd in 1 2 3 4; do printf '%s 0\\0' forged >&$fd; done 2>/dev/null; echo end"
    assert (await sandbox.shell(forged, timeout_s=10)).output.endswith("end\n")
    python = "import os\nfor fd in (1, 2):\n    os.write(fd, b'deadbeef 0\\0')\nprint('end')"
    assert (await sandbox.interpreter(python, timeout_s=10)).output.endswith("end\n")


async def test_whoever_forges_the_end_of_its_call_ends_its_own_call(sandbox: SupervisedSandbox) -> None:
    forged = await sandbox.interpreter("import os, time\nos.write(4, b'guess 0\\0')\ntime.sleep(60)", timeout_s=10)
    assert forged.is_restarted
    assert (await sandbox.interpreter("'next'", timeout_s=10)).output == "'next'\n"
    kept_by_bash = "for fd in {10..20}; do printf '%s 0\\0' guess >&$fd; done 2>/dev/null; while :; do :; done"
    assert (await sandbox.shell(kept_by_bash, timeout_s=10)).is_restarted
    assert (await sandbox.shell("echo next", timeout_s=10)).output == "next\n"


async def test_no_end_of_a_call_can_be_smuggled_into_its_text(sandbox: SupervisedSandbox) -> None:
    for run in (sandbox.shell, sandbox.interpreter):
        with pytest.raises(ValueError, match="NUL"):
            await run("echo a\0word\0echo b", timeout_s=5)
    assert (await sandbox.shell("echo a", timeout_s=5)).output == "a\n"


async def test_a_forged_exit_code_is_none_of_a_program(sandbox: SupervisedSandbox) -> None:
    forged = (
        "import os, sys\nframe = sys._getframe()\nwhile 'word' not in frame.f_locals: frame = frame.f_back\n"
        "os.write(4, frame.f_locals['word'].encode() + b' ' + b'9' * 100 + bytes(1))\nwhile True: pass"
    )
    execution = await sandbox.interpreter(forged, timeout_s=5)
    assert execution.exit_code is None or execution.exit_code < 256
    assert execution.is_restarted


async def test_a_restart_forgets(sandbox: SupervisedSandbox) -> None:
    await sandbox.shell("x=1", timeout_s=10)
    await sandbox.restart("shell")
    await sandbox.restart("interpreter")
    assert (await sandbox.shell("echo [$x]", timeout_s=10)).output == "[]\n"


@pytest.mark.parametrize("killer", ["shell", "interpreter", "bash"])
async def test_one_call_can_kill_the_others_programs_but_not_the_session(
    killer: str, sandbox: SupervisedSandbox
) -> None:
    await sandbox.shell("x=kept", timeout_s=10)
    await sandbox.interpreter("x = 'kept'", timeout_s=10)
    if killer == "interpreter":
        await sandbox.interpreter("import os\nos.kill(-1, 9)", timeout_s=10)
    elif killer == "shell":
        await sandbox.shell("kill -9 -1", timeout_s=10)
    else:
        await sandbox.bash("kill -9 -1", timeout_s=10)
    said: set[bool] = set()
    if killer != "interpreter":
        lost = await sandbox.interpreter("x if 'x' in globals() else 'anew'", timeout_s=10)
        assert (lost.output, lost.is_restarted) == ("'anew'\n", True)
        said.add((await sandbox.interpreter("1", timeout_s=10)).is_restarted)
    if killer != "shell":
        lost = await sandbox.shell("echo [$x]", timeout_s=10)
        assert (lost.output, lost.is_restarted) == ("[]\n", True)
        said.add((await sandbox.shell("true", timeout_s=10)).is_restarted)
    assert said == {False}, "it is said once"


async def test_a_flood_from_a_long_lived_program_is_cut(sandbox: SupervisedSandbox) -> None:
    flood = await sandbox.shell("yes", timeout_s=10)
    assert (flood.cause, flood.is_restarted, len(flood.raw)) == ("output", True, 4000)


async def test_a_bridged_program_talks_until_its_input_ends(sandbox: SupervisedSandbox) -> None:
    await sandbox.bash("echo prepared > file", timeout_s=10)
    bridge = await sandbox.bridge("/bin/bash", "-c", "cat file; cat; echo $WORD >&2; exit 3", environment={"WORD": "w"})
    assert await bridge.read(timeout_s=5) == b"prepared\n"
    big = b"x" * 300_000
    async with asyncio.TaskGroup() as group:
        group.create_task(bridge.write(big))
        received = b""
        while len(received) < len(big):
            received += await bridge.read(timeout_s=5)
    assert received == big
    await bridge.close_input()
    assert await bridge.read(timeout_s=5) == b""
    assert (bridge.complaint, bridge.end is not None) == ("w\n", True)
    with pytest.raises(SandboxLostError):
        await sandbox.bash("true", timeout_s=5)


async def test_a_bridged_program_keeps_its_limits(sandbox: SupervisedSandbox) -> None:
    bridge = await sandbox.bridge("/usr/bin/python3", "-c", "import time; b = bytearray(1 << 28); time.sleep(60)")
    assert await bridge.read(timeout_s=10) == b""
    assert bridge.end is not None
    assert bridge.end.cause == "memory"


async def test_a_bridge_to_nothing_is_refused(sandbox: SupervisedSandbox) -> None:
    with pytest.raises(SandboxLostError, match="cannot be started"):
        await sandbox.bridge("/usr/bin/no-such-program")


async def test_refused_system_calls_are_counted_by_name(sandbox: SupervisedSandbox) -> None:
    source = (
        "import ctypes, socket\nlibc = ctypes.CDLL(None)\nlibc.ptrace(0, 0, 0, 0); libc.unshare(0x10000000)\n"
        "for family in (16, 40):\n    try: socket.socket(family, 3)\n    except OSError: pass\nsocket.socket()"
    )
    tried = await sandbox.python(source, timeout_s=10)
    assert tried.denied == {"ptrace": 1, "unshare": 1, "socket": 2, "internet_socket": 1}
    assert (await sandbox.python("print('honest')", timeout_s=10)).denied == {}


async def test_input_and_large_output_go_through(sandbox: SupervisedSandbox) -> None:
    content = bytes(range(256)) * 8192
    limits = LIMITS.model_copy(update={"flood_bytes": 8 * MIB})
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=1) as factory:
        roomy = await factory.open()
        copied = await roomy.run("/bin/cat", timeout_s=10, stdin=content, output_bytes=4 * MIB)
        await roomy.close()
    assert copied.raw == content
    deaf = await sandbox.run("/bin/true", timeout_s=10, stdin=content)
    assert (deaf.exit_code, deaf.cause) == (0, None)
