#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Stage 0 and TEMPO on your own questions, on one node of GPUs.
#   DATA=data MODEL=Qwen/Qwen3-8B-Base ./run.sh [more overrides for both stages]
# A second call resumes where the first one stopped.
set -euo pipefail

DATA=${DATA:?folder with labeled.parquet, unlabeled.parquet and heldout.parquet (see README.md)}
MODEL=${MODEL:?Hugging Face name or directory of the policy to start from}
OUT=${OUT:-runs/own_data}
GPUS=${GPUS:-8}
STAGE0_ROUNDS=${STAGE0_ROUNDS:-100}
TEMPO_ROUNDS=${TEMPO_ROUNDS:-100}

common=(
    hardware=fsdp
    trainer.n_gpus_per_node="$GPUS"
    tempo.labeled.files="'$DATA/labeled.parquet'"
    data.val_files="'$DATA/heldout.parquet'"
    data.max_prompt_length=1024
    data.max_response_length=4096
    # a round: 32 prompts x 8 responses from each stream, in updates of 16 prompts
    tempo.labeled.batch_size=32
    tempo.calibration.mini_batch_size=16
    actor_rollout_ref.actor.ppo_mini_batch_size=16
    actor_rollout_ref.rollout.n=8
    actor_rollout_ref.actor.optim.lr=1e-6
    # memory: lower these first when a GPU runs out
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384
    critic.ppo_max_token_len_per_gpu=16384
    actor_rollout_ref.actor.fsdp_config.param_offload=true
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=true
    critic.fsdp.param_offload=true
    critic.fsdp.optimizer_offload=true
    trainer.val_before_train=true
    trainer.test_freq=20
    trainer.save_freq=20
    trainer.max_actor_ckpt_to_keep=2
    trainer.max_critic_ckpt_to_keep=2
)

tempo-verl train --run-dir "$OUT/stage0" method=ppo "${common[@]}" \
    tempo.rounds="$STAGE0_ROUNDS" \
    tempo.calibration.lr=1e-5 \
    tempo.calibration.warmup_rounds=5 \
    actor_rollout_ref.model.path="'$MODEL'" \
    critic.model.path="'$MODEL'" \
    "$@"

tempo-verl train --run-dir "$OUT/tempo" method=tempo "${common[@]}" \
    tempo.rounds="$TEMPO_ROUNDS" \
    tempo.unlabeled.files="'$DATA/unlabeled.parquet'" \
    tempo.unlabeled.batch_size=32 \
    tempo.calibration.lr=1e-6 \
    tempo.start_from="'$OUT/stage0'" \
    "$@"
