# SPDX-License-Identifier: Apache-2.0
"""A choice among options, named by its letter or by its text.

A bare letter is always the letter of an option, also where an option's text is a letter. Several letters are one
answer, in any order. A letter beside "or", or one that is denied, names no option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tempo_verl.rewards import expression, numeric
from tempo_verl.rewards.extraction import UNMARKED_WINDOW, ascii_signs, cued_answer, final_answer, last_line, plain_text
from tempo_verl.rewards.spelling import canonical, normalised

# Letters and what may stand between and around those of one answer
_SEVERAL = re.compile(r"[\s,;&/、，和及与。.:\[\](){}<>A-Za-z]{1,80}")
_JOINED = re.compile(r"\b(?:and|und|et|y)\b")
_WITH_TEXT = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])\)|([A-Z])[.:])\s*(\S.*)", re.DOTALL)
# What follows the first letter of a list, "(A), C", "(A)(C)", "A. C.", and not of an option with its text, "(A) L, P"
_MORE_LETTERS = (
    re.compile(r"[,;&/、，和及与].*|(?:and|und|et|y)\b.*|[\s(\[A-Za-z)\]]*[)\]][\s)\]}]*", re.DOTALL),
    re.compile(r"[A-Za-z](?:[\s.:]+[A-Za-z])*[\s.:]*|[,;&/、，和及与].*|(?:and|und|et|y)\b.*", re.DOTALL),
)
_OR = re.compile(r"\b(?:or|oder|ou)\b|或")
# Two options, and not one with "or" in its text
_OTHER = re.compile(rf"(?:{_OR.pattern})\s*\(?[A-Z][).:]|^(?:{_OR.pattern})")
_DELIMITERS = re.compile(r"\\[()\[\]]")
_NAMED = re.compile(
    r"^(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)\s?(?:is\b)?\s?:?\s?(?=\W{,3}[A-Za-z]\b)", re.IGNORECASE
)
_SIZE = re.compile(r"\\(?:large|Large|huge|bf|rm|it|tt|displaystyle)(?![a-zA-Z])")

# In prose: letters, then what may follow them. "A" and "I" before a word may be no letters ("A cat", "I think"), unless
# the word begins a reason or says that the option is right. White space is bounded: no response may make it expensive.
_LETTERS = (
    r"(?P<letters>\(?[A-Z]\)?(?:(?:\s{,3}[,;&、]\s{,3}(?:and\s{1,3})?|\s{1,3}and\s{1,3})\(?[A-Z]\)?(?![A-Za-z])){,25}"
    r"|[A-J]{2,6}(?![A-Za-z]))"
)
_RIGHT = r"(?:the\s)?(?:only\s)?(?:correct|right|best)\b"
_JOINING = (
    r"(?:because|since|as|rather|instead|not|and|but|while|whereas|which|when|if|for|from|in|by|with|on|over|due|given|based"
    r"|according|among|is|are|was)\b"
)
_AFTER = rf"(?![A-Za-z'’])(?!\s{{,3}}or\s{{1,3}}(?:option\s)?\(?[A-Z]\b)(?!(?<=[AI])\s{{1,3}}(?!{_JOINING})[a-z]{{2,}})"
_LINK = r"(?:\s{1,3}(?:is|are|must\sbe|should\sbe|has\sto\sbe|as))?\s{,3}[:=]?\s{,3}"
_OPTION_WORD = r"\b(?i:choices?|options?)\b"
_ANSWER = r"\b(?i:(?:final\s)?answers?|(?:correct|right|best)\s(?:choices?|options?))\b"
_SURELY = r"(?:(?:therefore|thus|hence|then|clearly|indeed|simply|just|definitely|only)\s)?"
_CUES = (
    re.compile(
        rf"(?<!not )(?<!than ){_ANSWER}{_LINK}{_SURELY}(?:not\s\(?[A-Z]\)?,?\sbut\s)?"
        rf"(?:(?i:the\s)?(?i:correct\s|right\s|best\s)?(?i:option|choice|answer|letter)\b{_LINK})?"
        rf"[\[(<]?{_LETTERS}[\])>]?{_AFTER}"
    ),
    re.compile(r"\b(?i:answer)\b(?:\s{1,3}is)?\s{,3}:?\s{1,3}(?P<letters>[a-z])\s{,3}[.)]?\s{,3}(?:\n|$)"),
    re.compile(rf"(?<![A-Za-z]){_LETTERS}\s{{1,3}}(?:is|are)\s{{1,3}}{_RIGHT}"),
    re.compile(r"(?<![A-Za-z])(?P<letters>[A-Z])\sit\sis\b"),
    re.compile(rf"\b(?:choose|chose|pick|select|selected|go\swith)\s(?:option\s|choice\s)?{_LETTERS}{_AFTER}"),
    # Chinese, Japanese, Korean, Turkish
    re.compile(
        r"(?:答案|正确选项|正解|정답)\s?[】\]）)]?\s?(?:[是为為は이:：]\s?)+\(?(?P<letters>[A-Z](?:\s?[、，,和]\s?[A-Z])*)(?![A-Za-z])"
    ),
    re.compile(r"(?P<letters>[A-Z])\s?(?:项|選項|选项)?\s?(?:是?正确|是?正確|が正解|이 정답)"),
    re.compile(r"\b[Cc]evap\b\s{,2}:?\s{,2}(?P<letters>[A-Z])(?:['’][dt][iıuü]r)?(?![A-Za-z])"),
)
# Only where no cue tells, and not denied: an option that is named, or left; "the answer would be B", maybe after an if
_WEAKER = (
    re.compile(r"\b[Oo]nly\s(?:option\s)?(?P<letters>\(?[A-Z]\)?)\s(?!is\s(?:wrong|false|incorrect))[a-z]{2,}"),
    re.compile(rf"(?<!not )(?<!than ){_OPTION_WORD}{_LINK}[\[(<]?{_LETTERS}[\])>]?{_AFTER}"),
    re.compile(rf"{_ANSWER}\s(?:would|could|may|might)\sbe:?\s{{,3}}[\[(]?{_LETTERS}[\])]?{_AFTER}"),
)
_UNDECIDED = re.compile(
    r"(?<![A-Za-z])\(?[A-Z]\)?\s{1,3}(?:or|nor)\s{1,3}(?:option\s)?\(?[A-Z]\)?(?![A-Za-z])"
    r"|\b(?i:between|both|neither|none\sof)\s(?:option\s|choices?\s)?\(?[A-Z]\)?(?![A-Za-z])"
)
# Scripts without Latin letters: a capital among them is an option.
_OTHER_SCRIPT = re.compile(
    r"[^\x00-\u024f\s]\s{,2}[:：]?\s{,2}(?P<letters>[A-Z](?:\s{,2}[、，,和及与と]?\s{,2}[A-Z])*)(?![A-Za-z])"
)
_LABELLED = re.compile(
    r"^\W{,5}[^\W\d_]{1,20}(?:\s[^\W\d_]{1,20}){,3}\s{,2}[:：]\s{,2}(?P<letters>[A-Z](?:, [A-Z])*)\W{,3}$", re.MULTILINE
)
_AT_END = re.compile(r"(?:^|[\s(])(?P<letters>[A-Z])\)?\s{,2}[.。]?\s*$", re.MULTILINE)
_BRACKETED = re.compile(r"\(([A-Z])\)")
_BOLD = re.compile(r"\*\*\(?([A-Z])\)?[.:]?\*\*")
# In the line of a letter that no cue names: it is denied, or still looked at.
_DENIED = re.compile(
    r"\b(?:not|no|wrong|incorrect|false|cannot|fails?|failed|eliminat\w*|rul(?:e|es|ed|ing)\sout|exclud\w*|unsure|undecided|torn|tie"
    r"|neither|nor|none|both|either|remain\w*|consider\w*|check\w*|analy[sz]\w*|examin\w*|evaluat\w*|test\w*|look\w*|next"
    r"|compare\w*|maybe|perhaps|too\s(?:small|large|big|low|high|few|many))\b|n['’]t\b|错误|不正确|不对|排除",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    r"\W*(?:[Oo]ption\s|[Cc]hoice\s)?[A-Z]\W{,3}\s?(?:it\s|is\s|it\sis\s|it's\s)?"
    r"(?:not\s\w{,12}|no|false|wrong|incorrect|fails?|eliminated|ruled\sout|impossible)\W*"
)
_CLAUSE_END = re.compile(r"[.;\n]|,\s(?:while|but|whereas)\b")


def extract_choice(response: str, options: Sequence[str] = ()) -> str | None:
    """The letters as capitals in their order; the option's text, normalised, where no letter is given.

    Args:
        response: what was answered.
        options: in the order of their letters, where they are known: the text of one is read as its letter.
    """
    known = lettered(options)
    stated = final_answer(response) or cued_answer(response) or last_line(response)
    if known and stated and (letter := named(stated, known)):
        return letter  # before any letter within the text, such as the I of "Only I and II"
    answer = _extracted(response)
    return answer if answer is None else named(answer, known) or answer


def equal_choice(answer: str, ground_truth: str, options: Sequence[str] = ()) -> bool:
    """The letters or the text of the right option, as far as the ground truth ("B", "(B)", "(B) Paris", "Paris") tells.

    A ground truth with several letters ("AC", "A, C") asks for all of them, in any order.
    """
    letter, text = parts(ground_truth)
    letter = letter or named(text or "", lettered(options))
    return answer == letter or (text is not None and same_text(answer, text))


def lettered(options: Iterable[str]) -> list[tuple[str, str]]:
    """(letter, text) of options in the order of their letters, which they may begin with: "Paris", "B. Paris"."""
    found = [(chr(ord("A") + place), *parts(option), option) for place, option in enumerate(options)]
    return [(place, text if letter == place and text else option) for place, letter, text, option in found]


def named(text: str, options: Iterable[tuple[str, str]]) -> str | None:
    """The letter of the option with this text; ``None`` where none or more than one has it."""
    if len(text) == 1 and "A" <= text <= "Z":
        return text
    letters = {letter for letter, its in options if same_text(text, its)}
    return letters.pop() if len(letters) == 1 else None


def why_not(ground_truth: str, options: Sequence[str]) -> str | None:
    """Why a ground truth names none of the options, or ``None``."""
    known = lettered(options)
    letter, text = parts(ground_truth)
    named_letters = letter or named(text or "", known)
    if named_letters is None:
        return f"no option has this text (options: {', '.join(its for _, its in known)})"[:200]
    missing = sorted(set(named_letters) - {of for of, _ in known})
    return f"there is no option {', '.join(missing)}, only {known[0][0]} to {known[-1][0]}" if missing else None


def _extracted(response: str) -> str | None:
    marked = final_answer(response)
    if marked is not None:
        found = letters(marked)
        return found or _named_in_prose(response, cues_only=True) or normalised(marked) or None
    found = _named_in_prose(response)
    if found:
        return found
    answer = cued_answer(response) or last_line(response)
    if not answer:
        return None
    return (None if _is_denied(answer) else letters(answer)) or normalised(answer) or None


def parts(option: str) -> tuple[str | None, str | None]:
    """Letters and text of an option, as far as it has them."""
    option = _plain(option)
    if labelled := _labelled(option):
        return labelled[0], normalised(labelled[1])
    found = letters(option)
    return (found, None) if found else (None, normalised(option))


def same_text(first: str, second: str) -> bool:
    """The same words, the same formula but for its layout, or the same number."""
    if normalised(first) == normalised(second) or canonical(first).casefold() == canonical(second).casefold():
        return True
    one, other = (expression.value(canonical(text)) for text in (first, second))
    return one is not None and other is not None and numeric.equal(one, other)


def letters(answer: str) -> str | None:
    """The letters that an answer consists of or begins with, sorted; ``None`` if it is something else."""
    answer = _NAMED.sub("", " ".join(_plain(answer).split())).strip()  # one space: no pattern meets many
    if labelled := _labelled(answer):
        return None if _OTHER.search(labelled[1]) else labelled[0]
    return None if _OR.search(answer) else _letters_alone(answer)


def _labelled(option: str) -> tuple[str, str] | None:
    """Letter and text of "(B) Paris", "B. Paris"; ``None`` where several letters are listed, "(A), (C)"."""
    match = _WITH_TEXT.fullmatch(option)
    if not match:
        return None
    if _MORE_LETTERS[bool(match[3])].fullmatch(match[4]) and _letters_alone(option):
        return None
    return (match[1] or match[2] or match[3]).upper(), match[4]


def _letters_alone(answer: str) -> str | None:
    """Sorted letters, if there is nothing else."""
    if not _SEVERAL.fullmatch(answer):
        return None
    found = re.findall(r"[A-Za-z]+", _JOINED.sub(" ", answer))
    if len(found) == 1 and 1 < len(found[0]) <= 8:  # BAD are letters, bad is a word, and abd is none
        together = list(found[0].upper())
        if len(set(together)) < len(together) or max(together) > "J":
            return None
        if not found[0].isupper() and together != sorted(together):
            return None
        found = together
    if not found or any(len(letter) > 1 for letter in found):
        return None
    return "".join(sorted({letter.upper() for letter in found}))


def _plain(answer: str) -> str:
    answer = _DELIMITERS.sub(" ", ascii_signs(answer)).strip()
    return _SIZE.sub("", plain_text(answer)).strip("{} \t\n").strip()


def _named_in_prose(text: str, cues_only: bool = False) -> str | None:
    text = text[-UNMARKED_WINDOW:]
    bold = _BOLD.findall(text)
    text = _DELIMITERS.sub(" ", re.sub(r'[*_`$"“”]', "", ascii_signs(text)))
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm)\s?\{([^{}]{,20})\}", r"\1", text)
    found = [match for cue in _CUES for match in cue.finditer(text)] or [
        match for cue in _WEAKER for match in cue.finditer(text) if not _DENIED.search(_clause_of(text, match.start()))
    ]
    undecided = max((match.start() for match in _UNDECIDED.finditer(text)), default=-1)
    if found:
        last = max(found, key=lambda match: match.start("letters"))
        return None if last.start("letters") < undecided and _in_answer(text, undecided) else letters(last["letters"])
    if cues_only or _in_answer(text, undecided):
        return None
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if lines and not _is_denied(lines[-1]) and (alone := letters(lines[-1])):
        return alone
    for pattern in (_OTHER_SCRIPT, _LABELLED, _AT_END):
        matches = [
            match for match in pattern.finditer(text) if not _DENIED.search(_line_of(text, match.start("letters")))
        ]
        if matches and (given := letters(matches[-1]["letters"])):
            return given
    bracketed = [m for m in _BRACKETED.finditer(text) if not _DENIED.search(_line_of(text, m.start()))]
    if bracketed:
        return bracketed[-1][1]
    return bold[-1] if bold and not _DENIED.search(lines[-1]) else None


def _is_denied(line: str) -> bool:
    """Whether a line says of a letter that it is wrong, and nothing else: "D: false"."""
    return _VERDICT.fullmatch(line) is not None


def _in_answer(text: str, at: int) -> bool:
    """Whether what is undecided at a place is the answer: it is said so, or it is in the last line."""
    if at < 0:
        return False
    return re.search(rf"{_ANSWER}|{_OPTION_WORD}", _line_of(text, at)) is not None or not text[at:].strip().count("\n")


def _clause_of(text: str, at: int) -> str:
    """The clause that a place is in."""
    return _CLAUSE_END.split(text[max(0, at - 100) : at])[-1] + _CLAUSE_END.split(text[at : at + 300], maxsplit=1)[0]


def _line_of(text: str, at: int) -> str:
    begin = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return text[begin : len(text) if end < 0 else end][:500]
