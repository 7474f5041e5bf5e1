# SPDX-License-Identifier: Apache-2.0
r"""The value of a number as people and models write it: ``-3/4``, ``2\frac{1}{2}``, ``6.02 \times 10^{23}``, ``2√3``.

An expression is read as a whole or not at all: ``\sqrt{2}`` is never 2, and ``5x`` is no number. Rational numbers are
exact, so that 2^-2025 is neither 0 nor 2^-2024; all others have 40 digits. Nothing here takes long, whatever it reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction
from typing import NamedTuple

Number = Fraction | Decimal
NUMBER = (Fraction, Decimal)

DIGITS = 40  # of a number that is not rational
AGREEING = Decimal("1e-12")  # relative difference of two numbers that count as equal, where one is not rational
FEWEST_PLACES = 6  # of a decimal that stands for a number that no decimal can write out
MOST_BITS = 40_000  # of a numerator or denominator
LONGEST = 300  # characters of an expression
LONGEST_QUANTITY = 120  # characters of a number and what is beside it
DEEPEST = 40  # brackets in brackets

PI = Decimal("3.141592653589793238462643383279502884197169399375105820974944592")
_CONTEXT = Context(prec=DIGITS, Emax=10**9, Emin=-(10**9), traps=[InvalidOperation, DivisionByZero, Overflow])

_TOKENS = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?:\.\d*)?|\.\d+)
  | (?P<command>\\[a-zA-Z]+|\\[%])
  | (?P<word>[a-zA-Z]+)
  | (?P<sign>\*\*|[-+*/^!%(){}\[\]|:÷×·⋅√∛π_=,])
    """,
    re.VERBOSE,
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
# LaTeX that changes only how an expression looks
_LOOKS = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits)(?![a-zA-Z])|\\[!;: ]|~|\\q?quad\b|\$"
)
_TEXT_SIGN = re.compile(r"\\(?:text|mathrm|textrm)\s*\{\s*([-+−eE%])\s*\}")
_E_NOTATION = re.compile(r"(?<![a-zA-Z\d.])((?:\d[\d,]*)?\.?\d+)\s*[eE]\s*\{?\s*([-+]?\d{1,6})\s*\}?(?![\d.])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot|bar)\s*(?:\{(\d+)\}|(\d))")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:[ \u2009\u202f]\d{3})+(?!\d)")

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

_TIMES = {"*", "×", "·", "⋅", "\\times", "\\cdot", "\\ast"}
_OVER = {"/", "÷", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
_BINOMIALS = {"\\binom", "\\dbinom", "\\tbinom"}


class _NoNumber(Exception):
    pass


def value(text: str, variables: Mapping[str, Number] | None = None) -> Number | None:
    """The number that ``text`` is as a whole, or ``None``.

    Args:
        variables: what letters stand for; without any, a letter makes it no number.
    """
    if not text or len(text) > LONGEST:
        return None
    try:
        with localcontext(_CONTEXT):
            return _Reader(_tokens(_prepared(text)), variables or {}).read()
    except (_NoNumber, ArithmeticError, ValueError, RecursionError):
        return None


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
    with localcontext(_CONTEXT):
        one, other = _decimal(first), _decimal(second)
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
    decimal, other, count = (second, first, places[1]) if places[0] is None else (first, second, places[0])
    assert count is not None
    if count < FEWEST_PLACES or abs(decimal) * 10**count < 10 ** (FEWEST_PLACES - 1):
        return False
    with localcontext(_CONTEXT):
        return abs(_decimal(decimal) - _decimal(other)) < Decimal(10) ** -count  # rounded, or cut off


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


def _prepared(text: str) -> str:
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction}" if sign in text else sign)
    text = _SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _TEXT_SIGN.sub(r" \1 ", text.replace("\u2212", "-").replace("°", r"^\circ "))
    text = _LOOKS.sub(" ", text)
    text = _REPEATING.sub(_repeating, text)
    text = _E_NOTATION.sub(r"(\1*10^{\2})", text)
    text = _TIMES_TEN.sub("*", text)
    return _SPACED_THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match[1] or "0", match[2], match[3] or match[4]
    below = (10 ** len(period) - 1) * 10 ** len(fixed)
    above = int(whole + fixed + period) - int(whole + fixed)
    return f"({above}/{below})"


