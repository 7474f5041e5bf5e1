# SPDX-License-Identifier: Apache-2.0
"""The mathematics of test-time training: pure functions on tensors and arrays, without verl, ray or hydra.

Convention: ``values`` is (B, T+1) float; column t is V(x, y_1:t), t = 0..T, so column 0 is V(x). ``response_mask`` is
(B, T), 1 on the policy's own tokens, 0 on padding and tool tokens. A row whose mask is all 0 never counts.
Both may be padded tensors, or jagged ones of rows of different lengths, (B, T_i + 1) and (B, T_i): what is made of them
has the same form. See ``tempo_verl.algo.jagged``.
"""
