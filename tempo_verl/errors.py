# SPDX-License-Identifier: Apache-2.0
"""The one exception a user's mistake raises."""


class UserError(ValueError):
    """A mistake in the input, told in one line: what is wrong, where, and the remedy."""
