# SPDX-License-Identifier: Apache-2.0
"""Foreign text in Markdown: names of sets and models, messages."""

from __future__ import annotations

import re


def cell(text: str) -> str:
    """A text for a line or a table's cell: it ends neither, and is no HTML."""
    return re.sub(r"[\\|<]", r"\\\g<0>", " ".join(text.split()))