class _Token(NamedTuple):
    text: str
    kind: str
    spaced: bool  # white space before it


def _tokens(text: str) -> list[_Token]:
    tokens, at, spaced = [], 0, False
    text = text.strip()
    while at < len(text):
        match = _TOKENS.match(text, at)
        if match is None:
            raise _NoNumber
        kind = str(match.lastgroup)
        if kind == "space":
            spaced = True
        else:
            tokens.append(_Token(match[0], kind, spaced))
            spaced = False
        at = match.end()
    return tokens


def _decimal(number: Number) -> Decimal:
    return number if isinstance(number, Decimal) else Decimal(number.numerator) / Decimal(number.denominator)


def _bounded(number: Number) -> Number:
    if isinstance(number, Fraction):
        if max(abs(number.numerator).bit_length(), number.denominator.bit_length()) > MOST_BITS:
            raise _NoNumber
        return number
    if not number.is_finite():
        raise _NoNumber
    return number


def _both(first: Number, second: Number, what: Callable) -> Number:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return _bounded(what(first, second))
    return _bounded(what(_decimal(first), _decimal(second)))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        power = int(exponent)
        if isinstance(base, Fraction):
            bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
            if bits * abs(power) > MOST_BITS:
                raise _NoNumber
            return base**power
        return _bounded(base**power)
    if isinstance(exponent, Fraction) and exponent.denominator <= 1000:
        return _power(_root(base, exponent.denominator), Fraction(exponent.numerator))
    if base <= 0:
        raise _NoNumber
    return _bounded(_decimal(base) ** _decimal(exponent))


def _root(number: Number, degree: int) -> Number:
    if degree < 1:
        raise _NoNumber
    if number < 0:
        if degree % 2 == 0:
            raise _NoNumber
        return -_root(-number, degree)
    if isinstance(number, Fraction):
        above, below = (_whole_root(part, degree) for part in (number.numerator, number.denominator))
        if above is not None and below is not None:
            return Fraction(above, below)
    found = _decimal(number)
    return found.sqrt() if degree == 2 else (found ** (Decimal(1) / degree) if found else found)


def _whole_root(number: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(number)
    elif number.bit_length() < 1000:
        root = round(number ** (1 / degree))
    else:
        return None
    return root if root**degree == number else None


def _factorial(number: Number) -> Number:
    if not (isinstance(number, Fraction) and number.denominator == 1 and 0 <= number <= 2000):
        raise _NoNumber
    return Fraction(math.factorial(int(number)))


def _choose(n: Number, k: Number) -> Number:
    if not all(isinstance(part, Fraction) and part.denominator == 1 and 0 <= part <= 5000 for part in (n, k)):
        raise _NoNumber
    return Fraction(math.comb(int(n), int(k)))


def _trigonometric(function: Callable[[float], float], angle: Number) -> Number:
    """Of a multiple of pi / 12 or so the sign and zeros matter: those are what a float gets wrong."""
    found = function(float(_decimal(angle) % (2 * PI)))
    if abs(found) > 1e12:
        raise _NoNumber
    return Fraction(0) if abs(found) < 1e-14 else Decimal(repr(found))


def _logarithm(number: Number, base: Number | None = None) -> Number:
    if number <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise _NoNumber
    found = _decimal(number).ln()
    if base is None:
        return found
    found /= _decimal(base).ln()
    nearest = found.to_integral_value()
    return Fraction(int(nearest)) if abs(found - nearest) < Decimal("1e-30") and abs(nearest) < 10**6 else found


_FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sqrt": lambda number: _root(number, 2),
    "ln": _logarithm,
    "exp": lambda number: _exponential(number),
    "sin": lambda angle: _trigonometric(math.sin, angle),
    "cos": lambda angle: _trigonometric(math.cos, angle),
    "tan": lambda angle: _trigonometric(math.tan, angle),
    "cot": lambda angle: _both(Fraction(1), _trigonometric(math.tan, angle), lambda one, other: one / other),
    "arctan": lambda number: Decimal(repr(math.atan(float(number)))),
    "arcsin": lambda number: Decimal(repr(math.asin(float(number)))),
    "arccos": lambda number: Decimal(repr(math.acos(float(number)))),
    "abs": lambda number: max(number, -number),
}


