#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One stage of a recipe; a second call resumes it. stage0 comes first, every other stage starts from its checkpoint.
#   DATA=data ./run.sh qwen3_8b_math stage0 [Hydra overrides]
#   DATA=data ./run.sh qwen3_8b_math tempo [Hydra overrides]
# With VERIFIER=module:function as for data.sh, if that was given one.
set -euo pipefail

config=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tempo_verl/config" && pwd)
recipe=${1:-} stage=${2:-}
names() { basename -a -s .yaml "$config/$1"/*.yaml | xargs; }

if [[ ! -f $config/recipe/$recipe.yaml || ($stage != stage0 && ! -f $config/method/$stage.yaml) ]]; then
    echo "usage: run.sh RECIPE STAGE [Hydra overrides]; RECIPE: $(names recipe); STAGE: stage0 $(names method)" >&2
    exit 2
fi

OUT=${OUT:-runs/$recipe}
case $stage in
    stage0) start=(method=ppo) ;;
    *) start=(method="$stage" tempo.start_from="'$OUT/stage0'") ;;
esac
# the verifier that data.sh wrote into D_L
exec tempo-verl train --run-dir "$OUT/$stage" +recipe="$recipe" "${start[@]}" \
    ${VERIFIER:+"tempo.verifier.allow=[$VERIFIER]"} "${@:3}"
