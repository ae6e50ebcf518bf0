"""Runs inside vLLM's worker processes, which import it before they load the model.

What vLLM leaves open: on a CPU a tied output layer keeps a packed copy of the old weights after a reload.
"""
# A mixin of a class that only exists inside the worker:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportAttributeAccessIssue=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations


class WorkerExtension:
    """Methods for ``collective_rpc``."""

    def reload_tied_weights(self, weights_path: str) -> None:
        """Load the directory and pack the output layer anew."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        self.reload_weights(weights_path=weights_path)
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if head is not None and hasattr(head, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(head, remove_weight=False)
