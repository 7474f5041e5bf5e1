# SPDX-License-Identifier: Apache-2.0
"""In the place of verl's torchcodec: vLLM does without one that is missing, not without one that cannot be loaded."""

raise ImportError("torchcodec is built for CUDA")
