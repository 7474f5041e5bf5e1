# SPDX-License-Identifier: Apache-2.0
"""What of a response is its answer, and what is the thinking before it. Pure text, linear in its length."""

from __future__ import annotations

import re

# Marks of the models in use: DeepSeek and Qwen, Magistral, Open-Thinker and Sky-T1, gpt-oss with and without its
# special tokens. Any case.
_ENDS = re.compile(
    r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>final[^<]{0,40}<\|message\|>"
    r"|(?<=\S)assistantfinal(?-i:(?![a-z]))",
    re.IGNORECASE,
)
_BEGINS = re.compile(
    r"<(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|begin_of_thought\|>|<\|channel\|>analysis[^<]{0,40}<\|message\|>"
    r"|\A\s*analysis(?=[A-Z])",
)
_AROUND = re.compile(r"<\|(?:begin_of_solution|end_of_solution|return|end|start|message|im_end|eot_id)\|>")


def answer_part(response: str, read_unfinished: bool = False) -> str:
    """What follows the thinking.

    Args:
        read_unfinished: of a response that ends in its thinking read that, instead of nothing.

    Returns:
        The text behind the last mark that ends a thinking. Without one: all of it, or nothing where a thinking begins.
        Where nothing follows the mark: all before it, as some models put their answer there.
    """
    ends = [match.end() for match in _ENDS.finditer(response)]
    rest = response[ends[-1] :] if ends else response
    if _BEGINS.search(rest):
        return response if read_unfinished else ""
    rest = _AROUND.sub("", rest)
    return rest if rest.strip() else response
