"""The ranks of a data-parallel trainer, real processes under gloo, in one of the scenarios below.

    python dealt_ranks.py SETTINGS.json

Each rank writes `rank-N.json` in the folder of the settings. They are forked before anything is connected, so that
three ranks cost one import of torch.
"""
# pyright: reportUnknownMemberType=false
# (torch.distributed is annotated in part only)

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from rollstream.trainers import StreamStats, TrajectoryStream
from rollstream.trainers.torch_data import DealtStream
from rollstream.transport.settings import KafkaSettings

WORLD_SIZE = 3


class Rank:
    """One rank and what it has to say."""

    def __init__(self, job: dict[str, Any], rank: int) -> None:
        self.job, self.rank, self.folder = job, rank, Path(job["folder"])
        self.said: dict[str, Any] = {}
        self.stack = ExitStack()

    def join(self) -> DealtStream:
        rendezvous = self.folder / f"rendezvous-{self.job['scenario']}"
        distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=self.rank, world_size=WORLD_SIZE,
            timeout=timedelta(seconds=80),
        )  # fmt: skip
        group: Any = None
        if "group_timeout_s" in self.job:
            group = distributed.new_group(timeout=timedelta(seconds=self.job["group_timeout_s"]))
        stream = None
        if self.rank in self.job.get("readers", [0]):
            options = self.job.get("options", {})
            kafka = KafkaSettings.model_validate(self.job["kafka"])
            stream = TrajectoryStream(kafka, groups_per_batch=4, max_staleness=None, **options)
            self.stack.enter_context(stream)
        return self.stack.enter_context(DealtStream(stream, advantages="grpo", group=group, heartbeat_s=0.2))

    def note(self, error: Exception) -> None:
        self.said |= {"error": type(error).__name__, "message": str(error), "notes": getattr(error, "__notes__", [])}

    def run(self) -> None:
        with self.stack:
            try:
                getattr(self, self.job["scenario"])()
            except Exception as error:
                self.note(error)
        (self.folder / f"rank-{self.rank}.json").write_text(json.dumps(self.said))

    def trains(self) -> None:
        """Every step is checkpointed by rank 0 and weights come from all ranks; stops dead before the last."""
        stream = self.join()
        checkpoint = self.folder / "checkpoint.json"
        if checkpoint.exists():
            stream.load_state_dict(json.loads(checkpoint.read_text()) if self.rank == 0 else None)
        steps: list[Any] = []
        self.said["steps"] = steps
        for version, share in enumerate(stream, start=self.job["first_version"]):
            trained = [t.worker_id for t in share.batch.trajectories()]
            own = [] if share.advantages is None else [len(a) for a in share.advantages]
            assert own == [len(g.trajectories) for g in share.batch.groups]
            steps.append({"number": share.batch.number, "trained": trained, "lengths": share.lengths})
            weights = self.folder / f"v{version}"
            weights.mkdir(exist_ok=True)
            (weights / f"shard-{self.rank}").write_bytes(b"weights")
            stream.publish_policy(version, weights)
            state = stream.state_dict()
            if self.rank == 0:
                checkpoint.write_text(json.dumps(state))
            self.said["state"] = state
            stream.commit()
            if len(steps) == self.job.get("dies_after"):
                (self.folder / f"rank-{self.rank}.json").write_text(json.dumps(self.said))
                distributed.barrier()
                os.kill(os.getpid(), signal.SIGKILL)
        self.said["pruned"] = stream.prune_policies(self.folder, keep=2)
        self.said["rolled_back_to"] = stream.roll_back(self.job["first_version"] + len(steps) - 2, root=self.folder)
        stats = stream.stats()
        assert isinstance(stats, StreamStats)
        self.said["batches"] = stats.batches

    def waits_in_vain(self) -> None:
        next(self.join())

    def loses_rank_0(self) -> None:
        """Rank 0 fails in its own step while the others already ask for the next batch."""
        stream = self.join()
        next(stream)
        if self.rank == 0:
            raise ArithmeticError("the loss is NaN")
        next(stream)

    def loses_rank_2(self) -> None:
        """Rank 2 is killed while rank 0 waits for a batch."""
        stream = self.join()
        if self.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        next(stream)

    def disagrees(self) -> None:
        stream = self.join()
        if self.rank == 1:
            stream.commit()
        else:
            next(stream)

    def has_readers(self) -> None:
        self.join()


def main(job: dict[str, Any]) -> None:
    children: list[int] = []
    for rank in range(WORLD_SIZE):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                Rank(job, rank).run()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    started = time.monotonic()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps({"codes": codes, "took_s": time.monotonic() - started}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
