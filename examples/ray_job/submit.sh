#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# TEMPO as a job on a running Ray cluster, through verl's own launcher.
#   LABELED=... UNLABELED=... START=... OUT=... ./submit.sh [more overrides]
# All paths are seen from the cluster's nodes. hardware=fsdp is named because the head node may have no GPU itself.
set -euo pipefail

LABELED=${LABELED:?parquet file of labelled questions}
UNLABELED=${UNLABELED:?parquet file of unlabelled questions}
OUT=${OUT:?folder for checkpoints and metrics, on a file system that all nodes share}
DASHBOARD=${DASHBOARD:-http://127.0.0.1:8265}
NODES=${NODES:-1}
GPUS=${GPUS:-8}
# START: folder of stage 0's run, whose actor and critic go on; MODEL instead: what stage 0 itself starts from
if [[ -n ${MODEL:-} ]]; then
    start=(actor_rollout_ref.model.path="'$MODEL'" critic.model.path="'$MODEL'")
else
    start=(tempo.start_from="'${START:?folder of the run to start from; or set MODEL for stage 0}'")
fi

ray job submit --address "$DASHBOARD" -- \
    python -m verl.trainer.main_ppo --config-path pkg://tempo_verl.config --config-name tempo_trainer \
    hardware=fsdp \
    trainer.nnodes="$NODES" \
    trainer.n_gpus_per_node="$GPUS" \
    tempo.rounds=100 \
    tempo.labeled.files="'$LABELED'" \
    tempo.labeled.batch_size=32 \
    tempo.unlabeled.files="'$UNLABELED'" \
    tempo.unlabeled.batch_size=32 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    "${start[@]}" \
    data.max_prompt_length=1024 \
    data.max_response_length=4096 \
    trainer.default_local_dir="'$OUT/checkpoints'" \
    trainer.save_freq=20 \
    "trainer.logger=[console,file]" \
    +ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_ROOT="'$OUT'" \
    "$@"
