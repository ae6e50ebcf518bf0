"""`examples/grpo.py`, killed before the first line of its own at which it was not killed yet, until none is left.

    python killed_grpo.py EXAMPLE FOLDER kills|none ARGUMENTS...

Writes what each batch held to ``FOLDER/trained/<number>.json``, and prints the lines at which it was killed. It forks
after it has imported torch and what the model needs, so that a start costs no imports.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import torch

MAX_STARTS = 400
LEFT_OUT = ("arguments", "show_evaluation")
"""Options come before anything happens; there are no evaluations here."""


def load(example: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo", example)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grpo"] = module
    spec.loader.exec_module(module)
    return module


def noted(padded_tensors: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Notes what a batch holds; one that comes again after a kill must hold the same."""

    def note(batch: Any, *arguments: Any, **options: Any) -> Any:
        held = [trajectory.worker_id for trajectory in batch.trajectories()]
        path = folder / f"{batch.number}.json"
        if path.exists() and json.loads(path.read_text()) != held:
            raise AssertionError(f"batch {batch.number} was {path.read_text()}, now it is {held}")
        part = path.with_suffix(".part")
        part.write_text(json.dumps(held))
        part.replace(path)
        return padded_tensors(batch, *arguments, **options)

    return note


def kill_before_new_lines(killed_at: Path, file_name: str) -> None:
    known = set(killed_at.read_text().split()) if killed_at.exists() else set[str]()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != file_name or frame.f_code.co_name in LEFT_OUT:
            return None
        if event == "line" and str(frame.f_lineno) not in known:
            with killed_at.open("a") as file:
                file.write(f"{frame.f_lineno}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def start(module: ModuleType, killed_at: Path | None, log: Path) -> bool:
    """One life; whether it came to its end."""
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        if killed_at is not None:
            assert module.__file__ is not None
            kill_before_new_lines(killed_at, module.__file__)
        try:
            module.main()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("the trainer failed")
    return not os.WIFSIGNALED(status)


def lines_of(module: ModuleType) -> list[int]:
    """Lines that are executed, of every function of the module that counts."""
    functions = [f for f in vars(module).values() if isinstance(f, FunctionType) and f.__module__ == "grpo"]
    return sorted(
        {
            line
            for function in functions
            if function.__name__ not in LEFT_OUT
            for _, _, line in function.__code__.co_lines()
            if line is not None and line != function.__code__.co_firstlineno
        }
    )


def main() -> None:
    example, folder, is_killed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "kills"
    sys.argv = [str(example), *sys.argv[4:]]
    torch.set_num_threads(1)
    module = load(example)
    module.AutoModelForCausalLM.from_pretrained(sys.argv[sys.argv.index("--model") + 1])
    (folder / "trained").mkdir(parents=True)
    module.__dict__["padded_tensors"] = noted(module.padded_tensors, folder / "trained")
    killed_at = folder / "killed-at"
    for _ in range(MAX_STARTS):
        if start(module, killed_at if is_killed else None, folder / "log"):
            killed = [int(line) for line in killed_at.read_text().split()] if is_killed else []
            print(json.dumps({"killed": sorted(killed), "lines": lines_of(module)}))
            return
    raise SystemExit("no end")


if __name__ == "__main__":
    main()
