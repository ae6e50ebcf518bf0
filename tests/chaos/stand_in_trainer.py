"""A trainer that can be killed anywhere: ``stand_in_trainer.py FOLDER PUBLISH_EVERY``.

It learns nothing. Its ledger says which trajectories it has taken a step on, in order, and belongs to its checkpoint:
the checkpoint says how many bytes of it count, the rest was written by a step that a restored trainer has not taken.
When the file ``die-at`` names a step of its loop, it kills itself there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rollstream.schemas.codec import encode
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrajectoryStream

KEPT_POLICIES = 4


def fingerprint(trajectory: Trajectory) -> str:
    """The same for the same content."""
    return blake2b(encode(trajectory).value, digest_size=16).hexdigest()


class Checkpoint:
    """The checkpoint and the ledger that belongs to it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "checkpoint.json"
        self._ledger = folder / "ledger.jsonl"
        self.saved: dict[str, Any] | None = json.loads(self._path.read_text()) if self._path.exists() else None
        self._ledger.touch()
        os.truncate(self._ledger, self.saved["ledger_bytes"] if self.saved else 0)
        self._trained: int = self.saved["trained"] if self.saved else 0

    def note(self, trajectory: Trajectory) -> None:
        """One line of the ledger."""
        line = json.dumps({"trajectory_id": trajectory.trajectory_id, "fingerprint": fingerprint(trajectory)})
        with self._ledger.open("a") as ledger:
            ledger.write(line + "\n")
        self._trained += 1

    def save(self, stream: dict[str, Any], version: int, *, die_half_way: bool) -> None:
        """Write it whole, or not at all."""
        content = json.dumps(
            {
                "stream": stream,
                "version": version,
                "trained": self._trained,
                "ledger_bytes": self._ledger.stat().st_size,
            }
        )
        part = self._path.with_suffix(".part")
        part.write_text(content[: len(content) // 2] if die_half_way else content)
        if die_half_way:
            os.kill(os.getpid(), signal.SIGKILL)
        part.rename(self._path)


def main() -> None:
    """Train until killed or told to stop."""
    folder, publish_every = Path(sys.argv[1]), int(sys.argv[2])
    order = folder / "die-at"

    def told_to_die_at(step: str) -> bool:
        if not order.exists() or order.read_text() != step:
            return False
        order.unlink()
        return True

    def passed(step: str) -> None:
        if told_to_die_at(step):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint = Checkpoint(folder)
    version = 0
    with TrajectoryStream(
        os.environ["ROLLSTREAM_KAFKA__BOOTSTRAP"],
        prefix=os.environ["ROLLSTREAM_KAFKA__PREFIX"],
        groups_per_batch=1,
        pipeline_depth=int(os.environ["CHAOS_PIPELINE_DEPTH"]),
        max_staleness=None,
        min_members=1,
        needs_reward=False,
        timeout_s=600,
    ) as stream:
        if checkpoint.saved is not None:
            version = checkpoint.saved["version"]
            stream.load_state_dict(checkpoint.saved["stream"])
        for batch in stream:
            passed("polled")
            for trajectory in batch.trajectories():
                checkpoint.note(trajectory)
            passed("stepped")
            if publish_every and (batch.number + 1) % publish_every == 0:
                version += 1
                weights = folder / f"policy-{version}-{os.getpid()}"
                weights.mkdir()
                (weights / "weights").write_bytes(b"weights")
                stream.publish_policy(version, weights)
                for old in sorted(folder.glob("policy-*"), key=os.path.getmtime)[:-KEPT_POLICIES]:
                    shutil.rmtree(old, ignore_errors=True)
            passed("published")
            checkpoint.save(stream.state_dict(), version, die_half_way=told_to_die_at("half_a_checkpoint"))
            passed("checkpointed")
            stream.commit()
            passed("committed")


if __name__ == "__main__":
    main()
