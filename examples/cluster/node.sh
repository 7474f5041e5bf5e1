#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One of several nodes, without a scheduler: call it on each of them, in any order. Node 0 starts a Ray cluster, waits for
# the others, trains and ends the cluster; the others join it and end with it.
#   export HEAD=10.0.0.1 NODES=2 RAY_AUTH_TOKEN=... LABELED=... UNLABELED=... START=... OUT=...    # the same on each
#   NODE_RANK=0 ./node.sh [more overrides]         # on 10.0.0.1
#   NODE_RANK=1 ./node.sh                          # on the other
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:?set NODE_RANK, the number of this node, from 0}}
HEAD=${HEAD:?address of node 0}
PORT=${PORT:-6379}
WAIT=${WAIT:-300}  # seconds that a node waits for others
export RAY_ADDRESS=$HEAD:$PORT RAY_AUTH_MODE=token
[[ -n ${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-} ]] || {
    echo "node.sh: set RAY_AUTH_TOKEN to one secret on every node, as openssl rand -hex 16 makes it" >&2
    exit 2
}

head_is_up() { timeout 5 bash -c ": <'/dev/tcp/$HEAD/$PORT'" 2>/dev/null; }
joined() { ray status 2>/dev/null | grep -c '^ 1 node_' || true; }

if [[ $NODE_RANK != 0 ]]; then
    until head_is_up; do
        ((SECONDS < WAIT)) || { echo "node $NODE_RANK: no Ray head at $RAY_ADDRESS after $WAIT s" >&2; exit 1; }
        sleep 2
    done
    # it ends with the head; while the head is there, ending is a failure
    ray start --address="$RAY_ADDRESS" --num-gpus="$GPUS" --block || ! head_is_up
    exit
fi

# ended by its id: `ray stop` would end every Ray on the machine, such as SkyPilot's own
ray start --head --node-ip-address="$HEAD" --port="$PORT" --num-gpus="$GPUS" --block &
ray=$!
trap 'kill $ray 2>/dev/null && wait $ray || true' EXIT

# Ray must know every node before verl asks for their GPUs
until found=$(joined) && ((found >= NODES)); do
    kill -0 $ray 2>/dev/null || { echo "node 0: Ray ended, see above" >&2; exit 1; }
    ((SECONDS < WAIT)) || {
        echo "only $found of $NODES nodes joined the Ray cluster at $RAY_ADDRESS after $WAIT s; see the others' output" >&2
        exit 1
    }
    sleep 2
done
"${train[@]}"
