"""The checks of ``rollstream doctor``: each finds one thing that would stop a run, and says what to do about it."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rollstream.schemas.errors import RollstreamError

CHECK_TIMEOUT_S = 60.0
FREE_BYTES_NEEDED = 2 * 1024**3
MODEL_FILES = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check; ``remedy`` says what to do when it failed."""

    check: str
    outcome: Literal["ok", "failed", "skipped"]
    detail: str
    remedy: str = ""


Check = Callable[[], Awaitable[Finding] | Finding]


def ok(check: str, detail: str) -> Finding:
    """Nothing to do."""
    return Finding(check, "ok", detail)


def failed(check: str, detail: str, remedy: str) -> Finding:
    """Something that stops a run."""
    return Finding(check, "failed", detail, remedy)


def skipped(check: str, detail: str) -> Finding:
    """Not asked for, or not decidable because an earlier check failed."""
    return Finding(check, "skipped", detail)


async def run_check(name: str, check: Check, *, timeout_s: float = CHECK_TIMEOUT_S) -> Finding:
    """Run one check; what it raises and its time-out are findings too."""
    try:
        async with asyncio.timeout(timeout_s):
            found = check()
            return found if isinstance(found, Finding) else await found
    except TimeoutError:
        return failed(name, f"no answer within {timeout_s:g} s", "see whether the machine or the broker is overloaded")
    except RollstreamError as error:
        return failed(name, str(error), "the message above says what is wrong; correct it and run doctor again")
    except Exception as error:
        return failed(
            name, f"{type(error).__name__}: {error}", "unexpected; run the command with a debugger or report it"
        )


def check_python() -> Finding:
    """The interpreter is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < (3, 11):  # noqa: UP036  -- a broken environment may run us with another interpreter
        return failed("python", found, "install Python 3.11 or later and make the environment again with it")
    return ok("python", found)


def check_packages(required: Iterable[str], one_of: Iterable[str] = ()) -> Finding:
    """The distributions are installed; of ``one_of`` exactly one must be."""
    found = {name: _version(name) for name in (*required, *one_of)}
    missing = [name for name in required if found[name] is None]
    engines = [name for name in one_of if found[name] is not None]
    detail = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    if missing:
        return failed("packages", f"missing: {', '.join(missing)}", "install RollStream with its dependencies again")
    if len(engines) > 1:
        return failed(
            "packages",
            f"{' and '.join(engines)} are both installed and own the same module",
            "make the environment again with one of the extras cpu and gpu",
        )
    if one_of and not engines:
        return failed(
            "packages", f"none of {', '.join(one_of)} is installed", "install the extra cpu or gpu (rollout workers)"
        )
    return ok("packages", detail)


def check_disk(folder: Path, needed_bytes: int = FREE_BYTES_NEEDED) -> Finding:
    """There is room for logs, weights and topics."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{free / 1024**3:.1f} GiB free at {str(place)!r}"
    if free < needed_bytes:
        return failed("disk", detail, f"free at least {needed_bytes / 1024**3:.0f} GiB there, or set another folder")
    return ok("disk", detail)


def check_model_folder(model: str) -> Finding:
    """The model of the rollout worker is a folder with configuration, tokenizer and weights."""
    if not model:
        return skipped("model", "rollout_worker.model is not set")
    folder = Path(model)
    if not folder.is_dir():
        return failed("model", f"{model!r} is not a folder", "set rollout_worker.model to the folder of a local model")
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        missing.append("*.safetensors")
    if missing:
        return failed("model", f"{model!r} lacks {', '.join(missing)}", "fetch or save the whole model again")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return ok("model", f"{model!r}, {size / 1024**2:.0f} MiB")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
