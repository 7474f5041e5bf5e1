# SPDX-License-Identifier: Apache-2.0
r"""The number that an expression is: ``-3/4``, ``2\frac{1}{2}``, ``6.02 \times 10^{23}``, ``2√3``.

An expression is read as a whole or not at all: ``\sqrt{2}`` is never 2, and ``5x`` is no number. Nothing here takes
long, whatever it reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

from tempo_verl.rewards.arithmetic import (
    CONTEXT,
    FUNCTIONS,
    INVERSE,
    PI,
    Complex,
    E,
    NoNumber,
    Number,
    added,
    both,
    choose,
    factorial,
    logarithm,
    power,
    root,
    size_of,
)

LONGEST = 300  # characters of an expression
LARGEST_EXPONENT = 10**8
DEEPEST = 40  # brackets in brackets
IMAGINARY: Any = Complex(Fraction(0), Fraction(1))

_TOKENS = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:[1-9]\d{,2}(?:(?:,|\{,\}|\\,)\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?:\.\d*)?|\.\d+)
  | (?P<command>\\[a-zA-Z]+|\\[%])
  | (?P<word>[a-zA-Z]+)
  | (?P<sign>\*\*|[-+*/^!%(){}\[\]|:÷×·⋅√∛π_=,])
    """,
    re.VERBOSE,
)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
SUPERSCRIPT = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip
# LaTeX that changes only how an expression looks
_LOOKS = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|textstyle|limits)(?![a-zA-Z])|\\[!;: ]|~|\\q?quad\b|\$"
)
_TEXT_SIGN = re.compile(r"\\(?:text|mathrm|textrm)\s*\{\s*([-+−eE%])\s*\}")
_NAMED_FUNCTION = re.compile(
    r"\\(?:text|mathrm|operatorname)\s*\{\s*(a(?:rc)?)?(sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt)\s*\}"
)
_ARC = re.compile(r"(?<![a-zA-Z])a(sin|cos|tan)(?![a-zA-Z])")
_BOLD_LETTER = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|vec|hat)\s*(?:\{\s*\\?([a-z]|\d+)(?:math)?\s*\}|([a-z])(?![a-z]))"
)
_E_NOTATION = re.compile(r"(?<![a-zA-Z\d.])((?:\d[\d,]*)?\.?\d+)\s*[eE]\s*\{?\s*([-+]?\d{1,6})\s*\}?(?![\d.])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot|bar)\s*(?:\{(\d+)\}|(\d))")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:[ \u2009\u202f]\d{3})+(?!\d)")

_TIMES = {"*", "×", "·", "⋅", "\\times", "\\cdot", "\\ast"}
_OVER = {"/", "÷", "\\div"}
_FRACTIONS = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac"}
_BINOMIALS = {"\\binom", "\\dbinom", "\\tbinom"}


def value(text: str) -> Number | None:
    """The real number that ``text`` is as a whole, or ``None``."""
    found = evaluate(text, {})
    if isinstance(found, Complex):
        return found.real if found.imaginary == 0 else None
    return found


def evaluate(text: str, variables: Mapping[str, Number]) -> Number | Complex | None:
    """As :func:`value`, complex numbers too.

    Args:
        variables: what letters stand for; a letter that is not among them makes it no number.
    """
    if not text or len(text) > LONGEST:
        return None
    try:
        with localcontext(CONTEXT):
            return _in_reach(_Reader(_tokens(_prepared(text)), variables).read())
    except (NoNumber, ArithmeticError, ValueError, RecursionError):
        return None


def _in_reach(number: Number | Complex) -> Number | Complex:
    """The number, if others can be compared with it: a product or a difference must not leave the exponents' range."""
    for part in (number.real, number.imaginary) if isinstance(number, Complex) else (number,):
        if isinstance(part, Decimal) and part and abs(part.adjusted()) > LARGEST_EXPONENT:
            raise NoNumber
    return number


def _prepared(text: str) -> str:
    text = text.replace(",\\!", ",")
    for sign, fraction in VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = SUPERSCRIPT.sub(lambda match: f"^{{{match[0].translate(SUPERSCRIPTS)}}}", text)
    text = _TEXT_SIGN.sub(r" \1 ", text.replace("\u2212", "-").replace("°", r"^\circ "))
    text = _NAMED_FUNCTION.sub(lambda match: rf"\{'arc' if match[1] else ''}{match[2]} ", text)
    text = _BOLD_LETTER.sub(r" \1\2 ", _ARC.sub(r"arc\1", text))
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


