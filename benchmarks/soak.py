"""Hostile and honest calls over many short sessions, and what is left of them: ``python benchmarks/soak.py --calls N``.

Sessions come and go through the pool and the stock of a tool worker, with small limits. The answer of each honest call
is checked, and so is how each hostile call ended. At the end, with the launcher still alive, nothing may be there that
was not there before: processes (orphans come to this process), descriptors, mounts, control groups, temporary files.
Ended orphans are reaped here, as the machine's init does it, and counted apart (`orphans_for_init`): a container whose
first process reaps nothing would keep them.

Prints a line every five seconds and one JSON object at the end; the exit code is 1 if anything leaked or went wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rollstream.tool_workers.blank_sandboxes import stocked
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.replies import Execution, SandboxLostError
from rollstream.tool_workers.sandbox.sandbox import Sandbox, SandboxFactory
from rollstream.tool_workers.sandbox_pool import SandboxPool
from rollstream.tool_workers.settings import MIB, SandboxSettings

CALLERS = 8
MAX_SESSION_CALLS = 12
HOSTILE_SHARE = 0.3
BLANK_SANDBOXES = 4
BLANK_AGE_S = 60.0
HONEST_TIMEOUT_S = 30.0
PROGRESS_S = 5.0
SETTLE_BEFORE_S = 2.0
SETTLE_S = 10.0
MAX_GROWTH_BYTES = 20 * MIB
PR_SET_CHILD_SUBREAPER = 36
LIMITS = SandboxSettings(memory_bytes=64 * MIB, workspace_bytes=16 * MIB, scratch_bytes=8 * MIB, files=2000)
CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Hostile:
    """A harmful call. ``spoils``: the session is of no use afterwards."""

    language: str
    text: str
    timeout_s: float
    is_expected: Callable[[Execution], bool]
    spoils: bool = False


HOSTILE = {
    "fork_bomb": Hostile("bash", ":(){ :|:& };:", 0.5, lambda _: True),
    "fork_loop": Hostile("python", "import os\nwhile True:\n    os.fork()", 0.5, lambda done: done.exit_code != 0),
    "memory_hog": Hostile("python", "a = []\nwhile True:\n    a.append(b'x' * 2**20)", 1.0,
                          lambda done: done.exit_code != 0),
    "output_flood": Hostile("bash", "yes", 1.0, lambda done: done.cause in ("output", "timeout")),
    "file_flood": Hostile("bash", "for ((i = 0;; i++)); do : > /tmp/f$i || exit 3; done", 1.0,
                          lambda done: done.exit_code != 0, spoils=True),
    "disk_flood": Hostile("bash", "cat /dev/zero > /workspace/full", 1.0, lambda done: done.exit_code != 0,
                          spoils=True),
    "refused_call": Hostile("bash", "unshare -U true; mount -t tmpfs none /tmp", 5.0,
                            lambda done: done.exit_code not in (0, None)),
    "endless": Hostile("bash", "trap '' TERM; while :; do :; done", 0.3, lambda done: done.cause == "timeout"),
    "daemon": Hostile("bash", "setsid sleep 1000 & disown; setsid sleep 1000 & echo left", 5.0, lambda _: True),
    "shell_exits": Hostile("shell", "exit 7", 5.0, lambda done: done.is_restarted),
    "shell_kills_itself": Hostile("shell", "kill -9 $$", 5.0, lambda done: done.is_restarted),
    "interpreter_kills_itself": Hostile("interpreter", "import os; os.kill(os.getpid(), 9)", 5.0,
                                        lambda done: done.is_restarted),
    "kills_everything": Hostile("bash", "kill -9 -1", 5.0, lambda _: True),
}  # fmt: skip


@dataclass(frozen=True)
class Traces:
    """What there is of this process in the system, in numbers."""

    processes: int
    descriptors: int
    mounts: int
    control_groups: int
    temporary_files: int


def traces(folder: Path) -> Traces:
    """As of now. ``folder``: where this process has its temporary files."""
    return Traces(
        processes=len(descendants(os.getpid())),
        descriptors=len(os.listdir("/proc/self/fd")),
        mounts=len(Path("/proc/self/mountinfo").read_text().splitlines()),
        control_groups=sum(1 for _ in own_control_groups()),
        temporary_files=len(list(folder.rglob("*"))),
    )


def descendants(pid: int) -> list[int]:
    """Children of a process, their children and so on; those that have ended and were not reaped too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    open_ends = [pid]
    while open_ends:
        begotten = children.get(open_ends.pop(), [])
        found += begotten
        open_ends += begotten
    return found


def reap_orphans() -> int:
    """Reap what has ended below this process; how many. The launcher must be alive, or reaped by its owner."""
    count = 0
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                os.waitpid(pid, os.WNOHANG)
                count += 1
    return count


