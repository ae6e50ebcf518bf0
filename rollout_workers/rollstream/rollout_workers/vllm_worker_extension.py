"""Runs inside vLLM's worker processes, which import it before they load the model.

Two things vLLM leaves open: its processes outlive a rollout worker that is killed, memory and all; and on a CPU a tied
output layer keeps a packed copy of the old weights after a reload.
"""
# A mixin of a class that only exists inside the worker:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportAttributeAccessIssue=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import logging
import os
import select
import signal
import threading

logger = logging.getLogger(__name__)

OWNER_VARIABLE = "_VLLM_WORKER_OWNER"
"""Process id of the rollout worker; set by it, inherited by everything vLLM starts."""


class WorkerExtension:
    """Methods for ``collective_rpc``."""

    def reload_tied_weights(self, weights_path: str) -> None:
        """Load the directory and pack the output layer anew."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        self.reload_weights(weights_path=weights_path)
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if head is not None and hasattr(head, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def end_with_owner(owner_pid: int, engine_pid: int) -> None:
    """Wait for the rollout worker's end, then kill vLLM's engine process, if that is another one, and this one."""
    try:
        select.select([os.pidfd_open(owner_pid)], [], [])
    except ProcessLookupError:
        logger.warning("the rollout worker %d has already ended", owner_pid)
    if engine_pid != owner_pid and os.getppid() == engine_pid:
        os.kill(engine_pid, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_owner() -> None:
    owner_pid = int(os.environ.get(OWNER_VARIABLE, "0"))
    if owner_pid and owner_pid != os.getpid():
        arguments = (owner_pid, os.getppid())
        threading.Thread(target=end_with_owner, args=arguments, name="end-with-owner", daemon=True).start()


_watch_owner()
