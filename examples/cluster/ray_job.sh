#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A job on a Ray cluster that is up; returns when it ends.
#   LABELED=... UNLABELED=... START=... OUT=... NODES=2 DASHBOARD=http://head:8265 ./ray_job.sh [more overrides]
# All paths are seen from the cluster's nodes.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/train.sh"
exec ray job submit --address "${DASHBOARD:-http://127.0.0.1:8265}" -- "${train[@]}"
