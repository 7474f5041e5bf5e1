# SPDX-License-Identifier: Apache-2.0
"""When two numbers, or two expressions, are equal: exactly where both are rational, never by an absolute difference."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from fractions import Fraction

from tempo_verl.rewards.arithmetic import CONTEXT, Number, decimal
from tempo_verl.rewards.expression import value

AGREEING = Decimal("1e-12")  # relative difference of two numbers that count as equal, where one is not rational
FEWEST_PLACES = 6  # of a decimal that stands for a number that no decimal can write out

# Two points for the letters of an expression: positive, so that roots and logarithms exist, and far from simple. Not
# among them: e, which is a number, and i, which is none here.
_LETTERS = [*"abcdfghjklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
_LETTERS += [
    f"\\{name}" for name in ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma")
]
_POINTS: tuple[dict[str, Number], ...] = tuple(
    {letter: Fraction(10_007 * seed + 7_919 * place, 6_133 + 389 * place) for place, letter in enumerate(_LETTERS, 1)}
    for seed in (1, 2)
)


def fingerprint(text: str) -> tuple[Number, ...] | None:
    """The values of an expression at points that no polynomial identity meets by chance; ``None`` if it is none.

    Expressions with the same one are equal wherever both are defined; :func:`equal` compares the numbers.
    """
    found = tuple(value(text, point) for point in _POINTS)
    return None if None in found else found  # type: ignore[return-value]


def agree(first: str, second: str) -> bool | None:
    """Whether two expressions have the same :func:`fingerprint`.

    ``None`` if one of them has none, or is a number where the other has letters: those may be a unit.
    """
    one, other = fingerprint(first), fingerprint(second)
    if one is None or other is None or (value(first) is None) != (value(second) is None):
        return None
    return same_print(one, other)


def same_print(first: tuple[Number, ...], second: tuple[Number, ...]) -> bool:
    """Whether two fingerprints are equal at every point."""
    return all(equal(one, other) for one, other in zip(first, second, strict=True))


def equal(first: Number, second: Number) -> bool:
    """Exactly for two rational numbers, else to 12 digits of the larger one. Never by an absolute difference."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    with localcontext(CONTEXT):
        one, other = decimal(first), decimal(second)
        return abs(one - other) <= AGREEING * max(abs(one), abs(other))


def close(first: Number, second: Number) -> bool:
    """As :func:`equal`; and a decimal of six digits or more may stand for a number that no decimal can be.

    0.333333 is 1/3 and 3.141593 is pi, 0.3333 and 3.1416 are not.
    """
    if equal(first, second):
        return True
    places = [_places(number) for number in (first, second)]
    if (places[0] is None) == (places[1] is None):
        return False
    written, other, count = (second, first, places[1]) if places[0] is None else (first, second, places[0])
    assert count is not None
    if count < FEWEST_PLACES or abs(written) * 10**count < 10 ** (FEWEST_PLACES - 1):
        return False
    with localcontext(CONTEXT):
        return abs(decimal(written) - decimal(other)) < Decimal(10) ** -count  # rounded, or cut off


def hundredth(number: Number) -> Number:
    """A number in per cent as a share."""
    return number / 100


def _places(number: Number) -> int | None:
    """Decimal places that write a number out; ``None`` where no number of them does."""
    if not isinstance(number, Fraction):
        return None
    below, counts = number.denominator, [0, 0]
    for which, factor in enumerate((2, 5)):
        while below % factor == 0:
            below //= factor
            counts[which] += 1
    return max(counts) if below == 1 else None


def as_key(number: Number) -> str:
    """One text for numbers that are :func:`equal`, but for those at the edge of the twelfth digit."""
    if isinstance(number, Fraction):
        return str(number)
    with localcontext(Context(prec=11, Emax=10**9, Emin=-(10**9))):
        return f"{(+number).normalize():E}"
