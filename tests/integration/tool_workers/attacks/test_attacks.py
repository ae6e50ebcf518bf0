"""Attacks on kernel, host and supervisor are held, as root and as a plain user, and not without a layer."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from attack_cases import Attack
from hostile_ground import PRELUDE, Outside, WeakenedSpawner, opened, said_by_script
from kernel_attacks import RIGHTS, UNUSUAL
from spying_attacks import SPYING
from supervisor_attacks import FOOLING, SIGNALS, SLOWING

from rollstream.tool_workers.sandbox.replies import SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SupervisedSandbox
from rollstream.tool_workers.sandbox.seccomp_filter import seccomp_programs
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, UnsafeLocalSpawner
from rollstream.tool_workers.sandbox.system_calls import FORBIDDEN
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86-64"),
]

LIMITS = SandboxSettings(memory_bytes=256 * MIB)
ATTACKS: Mapping[str, Attack] = RIGHTS | UNUSUAL | SPYING | SLOWING
SYS_ADD_KEY, SYS_KEYCTL, REVOKE, USER_KEYRING = 248, 250, 3, -4
FOLDER = Path(__file__).parent
IS_MACHINES_ROOT = os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    outside = Outside(tmp_path)
    yield outside
    outside.close()


async def verdict(sandbox: SupervisedSandbox, attack: Attack, facts: Mapping[str, object]) -> str:
    return (await sandbox.python(PRELUDE + attack.code.format(**facts), timeout_s=10)).output


async def test_every_attack_is_held(outside: Outside) -> None:
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        said = {name: await verdict(sandbox, attack, outside.facts) for name, attack in ATTACKS.items()}
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"
    assert {name: output for name, output in said.items() if output != "HELD\n"} == {}
    assert outside.is_untouched()


@pytest.mark.parametrize("layer", ["filter", "network"])
async def test_attacks_get_out_where_their_layer_is_missing(layer: str, outside: Outside) -> None:
    async with opened(WeakenedSpawner(LIMITS, layer), LIMITS) as sandbox:
        for name, attack in ATTACKS.items():
            if attack.without == layer:
                assert await verdict(sandbox, attack, outside.facts) == "OUT\n", name


@pytest.mark.skipif(not IS_MACHINES_ROOT, reason="needs rights to lose: those of the machine's own root")
async def test_attacks_get_out_without_a_sandbox(outside: Outside) -> None:
    async with opened(UnsafeLocalSpawner(LIMITS), LIMITS) as sandbox:
        for name, attack in ATTACKS.items():
            if attack.without == "local":
                assert await verdict(sandbox, attack, outside.facts) == "OUT\n", name


async def test_no_signal_from_inside_reaches_the_supervisor() -> None:
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        for name, attack in SIGNALS.items():
            await sandbox.python(PRELUDE + attack.code, timeout_s=10)
            assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n", name


@pytest.mark.parametrize("name", [name for name, attack in SIGNALS.items() if attack.without == "local"])
async def test_such_signals_end_a_supervisor_that_is_not_process_1(name: str) -> None:
    async with opened(UnsafeLocalSpawner(LIMITS), LIMITS) as sandbox:
        with suppress(SandboxLostError):
            await sandbox.python(PRELUDE + SIGNALS[name].code, timeout_s=10)
        with pytest.raises(SandboxLostError):
            await sandbox.python("import time; time.sleep(0.2)", timeout_s=10)


async def test_programs_see_interrupts_as_python_does() -> None:
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        code = "import os\ntry:\n    os.kill(os.getpid(), 2)\nexcept KeyboardInterrupt:\n    print('interrupted')"
        assert (await sandbox.python(code, timeout_s=10)).output == "interrupted\n"
        assert (await sandbox.interpreter(code, timeout_s=10)).output == "interrupted\n"
        assert (await sandbox.bash("kill -INT $$; echo not reached", timeout_s=10)).exit_code == -2


async def test_nothing_that_fools_the_supervisor_spoils_the_next_call() -> None:
    wrong: dict[str, object] = {}
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        for name, (language, text, causes) in FOOLING.items():
            started = time.monotonic()
            code = PRELUDE + text if language == "python" else text
            execution = await getattr(sandbox, language)(code, timeout_s=0.7)
            if execution.cause not in causes or time.monotonic() - started > 3:
                wrong[name] = (execution.cause, execution.output[:300])
            following = await sandbox.python("import json, ast, hashlib; print(6 * 7)", timeout_s=10)
            await sandbox.bash("rm -f *.py", timeout_s=10)
            if following.output not in ("42\n", ""):
                wrong[f"after {name}"] = following
            assert (await sandbox.operate("text_search", SEARCH, timeout_s=10)).output == "no matches\n", name
    assert wrong == {}


SEARCH = {"pattern": "x", "path": ".", "regex": False, "max_results": 5}


def forbidden_numbers() -> dict[str, int]:
    """Of those that are refused whatever their arguments."""
    return {name: number for number, name in seccomp_programs().asked_names.items() if name in FORBIDDEN}


async def test_a_program_that_tries_everything_is_counted_and_not_lost() -> None:
    numbers = forbidden_numbers()
    code = f"for n in {[*numbers.values()]}: call(n, 0, 0, 0, 0, 0, 0)\n"
    code += "call(56, 0x10000011, 0, 0, 0, 0); call(41, 40, 1, 0); call(302, 1, 7, 0, 0); call(16, 0, 0x5412, 0)\n"
    code += "call(203, 1, 8, 0); call(141, 0, 1, 19); call(251, 1, 1, 0); call(41, 2, 1, 0)"
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        tried = await sandbox.python(PRELUDE + code, timeout_s=10)
        assert tried.denied.keys() >= numbers.keys() | {"clone", "socket", "prlimit64", "ioctl", "internet_socket"}
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"
    async with opened(WeakenedSpawner(LIMITS, "filter"), LIMITS) as sandbox:
        tried = await sandbox.python(PRELUDE + "call(101, 0, 0, 0, 0)", timeout_s=10)
        assert tried.denied == {}


AS_NOBODY = """
import asyncio, ctypes, encodings.idna, json, multiprocessing.util, os, signal, stat, sys, tempfile
sys.path[:0] = {folders!r}
import test_attacks as suite
from rollstream.tool_workers.sandbox.archives import compiled_archive, launcher_archive
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
facts = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

