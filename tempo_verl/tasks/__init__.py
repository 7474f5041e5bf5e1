# SPDX-License-Identifier: Apache-2.0
"""Small tasks on which the whole method runs on a laptop; the code of the trainer knows none of them."""
