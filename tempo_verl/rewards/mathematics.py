# SPDX-License-Identifier: Apache-2.0
"""Mathematical answers, compared by Math-Verify: numbers, expressions, equations, sets, intervals, matrices, units.

Math-Verify itself is called in a child process only: see ``algebra``.
"""

from __future__ import annotations

import importlib.util
import logging
import re

from tempo_verl.errors import UserError
from tempo_verl.rewards import numeric, reading
from tempo_verl.rewards.extraction import UNMARKED_WINDOW, cued_answer, final_answer, last_line, plain_text
from tempo_verl.rewards.process import VerifierFailure, workers
from tempo_verl.rewards.spelling import canonical, formula

logger = logging.getLogger(__name__)

CHILD = "tempo_verl.rewards.algebra"  # not imported here: Math-Verify and SymPy are of no use to this process

_SQRT = re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(pi|infinity|ln|log|sin|cos|tan|exp)(?![a-zA-Z])")
LONGEST_STATED = 120  # characters of an answer that is not marked

_CUE_IN_BOX = re.compile(
    r"^(?:\\(?:text|textbf|mathrm|textrm) ?\{ ?)?(?:the )?(?:final )?answer"
    r"(?: is)?(?: ?:)?(?: ?\})?(?: ?:)? ?(?=[^ }])",
    re.IGNORECASE,
)
# What an answer is not, or not quite: "not 12", "at least 12", "twice 12", "12 minus x"
_NOT_IT = re.compile(
    r"\b(?:not|isn't|cannot|can't|couldn't|neither|greater|larger|smaller|bigger|more|less|fewer|least|most"
    r"|squared|cubed|factorial|twice|thrice|double|half of|square root|cube root|reciprocal|between|minus [a-z]\b|plus"
    r"|divided|unknown|undecided)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"^(?:minus|negative)\s+(?=[\d$\\])", re.IGNORECASE)
_TWO = re.compile(r"\b(?:is|are|=)\s*\$?-?\d[^.]{,80}?\band\b[^.]{,80}?\b(?:is|are)\s*\$?-?\d[\d,]*\$?\s*\.?\s*$")
_DENIED = re.compile(r"\banswer\s+(?:isn['’]t|is\s+not|can(?:no|['’])t|could\s+not|is\s+unknown)", re.IGNORECASE)
_LINK = re.compile(r"\b(?:is|are|hence|thus|therefore|equals|so)\b[,:]?\s+|[:：⇒→]\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\\)[.!](?=\s)|[。！]|,?\s+(?:because|since|which|as)\b")
_COMMAND = re.compile(r"\\[a-zA-Z]+|\b(?:sqrt|sin|cos|tan|log|ln|exp|pi|and|or|infinity)\b")
_PROSE = re.compile(r"[^\W\d_]{3,}")
_SIGN = re.compile(r"[^\W_]|∞")
_CONSTANT = re.compile(r"(?<![a-zA-Z])(?:infinity|infty|pi)(?![a-zA-Z])")
_DIGITS = re.compile(r"\d+")
_OPTION = re.compile(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-J])\)?\.?|(?:\(([A-J])\)\s*|([A-J])[.):]\s+)(\S.*)", re.DOTALL)


def check(response: str, ground_truth: str | None, timeout: float) -> tuple[bool, str | None]:
    """Whether the response's answer equals the ground truth, and that answer: the marked one, else Math-Verify's find.

    Raises:
        VerifierFailure: no verdict.
    """
    marked = _uncued(final_answer(response))
    truth = None if ground_truth is None else _answer_of(ground_truth)
    if marked is not None:
        return _judge(marked, truth, timeout)
    text = response
    if len(text) > UNMARKED_WINDOW:  # from a paragraph's begin: half a formula would turn all that follow inside out
        text = text[-UNMARKED_WINDOW:]
        text = text.partition("\n\n")[2] or text
    stated, certain = _stated(text)
    if stated is not None:
        return _judge(stated, truth, timeout)
    if certain:
        return False, None
    verdict, found = workers().call(f"{CHILD}:judge", text, truth, timeout=timeout)
    return verdict, _canonical_or_none(found)


def _answer_of(ground_truth: str) -> str:
    return _uncued(final_answer(ground_truth) or ground_truth.strip()) or ""


