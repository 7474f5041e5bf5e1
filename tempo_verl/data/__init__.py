# SPDX-License-Identifier: Apache-2.0
"""Prompts: the labelled and the unlabelled stream, and the monitoring answers kept apart from them."""
