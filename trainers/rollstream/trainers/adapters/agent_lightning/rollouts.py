"""A trajectory as agent-lightning keeps it: a rollout, one ``model_request`` per generation, one ``reward``. Pure.

A generation's event looks like the answer of an OpenAI server that returns token ids: ``prompt_token_ids`` is all that
the model was shown, ``choices[0].token_ids`` what it sampled, ``choices[0].logprobs`` of exactly these tokens. Tokens
that tools put in are in the prompt of the next generation, where the reader's prefix merge finds them. Of generations
with equal prompts readers keep the last; those of one trajectory differ, as each continues the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rollstream.schemas.trajectories import Sample, Trajectory

ROLLOUT_ID = "rollout_id"
"""Key of ``extra`` under which a task says which of the server's rollouts it answers."""
TASK_FACTS = ("run_id", "group_id", "group_index", "group_size", "member_index", "data_source", "data_index")


def rollout_id(trajectory: Trajectory) -> str:
    """The rollout that it answers, or a new one by the trajectory's own id: the same whenever it is asked."""
    return str(trajectory.extra.get(ROLLOUT_ID, trajectory.trajectory_id))


def rollout(trajectory: Trajectory) -> dict[str, Any]:
    """``RolloutCreate``; creating it twice is harmless. ``input.data_id`` is the group."""
    return {
        "rollout_id": rollout_id(trajectory),
        "input": {"data_id": trajectory.group_id, **{name: getattr(trajectory, name) for name in TASK_FACTS}},
        "is_train": trajectory.is_train,
        "metadata": {
            "batch_idx": trajectory.group_index,
            "sample_idx_in_batch": trajectory.member_index,
            "trajectory_id": trajectory.trajectory_id,
            "policy_version_min": trajectory.policy_version_min,
            "policy_version_max": trajectory.policy_version_max,
        },
    }


def failure(trajectory: Trajectory) -> str | None:
    """Why the rollout ends as failed; None: it succeeded. Without a reward it fails: a trainer would fill in 0."""
    if trajectory.status == "failed":
        error = trajectory.error
        return f"{error.type}: {error.message}" if error is not None else trajectory.stop_reason
    if not any(sample.is_trainable for sample in trajectory.samples):
        return "no trainable sample"
    return "not scored" if trajectory.reward is None else None


def events(trajectory: Trajectory) -> list[dict[str, Any]]:
    """``EventCreate`` for each generation in order, and for the reward if there is one."""
    requests = [
        {"event_type": "model_request", "data": _model_request(trajectory, sample, start, end)}
        for sample in trajectory.samples
        if sample.is_trainable
        for start, end in generations(sample)
    ]
    if trajectory.reward is None:
        return requests
    reward = {"value": float(trajectory.reward), "source": "agent", "parts": dict(trajectory.rewards)}
    return [*requests, {"event_type": "reward", "data": reward}]


def generations(sample: Sample) -> Iterator[tuple[int, int]]:
    """Half-open spans of ``response_ids``: sampled tokens without a gap, cut where a turn begins."""
    starts = {turn.start for turn in sample.turns}
    start: int | None = None
    for place, sampled in enumerate([*sample.response_mask.tolist(), 0]):
        if start is not None and (not sampled or place in starts):
            yield start, place
            start = None
        if sampled and start is None:
            start = place


def _model_request(trajectory: Trajectory, sample: Sample, start: int, end: int) -> dict[str, Any]:
    version = int(sample.response_versions[start])
    ids = sample.response_ids[start:end].tolist()
    prompt = [*sample.prompt_ids.tolist(), *sample.response_ids[:start].tolist()]
    finish_reason = next((turn.finish_reason for turn in sample.turns if turn.end == end), "stop")
    content = [
        {"token": f"token_id:{token}", "logprob": logprob}
        for token, logprob in zip(ids, sample.response_logprobs[start:end].tolist(), strict=True)
    ]
    choice = {"index": 0, "token_ids": ids, "finish_reason": finish_reason, "logprobs": {"content": content}}
    sampling = trajectory.sampling
    return {
        "model": trajectory.model,
        "model_version": version,
        "request": {
            "model": trajectory.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        },
        "response": {
            "object": "chat.completion",
            "model": trajectory.model,
            "prompt_token_ids": prompt,
            "choices": [choice],
            "usage": {
                "prompt_tokens": len(prompt),
                "completion_tokens": len(ids),
                "total_tokens": len(prompt) + len(ids),
            },
        },
        "server": {"model": trajectory.model, "version": version},
        "http_status": 200,
        "status": "ok",
        "finish_reason": finish_reason,
    }
