# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on numbers as answers hold them: rational ones exactly, all others to 40 digits, none for long."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow
from fractions import Fraction

Number = Fraction | Decimal
NUMBER = (Fraction, Decimal)

DIGITS = 40  # of a number that is not rational
MOST_BITS = 40_000  # of a numerator or denominator
PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592")
CONTEXT = Context(prec=DIGITS, Emax=10**9, Emin=-(10**9), traps=[InvalidOperation, DivisionByZero, Overflow])


class NoNumber(Exception):
    """There is none, or one too large."""


def decimal(number: Number) -> Decimal:
    """To 40 digits, in :data:`CONTEXT`."""
    return number if isinstance(number, Decimal) else Decimal(number.numerator) / Decimal(number.denominator)


def bounded(number: Number) -> Number:
    """The number, unless it is too large to go on with."""
    if isinstance(number, Fraction):
        if max(abs(number.numerator).bit_length(), number.denominator.bit_length()) > MOST_BITS:
            raise NoNumber
        return number
    if not number.is_finite():
        raise NoNumber
    return number


def both(first: Number, second: Number, what: Callable) -> Number:
    """``what`` of two numbers, exactly where both are rational."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return bounded(what(first, second))
    return bounded(what(decimal(first), decimal(second)))


def power(base: Number, exponent: Number) -> Number:
    """``base`` to the power of ``exponent``."""
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        whole = int(exponent)
        if isinstance(base, Fraction):
            bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
            if bits * abs(whole) > MOST_BITS:
                raise NoNumber
            return base**whole
        return bounded(base**whole)
    if isinstance(exponent, Fraction) and exponent.denominator <= 1000:
        return power(root(base, exponent.denominator), Fraction(exponent.numerator))
    if base <= 0:
        raise NoNumber
    return bounded(decimal(base) ** decimal(exponent))


def root(number: Number, degree: int) -> Number:
    """The real root; of a negative number for odd degrees only."""
    if degree < 1:
        raise NoNumber
    if number < 0:
        if degree % 2 == 0:
            raise NoNumber
        return -root(-number, degree)
    if isinstance(number, Fraction):
        above, below = (_whole_root(part, degree) for part in (number.numerator, number.denominator))
        if above is not None and below is not None:
            return Fraction(above, below)
    found = decimal(number)
    return found.sqrt() if degree == 2 else (found ** (Decimal(1) / degree) if found else found)


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
    elif number.bit_length() < 1000:
        root = round(number ** (1 / degree))
    else:
        return None
    return root if root**degree == number else None


def factorial(number: Number) -> Number:
    """Of a whole number up to 2,000."""
    if not (isinstance(number, Fraction) and number.denominator == 1 and 0 <= number <= 2000):
        raise NoNumber
    return Fraction(math.factorial(int(number)))


def choose(n: Number, k: Number) -> Number:
    """The binomial coefficient of whole numbers up to 5,000."""
    if not all(isinstance(part, Fraction) and part.denominator == 1 and 0 <= part <= 5000 for part in (n, k)):
        raise NoNumber
    return Fraction(math.comb(int(n), int(k)))


def trigonometric(function: Callable[[float], float], angle: Number) -> Number:
    """Of a multiple of pi / 12 or so the sign and zeros matter: those are what a float gets wrong."""
    found = function(float(decimal(angle) % (2 * PI)))
    if abs(found) > 1e12:
        raise NoNumber
    return Fraction(0) if abs(found) < 1e-14 else Decimal(repr(found))


def logarithm(number: Number, base: Number | None = None) -> Number:
    """Natural, or to a base; a whole number where it is one."""
    if number <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise NoNumber
    found = decimal(number).ln()
    if base is None:
        return found
    found /= decimal(base).ln()
    nearest = found.to_integral_value()
    return Fraction(int(nearest)) if abs(found - nearest) < Decimal("1e-30") and abs(nearest) < 10**6 else found


FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sqrt": lambda number: root(number, 2),
    "ln": logarithm,
    "exp": lambda number: exponential(number),
    "sin": lambda angle: trigonometric(math.sin, angle),
    "cos": lambda angle: trigonometric(math.cos, angle),
    "tan": lambda angle: trigonometric(math.tan, angle),
    "cot": lambda angle: both(Fraction(1), trigonometric(math.tan, angle), lambda one, other: one / other),
    "arctan": lambda number: Decimal(repr(math.atan(float(number)))),
    "arcsin": lambda number: Decimal(repr(math.asin(float(number)))),
    "arccos": lambda number: Decimal(repr(math.acos(float(number)))),
    "abs": lambda number: max(number, -number),
}


def exponential(number: Number) -> Number:
    """e to the power of a number."""
    if not -(10**6) < number < 10**6:
        raise NoNumber
    return bounded(decimal(number).exp())
