"""What verl's and TRL's own functions make of rewards: JSON in at stdin, JSON out in the last line.

Exit status 77: they cannot be imported here.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingImports=false, reportPrivateUsage=false
# (both are annotated in part only; TRL's scoring is a private method)

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

Groups = list[list[float]]


def of_verl(rewards: Groups, tokens: list[list[int]]) -> dict[str, Groups]:
    """One row per trajectory, the reward on its last token, as verl lays them out."""
    import numpy as np
    import torch

    sys.modules.setdefault("orjson", ModuleType("orjson"))  # its experiment loggers ask for it on import
    from verl.trainer.ppo import core_algos

    lengths = [length for group in tokens for length in group]
    scores = torch.zeros(len(lengths), max(lengths))
    mask = torch.zeros_like(scores)
    for row, (length, reward) in enumerate(zip(lengths, (r for group in rewards for r in group), strict=True)):
        mask[row, :length] = 1
        scores[row, length - 1] = reward
    index = np.array([place for place, group in enumerate(rewards) for _ in group])

    def per_group(function: Any, **options: Any) -> Groups:
        first_token = function(scores.clone(), mask, index, **options)[0][:, 0].tolist()
        return [[first_token[row] for row in np.flatnonzero(index == place)] for place in range(len(rewards))]

    return {
        "grpo": per_group(core_algos.compute_grpo_outcome_advantage),
        "dr_grpo": per_group(core_algos.compute_grpo_outcome_advantage, norm_adv_by_std_in_grpo=False),
        "rloo": per_group(core_algos.compute_rloo_outcome_advantage),
        "reinforce_plus_plus_baseline": per_group(core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage),
    }


def known_rewards(rewards: list[float], **_: Any) -> list[float]:
    return rewards


def of_trl(rewards: Groups) -> dict[str, Groups]:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from accelerate import PartialState
    from trl.experimental.async_grpo import async_rollout_worker as trl

    PartialState()  # TRL's logger wants to know its rank
    worker: Any = SimpleNamespace(_env_reward_types=[], _provides_rollout_reward=False, reward_func_names=["reward"])
    advantages: Groups = []
    for group in rewards:
        worker.reward_funcs = [partial(known_rewards, group)]
        row = trl.TrainingSequence([1, 2], [0, 1], [0.0, -0.5], rollout_id="0")
        size = len(group)
        rolled_out = trl.RolloutGroup(
            prompts=[[]] * size,
            reward_kwargs={},
            completions=[[]] * size,
            completions_ids=[[2]] * size,
            completions_sequences=[[row]] * size,
            tool_call_counts=[0] * size,
            tool_failure_counts=[0] * size,
            model_version=0,
            group_id=0,
            env_rewards=[None] * size,
            rollout_rewards=[None] * size,
        )
        scored = asyncio.run(trl._AsyncRolloutLoop._score_group(worker, rolled_out))
        advantages.append([sample.advantage for sample in scored])
    return {"grpo_trl_async": advantages}


def main() -> None:
    job = json.load(sys.stdin)
    try:
        peers = of_verl(job["rewards"], job["tokens"]) | of_trl(job["rewards"])
    except ImportError as error:
        print(f"the trainers' libraries are not installed: {error}", file=sys.stderr)
        raise SystemExit(77) from error
    print(json.dumps(peers))


if __name__ == "__main__":
    main()
