#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole way with SmolLM2-135M-Instruct on a CPU: questions, stage 0, TEMPO, answers, report.
#   ./run.sh MODEL [OUT] [more overrides for both stages]
# MODEL: a name on the Hugging Face hub, such as HuggingFaceTB/SmolLM2-135M-Instruct, or a directory.
# A second call resumes where the first one stopped.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MODEL=${1:?Hugging Face name or directory of SmolLM2-135M-Instruct}
OUT=${2:-runs/smollm2}
SEED=${SEED:-1}
DATA=${DATA:-$OUT/data}
STAGE0_ROUNDS=${STAGE0_ROUNDS:-12}
TEMPO_ROUNDS=${TEMPO_ROUNDS:-12}
PROMPTS=${PROMPTS:-8}        # a round, each answered four times; TEMPO takes half from D_L, half from D_U; a multiple of 4
QUESTIONS=${QUESTIONS:-32}   # of D_U, and held out
VOTES=${VOTES:-8}            # samples that answer a question of D_U after the last round
BEFORE=${BEFORE:-equal}      # and before the first one; equal: as many as all rounds and answers draw

if [[ ! -f $DATA/heldout.parquet ]]; then
    python "$here/questions.py" --out "$DATA" --seed "$SEED" --unlabeled "$QUESTIONS" --heldout "$QUESTIONS"
    # keep: the questions are chat messages already
    tempo-verl prepare "$DATA/labeled.jsonl" --out "$DATA/labeled.parquet" --as labeled --template keep
    tempo-verl prepare "$DATA/unlabeled.jsonl" --out "$DATA/unlabeled.parquet" --as unlabeled --template keep \
        --against "$DATA/labeled.parquet"
    tempo-verl prepare "$DATA/heldout.jsonl" --out "$DATA/heldout.parquet" --as heldout --template keep \
        --against "$DATA/labeled.parquet" --against "$DATA/unlabeled.parquet"
fi

common=(
    hardware=cpu
    tempo.labeled.files="'$DATA/labeled.parquet'"
    tempo.labeled.seed="$SEED"
    actor_rollout_ref.rollout.seed="$SEED"
    data.val_files="['$DATA/unlabeled.parquet','$DATA/heldout.parquet']"
    data.max_prompt_length=56
    data.max_response_length=5   # a number of two digits and the end are three tokens
    actor_rollout_ref.rollout.n=4
    actor_rollout_ref.rollout.val_kwargs.n=4
    # at 1.0 half of what so small a model writes is noise
    actor_rollout_ref.rollout.temperature=0.6
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6
    tempo.calibration.lr=5e-5
    # the CPU backend's log-probabilities are the policy's own: a second pass would only repeat them
    algorithm.rollout_correction.bypass_mode=true
    actor_rollout_ref.actor.calculate_entropy=true
    # memory: a token has 49,152 logits
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024
    critic.ppo_max_token_len_per_gpu=2048
    actor_rollout_ref.rollout.max_num_seqs=256
    # disk: the last checkpoint alone, and no second reading of its gigabytes
    tempo.checkpoint.keep=last
    tempo.checkpoint.hashes=false
    trainer.val_before_train=true
)

tempo-verl train --run-dir "$OUT/stage0" method=ppo "${common[@]}" \
    tempo.rounds="$STAGE0_ROUNDS" \
    tempo.labeled.batch_size="$PROMPTS" \
    tempo.calibration.mini_batch_size=$((PROMPTS / 2)) \
    tempo.calibration.warmup_rounds=2 \
    actor_rollout_ref.actor.optim.lr=3e-5 \
    actor_rollout_ref.actor.ppo_mini_batch_size=$((PROMPTS / 2)) \
    actor_rollout_ref.model.path="'$MODEL'" \
    critic.model.path="'$MODEL'" \
    trainer.test_freq=-1 \
    "${@:3}"

tempo-verl train --run-dir "$OUT/tempo" method=tempo "${common[@]}" \
    tempo.rounds="$TEMPO_ROUNDS" \
    tempo.labeled.batch_size=$((PROMPTS / 2)) \
    tempo.unlabeled.files="'$DATA/unlabeled.parquet'" \
    tempo.unlabeled.batch_size=$((PROMPTS / 2)) \
    tempo.unlabeled.seed=$((SEED + 1)) \
    tempo.calibration.mini_batch_size=$((PROMPTS / 4)) \
    actor_rollout_ref.actor.optim.lr=5e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=$((PROMPTS / 4)) \
    tempo.predictions.n="$VOTES" \
    tempo.predictions.before="$BEFORE" \
    tempo.predictions.labeled=20 \
    tempo.start_from="'$OUT/stage0'" \
    trainer.test_freq="$TEMPO_ROUNDS" \
    "${@:3}"

tempo-verl answer "$OUT/tempo"
tempo-verl report "$OUT/stage0" "$OUT/tempo" --out "$OUT/report"
