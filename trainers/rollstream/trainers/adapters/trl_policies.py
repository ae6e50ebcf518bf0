"""The weight transfer of TRL's ``AsyncGRPOTrainer``: weights become a directory and a published policy version.

Duty: after each of TRL's syncs the weights are in a directory of their own, announced to the workers, and policies that
nobody needs are gone. Crash: a directory without a manifest is left, which nobody was told of; it may be removed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.trl_rollouts import TrlConnection
from rollstream.transport.policy_files import local_path


class TrlPolicies:
    """TRL's ``WeightTransferProtocol``: weights become a directory and a published policy version.

    The version is the number of optimizer steps done. Called on TRL's main process.
    """

    def __init__(self, connection: TrlConnection, directory: Path) -> None:
        self._connection = connection
        self._directory = directory
        self.model: Any = None
        self.processing_class: Any = None
        self.step = 0

    def init_weight_transfer(self) -> None:
        """Called by TRL before its first sync."""
        if self.model is None:
            raise SettingsError("pass TrlStream.callback to the trainer too: callbacks=[source.callback]")
        self._connection.open()

    def pause(self) -> None:
        """Nothing to pause: workers change policies between two turns by themselves."""

    def send_weights(self, iterator: Iterator[tuple[str, Any]]) -> None:
        """Save the parameters that TRL hands over (adapters merged) and publish them; returns after the broker's ack.

        Raises:
            PolicyFilesError: the disk is full; nothing is announced.
            TransientError: the broker did not acknowledge.
        """
        weights = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in iterator}
        if self._is_announced_by_restore():
            return
        directory = self._directory / f"v{self.step}-{time.time_ns()}"
        directory.mkdir(parents=True)
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        model.save_pretrained(directory, state_dict=weights)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(directory)
        stream, store = self._connection.stream, self._connection.policy_store
        stream.publish_policy(self.step, directory)
        if store is not None:
            shutil.rmtree(directory)
        stream.prune_policies(store or self._directory)

    def resume(self) -> None:
        """Nothing was paused."""

    def destroy(self) -> None:
        """Called by TRL when training ends."""
        self._connection.close()

    def _is_announced_by_restore(self) -> bool:
        """Whether the restored stream announces this very version itself, as its files are still there."""
        restored = self._connection.restored
        if restored is None or restored["policy"] is None or restored["version"] != self.step:
            return False
        directory = local_path(restored["policy"]["uri"])
        return directory is None or directory.is_dir()
