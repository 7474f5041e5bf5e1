# SPDX-License-Identifier: Apache-2.0
# Qwen3-8B on mathematics. Plain name=value lines: read by ../run.sh, ../data.sh and ../cost.py.
model=Qwen/Qwen3-8B-Base
prompts=256                             # a step
mini_batch=64                           # prompts a policy or critic update
tensor_parallel=1                       # GPUs of one vLLM replica
labeled=dapo-math-17k                   # D_L
unlabeled="aime24 aime25 beyond-aime"   # D_U
heldout="aime26 olymmath"
val_n=16                                # responses to a validation question
predictions_n=16                        # responses to a question of D_U when training is over
