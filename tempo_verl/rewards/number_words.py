# SPDX-License-Identifier: Apache-2.0
"""Numbers that are written as words: zero to ninety-nine, and a half."""

from __future__ import annotations

from fractions import Fraction

from tempo_verl.rewards.arithmetic import Number

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

NUMBER_WORDS: dict[str, Number] = {word: Fraction(number) for number, word in enumerate(_ONES)}
for _tens, _ten in enumerate(_TENS, 2):
    NUMBER_WORDS[_ten] = Fraction(10 * _tens)
    NUMBER_WORDS |= {f"{_ten}{joint}{_ONES[one]}": Fraction(10 * _tens + one) for one in range(1, 10) for joint in "- "}
NUMBER_WORDS |= dict.fromkeys(("half", "one half", "one-half", "a half"), Fraction(1, 2))
