# SPDX-License-Identifier: Apache-2.0
"""The mathematics of test-time training: pure functions on tensors and arrays, without verl, ray or hydra.

Convention: ``values`` is (B, T+1) float; column t is V(x, y_1:t), t = 0..T, so column 0 is V(x). ``response_mask`` is
(B, T), 1 on the policy's own tokens, 0 on padding and tool tokens. A row whose mask is all 0 never counts.
"""
