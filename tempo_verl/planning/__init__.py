# SPDX-License-Identifier: Apache-2.0
"""What a run will take, estimated before it starts: memory, tokens, FLOPs, time, disk. Nothing here imports torch."""
