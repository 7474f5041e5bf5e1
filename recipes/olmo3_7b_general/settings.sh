# SPDX-License-Identifier: Apache-2.0
# OLMo3-7B on general reasoning. Plain name=value lines: read by ../run.sh, ../data.sh and ../cost.py.
model=allenai/Olmo-3-1025-7B
prompts=256                             # a step
mini_batch=64                           # prompts a policy or critic update
tensor_parallel=1                       # GPUs of one vLLM replica
labeled=dolci-rl-zero-general           # D_L
unlabeled="bbh agieval zebralogic"      # D_U
heldout=gpqa-diamond
val_n=1                                 # responses to a validation question
predictions_n=4                         # responses to a question of D_U when training is over
