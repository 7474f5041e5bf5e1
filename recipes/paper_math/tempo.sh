#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEMPO on the paper's mathematics questions, from the checkpoint of stage0.sh.
#   LABELED=dapo.parquet UNLABELED=aime.parquet VALIDATION=aime24.parquet,aime26.parquet \
#       ./tempo.sh olmo3-7b|qwen3-8b|qwen3-14b [more overrides]
set -euo pipefail

LABELED=${LABELED:?parquet file of D_L (DAPO-Math-17K)}
UNLABELED=${UNLABELED:?parquet file of D_U (AIME24, AIME25, BeyondAIME)}
VALIDATION=${VALIDATION:?parquet file to evaluate on; several: a,b,c}
STAGE0=${STAGE0:-runs/paper_math/${1:?model: olmo3-7b, qwen3-8b or qwen3-14b}/stage0}
OUT=${OUT:-runs/paper_math/$1/tempo}
NODES=${NODES:-1}
GPUS=${GPUS:-8}
ROUNDS=${ROUNDS:-200}

# prompts a round from each stream, prompts an update, GPUs a vLLM replica
case $1 in
    olmo3-7b | qwen3-8b) prompts=128 mini=64 parallel=1 ;;
    qwen3-14b) prompts=64 mini=32 parallel=2 ;;
    *) echo "unknown model '$1': olmo3-7b, qwen3-8b or qwen3-14b" >&2; exit 2 ;;
esac
shift
latest=$STAGE0/checkpoints/global_step_$(cat "$STAGE0/checkpoints/latest_checkpointed_iteration.txt")

tempo-verl train --run-dir "$OUT" method=tempo \
    hardware=fsdp \
    trainer.nnodes="$NODES" \
    trainer.n_gpus_per_node="$GPUS" \
    tempo.rounds="$ROUNDS" \
    tempo.labeled.files="'$LABELED'" \
    tempo.labeled.batch_size="$prompts" \
    tempo.unlabeled.files="'$UNLABELED'" \
    tempo.unlabeled.batch_size="$prompts" \
    tempo.calibration.mini_batch_size="$mini" \
    tempo.calibration.lr=1e-6 \
    data.val_files="[$VALIDATION]" \
    data.max_prompt_length=2048 \
    data.max_response_length=16384 \
    data.filter_overlong_prompts=true \
    actor_rollout_ref.model.path="'$latest/actor/huggingface'" \
    critic.model.path="'$latest/critic/huggingface'" \
    actor_rollout_ref.actor.policy_loss.loss_mode=gspo \
    actor_rollout_ref.actor.clip_ratio_low=3e-4 \
    actor_rollout_ref.actor.clip_ratio_high=5e-4 \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
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
