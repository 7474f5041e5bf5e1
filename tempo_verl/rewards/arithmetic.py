# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on numbers as answers hold them: rational ones exactly, all others to 60 digits, none for long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, Underflow, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any

Number = Fraction | Decimal
NUMBER = (Fraction, Decimal)

DIGITS = 60  # of a number that is not rational
MOST_BITS = 40_000  # of a numerator or denominator that is kept exactly
LEAST_SHARE = Decimal("1e-40")  # of a term in a sum that is not rational
NOTHING = Decimal("1e-50")  # a sine or cosine below is 0
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
CONTEXT = Context(prec=DIGITS, Emax=10**9, Emin=-(10**9), traps=[InvalidOperation, DivisionByZero, Overflow, Underflow])
E = CONTEXT.exp(Decimal(1))


class NoNumber(Exception):
    """There is none, or one too large."""


@dataclass(frozen=True)
class Complex:
    """A number with an imaginary part."""

    real: Number
    imaginary: Number

    def __neg__(self) -> Complex:
        return Complex(-self.real, -self.imaginary)

    def __add__(self, other: Complex) -> Complex:
        return Complex(_sum(self.real, other.real), _sum(self.imaginary, other.imaginary))

    def __mul__(self, other: Complex) -> Complex:
        real = _sum(_product(self.real, other.real), -_product(self.imaginary, other.imaginary))
        return Complex(real, _sum(_product(self.real, other.imaginary), _product(self.imaginary, other.real)))

    def __rmul__(self, sign: int) -> Complex:
        return self if sign == 1 else -self

    def __truediv__(self, other: Complex) -> Complex:
        size = _sum(_product(other.real, other.real), _product(other.imaginary, other.imaginary))
        above = self * Complex(other.real, -other.imaginary)
        return Complex(*(both(part, size, lambda one, below: one / below) for part in (above.real, above.imaginary)))


def lifted(number: Number | Complex) -> Complex:
    """Any number as a complex one."""
    return number if isinstance(number, Complex) else Complex(number, Fraction(0))


def _sum(one: Number, other: Number) -> Number:
    return both(one, other, lambda first, second: first + second)


def _product(one: Number, other: Number) -> Number:
    return both(one, other, lambda first, second: first * second)


def decimal(number: Number) -> Decimal:
    """To 60 digits, in :data:`CONTEXT`."""
    if isinstance(number, Complex):
        raise NoNumber
    return number if isinstance(number, Decimal) else Decimal(number.numerator) / Decimal(number.denominator)


def scaled(number: Number, factor: Fraction) -> Number:
    """A number times a factor, in :data:`CONTEXT`."""
    with localcontext(CONTEXT):
        return both(number, factor, lambda one, other: one * other)


def added(first: Any, second: Any, sign: int = 1) -> Any:
    """The sum or, with a negative ``sign``, the difference.

    Raises:
        NoNumber: 60 digits are too few for both.
    """
    found = both(first, second, lambda one, other: one + sign * other)
    if isinstance(found, Decimal) and first and second:
        sizes = sorted(abs(decimal(term)) for term in (first, second))
        if sizes[0] < LEAST_SHARE * sizes[1]:
            raise NoNumber
    return found


def bounded(number: Number) -> Number:
    """The number, with 60 digits where it takes too many to keep it exactly."""
    if isinstance(number, Fraction):
        if max(abs(number.numerator).bit_length(), number.denominator.bit_length()) > MOST_BITS:
            return decimal(number)
        return number
    if not number.is_finite():
        raise NoNumber
    return number


def both(first: Any, second: Any, what: Callable) -> Any:
    """``what`` of two numbers, exactly where both are rational."""
    if isinstance(first, Complex) or isinstance(second, Complex):
        return what(lifted(first), lifted(second))
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return bounded(what(first, second))
    return bounded(what(decimal(first), decimal(second)))


def power(base: Any, exponent: Any) -> Any:
    """``base`` to the power of ``exponent``."""
    if isinstance(base, Complex) or isinstance(exponent, Complex):
        return _complex_power(base, exponent)
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        whole = int(exponent)
        if isinstance(base, Fraction):
            bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
            if bits * abs(whole) <= MOST_BITS:
                return base**whole
        return bounded(decimal(base) ** whole)
    if isinstance(exponent, Fraction) and exponent.denominator <= 1000:
        return power(root(base, exponent.denominator), Fraction(exponent.numerator))
    if base <= 0:
        raise NoNumber
    return bounded(decimal(base) ** decimal(exponent))


