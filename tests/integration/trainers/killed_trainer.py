"""A trainer that kills itself at a given line, again and again, each time restarted from its checkpoint.

    python killed_trainer.py SETTINGS.json

Prints one JSON object: what was trained on, in order, according to the last checkpoint, and how it came about. It forks
before it connects to anything, so that a restart costs no imports.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from rollstream.trainers import AsyncTrajectoryStream, TrainingBatch, TrajectoryStream
from rollstream.transport.settings import KafkaSettings

MAX_STARTS = 400
LIBRARY = str(Path("rollstream", "trainers"))


@dataclass
class Job:
    """What the test asks for; ``kills`` are numbers of lines executed since a start, one per process."""

    kafka: KafkaSettings
    folder: Path
    kills: list[int]
    lines_of: str
    """``loop``: lines of the training loop below count; ``library``: those of the trainers package."""
    is_async: bool
    groups_per_batch: int
    seed: int
    rolls_back: bool
    max_staleness: int | None


class Model:
    """What a step changes, and its one file: model and stream together, replaced in one step."""

    def __init__(self, job: Job) -> None:
        self.folder = job.folder
        self.trained: list[str] = []
        self.version = 0

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.json"))

    def load(self) -> dict[str, Any] | None:
        if not self.checkpoints():
            return None
        saved = json.loads(self.checkpoints()[-1].read_text())
        self.trained, self.version = saved["trained"], saved["version"]
        return saved["stream"]

    def step(self, batch: TrainingBatch) -> None:
        for group in batch.groups:
            for trajectory in group.trajectories:
                self.trained.append(trajectory.worker_id)
        self.version += 1

    def weights(self) -> Path:
        directory = self.folder / f"policy-{self.version}-{os.getpid()}"
        directory.mkdir()
        (directory / "weights").write_bytes(b"weights")
        return directory

    def save(self, stream: dict[str, Any]) -> None:
        text = json.dumps({"trained": self.trained, "version": self.version, "stream": stream})
        part = self.folder / "checkpoint.part"
        with part.open("w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            file.write(text[len(text) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / f"checkpoint-{self.version:05d}.json")


def train(job: Job, model: Model) -> None:
    options = stream_options(job)
    stream = TrajectoryStream(job.kafka, **options)
    with stream:
        saved = model.load()
        if saved is not None:
            stream.load_state_dict(saved)
        for batch in stream:
            model.step(batch)
            weights = model.weights()
            stream.publish_policy(model.version, weights)
            state = stream.state_dict()
            model.save(state)
            stream.commit()


async def train_async(job: Job, model: Model) -> None:
    options = stream_options(job)
    stream = AsyncTrajectoryStream(job.kafka, **options)
    async with stream:
        saved = model.load()
        if saved is not None:
            stream.load_state_dict(saved)
        async for batch in stream:
            model.step(batch)
            weights = model.weights()
            await stream.publish_policy(model.version, weights)
            state = stream.state_dict()
            model.save(state)
            await stream.commit()


def stream_options(job: Job) -> dict[str, Any]:
    return {"groups_per_batch": job.groups_per_batch, "max_staleness": job.max_staleness, "timeout_s": 30.0}


def kill_at_line(number: int, is_counted: Callable[[FrameType], bool]) -> None:
    """SIGKILL before the given line; every thread counts."""
    left = number

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not is_counted(frame):
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    threading.settrace(trace)


def run(job: Job, number: int | None) -> None:
    loop_code = {train.__code__, train_async.__code__, Model.step.__code__, Model.save.__code__}
    if number is not None and job.lines_of == "loop":
        kill_at_line(number, lambda frame: frame.f_code in loop_code)
    elif number is not None:
        kill_at_line(number, lambda frame: LIBRARY in frame.f_code.co_filename)
    model = Model(job)
    if job.is_async:
        asyncio.run(train_async(job, model))
    else:
        train(job, model)


def start(job: Job, number: int | None) -> bool:
    """One process; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            run(job, number)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit("the trainer failed")
    return not os.WIFSIGNALED(status)


def roll_back(job: Job, random: Random) -> bool:
    """The newest checkpoints are lost; an older one has to do."""
    checkpoints = Model(job).checkpoints()
    if not job.rolls_back or len(checkpoints) < 3 or random.random() > 0.3:
        return False
    for path in checkpoints[-random.randint(1, 2) :]:
        path.unlink()
    return True


def main(settings: dict[str, Any]) -> dict[str, Any]:
    kafka = KafkaSettings.model_validate(settings.pop("kafka"))
    job = Job(kafka=kafka, folder=Path(settings.pop("folder")), **settings)
    random = Random(job.seed)
    numbers: Iterator[int] = iter(job.kills)
    rolled_back = 0
    for killed in range(MAX_STARTS):
        if start(job, next(numbers, None)):
            model = Model(job)
            stream = model.load() or {}
            return {
                "trained": model.trained,
                "version": model.version,
                "killed": killed,
                "rolled_back": rolled_back,
                "batches_held": stream["counts"]["batches_held"],
            }
        rolled_back += roll_back(job, random)
    raise SystemExit("no end")


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