def _uncued(marked: str | None) -> str | None:
    """``\\boxed{\\text{The answer is }12}`` is 12."""
    if not marked or "answer" not in marked.casefold():
        return marked
    return _CUE_IN_BOX.sub("", " ".join(marked.split()), count=1)


def _judge(answer: str, truth: str | None, timeout: float) -> tuple[bool, str | None]:
    spelled = _canonical_or_none(answer)
    verdict = False if truth is None or spelled is None else _told(answer, truth)
    if verdict is None:
        verdict = workers().call(f"{CHILD}:judge", as_formula(answer), truth, timeout=timeout)[0]
    return verdict, spelled


def _stated(text: str) -> tuple[str | None, bool]:
    """What follows "answer is" or the last "is", "hence", ... if that is an answer as a whole.

    Returns:
        The answer or ``None``; and whether the text states one that is none, such as "between 3 and 4".
    """
    tail = cued_answer(text)
    cued = tail is not None
    line = (last_line(text) or "")[-500:]
    if _DENIED.search(line) or (not cued and _TWO.search(line)):
        return None, True
    if tail is None:
        links = list(_LINK.finditer(line))
        tail = line[links[-1].end() :] if links else line
    tail = _SENTENCE_END.split(tail, maxsplit=1)[0].strip().strip("*_` ").rstrip(".").strip()
    if not tail or len(tail) > LONGEST_STATED:
        return None, False
    tail = _NEGATIVE.sub("-", tail)
    if cued and _NOT_IT.search(tail):
        return None, True
    found = reading.read(tail)
    if found is not None and (cued or found.kind not in ("words", "letters")):
        return tail, True
    rest = _COMMAND.sub(" ", tail)
    if (
        found is None
        and not _PROSE.search(rest)
        and (_SIGN.search(rest) or _CONSTANT.search(tail))
        and tail.count("{") == tail.count("}")
    ):
        return tail, True
    return None, cued and len(_DIGITS.findall(tail)) > 1


def equivalent(first: str, second: str, timeout: float) -> bool | None:
    """Whether two answers are equal by Math-Verify. ``None``: no verdict."""
    try:
        return bool(workers().call(f"{CHILD}:judge", as_formula(second), first, timeout=timeout)[0])
    except VerifierFailure as failure:
        logger.warning("no comparison of two answers, which count as different: %s", failure)
        return None


def _told(answer: str, truth: str) -> bool | None:
    """The verdict where no algebra is needed; ``None`` where it is."""
    if canonical(answer) == canonical(truth) or plain_text(answer) == plain_text(truth):
        return True
    chosen, text = _option(truth)
    if chosen is not None:
        given, _ = _option(answer)
        if given is not None:
            return given == chosen
        return None if text is None else reading.same(reading.read(answer), reading.read(text))
    verdict = reading.same(reading.read(answer), reading.read(truth))
    return numeric.agree(answer, truth) if verdict is None else verdict


def _option(answer: str) -> tuple[str | None, str | None]:
    """Letter and text of an answer to a question with options: A, (A), A. 12, option A."""
    match = _OPTION.fullmatch(plain_text(answer.replace("\\ ", " ")).strip())
    if match is None:
        return None, None
    return match[1] or match[2] or match[3], match[4]


def _canonical_or_none(answer: str | None) -> str | None:
    return (canonical(answer) or None) if answer else None


def check_ground_truth(ground_truth: str, timeout: float) -> str | None:
    """Why responses cannot be compared with this ground truth, or ``None``."""
    truth = _answer_of(ground_truth)
    if reading.read(truth) is not None:  # most; no child process need be asked
        return None
    return workers().call(f"{CHILD}:why_not", truth, timeout=timeout)


def check_installed() -> None:
    """Raises UserError without Math-Verify."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError("reward_model.style='math' needs Math-Verify: pip install 'tempo-verl[math]'")


def as_formula(answer: str) -> str:
    """An answer as a formula in a text. Math-Verify knows a per cent sign behind a formula, not in one."""
    body = _FUNCTION.sub(r"\\\1", _SQRT.sub(r"\\sqrt{\1}", formula(answer))).strip()
    body = body.replace("\\infinity", "\\infty")
    number = body.removesuffix("%").removesuffix("\\")
    return f"$${number}$$ %" if body.endswith("%") else f"$${body}$$"
