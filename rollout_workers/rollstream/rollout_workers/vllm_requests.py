"""One turn as vLLM is asked for it, and what it answers."""
# vLLM exports much as unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from rollstream.rollout_workers.engine import AS_IT_CAME, Generation, PolicyRef, checked_generation, read_spans
from rollstream.schemas.errors import EngineError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import VersionSpan

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput


def vllm_sampling(sampling: SamplingParams, max_tokens: int, stop_token_ids: Sequence[int]) -> Any:
    """The parameters of vLLM for one turn. No seed: on a CPU it can end the engine."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_output(output: RequestOutput, request_id: str) -> Generation:
    """A finished output as a generation.

    Raises:
        EngineError: logprobs or versions are missing, or the request ended in an unknown way.
    """
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    entries = cast("Sequence[Mapping[int, Any]]", completion.logprobs or [])
    logprobs = [float(entry[token].logprob) for entry, token in zip(entries, ids, strict=False)]
    spans = read_spans([(span.version, span.start, span.end) for span in completion.weight_versions or []])
    return checked_generation(ids, logprobs, completion.finish_reason, spans, request_id)


def drawn_by(policy: PolicyRef, generation: Generation) -> Generation:
    """A generation on an adapter: vLLM labels its tokens with the model below, which never changes.

    Raises:
        EngineError: the model below has changed: somebody else changes this engine's weights.
    """
    if any((span.lineage, span.version) != (AS_IT_CAME.lineage, AS_IT_CAME.version) for span in generation.spans):
        raise EngineError(f"the model below the adapter of policy {policy} was exchanged: {generation.spans}")
    count = len(generation.ids)
    return replace(generation, spans=[VersionSpan(0, count, policy.version, policy.lineage)] if count else [])
