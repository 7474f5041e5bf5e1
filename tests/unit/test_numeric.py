# SPDX-License-Identifier: Apache-2.0
"""Numbers as people and models write them: read as a whole or not at all, compared exactly or relatively."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pytest

from tempo_verl.rewards import numeric
from tempo_verl.rewards.expression import value
from tempo_verl.rewards.numeric import close, equal
from tempo_verl.rewards.quantity import last_number, quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("- 5", -5),
        ("−5", -5),
        ("1,234.5", Fraction(12345, 10)),
        ("1{,}234", 1234),
        (r"1\,234", 1234),
        ("1 234 567", 1_234_567),
        ("1,25,000", 125_000),
        ("3/4", Fraction(3, 4)),
        (r"\frac34", Fraction(3, 4)),
        (r"\dfrac{-3}{4}", Fraction(-3, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        ("11 5/6", Fraction(71, 6)),
        ("2½", Fraction(5, 2)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"0.\dot{3}", Fraction(1, 3)),
        ("1.2e3", 1200),
        ("1.6 x 10^-19", Fraction(16, 10**20)),
        (r"6.02\times{10}^{23}", 602 * 10**21),
        (r"3.14 \mathrm{e}{-5}", Fraction(314, 10**7)),
        ("3**4", 81),
        ("2^10", 1024),
        (r"2^{-2025}", Fraction(1, 2**2025)),
        (r"\left(\frac{2}{3}\right)^{2}", Fraction(4, 9)),
        (r"\sqrt{\frac{4}{9}}", Fraction(2, 3)),
        (r"\sqrt[3]{-8}", -2),
        ("5!", 120),
        (r"\binom{10}{3}", 120),
        ("C_{10}^{3}", 120),
        (r"50\%", Fraction(1, 2)),
        (r"\log_2 8", 3),
        ("|-3|", 3),
        ("2(3)", 6),
        ("x⁴", None),
        ("5x", None),
        ("4 10/3", None),
        ("7 8", None),
        ("1, 2", None),
        ("(1,2)", None),
        ("3:4", None),
        ("1.234.567", None),
        ("1/0", None),
        (r"\sqrt{-1}", None),
        (r"\log 8", None),  # to which base, nobody says
        ("", None),
        ("five", None),
        ("12_{3}", None),
    ],
)
def test_a_rational_number_is_read_exactly_or_not_at_all(text: str, number: int | Fraction | None) -> None:
    assert value(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"\sqrt 2", math.sqrt(2)),
        (r"2\pi", 2 * math.pi),
        ("2√3", 2 * math.sqrt(3)),
        ("1.5*pi", 1.5 * math.pi),
        (r"\frac{1}{\sqrt{2}}", 1 / math.sqrt(2)),
        ("ln(2)", math.log(2)),
        ("-3 + exp(12)", math.exp(12) - 3),
        ("e^{12}-3", math.exp(12) - 3),
        (r"\tan 60^\circ", math.sqrt(3)),
        (r"\sin\frac{\pi}{4}", math.sqrt(0.5)),
        ("30°", 30),
    ],
)
def test_other_numbers_have_many_digits(text: str, number: float) -> None:
    found = value(text)
    assert found is not None and math.isclose(float(found), number, rel_tol=1e-14)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (r"1.6 \times 10^{-19}", r"9.1 \times 10^{-31}", False),
        (r"2^{-2025}", r"2^{-2024}", False),
        (r"\frac{1}{2^{88}}", r"\frac{1}{2^{89}}", False),
        ("20!", "2432902008176640001", False),
        (r"\sqrt{12}", r"2\sqrt{3}", True),
        ("0.333333", "1/3", True),
        ("0.1428571428571428", "1/7", True),  # cut off
        ("0.3333", "1/3", False),
        ("3.141593", r"\pi", True),
        ("3.1416", r"\pi", False),
        ("3", r"\pi", False),
        ("0.00000033", "1/3000000", False),
    ],
)
def test_numbers_are_compared_by_their_size(first: str, second: str, same: bool) -> None:
    one, other = value(first), value(second)
    assert one is not None and other is not None
    assert close(one, other) is close(other, one) is same


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (r"x_2 = 7", 7),
        (r"t_{1/2} = 8", 8),
        ("0.1 + 0.2 = 0.3", Fraction(3, 10)),
        (r"\$5", 5),
        ("-$5", -5),
        (r"9.8~\text{m/s}^2", Fraction(98, 10)),
        ("10 apples out of 12", 10),
        ("72, in total, so the farmer earns that much.", 72),
        ("about 3.5", Fraction(7, 2)),
        ("3 and 4", None),
        ("between 3 and 4", None),
        ("10^{x}", None),
        (r"\sqrt{x}", None),
    ],
)
def test_a_quantity_is_a_number_and_what_names_it(text: str, number: int | Fraction | None) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("H2O has 18 g/mol", 18),
        ("first 3, then 4", 4),
        (r"so it is 3.14 \cdot 10^{-5}.", Fraction(314, 10**7)),
        ("no number", None),
    ],
)
def test_the_last_number_of_a_text(text: str, number: int | Fraction | None) -> None:
    assert last_number(text) == number


def test_expressions_agree_where_they_are_the_same() -> None:
    assert numeric.agree("x^2+2x+1", "(x+1)^2")
    assert numeric.agree(r"\frac{n(n+1)}{2}", "0.5n^2 + n/2")
    assert numeric.agree("x^2", "y^2") is False
    assert numeric.agree("5m", "5") is None  # may be metres
    assert numeric.agree("f'(x)", "x") is None


@pytest.mark.parametrize("unit", ["2^", "(", "9", r"\sqrt{", "1/", "|", "2^{", "-", "1 ", r"\frac{1}{", "!", "10^9!"])
def test_no_text_takes_long(unit: str) -> None:
    started = time.process_time()
    for length in (20, 290, 100_000):
        text = (unit * length)[:length] + "1"
        value(text), quantity(text), last_number(text)
    assert time.process_time() - started < 10


def test_equal_is_symmetric_and_reflexive_on_samples() -> None:
    numbers = [value(text) for text in ("1/3", "0.333333", r"\pi", "2^{-400}", r"\sqrt{2}", "0")]
    for one in numbers:
        for other in numbers:
            assert one is not None and other is not None
            assert equal(one, other) == equal(other, one)
            assert close(one, other) == close(other, one)
        assert one is not None and equal(one, one)
