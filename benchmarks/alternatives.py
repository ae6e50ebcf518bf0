"""What a call of bash in a session is held against: a bwrap for each, a plain subprocess, ``exec`` in a container.

The container is of the image that ``SANDBOX_BENCH_IMAGE`` names (with bash in it). Where none is named, podman runs
one of the programs of this machine.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from figures import Figure, figure

from rollstream.tool_workers.settings import SandboxSettings

PROGRAM = ("/bin/bash", "-c", "true")
BWRAP = (
    *("--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"),
    *("--tmpfs", "/workspace", "--chdir", "/workspace", "--"),
)
ENGINES = ("podman", "docker")
IMAGE_VARIABLE = "SANDBOX_BENCH_IMAGE"
LIFE_S = 600
TIMEOUT_S = 30.0


def measure_alternatives(count: int, ours_s: float, folder: Path, command: str) -> list[Figure]:
    """Each as a multiple of ours; the note of the last one says why there is no container, if there is none.

    Args:
        count: calls of each.
        ours_s: median seconds of a call in a session.
        folder: for scratch files.
        command: what measures it again.
    """
    figures: list[Figure] = []

    def add(name: str, call: Sequence[str]) -> None:
        taken_s = _median_s(call, count)
        note = f"{taken_s * 1e3:.2f} ms and {ours_s * 1e3:.2f} ms, medians; {count} calls of the other"
        figures.append(figure(f"{name} / bash in a session", taken_s / ours_s, "times", command=command, note=note))

    add("a bwrap for each call", [shutil.which("bwrap") or "bwrap", *BWRAP, *PROGRAM])
    add("plain subprocess bash", PROGRAM)
    reasons: list[str] = []
    for engine in ENGINES:
        try:
            with _container(engine, folder) as container:
                add(f"{engine} exec", [engine, "exec", container, *PROGRAM])
            return figures
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{engine}: {_complaint(error)}")
    return [*figures[:-1], replace(figures[-1], note=f"{figures[-1].note}; no container: {'; '.join(reasons)}")]


def _median_s(call: Sequence[str], count: int) -> float:
    """Seconds of a call that starts a program and waits for it."""
    _run(call)
    taken_s: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        _run(call)
        taken_s.append(time.perf_counter() - begin)
    return statistics.median(taken_s)


@contextmanager
def _container(engine: str, folder: Path) -> Generator[str]:
    """A container that sleeps, by its id.

    Raises:
        OSError: there is no such engine, or nothing it could run.
        subprocess.SubprocessError: it cannot run it.
    """
    if shutil.which(engine) is None:
        raise FileNotFoundError("not installed")
    limits = SandboxSettings()
    options = ["--detach", "--rm", "--network=none", "--stop-signal=KILL"]
    # an engine's own limits may be more than it is allowed to give
    options += [f"--ulimit=nofile={limits.open_files}:{limits.open_files}", "--ulimit=nproc=4096:4096"]
    container = _run([engine, "run", *options, *_source(engine, folder), "sleep", str(LIFE_S)])
    try:
        yield container
    finally:
        subprocess.run([engine, "rm", "--force", container], capture_output=True, check=False)


def _source(engine: str, folder: Path) -> list[str]:
    """An image, or a folder with the programs of this machine."""
    if image := os.environ.get(IMAGE_VARIABLE):
        return ["--pull=never", image]
    if engine != "podman":
        raise FileNotFoundError(f"no image is named by {IMAGE_VARIABLE}")
    root = folder / "container-root"
    for name in ("usr", "proc", "dev", "sys", "tmp", "run", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")
    return ["--volume=/usr:/usr:ro", "--rootfs", str(root)]


def _run(command: Sequence[str]) -> str:
    """What it prints."""
    done = subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return done.stdout.strip()


def _complaint(error: OSError | subprocess.SubprocessError) -> str:
    """Its first line; engines add hints below."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
    lines = (said or str(error)).strip().splitlines()
    return (lines[0] if lines else repr(error))[:160]