def _exponential(number: Number) -> Number:
    if not -(10**6) < number < 10**6:
        raise _NoNumber
    return _bounded(_decimal(number).exp())


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[_Token], variables: Mapping[str, Number]):
        self._tokens, self._at, self._depth, self._variables = tokens, 0, 0, variables

    def read(self) -> Number:
        found = self._sum()
        if self._at != len(self._tokens):
            raise _NoNumber
        return found

    # ------------------------------------------------------------------ tokens

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].text if at < len(self._tokens) else ""

    def _kind(self) -> str:
        return self._tokens[self._at].kind if self._at < len(self._tokens) else ""

    def _take(self, *expected: str) -> str:
        text = self._peek()
        if not text or (expected and text not in expected):
            raise _NoNumber
        self._at += 1
        return text

    def _inside(self, close: str) -> Number:
        self._depth += 1
        if self._depth > DEEPEST:
            raise _NoNumber
        found = self._sum()
        self._take(close)
        self._depth -= 1
        return found

    # ------------------------------------------------------------------ grammar

    def _sum(self) -> Number:
        found = self._product()
        while self._peek() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            found = _both(found, self._product(), lambda one, other, sign=sign: one + sign * other)
        return found

    def _product(self) -> Number:
        found = self._signed()
        while True:
            if self._peek() in _TIMES:
                self._take()
                found = _both(found, self._signed(), lambda one, other: one * other)
            elif self._peek() in _OVER:
                self._take()
                below = self._signed()
                if below == 0:
                    raise _NoNumber
                found = _both(found, below, lambda one, other: one / other)
            elif self._starts_factor():
                found = _both(found, self._power(), lambda one, other: one * other)
            else:
                return found

    def _starts_factor(self) -> bool:
        """What may stand behind a factor without a sign: never a plain number, which is another one."""
        text, kind = self._peek(), self._kind()
        return text in ("(", "{", "π", "√", "∛") or (kind == "command" and text not in ("\\%",)) or kind == "word"

    def _signed(self) -> Number:
        if self._peek() in ("+", "-"):
            return self._signed() if self._take() == "+" else -self._signed()
        return self._power()

    def _power(self) -> Number:
        found = self._postfix(self._primary())
        if self._peek() in ("^", "**"):
            self._take()
            if self._peek() == "\\circ" or (self._peek() == "{" and self._peek(1) == "\\circ"):
                while self._peek() in ("{", "\\circ", "}"):
                    self._take()
                return _both(found, PI / 180, lambda one, other: one * other) if self._angles else found
            found = self._postfix(_power(found, self._exponent()))
        return found

    _angles = 0  # within a trigonometric function, where a degree is an angle

    def _exponent(self) -> Number:
        if self._peek() in ("+", "-"):
            return self._exponent() if self._take() == "+" else -self._exponent()
        if self._kind() == "number" and self._tokens[self._at - 1].text == "^" and len(self._peek()) > 1:
            return self._number()  # typed 2^10; in LaTeX it would be 2^{10}
        return self._power()

    def _postfix(self, found: Number) -> Number:
        while self._peek() in ("!", "%", "\\%"):
            found = _factorial(found) if self._take() == "!" else _both(found, Fraction(1, 100), lambda a, b: a * b)
        return found

    def _number(self) -> Fraction:
        return Fraction(re.sub(r"[^\d.]", "", self._take()).rstrip(".") or "0")

    def _argument(self) -> Number:
        """Of a LaTeX command: in braces, or one digit or sign."""
        if self._peek() == "{":
            self._take()
            return self._inside("}")
        if self._kind() == "number":
            token = self._tokens[self._at]
            if not token.text.isdigit():
                raise _NoNumber
            rest = token.text[1:]
            if rest:
                self._tokens[self._at] = token._replace(text=rest, spaced=False)
            else:
                self._at += 1
            return Fraction(int(token.text[0]))
        return self._primary()

    def _primary(self) -> Number:
        text, kind = self._peek(), self._kind()
        if kind == "number":
            return self._mixed(self._number())
        if text in ("(", "[", "{"):
            self._take()
            return self._inside({"(": ")", "[": "]", "{": "}"}[text])
        if text == "|":
            self._take()
            inside = self._inside("|")
            return max(inside, -inside)
        if text in ("π", "\\pi", "pi"):
            self._take()
            return PI
        if text == "e":
            self._take()
            return Decimal(1).exp()
        if text in ("√", "∛"):
            self._take()
            return _root(self._argument_of_sign(), 2 if text == "√" else 3)
        if text in _FRACTIONS:
            return self._fraction()
        if text in _BINOMIALS:
            self._take()
            return _choose(self._argument(), self._argument())
        if text == "C" and self._peek(1) == "_":
            self._at += 2
            n = self._argument()
            self._take("^")
            return _choose(n, self._argument())
        if text == "\\sqrt":
            return self._sqrt()
        if text in ("\\log", "log", "\\lg"):
            return self._log()
        if text in self._variables:
            self._take()
            return self._variables[text]
        if (
            kind == "word"
            and 1 < len(text) <= 3
            and text not in _FUNCTIONS
            and all(sign in self._variables for sign in text)
        ):
            self._tokens[self._at : self._at + 1] = [_Token(sign, "word", False) for sign in text]
            return self._primary()
        name = text.removeprefix("\\")
        if name in _FUNCTIONS and kind in ("command", "word"):
            return self._function(name, kind == "command")
        raise _NoNumber

    def _mixed(self, whole: Fraction) -> Number:
        r"""``2\frac{1}{2}`` and ``2 1/2`` are two and a half; what is no proper fraction of digits is no number."""
        if whole.denominator != 1:
            return whole
        if self._peek() in _FRACTIONS:
            part = self._fraction()
        elif self._kind() == "number" and self._tokens[self._at].spaced and self._peek(1) == "/":
            above = self._number()
            self._take("/")
            if self._kind() != "number":
                raise _NoNumber
            part = above / self._number()
        else:
            return whole
        if isinstance(part, Fraction) and 0 < part < 1:
            return whole + part
        if isinstance(part, Fraction):
            raise _NoNumber
        return _both(whole, part, lambda one, other: one * other)

    def _fraction(self) -> Number:
        self._take()
        above, below = self._argument(), self._argument()
        if below == 0:
            raise _NoNumber
        return _both(above, below, lambda one, other: one / other)

    def _sqrt(self) -> Number:
        self._take()
        degree = Fraction(2)
        if self._peek() == "[":
            self._take()
            found = self._inside("]")
            if not (isinstance(found, Fraction) and found.denominator == 1 and 2 <= found <= 100):
                raise _NoNumber
            degree = found
        if self._peek() == "(":
            return _root(self._primary(), int(degree))
        return _root(self._argument(), int(degree))

    def _argument_of_sign(self) -> Number:
        return self._number() if self._kind() == "number" else self._primary()

    def _log(self) -> Number:
        text = self._take()
        base: Number = Fraction(10)
        if self._peek() == "_":
            self._take()
            base = self._argument()
        elif text != "\\lg":
            raise _NoNumber  # to which base, e or 10, is anybody's guess
        return _logarithm(self._operand(), base)

    def _function(self, name: str, latex: bool) -> Number:
        self._take()
        if not latex and self._peek() != "(":
            raise _NoNumber
        power = None
        if self._peek() == "^":
            self._take()
            power = self._argument()
        angle = name in ("sin", "cos", "tan", "cot")
        self._angles += angle
        found = _FUNCTIONS[name](self._operand())
        self._angles -= angle
        return found if power is None else _power(found, power)

    def _operand(self) -> Number:
        """What a function is applied to: brackets, or a product without signs of multiplication."""
        found = self._power()
        while self._kind() in ("command", "sign") and self._peek() in ("\\pi", "π", *_FRACTIONS):
            found = _both(found, self._power(), lambda one, other: one * other)
        return found