def _complex_power(base: Number | Complex, exponent: Number | Complex) -> Complex:
    """A complex number to a whole power; e to a complex one."""
    if isinstance(exponent, Complex):
        if base != E:
            raise NoNumber
        size = exponential(exponent.real)
        return Complex(*(_product(size, of(exponent.imaginary)) for of in (cosine, sine)))
    if not (isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) <= 200):
        raise NoNumber
    found = one = lifted(Fraction(1))
    factor, left = lifted(base), abs(int(exponent))
    while left:
        if left % 2:
            found = found * factor
        factor, left = factor * factor, left // 2
    return found if exponent >= 0 else one / found


def root(number: Number, degree: int) -> Number:
    """The real root; of a negative number for odd degrees only."""
    if degree < 1 or isinstance(number, Complex):
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


@lru_cache
def factorial(number: Number) -> Number:
    """Of a whole number up to 20,000."""
    if not (isinstance(number, Fraction) and number.denominator == 1 and 0 <= number <= 20_000):
        raise NoNumber
    if number <= 3500:
        return Fraction(math.factorial(int(number)))
    return math.prod(map(Decimal, range(3501, int(number) + 1)), start=Decimal(math.factorial(3500)))


def choose(n: Number, k: Number) -> Number:
    """The binomial coefficient of whole numbers up to 5,000."""
    if not all(isinstance(part, Fraction) and part.denominator == 1 and 0 <= part <= 5000 for part in (n, k)):
        raise NoNumber
    return Fraction(math.comb(int(n), int(k)))


def sine(angle: Number) -> Number:
    """To 60 digits; exactly 0 where it is."""
    x = decimal(angle) % (2 * PI)
    if abs(x) > PI:
        x -= PI.copy_sign(x) * 2
    term, total, n = x, x, 1
    while abs(term) > NOTHING / 10**10:
        n += 2
        term = -term * x * x / (n * (n - 1))
        total += term
    return Fraction(0) if abs(total) < NOTHING else total


def cosine(angle: Number) -> Number:
    """As :func:`sine`."""
    return sine(PI / 2 - decimal(angle))


def tangent(angle: Number) -> Number:
    """As :func:`sine`."""
    below = cosine(angle)
    if below == 0:
        raise NoNumber
    return decimal(sine(angle)) / decimal(below)


def arctangent(number: Number) -> Number:
    """Newton's steps from a float's 16 digits, each of which doubles them."""
    target = decimal(number)
    if target == 0:
        return Fraction(0)
    if abs(target) > 10**6:
        raise NoNumber
    found = Decimal(repr(math.atan(float(target))))
    for _ in range(3):
        s, c = decimal(sine(found)), decimal(cosine(found))
        found -= (s - target * c) * c / (c * c + s * s)
    return found


def arcsine(number: Number) -> Number:
    """Of a number from -1 to 1."""
    x = decimal(number)
    if abs(x) > 1:
        raise NoNumber
    if abs(x) == 1:
        return (PI / 2).copy_sign(x)
    return arctangent(x / (1 - x * x).sqrt())


def logarithm(number: Number, base: Number | None = None) -> Number:
    """Natural, or to a base; a whole number where it is one."""
    if isinstance(number, Complex) or isinstance(base, Complex):
        raise NoNumber
    if number <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise NoNumber
    found = decimal(number).ln()
    if base is None:
        return found
    found /= decimal(base).ln()
    nearest = found.to_integral_value()
    return Fraction(int(nearest)) if abs(found - nearest) < Decimal("1e-30") and abs(nearest) < 10**6 else found


def exponential(number: Number) -> Number:
    """e to the power of a number."""
    if isinstance(number, Complex):
        return _complex_power(E, number)
    if not -(10**6) < number < 10**6:
        raise NoNumber
    return bounded(decimal(number).exp())


def size_of(number: Number | Complex) -> Number:
    """The absolute value."""
    if isinstance(number, Complex):
        return root(_sum(_product(number.real, number.real), _product(number.imaginary, number.imaginary)), 2)
    return max(number, -number)


FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sqrt": lambda number: root(number, 2),
    "ln": logarithm,
    "exp": exponential,
    "sin": sine,
    "cos": cosine,
    "tan": tangent,
    "cot": lambda angle: tangent(PI / 2 - decimal(angle)),
    "sec": lambda angle: power(cosine(angle), Fraction(-1)),
    "csc": lambda angle: power(sine(angle), Fraction(-1)),
    "arctan": arctangent,
    "arcsin": arcsine,
    "arccos": lambda number: PI / 2 - decimal(arcsine(number)),
    "abs": size_of,
}
INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
