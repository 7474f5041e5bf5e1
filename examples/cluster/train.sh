#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What every launcher in this folder trains: parameters and overrides are stated here alone.
# Launchers source it, so that a parameter that is missing ends them before anything is started; called, it trains on
# the Ray cluster of RAY_ADDRESS.
set -euo pipefail

LABELED=${LABELED:?parquet file of labelled questions}
UNLABELED=${UNLABELED:?parquet file of unlabelled questions}
OUT=${OUT:?folder of the run, on a file system that all nodes share}
NODES=${NODES:-1}
GPUS=${GPUS:-8}  # of each node
# START: folder of stage 0's run, whose actor and critic go on; MODEL instead: what stage 0 itself starts from
if [[ -n ${MODEL:-} ]]; then
    start=(actor_rollout_ref.model.path="'$MODEL'" critic.model.path="'$MODEL'")
else
    start=(tempo.start_from="'${START:?folder of the run to start from; or set MODEL for stage 0}'")
fi

# hardware is named because the node that this runs on may have no GPU itself
train=(
    tempo-verl train --run-dir "$OUT"
    hardware=fsdp
    trainer.nnodes="$NODES"
    trainer.n_gpus_per_node="$GPUS"
    tempo.rounds=100
    tempo.labeled.files="'$LABELED'"
    tempo.labeled.batch_size=64
    tempo.calibration.mini_batch_size=32
    tempo.unlabeled.files="'$UNLABELED'"
    tempo.unlabeled.batch_size=64
    actor_rollout_ref.actor.ppo_mini_batch_size=32
    actor_rollout_ref.actor.optim.lr=1e-6
    "${start[@]}"
    data.max_prompt_length=1024
    data.max_response_length=4096
    trainer.save_freq=20
    "$@"
)
[[ ${BASH_SOURCE[0]} != "$0" ]] || exec "${train[@]}"
