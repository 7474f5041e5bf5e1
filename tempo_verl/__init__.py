# SPDX-License-Identifier: Apache-2.0
"""tempo-verl: test-time training for large reasoning models, as a plugin for verl."""

__version__ = "0.1.0"
