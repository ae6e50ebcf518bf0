"""Hostile payloads against sandboxes, as root and as a plain user; each with a check, and a control that fails it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hostile_ground import PRELUDE, Outside, WeakenedSpawner, opened, said_by_script
from hostile_payloads import ABSENT_CALLS, ATTEMPTS, FORBIDDEN_CALLS, SOCKETS

from rollstream.tool_workers.sandbox.replies import Execution, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import SupervisedSandbox
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, UnsafeLocalSpawner
from rollstream.tool_workers.settings import MIB, SandboxSettings

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls are those of x86-64"),
]

LIMITS = SandboxSettings(memory_bytes=256 * MIB)


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    outside = Outside(tmp_path)
    yield outside
    outside.close()


def program(name: str, facts: Mapping[str, object]) -> str:
    return PRELUDE + ATTEMPTS[name].code.format(**facts)


async def attempt(sandbox: SupervisedSandbox, name: str, facts: Mapping[str, object]) -> str:
    return (await sandbox.python(program(name, facts), timeout_s=10)).output


async def refused(sandbox: SupervisedSandbox, arguments: str) -> tuple[str, Execution]:
    """The error a system call ends with, and what was counted."""
    execution = await sandbox.python(PRELUDE + f"print(call({arguments})[1])", timeout_s=10)
    return execution.output.strip(), execution


async def test_every_attempt_is_held(outside: Outside) -> None:
    """In one sandbox after another attempt: none may help the next."""
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        said = {name: await attempt(sandbox, name, outside.facts) for name in ATTEMPTS}
        assert (await sandbox.bash("echo alive", timeout_s=10)).output == "alive\n"
    assert {name: output for name, output in said.items() if output != "HELD\n"} == {}
    assert outside.is_untouched()


WEAK = {name: each.weakness for name, each in ATTEMPTS.items() if each.weakness not in (None, "local")}


@pytest.mark.parametrize("name", WEAK)
async def test_an_attempt_succeeds_where_its_layer_is_missing(name: str, outside: Outside) -> None:
    async with opened(WeakenedSpawner(LIMITS, WEAK[name]), LIMITS) as sandbox:
        with suppress(SandboxLostError):  # which shows it just as well
            assert await attempt(sandbox, name, outside.facts) == "OUT\n"


async def test_attempts_succeed_without_a_sandbox(outside: Outside) -> None:
    """Nothing here does harm: all of it is about canaries."""
    names = [name for name, each in ATTEMPTS.items() if each.weakness == "local"]
    async with opened(UnsafeLocalSpawner(LIMITS), LIMITS) as sandbox:
        said = {name: await attempt(sandbox, name, outside.facts) for name in names}
    assert {name: output for name, output in said.items() if output != "OUT\n"} == {}
    assert not outside.is_untouched()


async def test_every_forbidden_call_is_refused_and_counted() -> None:
    wrong: dict[str, object] = {}
    async with opened(BubblewrapSpawner(LIMITS), LIMITS) as sandbox:
        for name, arguments in FORBIDDEN_CALLS.items():
            error, execution = await refused(sandbox, arguments)
            if error != "EPERM" or execution.denied != {name: 1}:
                wrong[name] = (error, execution.denied, execution.output)
        for family, arguments in SOCKETS.items():
            error, execution = await refused(sandbox, arguments)
            if error != "EPERM" or execution.denied != {"socket": 1}:
                wrong[f"socket {family}"] = (error, execution.denied)
        for name, arguments in ABSENT_CALLS.items():
            error, _ = await refused(sandbox, arguments)
            if error != "ENOSYS":
                wrong[name] = error
    assert wrong == {}


async def test_without_the_filter_calls_are_not_counted_and_many_are_not_refused() -> None:
    reached = 0
    async with opened(WeakenedSpawner(LIMITS, "filter"), LIMITS) as sandbox:
        for name in ("keyctl", "userfaultfd", "io_uring_setup", "kcmp", "name_to_handle_at", "mbind", "socket"):
            error, execution = await refused(sandbox, FORBIDDEN_CALLS[name])
            assert execution.denied == {}
            reached += error not in ("EPERM", "ENOSYS")
        for name in ("memfd_create", "shmget", "msgget", "semget", "personality"):
            error, _ = await refused(sandbox, ABSENT_CALLS[name])
            assert error == "0", name
    assert reached >= 4


AS_NOBODY = """
import asyncio, encodings.idna, json, multiprocessing.util, os, signal, stat, sys, tempfile
sys.path.insert(0, {folder!r})
facts = json.loads(sys.argv[1])
import hostile_payloads as payloads
from hostile_ground import PRELUDE
from rollstream.tool_workers.sandbox.archives import compiled_archive, launcher_archive
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner
from rollstream.tool_workers.settings import SandboxSettings

async def main():
    limits = SandboxSettings()
    spawner = BubblewrapSpawner(limits)
    compiled_archive(spawner.interpreter.path); launcher_archive()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    said = {{}}
    async with SandboxFactory(spawner, limits, max_running_programs=1) as factory:
        sandbox = await factory.open()
        for name, each in payloads.ATTEMPTS.items():
            said[name] = (await sandbox.python(PRELUDE + each.code.format(**facts), timeout_s=10)).output
        for name, arguments in payloads.FORBIDDEN_CALLS.items():
            done = await sandbox.python(PRELUDE + f"print(call({{arguments}})[1])", timeout_s=10)
            said[name] = "HELD\\n" if done.output == "EPERM\\n" and done.denied == {{name: 1}} else done.output
        await sandbox.close()
    print(json.dumps(said))

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as a plain user already")
async def test_a_plain_user_holds_all_of_it_too(outside: Outside) -> None:
    script = AS_NOBODY.format(folder=str(Path(__file__).parent))
    said = await said_by_script(script, outside.facts)
    assert len(said) == len(ATTEMPTS) + len(FORBIDDEN_CALLS)
    assert {name: output for name, output in said.items() if output != "HELD\n"} == {}
    assert outside.is_untouched()
