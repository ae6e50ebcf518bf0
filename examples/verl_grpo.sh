#!/usr/bin/env bash
# GRPO with verl's V1 trainer on RollStream's rollout workers. On machines with the model and tools, anywhere:
#
#     rollstream topics apply --bootstrap kafka:9092
#     rollstream rollout-worker --bootstrap kafka:9092 --model /models/qwen
#
# Here, on verl's machine: KAFKA, MODEL and DATA (a Parquet file in verl's format) say where things are; further arguments
# are further overrides of verl's configuration.
set -euo pipefail

exec python -m verl.trainer.main_ppo \
    trainer.use_v1=True \
    trainer.v1.trainer_mode=colocate_async \
    +actor_rollout_ref.rollout.agent.agent_loop_manager_class=rollstream.trainers.adapters.verl.RollStreamManager \
    +rollstream.kafka.bootstrap="${KAFKA:-localhost:9092}" \
    +rollstream.reward=numeric \
    +rollstream.limits.max_turns=4 \
    data.train_files="${DATA:?Parquet file of prompts}" \
    data.val_files="${DATA}" \
    data.return_raw_chat=True \
    data.train_batch_size=64 \
    data.max_prompt_length=1024 \
    data.max_response_length=4096 \
    actor_rollout_ref.model.path="${MODEL:?folder of the model}" \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.calculate_log_probs=True \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    'actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]' \
    algorithm.adv_estimator=grpo \
    trainer.save_freq=1 \
    trainer.max_actor_ckpt_to_keep=3 \
    trainer.default_local_dir="${CHECKPOINTS:-checkpoints}" \
    "$@"
