"""verl's real configuration under the overrides of `examples/verl_grpo.sh`, and what the manager reads from it."""
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false
# (verl and hydra are no dependencies)

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import msgspec
from hydra import compose, initialize_config_dir

from rollstream.trainers.adapters.verl.options import plain_config, read_options, read_rollout_config

VALUES = {"KAFKA": "kafka:9092", "DATA": "data.parquet", "MODEL": "model", "CHECKPOINTS": "checkpoints"}


def overrides(script: Path) -> list[str]:
    _, command = script.read_text(encoding="utf-8").split("verl.trainer.main_ppo", 1)
    filled = re.sub(r"\$\{(\w+)[^}]*\}", lambda match: VALUES[match[1]], command.replace("\\\n", " "))
    return [word for word in shlex.split(filled) if "=" in word]


def main(script: str) -> None:
    spec = importlib.util.find_spec("verl")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    config_dir = Path(spec.submodule_search_locations[0]) / "trainer" / "config"
    with initialize_config_dir(str(config_dir), version_base=None):
        config = compose("ppo_trainer", overrides=overrides(Path(script)))
    plain = plain_config(config)
    options = read_options(plain)
    report = {
        "rollout": msgspec.to_builtins(read_rollout_config(plain)),
        "limits": msgspec.to_builtins(options.episode_limits(4096)),
        "bootstrap": options.kafka.bootstrap,
        "manager": config.actor_rollout_ref.rollout.agent.agent_loop_manager_class,
        "saves": list(config.actor_rollout_ref.actor.checkpoint.save_contents),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