def own_control_groups() -> Iterator[Path]:
    """Control groups of the launchers below this process."""
    owners = {str(pid) for pid in (os.getpid(), *descendants(os.getpid()))}
    for folder, names, _ in os.walk(CONTROL_GROUPS):
        for name in names:
            path = Path(folder, name)
            if owners & {part for each in path.parts if each.startswith("rollstream-") for part in each.split("-")}:
                yield path


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def adopt_orphans() -> None:
    """Have what loses its parent become a child of this process, so that nothing gets out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this process cannot adopt orphans (PR_SET_CHILD_SUBREAPER)")


@dataclass
class Tally:
    """What happened."""

    calls: int = 0
    sessions: int = 0
    honest_s: list[float] = field(default_factory=list[float])
    hostile: Counter[str] = field(default_factory=Counter[str])
    orphans_for_init: int = 0
    lost: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])


class Soak:
    """The load: callers that open a session, make some calls in it, and close it."""

    def __init__(self, pool: SandboxPool, calls: int, seed: int) -> None:
        self._pool = pool
        self._left = iter(range(calls))
        self._names = itertools.count()
        self._seed = seed
        self.tally = Tally()

    async def run(self) -> None:
        """All calls."""
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._caller(random.Random(self._seed + number)))

    async def _caller(self, chance: random.Random) -> None:
        while (number := next(self._left, None)) is not None:
            name = f"session-{next(self._names)}"
            self.tally.sessions += 1
            try:
                is_usable = await self._call(name, number, chance)
                for _ in range(chance.randrange(MAX_SESSION_CALLS)):
                    if not is_usable or (number := next(self._left, None)) is None:
                        break
                    is_usable = await self._call(name, number, chance)
            finally:
                await self._pool.close(name)

    async def _call(self, session: str, number: int, chance: random.Random) -> bool:
        """One call; whether the session can go on."""
        sandbox = await self._pool.of_session(session)
        self.tally.calls += 1
        is_hostile = chance.random() < HOSTILE_SHARE
        name = chance.choice([*HOSTILE] if is_hostile else [*HONEST])
        try:
            if is_hostile:
                return await self._hostile(sandbox, name)
            begin = time.perf_counter()
            complaint = await HONEST[name](sandbox, number)
            self.tally.honest_s.append(time.perf_counter() - begin)
            if complaint:
                self.tally.wrong.append(f"{name} {number}: {complaint}")
        except SandboxLostError as error:
            self.tally.lost[name] += 1
            if not is_hostile:
                self.tally.wrong.append(f"{name} {number}: {error}")
            return False
        return True

    async def _hostile(self, sandbox: Sandbox, name: str) -> bool:
        attack = HOSTILE[name]
        self.tally.hostile[name] += 1
        done = await getattr(sandbox, attack.language)(attack.text, timeout_s=attack.timeout_s)
        if not attack.is_expected(done):
            self.tally.wrong.append(f"{name} ended with {done.exit_code}, {done.cause}: {done.output[:200]!r}")
        return not attack.spoils


async def _bash(sandbox: Sandbox, number: int) -> str:
    return _differs(await sandbox.bash(f"echo $(({number} * 3))", timeout_s=HONEST_TIMEOUT_S), f"{number * 3}\n")


async def _python(sandbox: Sandbox, number: int) -> str:
    return _differs(await sandbox.python(f"print({number} ** 2)", timeout_s=HONEST_TIMEOUT_S), f"{number**2}\n")


async def _shell(sandbox: Sandbox, number: int) -> str:
    first = await sandbox.shell(f"kept={number}", timeout_s=HONEST_TIMEOUT_S)
    if first.is_restarted:
        await sandbox.shell(f"kept={number}", timeout_s=HONEST_TIMEOUT_S)
    return _differs(await sandbox.shell("echo $kept", timeout_s=HONEST_TIMEOUT_S), f"{number}\n")


async def _interpreter(sandbox: Sandbox, number: int) -> str:
    first = await sandbox.interpreter(f"kept = {number}", timeout_s=HONEST_TIMEOUT_S)
    if first.is_restarted:  # an earlier call killed it, and this one is told
        await sandbox.interpreter(f"kept = {number}", timeout_s=HONEST_TIMEOUT_S)
    return _differs(await sandbox.interpreter("print(kept + 1)", timeout_s=HONEST_TIMEOUT_S), f"{number + 1}\n")


async def _editor(sandbox: Sandbox, number: int) -> str:
    text = f"line of {number}\n"
    arguments = {"command": "create", "path": "notes.txt", "file_text": text}
    arguments |= dict.fromkeys(("view_range", "old_str", "new_str", "insert_line", "insert_text"))
    await sandbox.operate("editor", arguments, timeout_s=HONEST_TIMEOUT_S)
    return _differs(await sandbox.bash("cat notes.txt", timeout_s=HONEST_TIMEOUT_S), text)


HONEST: dict[str, Callable[[Sandbox, int], Awaitable[str]]] = {
    "bash": _bash,
    "python": _python,
    "bash_session": _shell,
    "python_session": _interpreter,
    "editor": _editor,
}


def _differs(done: Execution, wanted: str) -> str:
    """Nothing if that is what came."""
    if done.cause is None and done.output.strip() == wanted.strip():
        return ""
    return f"{done.output[:200]!r} ({done.exit_code}, {done.cause}) is not {wanted!r}"


async def soak(calls: int, *, seed: int, folder: Path, plants_leak: bool) -> dict[str, object]:
    """Run the load. ``plants_leak``: one sandbox is left open, to see that it is noticed."""
    factory = SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=CALLERS)
    begin = time.perf_counter()
    async with factory:
        await _exercise(factory, CALLERS * 4, seed)
        await asyncio.sleep(SETTLE_BEFORE_S)
        await asyncio.to_thread(reap_orphans)
        before, memory_before = await asyncio.to_thread(traces, folder), resident_bytes()
        tally = await _exercise(factory, calls, seed, progress_s=PROGRESS_S)
        planted = await factory.open() if plants_leak else None
        after = await _settled(folder, before, tally)
        growth = resident_bytes() - memory_before
        if planted is not None:
            await planted.close()
    reap_orphans()
    left_processes = len(descendants(os.getpid()))
    leaks = {name: count - asdict(before)[name] for name, count in asdict(after).items()}
    leaked = {name: count for name, count in leaks.items() if count > 0}
    if left_processes:
        leaked["processes_after_the_launcher"] = left_processes
    if growth > MAX_GROWTH_BYTES:
        leaked["resident_bytes"] = growth
    honest_s = sorted(tally.honest_s)
    return {
        "calls": tally.calls,
        "sessions": tally.sessions,
        "wall_s": round(time.perf_counter() - begin, 1),
        "honest_calls": len(honest_s),
        "honest_p50_ms": round(honest_s[len(honest_s) // 2] * 1e3, 2) if honest_s else None,
        "honest_p99_ms": round(honest_s[int(len(honest_s) * 0.99)] * 1e3, 2) if honest_s else None,
        "hostile": dict(tally.hostile),
        "orphans_for_init": tally.orphans_for_init,
        "lost": dict(tally.lost),
        "wrong_count": len(tally.wrong),
        "wrong": tally.wrong[:20],
        "enforcement": factory.enforcement.kind,
        "before": asdict(before),
        "after": asdict(after),
        "growth_mib": round(growth / MIB, 2),
        "leaked": leaked,
    }


async def _exercise(factory: SandboxFactory, calls: int, seed: int, *, progress_s: float | None = None) -> Tally:
    async with stocked(factory, wanted=BLANK_SANDBOXES, max_age_s=BLANK_AGE_S) as blanks, asyncio.TaskGroup() as group:
        pool = SandboxPool(blanks, max_open=CALLERS * 2, reclaim=lambda: None)
        load = Soak(pool, calls, seed)
        telling = group.create_task(_tell(load.tally, calls, progress_s)) if progress_s else None
        try:
            await load.run()
        finally:
            await pool.close_all()
            if telling is not None:
                telling.cancel()
    return load.tally


async def _tell(tally: Tally, calls: int, interval_s: float) -> None:
    begin = time.perf_counter()
    while True:
        await asyncio.sleep(interval_s)
        tally.orphans_for_init += await asyncio.to_thread(reap_orphans)
        rate = tally.calls / (time.perf_counter() - begin)
        print(f"{tally.calls} of {calls} calls, {rate:.1f}/s, {tally.sessions} sessions, {len(tally.wrong)} wrong, "
              f"{sum(tally.lost.values())} lost, {resident_bytes() / MIB:.1f} MiB", flush=True)  # fmt: skip


async def _settled(folder: Path, before: Traces, tally: Tally) -> Traces:
    """The traces once they are no more than before, or when time is up."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        tally.orphans_for_init += await asyncio.to_thread(reap_orphans)
        now = await asyncio.to_thread(traces, folder)
        is_clean = all(count <= asdict(before)[name] for name, count in asdict(now).items())
        if is_clean or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if something leaked or went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000, help="how many, all sessions together")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same mixture for each caller")
    parser.add_argument("--plant-leak", action="store_true", help="leave one sandbox open: it must be reported")
    options = parser.parse_args(arguments)
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="rollstream-soak-") as name:
        tempfile.tempdir = name
        result = asyncio.run(soak(options.calls, seed=options.seed, folder=Path(name), plants_leak=options.plant_leak))
    print(json.dumps(result), flush=True)
    return 1 if result["leaked"] or result["wrong_count"] else 0


if __name__ == "__main__":
    sys.exit(main())