# ---------------------------------------------------------------------- numbers among other things

CURRENCY = re.compile(r"(?:\\?\$|[€£¥₹₩]|\\(?:pounds|euro)\b)")
_EQUALS = re.compile(r"=|\\approx(?![a-zA-Z])|\\simeq(?![a-zA-Z])|≈|≃")
_HEDGE = re.compile(
    r"^(?:(?:approximately|approx\.?|about|around|roughly|exactly|equal to|\\sim|~)\s*)+", re.IGNORECASE
)
# Behind a number stands nothing, punctuation, or a unit; not the rest of an expression, and not a second number.
_ENDS = re.compile(
    r"\s*(?:$|\\?%|[.,;:!?)\]]+(?:\s|$)(?!\s*[-+]?\d)|\\[,;: ]|~|°|\^\s*\{?\s*\\circ"
    r"|\\(?:text|mathrm|mathbf|textrm|mbox|unit|si|mu|Omega|circ|degree)(?![a-zA-Z])|[^\W\d_]|\()"
)
_SECOND = re.compile(
    r"\s*(?:,|;|and\b|or\b|to\b|through\b|\\(?:text|mathrm)\s*\{\s*(?:and|or|to)\s*\})\s*\$?\s*[-+]?\d"
)
# Characters of numbers and of what joins them; a run of them is one expression.
_RUN = re.compile(
    r"(?:\\(?:[dtc]?frac|sqrt|cdot|times|div|pi|left|right|mathrm\s*\{e\}|[,;!: %])|(?<=[\d.])\s?[eE](?=[-+{]?\d)"
    r"|(?<=\d)\s?[xX](?=\s?10\s?\^)|[-+*/^{}().,%!×·⋅√π÷\s\d½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])+"
)
_MOST_RUNS = 20


