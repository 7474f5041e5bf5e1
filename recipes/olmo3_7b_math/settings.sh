# SPDX-License-Identifier: Apache-2.0
# OLMo3-7B on mathematics. Plain name=value lines: read by ../run.sh, ../data.sh and ../cost.py.
model=allenai/Olmo-3-1025-7B
prompts=256                             # a step
mini_batch=64                           # prompts a policy or critic update
tensor_parallel=1                       # GPUs of one vLLM replica
labeled=dapo-math-17k                   # D_L
unlabeled="aime24 aime25 beyond-aime"   # D_U
heldout="aime26 olymmath"
val_n=16                                # responses to a validation question
predictions_n=16                        # responses to a question of D_U when training is over
