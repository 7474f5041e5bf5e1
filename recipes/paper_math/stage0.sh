#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Stage 0 of the paper's mathematics experiments: PPO with a value critic on D_L.
#   LABELED=dapo.parquet VALIDATION=aime.parquet MODEL=... ./stage0.sh olmo3-7b|qwen3-8b|qwen3-14b [more overrides]
set -euo pipefail

LABELED=${LABELED:?parquet file of D_L (DAPO-Math-17K)}
VALIDATION=${VALIDATION:?parquet file to evaluate on; several: a,b,c}
MODEL=${MODEL:?Hugging Face name or directory of the base model}
OUT=${OUT:-runs/paper_math/${1:?model: olmo3-7b, qwen3-8b or qwen3-14b}/stage0}
NODES=${NODES:-1}
GPUS=${GPUS:-8}
ROUNDS=${ROUNDS:-200}

# prompts a round, prompts an update, GPUs a vLLM replica
case ${1:-} in
    olmo3-7b | qwen3-8b) prompts=256 mini=64 parallel=1 ;;
    qwen3-14b) prompts=128 mini=32 parallel=2 ;;
    *) echo "unknown model '${1:-}': olmo3-7b, qwen3-8b or qwen3-14b" >&2; exit 2 ;;
esac
shift

tempo-verl train --run-dir "$OUT" method=ppo \
    hardware=fsdp \
    trainer.nnodes="$NODES" \
    trainer.n_gpus_per_node="$GPUS" \
    tempo.rounds="$ROUNDS" \
    tempo.labeled.files="'$LABELED'" \
    tempo.labeled.batch_size="$prompts" \
    tempo.calibration.mini_batch_size="$mini" \
    tempo.calibration.lr=1e-6 \
    tempo.calibration.warmup_rounds=10 \
    data.val_files="[$VALIDATION]" \
    data.max_prompt_length=2048 \
    data.max_response_length=16384 \
    data.filter_overlong_prompts=true \
    actor_rollout_ref.model.path="'$MODEL'" \
    critic.model.path="'$MODEL'" \
    actor_rollout_ref.actor.ppo_mini_batch_size="$mini" \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=20480 \
    actor_rollout_ref.actor.fsdp_config.param_offload=true \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=true \
    critic.ppo_max_token_len_per_gpu=20480 \
    critic.fsdp.param_offload=true \
    critic.fsdp.optimizer_offload=true \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.max_model_len=18432 \
    actor_rollout_ref.rollout.tensor_model_parallel_size="$parallel" \
    actor_rollout_ref.rollout.val_kwargs.n=16 \
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0 \
    actor_rollout_ref.rollout.val_kwargs.top_p=1.0 \
    trainer.val_before_train=true \
    trainer.test_freq=20 \
    trainer.save_freq=20 \
    trainer.max_actor_ckpt_to_keep=2 \
    trainer.max_critic_ckpt_to_keep=2 \
    "$@"
