"""A trainer around torchdata's loader that kills itself after some of its steps, each time restarted.

    python killed_loader.py SETTINGS.json

Prints one JSON object: what was trained on, in order, according to the last checkpoint.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (torchdata is annotated in part only)

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from torchdata.stateful_dataloader import StatefulDataLoader

from rollstream.trainers import TrajectoryStream
from rollstream.trainers.torch_data import TrajectoryDataset
from rollstream.transport.settings import KafkaSettings


def train(job: dict[str, Any], kill_at: tuple[int, str] | None) -> None:
    """``kill_at``: after so many steps of this process, before (``step``) or after (``save``) the checkpoint."""
    path = Path(job["folder"], "checkpoint.json")
    kafka = KafkaSettings.model_validate(job["kafka"])
    with TrajectoryStream(kafka, groups_per_batch=job["groups_per_batch"], max_staleness=None, timeout_s=30) as stream:
        loader = StatefulDataLoader(TrajectoryDataset(stream), batch_size=None, num_workers=0)
        trained: list[str] = []
        if path.exists():
            saved = json.loads(path.read_text())
            trained = saved["trained"]
            loader.load_state_dict(saved["loader"])
        for steps, batch in enumerate(loader, start=1):
            trained.extend(trajectory.worker_id for trajectory in batch.trajectories())
            if kill_at == (steps, "step"):
                os.kill(os.getpid(), signal.SIGKILL)
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"trained": trained, "loader": loader.state_dict()}))
            part.replace(path)
            if kill_at == (steps, "save"):
                os.kill(os.getpid(), signal.SIGKILL)


def start(job: dict[str, Any], kill_at: tuple[int, str] | None) -> None:
    """One process, forked before it connects to anything, so that a restart costs no imports."""
    child = os.fork()
    if child == 0:
        try:
            train(job, kill_at)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    expected = 0 if kill_at is None else -signal.SIGKILL
    if os.waitstatus_to_exitcode(status) != expected:
        raise SystemExit(f"the trainer ended with {os.waitstatus_to_exitcode(status)}, not {expected}")


def main(job: dict[str, Any]) -> None:
    for steps, point in job["kills"]:
        start(job, (steps, point))
    start(job, None)
    print(json.dumps(json.loads(Path(job["folder"], "checkpoint.json").read_text())["trained"]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
