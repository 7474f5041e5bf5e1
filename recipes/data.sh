#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The question files of a recipe, from the Hugging Face hub. Files that are there already are kept.
#   DATA=data ./data.sh qwen3_8b_math
# The benchmarks come first and stay whole; D_L loses the questions that are in one of them.
set -euo pipefail

config=$(cd "$(dirname "${BASH_SOURCE[0]}")/../tempo_verl/config/recipe" && pwd)
recipe=${1:-}
if [[ ! -f $config/$recipe.yaml ]]; then
    echo "usage: data.sh RECIPE; RECIPE: $(basename -a -s .yaml "$config"/*.yaml | xargs)" >&2
    exit 2
fi
DATA=${DATA:-data}
VERIFIER=${VERIFIER:-}  # of D_L, as module:function; default: that of its preset

# what the recipe's YAML names: a line each for D_L, D_U, held out
sets=$(python -c 'import sys
from tempo_verl.config.recipes import read
sets = read(sys.argv[1]).recipe.data_sets
print(*sets.labeled); print(*sets.unlabeled); print(*sets.heldout)' "$recipe")
{ read -r labeled; read -r unlabeled; read -r heldout; } <<<"$sets"

if [[ $labeled == dolci-rl-zero-general && -z $VERIFIER ]]; then
    echo "data.sh: the references of $labeled are free text, made for a judge; set VERIFIER=module:function" >&2
    exit 2
fi

against=()
prepare() { # set, use, further options
    if [[ ! -f $DATA/$1.parquet ]]; then
        tempo-verl prepare --preset "$1" --out "$DATA/$1.parquet" --as "$2" "${@:3}"
    fi
    against+=(--against "$DATA/$1.parquet")
}

for set in $unlabeled; do
    prepare "$set" unlabeled
done
for set in $heldout; do
    prepare "$set" heldout "${against[@]}"
done
for set in $labeled; do
    prepare "$set" labeled --bad-rows skip "${against[@]}" ${VERIFIER:+--verifier "$VERIFIER"}
done