async def said_by(spawner, names):
    async with suite.opened(spawner, suite.LIMITS) as sandbox:
        said = {{name: await suite.verdict(sandbox, suite.ATTACKS[name], facts) for name in names}}
        for name, attack in suite.SIGNALS.items():
            await sandbox.python(suite.PRELUDE + attack.code, timeout_s=10)
            said[name] = "HELD\\n" if (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\\n" else "lost"
        return said

async def main():
    spawner, weak = BubblewrapSpawner(suite.LIMITS), suite.WeakenedSpawner(suite.LIMITS, "key files")
    compiled_archive(spawner.interpreter.path); launcher_archive()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    key = libc.syscall(suite.SYS_ADD_KEY, b"user", facts["key"].encode(), b"x", 1, suite.USER_KEYRING)
    try:
        names = ("read the names of keys", "count keys of users")
        print(json.dumps([key, await said_by(spawner, suite.ATTACKS), await said_by(weak, names)]))
    finally:
        libc.syscall(suite.SYS_KEYCTL, suite.REVOKE, key)

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as a plain user already")
async def test_a_plain_user_holds_every_attack_too_and_keeps_the_names_of_keys(outside: Outside) -> None:
    script = AS_NOBODY.format(folders=[str(FOLDER), str(FOLDER.parent)])
    key, said, weak = await said_by_script(script, outside.facts)
    assert said.keys() == ATTACKS.keys() | SIGNALS.keys()
    assert {name: output for name, output in said.items() if output != "HELD\n"} == {}
    assert outside.is_untouched()
    if key < 0:
        pytest.skip("this machine keeps no keys, so their names cannot be seen")
    assert weak["read the names of keys"] == "OUT\n"


async def test_the_host_cannot_be_watched_through_its_programs() -> None:
    """The files of /usr are the host's own, so whoever could watch them would see who uses them."""
    code = (
        "f = libc.inotify_init(); libc.inotify_add_watch(f, b'/usr/bin/env', 0x20)\nprint('ready', flush=True)\n"
        "import select\nsay(f >= 0 and select.select([f], [], [], 2)[0] != [])"
    )
    heard: dict[str, str] = {}
    for spawner in (BubblewrapSpawner(LIMITS), WeakenedSpawner(LIMITS, "filter")):
        async with opened(spawner, LIMITS) as sandbox, asyncio.TaskGroup() as group:
            watching = group.create_task(sandbox.python(PRELUDE + code, timeout_s=10))
            while not watching.done():
                await asyncio.to_thread(subprocess.run, ["/usr/bin/env", "true"], check=True)
            heard[type(spawner).__name__] = watching.result().output
    assert heard == {"BubblewrapSpawner": "ready\nHELD\n", "WeakenedSpawner": "ready\nOUT\n"}