def quantity(text: str) -> Number | None:
    r"""The number of an answer that names it or its unit: ``x_2 = 7``, ``\$5``, ``9.8~\text{m/s}^2``, ``10 apples``.

    What stands behind a number must not be a second one, nor the rest of an expression.
    """
    text = _HEDGE.sub("", CURRENCY.sub("", text.strip()).strip())
    for part in dict.fromkeys([*reversed(_EQUALS.split(text)[-2:]), text]):
        found = _leading(_HEDGE.sub("", part.strip()))
        if found is not None:
            return found
    return None


def last_number(text: str) -> Number | None:
    """The last number of a text, read with all that belongs to it."""
    runs = [run for run in _RUN.findall(CURRENCY.sub("", text[-20 * LONGEST :])) if any(map(_numeric, run))]
    for run in reversed(runs[-_MOST_RUNS:]):
        found = _leading(run.strip().strip(",;:").strip())
        if found is not None:
            return found
    return None


def _numeric(sign: str) -> bool:
    return sign.isdecimal() or sign in _VULGAR


def _leading(text: str) -> Number | None:
    """The number that is the whole text, or its beginning as :func:`quantity` allows."""
    found = value(text)
    if found is not None or not text:
        return found
    text = text[:LONGEST_QUANTITY]
    for at in range(len(text) - 1, 0, -1):
        rest = text[at:]
        if _ENDS.match(rest) and not text[at - 1].isspace() and not (text[at - 1].isalpha() and rest[0].isalpha()):
            found = value(text[:at])
            if found is not None:
                return None if _SECOND.match(rest) else found
    return None
