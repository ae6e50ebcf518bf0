"""What verl's V1 trainer does around its agent loop manager, with verl's own parts, in a process of its own.

Registers prompts in a real TransferQueue, dispatches them through `RollStreamManager`, samples with verl's own replay
buffer (which evicts failures and asks for new prompts), and computes verl's own GRPO advantages on the rows. Prints one
line of JSON.
"""
# ray, torch, verl and the TransferQueue are only partly typed, and verl is no dependency:
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import NonTensorData, NonTensorStack, TensorDict

from rollstream.trainers.adapters.verl import RollStreamManager

GLOBAL_STEPS = 4


def verls(name: str, path: str) -> Any:
    """A module of verl without its package, which imports what only GPUs need."""
    sys.modules.setdefault("orjson", ModuleType("orjson"))  # its experiment loggers ask for it on import
    import verl

    spec = importlib.util.spec_from_file_location(name, Path(verl.__file__).parent / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def configuration(bootstrap: str, prefix: str, checkpoints: str) -> Any:
    rollout = {
        "n": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": -1,
        "response_length": 32,
        "val_kwargs": {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1},
    }
    return OmegaConf.create(
        {
            "actor_rollout_ref": {"rollout": rollout},
            "trainer": {"default_local_dir": checkpoints},
            "rollstream": {"kafka": {"bootstrap": bootstrap, "prefix": prefix}, "reward": "numeric"},
        }
    )


def dispatch(manager: RollStreamManager, *uids: str) -> None:
    """As verl's trainer submits a batch."""
    tags = [{"is_prompt": True, "status": "pending", "global_steps": GLOBAL_STEPS} for _ in uids]
    tq.kv_batch_put(keys=list(uids), partition_id="train", tags=tags)
    batch = TensorDict(
        {
            "uid": NonTensorStack(*uids),
            "raw_prompt": NonTensorStack(*([{"role": "user", "content": f"What is {uid}?"}] for uid in uids)),
            "reward_model": NonTensorStack(*({"style": "rule", "ground_truth": uid} for uid in uids)),
            "data_source": NonTensorStack(*("letters" for _ in uids)),
            "index": torch.arange(len(uids)),
            "dummy_tensor": torch.zeros(len(uids), 1, dtype=torch.uint8),
        },
        batch_size=[len(uids)],
    )
    batch["global_steps"] = NonTensorData(GLOBAL_STEPS, batch_size=[len(uids)])
    manager.generate_sequences(batch)


def rows_of(keys: list[str]) -> dict[str, dict[str, Any]]:
    names = ["prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask"]
    names += ["rollout_log_probs", "rm_scores"]
    data = tq.kv_batch_get(keys=keys, partition_id="train")
    rows = {key: {name: list(data[name].unbind())[place].tolist() for name in names} for place, key in enumerate(keys)}
    for name in ("uid", "raw_prompt", "reward_model", "data_source", "extra_fields"):
        for key, value in zip(keys, data[name].tolist(), strict=True):
            rows[key][name] = value
    return rows


def grpo_advantages(keys: list[str]) -> list[float]:
    """As `PPOTrainer._compute_advantage` computes them; the value at each row's first sampled token."""
    utils = verls("verl_v1_utils", "trainer/ppo/v1/utils.py")
    from verl.protocol import DataProto

    data = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=["uid", "response_mask", "rm_scores"])
    proto = DataProto(batch=data.to_padded_tensor())
    proto.non_tensor_batch["uid"] = np.array(proto.batch.pop("uid").tolist(), dtype=object)
    proto.batch["token_level_rewards"] = proto.batch["rm_scores"]
    done = utils.compute_advantage_for_multi_trajectories(proto, batch_keys=keys, adv_estimator="grpo")
    first = done.batch["response_mask"].argmax(dim=1)
    return [float(row[place]) for row, place in zip(done.batch["advantages"], first, strict=True)]


def main(bootstrap: str, prefix: str, checkpoints: str) -> None:
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    tq.init()
    manager = RollStreamManager.create(config=configuration(bootstrap, prefix, checkpoints), llm_client=object())
    refills: list[int] = []

    def refill(count: int) -> None:
        refills.append(count)
        dispatch(manager, *(f"refill{len(refills)}{place}" for place in range(count)))

    buffer = verls("verl_replay_buffer", "trainer/ppo/v1/replay_buffer.py").ReplayBufferAsync(
        trainer_mode="separate_async",
        trainer_config=None,
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=None,
        poll_interval=0.1,
        refill_fn=refill,
    )
    dispatch(manager, "good", "bad", "forked")
    batch, metrics = buffer.sample(global_steps=GLOBAL_STEPS, partition_id="train", batch_size=3)
    keys = sorted(batch.keys)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    report = {
        "keys": keys,
        "tags": tags,
        "rows": rows_of(keys),
        "advantages": dict(zip(keys, grpo_advantages(keys), strict=True)),
        "refills": refills,
        "evicted": metrics["training/rollout_failure/evicted_samples"],
        "left": tq.kv_list("train"),
    }
    manager.close()
    tq.close()
    ray.shutdown()
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
