#!/usr/bin/env bash
# GRPO with slime on RollStream's trajectories. Elsewhere, on any machines, tasks are produced and rolled out:
#
#     rollstream produce gsm8k.jsonl --run gsm8k --answer-after '####' --reward numeric --group-size 8 --pace
#     rollstream rollout-worker --model /models/qwen
#
# Here, in slime's folder on its machine: MODEL (Hugging Face) and MEGATRON (the same converted) are folders, MODEL_ARGS
# holds slime's arguments of the architecture (its scripts/models has them), KAFKA says where the broker is. Further
# arguments are further arguments of slime.
set -euo pipefail

cat >rollstream.yaml <<YAML
rollstream:
  bootstrap: ${KAFKA:-localhost:9092}
  stream: {max_staleness: 4, drop_zero_variance: true}
YAML

read -r -a model_args <<<"${MODEL_ARGS:-}"
exec "${PYTHON:-python}" train.py \
    "${model_args[@]}" \
    --hf-checkpoint "${MODEL:?folder of the model}" \
    --ref-load "${MEGATRON:?folder of the converted model}" \
    --rollout-function-path rollstream.trainers.adapters.slime.generate_rollout \
    --data-source-path rollstream.trainers.adapters.slime.StreamDataSource \
    --custom-reward-post-process-path rollstream.trainers.adapters.slime.post_process_rewards \
    --custom-config-path rollstream.yaml \
    --debug-train-only --use-rollout-logprobs \
    --advantage-estimator grpo \
    --num-rollout 1000 --rollout-batch-size 32 --n-samples-per-prompt 8 --global-batch-size 256 \
    --rollout-temperature 1.0 \
    --save "${CHECKPOINTS:-checkpoints}" --load "${CHECKPOINTS:-checkpoints}" --save-interval 1 \
    --save-hf "${POLICIES:-policies}/{rollout_id}" \
    "$@"