# Short words that are no products of letters
_WORDS = frozenset((
    "to", "if", "in", "is", "at", "of", "by", "or", "and", "not", "for", "the", "gcd", "lcm", "max", "min", "mod",
))  # fmt: skip


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
            raise NoNumber
        kind = str(match.lastgroup)
        if kind == "space":
            spaced = True
        else:
            tokens.append(_Token(match[0], kind, spaced))
            spaced = False
        at = match.end()
    return tokens


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, tokens: list[_Token], variables: Mapping[str, Number]):
        self._tokens, self._at, self._depth, self._variables = tokens, 0, 0, variables

    def read(self) -> Number:
        found = self._sum()
        if self._at != len(self._tokens):
            raise NoNumber
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
            raise NoNumber
        self._at += 1
        return text

    def _inside(self, close: str) -> Number:
        self._depth += 1
        if self._depth > DEEPEST:
            raise NoNumber
        found = self._sum()
        self._take(close)
        self._depth -= 1
        return found

    # ------------------------------------------------------------------ grammar

    def _sum(self) -> Number:
        found = self._product()
        while self._peek() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            found = added(found, self._product(), sign)
        return found

    def _product(self) -> Number:
        found = self._signed()
        while True:
            if self._peek() in _TIMES:
                self._take()
                found = both(found, self._signed(), lambda one, other: one * other)
            elif self._peek() in _OVER:
                self._take()
                below = self._signed()
                if below == 0:
                    raise NoNumber
                found = both(found, below, lambda one, other: one / other)
            elif self._starts_factor():
                found = both(found, self._power(), lambda one, other: one * other)
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
                return both(found, PI / 180, lambda one, other: one * other) if self._angles else found
            found = self._postfix(power(found, self._exponent()))
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
            found = factorial(found) if self._take() == "!" else both(found, Fraction(1, 100), lambda a, b: a * b)
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
                raise NoNumber
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
            if text != "{" and "," in self._peek() and self._peek(1) in (")", "]"):
                raise NoNumber  # (3,100) is a pair
            return self._inside({"(": ")", "[": "]", "{": "}"}[text])
        if text == "|":
            self._take()
            return size_of(self._inside("|"))
        if text in ("π", "\\pi", "pi"):
            self._take()
            return PI
        if text == "e":
            self._take()
            return E
        if text == "i" and kind == "word":
            self._take()
            return IMAGINARY
        if text in ("√", "∛"):
            self._take()
            return root(self._argument_of_sign(), 2 if text == "√" else 3)
        if text in _FRACTIONS:
            return self._fraction()
        if text in _BINOMIALS:
            self._take()
            return choose(self._argument(), self._argument())
        if text == "C" and self._peek(1) == "_":
            self._at += 2
            n = self._argument()
            self._take("^")
            return choose(n, self._argument())
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
            and text not in FUNCTIONS
            and text not in _WORDS
            and all(sign in self._variables or sign == "i" for sign in text)
        ):
            self._tokens[self._at : self._at + 1] = [_Token(sign, "word", False) for sign in text]
            return self._primary()
        name = text.removeprefix("\\")
        if name in FUNCTIONS and kind in ("command", "word"):
            return self._function(name, kind == "command")
        raise NoNumber

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
                raise NoNumber
            part = above / self._number()
        else:
            return whole
        if isinstance(part, Fraction) and 0 < part < 1:
            return whole + part
        if isinstance(part, Fraction):
            raise NoNumber
        return both(whole, part, lambda one, other: one * other)

    def _fraction(self) -> Number:
        self._take()
        above, below = self._argument(), self._argument()
        if below == 0:
            raise NoNumber
        return both(above, below, lambda one, other: one / other)

    def _sqrt(self) -> Number:
        self._take()
        degree = Fraction(2)
        if self._peek() == "[":
            self._take()
            found = self._inside("]")
            if not (isinstance(found, Fraction) and found.denominator == 1 and 2 <= found <= 100):
                raise NoNumber
            degree = found
        if self._peek() == "(":
            return root(self._primary(), int(degree))
        return root(self._argument(), int(degree))

    def _argument_of_sign(self) -> Number:
        return self._number() if self._kind() == "number" else self._primary()

    def _log(self) -> Number:
        text = self._take()
        base: Number = Fraction(10)
        if self._peek() == "_":
            self._take()
            base = self._argument()
        elif text != "\\lg":
            raise NoNumber  # to which base, e or 10, is anybody's guess
        return logarithm(self._operand(), base)

    def _function(self, name: str, latex: bool) -> Number:
        self._take()
        if not latex and self._kind() == "number":  # sqrt 2, ln 2
            return FUNCTIONS[name](self._number())
        if not latex and self._peek() != "(":
            raise NoNumber
        exponent = None
        if self._peek() == "^":
            self._take()
            exponent = self._argument()
            if exponent == -1 and name in INVERSE:
                name, exponent = INVERSE[name], None
        angle = name in ("sin", "cos", "tan", "cot", "sec", "csc")
        self._angles += angle
        found = FUNCTIONS[name](self._operand())
        self._angles -= angle
        return found if exponent is None else power(found, exponent)

    def _operand(self) -> Number:
        """What a function is applied to: brackets, or a product without signs of multiplication."""
        is_number = self._kind() == "number"
        found = self._power()
        while (self._kind() in ("command", "sign") and self._peek() in ("\\pi", "π", *_FRACTIONS)) or (
            is_number and self._peek() in self._variables
        ):
            found = both(found, self._power(), lambda one, other: one * other)
        return found
