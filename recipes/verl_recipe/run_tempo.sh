#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One TEMPO run on the Ray cluster that is here, or on this machine: verl's launcher with the plugin's configuration.
#   LABELED=labeled.parquet MODEL=Qwen/Qwen3-8B-Base OUT=runs/stage0 bash run_tempo.sh method=ppo
#   LABELED=labeled.parquet UNLABELED=unlabeled.parquet START=runs/stage0 OUT=runs/tempo bash run_tempo.sh
# Further arguments are Hydra overrides.
set -euo pipefail

LABELED=${LABELED:?parquet file of labelled questions}
OUT=${OUT:?folder for checkpoints}
# what pip installs: the package, or a checkout, as /path/to/tempo-verl[vllm,fsdp,math]
TEMPO_VERL=${TEMPO_VERL:-tempo-verl[vllm,fsdp,math]}
# START: folder of stage 0's run; MODEL instead: what stage 0 itself starts from
if [[ -n ${MODEL:-} ]]; then
    start=(actor_rollout_ref.model.path="'$MODEL'" critic.model.path="'$MODEL'")
else
    start=(tempo.start_from="'${START:?OUT of stage 0; or set MODEL for stage 0}'")
fi

pip install "$TEMPO_VERL"

python -m verl.trainer.main_ppo --config-path pkg://tempo_verl.config --config-name tempo_trainer \
    hardware=fsdp \
    trainer.nnodes="${NODES:-1}" \
    trainer.n_gpus_per_node="${GPUS:-8}" \
    tempo.rounds="${ROUNDS:-100}" \
    tempo.labeled.files="'$LABELED'" \
    ${UNLABELED:+tempo.unlabeled.files="'$UNLABELED'"} \
    "${start[@]}" \
    trainer.default_local_dir="'$OUT/checkpoints'" \
    trainer.save_freq=20 \
    "$@"
