#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One stage of a recipe; a second call resumes it. stage0 comes first, every other stage starts from its checkpoint.
#   DATA=data ./run.sh qwen3_8b_math stage0 [Hydra overrides]
#   DATA=data ./run.sh qwen3_8b_math tempo [Hydra overrides]
set -euo pipefail

stages="stage0 tempo frozen_critic ttrl empo random_reward ppo grpo oracle official"
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=${1:-} stage=${2:-}
if [[ ! -f $recipes/$recipe/settings.sh || " $stages " != *" ${stage:-none} "* ]]; then
    echo "usage: run.sh RECIPE STAGE [Hydra overrides];" \
        "RECIPE: $(cd "$recipes" && dirname */settings.sh | xargs); STAGE: $stages" >&2
    exit 2
fi
shift 2
source "$recipes/$recipe/settings.sh"

DATA=${DATA:-data}  # the folder that data.sh filled
MODEL=${MODEL:-$model}
OUT=${OUT:-runs/$recipe}
NODES=${NODES:-1}
GPUS=${GPUS:-8}  # a node
ROUNDS=${ROUNDS:-200}

case $stage in stage0) method=ppo ;; *) method=$stage ;; esac
# responses a prompt that the policy learns from; TTRL has more of them, and fewer prompts: as many samples in all
case $method in ttrl) n=32 ;; *) n=8 ;; esac
half=$((prompts / 2))

# the files of some sets, as a list for Hydra
files() {
    local list="" set
    for set in "$@"; do list+=",'$DATA/$set.parquet'"; done
    echo "[${list:1}]"
}

common=(
    hardware=fsdp
    trainer.nnodes="$NODES"
    trainer.n_gpus_per_node="$GPUS"
    tempo.rounds="$ROUNDS"
    data.val_files="$(files $unlabeled $heldout)"
    data.max_prompt_length=2048
    data.max_response_length=16384
    data.filter_overlong_prompts=true
    actor_rollout_ref.actor.ppo_mini_batch_size=$((mini_batch * 8 / n))
    actor_rollout_ref.actor.optim.lr=1e-6
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=20480
    actor_rollout_ref.actor.fsdp_config.param_offload=true
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=true
    actor_rollout_ref.rollout.n="$n"
    actor_rollout_ref.rollout.temperature=1.0
    actor_rollout_ref.rollout.top_p=1.0
    actor_rollout_ref.rollout.max_model_len=18432
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7
    actor_rollout_ref.rollout.tensor_model_parallel_size="$tensor_parallel"
    actor_rollout_ref.rollout.val_kwargs.n="$val_n"
    actor_rollout_ref.rollout.val_kwargs.temperature=1.0
    actor_rollout_ref.rollout.val_kwargs.top_p=1.0
    trainer.val_before_train=true
    trainer.test_freq=20
    trainer.save_freq=20
    trainer.max_actor_ckpt_to_keep=2
    trainer.max_critic_ckpt_to_keep=2
)

# A round rolls out a whole step of D_L, half a step of each, or half a step of D_U alone.
case $method in
    ppo | grpo) batch=(tempo.labeled.files="$(files "$labeled")" tempo.labeled.batch_size="$prompts") ;;
    tempo | oracle | official) batch=(tempo.labeled.files="$(files "$labeled")" tempo.labeled.batch_size="$half") ;;
    *) batch=() ;;
esac

# The policy's loss: on D_L verl's own, on D_U GSPO.
case $method in
    ppo | grpo) ;;
    *)
        batch+=(
            tempo.unlabeled.files="$(files $unlabeled)"
            tempo.unlabeled.batch_size=$((half * 8 / n))
            tempo.predictions.n="$predictions_n"
            actor_rollout_ref.actor.policy_loss.loss_mode=gspo
            actor_rollout_ref.actor.clip_ratio_low=3e-4
            actor_rollout_ref.actor.clip_ratio_high=5e-4
            actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean
        )
        ;;
esac

case $stage in
    stage0) actor=$MODEL critic=$MODEL ;;
    *)
        saved=$OUT/stage0/checkpoints
        if [[ ! -f $saved/latest_checkpointed_iteration.txt ]]; then
            echo "run.sh: no checkpoint in $saved; run stage0 first, or set OUT to the folder that holds it" >&2
            exit 2
        fi
        saved=$saved/global_step_$(<"$saved/latest_checkpointed_iteration.txt")
        actor=$saved/actor/huggingface critic=$saved/critic/huggingface
        ;;
esac
models=(actor_rollout_ref.model.path="'$actor'")
case $method in
    ttrl | empo | random_reward | grpo) ;; # no critic
    *)
        models+=(
            critic.model.path="'$critic'"
            critic.ppo_max_token_len_per_gpu=20480
            critic.fsdp.param_offload=true
            critic.fsdp.optimizer_offload=true
            tempo.calibration.lr=1e-6
            tempo.calibration.mini_batch_size="$mini_batch"
        )
        ;;
esac

case $stage in
    stage0) extra=(tempo.calibration.warmup_rounds=10) ;; # a new value head learns first
    ppo) extra=(critic.allow_new_value_head=false) ;;
    ttrl) extra=(tempo.ttrl.n_votes=64 tempo.ttrl.n_train="$n") ;;
    oracle) extra=(tempo.allow_labels_on_unlabeled=true) ;;
    *) extra=() ;;
esac

tempo-verl train --run-dir "$OUT/$stage" method="$method" \
    "${common[@]}" "${batch[@]}" "${models[@]}" ${extra[@]+"${extra[@]}"} "$@"
