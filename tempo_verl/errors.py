# SPDX-License-Identifier: Apache-2.0
"""The one exception a user's mistake raises, and one for a check that cannot be made."""


class UserError(ValueError):
    """A mistake in the input, told in one line: what is wrong, where, and the remedy."""


class Skipped(Exception):
    """A check of ``tempo-verl doctor`` that cannot be made here, and why."""
