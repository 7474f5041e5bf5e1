# SPDX-License-Identifier: Apache-2.0
"""Mathematical answers, compared by Math-Verify: numbers, expressions, equations, sets, intervals, matrices, units.

Math-Verify itself is called in a child process only: see ``algebra``.
"""

from __future__ import annotations

import importlib.util
import re

from tempo_verl.errors import UserError
from tempo_verl.rewards.extraction import after_thinking, ascii_signs, final_answer, plain_text
from tempo_verl.rewards.process import workers

# Where nothing is marked, an answer is looked for at the end of the response, as far back as this many characters.
UNMARKED_WINDOW = 10_000
CHILD = "tempo_verl.rewards.algebra"  # not imported here: Math-Verify and SymPy are of no use to this process
DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")

_INTEGER = re.compile(r"[+-]?\d+")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}([, ]\d{3})+(\.\d+)?")
_WORDS = re.compile(r"[^\W\d_]{2,}( [^\W\d_]+)*")
_CURRENCY = re.compile(r"\\?\$|[€£¥]")
_DROPPED = re.compile(r"(\\\\)|\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|~|\{,\}")
_FRACTIONS = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_LOOSE_SPACE = re.compile(r"\s*([^\w\s\\])\s*")
_SYMBOLS = str.maketrans(
    {
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "±": r"\pm ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "½": r"\frac{1}{2}",
        "²": "^{2}",
        "³": "^{3}",
    }
)
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z]|\([^()]*\))")


def canonical(answer: str) -> str:
    r"""One spelling for answers that differ only in layout: ``\dfrac``, ``\left``, spaces, ``$``, ``1,000``."""
    answer = _FRACTIONS.sub(r"\\frac", _DROPPED.sub(r"\1", _formula(answer)))
    answer = " ".join(answer.split()).rstrip(". ")
    if _THOUSANDS.fullmatch(answer):
        answer = answer.replace(",", "").replace(" ", "")
    answer = _LOOSE_SPACE.sub(r"\1", answer)
    if _INTEGER.fullmatch(answer):
        sign, digits = ("-" if answer.startswith("-") else ""), answer.lstrip("+-").lstrip("0")
        answer = sign + digits if digits else "0"
    return answer


def check(response: str, ground_truth: str | None, timeout: float) -> tuple[bool, str | None]:
    """Whether the response's answer equals the ground truth, and that answer: the marked one, else Math-Verify's find.

    Raises:
        VerifierFailure: no verdict.
    """
    marked = final_answer(response)
    truth = None if ground_truth is None else final_answer(ground_truth) or ground_truth.strip()
    if marked is not None:
        answer = _canonical_or_none(marked)
        verdict = False if truth is None or answer is None else _same_spelling(answer, canonical(truth))
        if verdict is not None:
            return verdict, answer
        return workers().call(f"{CHILD}:judge", as_formula(marked), truth, timeout=timeout)[0], answer
    text = after_thinking(response)
    if len(text) > UNMARKED_WINDOW:  # from a paragraph's begin: half a formula would turn all that follow inside out
        text = text[-UNMARKED_WINDOW:]
        text = text.partition("\n\n")[2] or text
    verdict, found = workers().call(f"{CHILD}:judge", text, truth, timeout=timeout)
    return verdict, _canonical_or_none(found)


def _same_spelling(answer: str, truth: str) -> bool | None:
    """The verdict where canonical spelling tells: equal, two integers, or equal words; ``None`` where it does not."""
    if answer == truth:
        return True
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(truth):
        return False
    words, true_words = plain_text(answer).rstrip("."), plain_text(truth).rstrip(".")
    if words == true_words or (_WORDS.fullmatch(words) and words.casefold() == true_words.casefold()):
        return True
    return None


def _canonical_or_none(answer: str | None) -> str | None:
    return (canonical(answer) or None) if answer else None


def check_ground_truth(ground_truth: str, timeout: float) -> str | None:
    """Why responses cannot be compared with this ground truth, or ``None``."""
    truth = final_answer(ground_truth) or ground_truth.strip()
    return workers().call(f"{CHILD}:why_not", truth, timeout=timeout)


def check_installed() -> None:
    """Raises UserError without Math-Verify."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("reward_model.style='math' needs Math-Verify: pip install 'tempo-verl[math]'")


def _formula(answer: str) -> str:
    """LaTeX without delimiters and currencies, and with its own names for the symbols that people type."""
    answer = _CURRENCY.sub(" ", DELIMITERS.sub(" ", ascii_signs(answer)))
    return _ROOT.sub(r"\\sqrt{\1}", answer).translate(_SYMBOLS)


def as_formula(answer: str) -> str:
    """An answer as a formula in a text. Math-Verify knows a per cent sign behind a formula, not in one."""
    body = _formula(answer).strip()
    number = body.removesuffix("%").removesuffix("\\")
    return f"$${number}$$ %" if body.endswith("%") else f"$${body}$$"
