# SPDX-License-Identifier: Apache-2.0
"""When two numbers, or two expressions, are equal: exactly where both are rational, never by an absolute difference."""

from __future__ import annotations

from decimal import Context, Decimal, localcontext
from fractions import Fraction

from tempo_verl.rewards.arithmetic import CONTEXT, Complex, Number, decimal, lifted, scaled, size_of
from tempo_verl.rewards.expression import evaluate

AGREEING = Decimal("1e-45")  # relative difference of two numbers that count as equal, where one is not rational
MOST_PLACES = 1000  # that anybody writes
FEWEST_PLACES = 6  # of a decimal that stands for a number that no decimal can write out

# Points for the letters of an expression, far from simple. At the first two all are positive, so that roots and
# logarithms exist; at the third, negative. Not among them: e and i, which are numbers.
_LETTERS = [*"abcdfghjklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
_LETTERS += [
    f"\\{name}" for name in ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma")
]
_POINTS: tuple[dict[str, Number], ...] = tuple(
    {letter: Fraction(10_007 * seed + 7_919 * place, 6_133 + 389 * place) for place, letter in enumerate(_LETTERS, 1)}
    for seed in (1, 2)
)
_NEGATIVE = {letter: -number for letter, number in _POINTS[0].items()}

Print = tuple[Number | Complex | None, ...]


def fingerprint(text: str) -> Print | None:
    """The values of an expression at points that no polynomial identity meets by chance; ``None`` if it is none.

    Expressions with the same one are equal wherever both are defined. The last value is ``None`` where the expression
    is not defined for negative letters.
    """
    number = evaluate(text, {})
    if number is not None:
        return (number,) * (len(_POINTS) + 1)
    found = tuple(evaluate(text, point) for point in _POINTS)
    return None if None in found else (*found, evaluate(text, _NEGATIVE))


def agree(first: str, second: str) -> bool | None:
    """Whether two expressions have the same :func:`fingerprint`.

    ``None`` if one of them has none, or is a number where the other has letters: those may be a unit.
    """
    one, other = fingerprint(first), fingerprint(second)
    if one is None or other is None or (evaluate(first, {}) is None) != (evaluate(second, {}) is None):
        return None
    return same_print(one, other)


def same_print(first: Print, second: Print) -> bool:
    """Whether two fingerprints are equal at every point where both are defined."""
    pairs = zip(first, second, strict=True)
    return all(equal(one, other) for one, other in pairs if one is not None and other is not None)


def equal(first: Number | Complex, second: Number | Complex) -> bool:
    """Exactly for two rational numbers, else to 45 digits of the larger one. Never by an absolute difference."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    with localcontext(CONTEXT):
        if isinstance(first, Complex) or isinstance(second, Complex):
            one, other = lifted(first), lifted(second)
            apart = size_of(one + -other)
            return decimal(apart) <= AGREEING * max(decimal(size_of(one)), decimal(size_of(other)))
        a, b = decimal(first), decimal(second)
        return abs(a - b) <= AGREEING * max(abs(a), abs(b))


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
        last, exact = Decimal(10) ** -count, decimal(other)
        apart = decimal(written) - exact
        cut_off = abs(apart) < last and (apart < 0) == (exact > 0)
        return cut_off or abs(apart) <= last / 2


def hundredth(number: Number) -> Number:
    """A number in per cent as a share."""
    return scaled(number, Fraction(1, 100))


def _places(number: Number) -> int | None:
    """Decimal places that write a number out; ``None`` where no number of them does."""
    if not isinstance(number, Fraction):
        return None
    below = number.denominator
    twos = (below & -below).bit_length() - 1
    below >>= twos
    if below.bit_length() > MOST_PLACES or twos > MOST_PLACES:
        return None
    fives = 0
    while below % 5 == 0:
        below, fives = below // 5, fives + 1
    return max(twos, fives) if below == 1 else None


def as_key(number: Number) -> str:
    """One text for numbers that are :func:`equal`, but for those at the edge of the forty-fifth digit."""
    if isinstance(number, Fraction):
        if max(abs(number.numerator), number.denominator).bit_length() < 10_000:
            return str(number)
        return f"{number.numerator:x}/{number.denominator:x} (hex)"  # Python writes no more than 4,300 decimal digits
    if abs(number.adjusted()) < 20:  # such as the sine of 30 degrees
        simple = Fraction(number).limit_denominator(10**6)
        if equal(simple, number):
            return str(simple)
    with localcontext(Context(prec=44, Emax=10**9, Emin=-(10**9))):
        return f"{(+number).normalize():E}"
