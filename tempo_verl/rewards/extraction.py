# SPDX-License-Identifier: Apache-2.0
"""What a response marks as its answer. Pure text, linear in its length, so that any response can be read.

It runs where no time limit holds: no pattern here may meet the same white space with two quantifiers.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LONGEST_ANSWER = 10_000  # characters
# Where nothing is marked, an answer is looked for at the end of a response, as far back as this many characters.
UNMARKED_WINDOW = 10_000

_ANSWER_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
# An escaped brace is in no group; "\\}" is a line break and then a brace.
_BRACES = re.compile(r"\\\\(?=[{}])|\\[{}]|(?P<box>\\(?:boxed|fbox)\s*\{)|(?P<open>\{)|(?P<close>\})")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*([^\s{}$\\]+)")
# Between the boxes of one answer: separators only, or on one line a few words with "and" or "or" among them.
_SEPARATORS = re.compile(r"(?:[\s$,;]|\\q?quad\b|\\[,;!()]|\\text\{|\}|\b(?:and|or)\b)*", re.IGNORECASE)
_LISTED = re.compile(
    r"(?=[^\n]*\b(?:and|or)\b)(?![^\n]*\b(?:answer|but|hence|is|not|so|then|therefore|thus)\b)[^\n.?!]{,40}",
    re.IGNORECASE,
)
_PERCENT = re.compile(r"[\s$]*(?:\\?%|percent\b|pct\b)")
_HASHES = re.compile(r"####(?!#)(.*)")
_DECLARED = re.compile(r"final answer is:?(.{1,300}?)I hope it is correct", re.IGNORECASE | re.DOTALL)
_CUE = re.compile(
    r"\banswers?\b[*_]*(?:\s+(?:is|are|would be|must be)\b|\s*[:：])[*_]*[ \t:]*"
    # the same in other languages: a word for "answer" or "conclusion", then a copula or a colon
    r"|(?:\b(?:Antwort|Lösung|réponse|respuesta|risposta|resposta|Ответ|ответ|Cevap|Jawaban)|答案|答え|答|解答|結論|结论|정답|الإجابة)"
    r"[*_]*\s*(?:[:：]|[是为為は]|\b(?:ist|est|es|è|é)\b)[*_]*[ \t:：]*共?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!](?=\s|$)|[。！]")
_TEXT_MACRO = re.compile(r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|mbox|emph)\s*\{([^{}]*)\}")
# A few letters of other scripts that are ASCII signs in disguise; full-width forms are handled by their offset.
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "٫": ".", "٬": ",", "\u00a0": " ", "\u3000": " "}
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def final_answer(text: str) -> str | None:
    r"""The answer that a response marks as such, or ``None`` if it marks none.

    The last ``<answer>...</answer>``, or the last "final answer
    is ... I hope it is correct"; in that, or else in the whole text, the last closed ``\boxed{...}`` (boxes joined by a
    comma, "and" or "or" are one answer, "a, b"), else the last line if it is ``#### answer``. Digits of any script
    become 0-9, and what is longer than 10,000 characters is no answer.
    """
    tagged, declared = _ANSWER_TAG.findall(text), _DECLARED.findall(text)
    if tagged or declared:
        answer = tagged[-1] if tagged else declared[-1].rstrip().removesuffix(".")
        return _boxed(answer) or _hashed(answer) or clean(answer.strip('"“”* \n'))
    return _boxed(text) or _hashed(text)


def cued_answer(text: str) -> str | None:
    """What follows the last "answer is" or "answer:" on its line, without the full stop."""
    end = None
    for match in _CUE.finditer(text):
        end = match.end()
    if end is None:
        return None
    rest = text[end:].lstrip("*_ \t\n") if not text[end:].split("\n", 1)[0].strip("*_ \t") else text[end:]
    return clean(rest.split("\n", 1)[0].strip().rstrip(".。").strip("*_ "))


def last_line(text: str) -> str | None:
    """The last line that is not empty."""
    lines = text.strip().splitlines()
    return clean(lines[-1]) if lines else None


def plain_text(answer: str) -> str:
    r"""An answer without what only sets its type: ``$``, ``\text{...}``, asterisks, quotes, backticks."""
    for _ in range(3):  # from the inside out; nobody nests them deeper
        answer = _TEXT_MACRO.sub(r"\1", answer)
    return answer.replace("\\$", "$").replace("$", "").strip(" \t\n*_`'\"“”‘’")


def ascii_signs(text: str) -> str:
    """Digits of every script as 0-9, full-width forms and the minus sign as ASCII, without invisible characters."""
    if text.isascii():
        return text
    text = text.translate(_SIGNS).translate(_FULL_WIDTH)
    kinds = map(unicodedata.category, text)
    return "".join(
        str(unicodedata.decimal(sign)) if kind == "Nd" else sign
        for sign, kind in zip(text, kinds, strict=True)
        if kind != "Cf"
    )


def clean(answer: str) -> str | None:
    """An answer with ASCII signs and no space around it; ``None`` if it is empty or longer than 10,000 characters."""
    answer = ascii_signs(answer).strip()
    return answer if 0 < len(answer) <= LONGEST_ANSWER else None


def _hashed(text: str) -> str | None:
    marked = _HASHES.match(text.strip().rpartition("\n")[2].lstrip())  # in another line it is a heading
    return clean(marked[1]) if marked else None


def _boxed(text: str) -> str | None:
    boxes = _outermost_boxes(text)
    if not boxes:
        bare = _BARE_BOX.findall(text)
        return clean(bare[-1].rstrip(".,;")) if bare else None
    first = len(boxes) - 1
    while first > 0 and _one_answer(text[boxes[first - 1].end : boxes[first].begin]):
        first -= 1
    contents = [text[box.content_begin : box.content_end].strip() for box in boxes[first:]]
    answer = clean(", ".join(dict.fromkeys(filter(None, contents))))
    return f"{answer}\\%" if answer and _PERCENT.match(text, boxes[-1].end) else answer


class _Box(NamedTuple):
    begin: int
    end: int
    content_begin: int
    content_end: int


def _one_answer(between: str) -> bool:
    return bool(_SEPARATORS.fullmatch(between) or _LISTED.fullmatch(between))


def _outermost_boxes(text: str) -> list[_Box]:
    """The closed boxes that are in no other box, in one pass over the braces; a box in a box counts as one."""
    boxes: list[_Box] = []
    stack: list[tuple[int, int, bool]] = []
    for match in _BRACES.finditer(text):
        kind = match.lastgroup
        if kind in ("box", "open"):
            stack.append((match.start(), match.end(), kind == "box"))
        elif kind == "close" and stack:
            begin, content, is_box = stack.pop()
            if is_box:
                within = []
                while boxes and boxes[-1].begin > begin:
                    within.append(boxes.pop())
                box = _Box(begin, match.end(), content, match.start())
                if len(within) == 1 and _blank(text[content : within[0].begin], text[within[0].end : match.start()]):
                    box = box._replace(content_begin=within[0].content_begin, content_end=within[0].content_end)
                boxes.append(box)
    return boxes


def _blank(*parts: str) -> bool:
    return not any(part.strip() for part in parts)
