# SPDX-License-Identifier: Apache-2.0
"""Which answers say the same. One notion for votes, clusters, diversity and rewards by agreement.

First by form: what is read as the same number, word, interval, ... is the same; expressions are the same if they agree
at two points. Only what neither tells is compared by Math-Verify, a bounded number of times. Groups do not depend on
the order of the answers: pairs are compared in the order of their spellings, and what equals the same is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from tempo_verl.rewards import choice, numeric, quantity, reading
from tempo_verl.rewards.answers import as_text
from tempo_verl.rewards.spelling import canonical

MOST_COMPARISONS = 40  # calls of Math-Verify for one prompt's answers
# Calls of one answer that end without a verdict, each after the whole time limit: one may be the other answer's fault.
MOST_FAILURES = 2


def group(
    answers: Sequence[str | None],
    style: str,
    equal: Callable[[str, str], bool | None],
    options: Sequence[str] | None = None,
) -> list[int | None]:
    """The number of each answer's group, counted from 0 in order of appearance; ``None`` for no answer.

    Args:
        answers: of one prompt, as they were given or extracted.
        style: the verifier, see ``tempo_verl.rewards``.
        equal: compares two mathematical answers that their form does not tell apart; ``None`` counts as different.
        options: of a choice, such as "A. Paris" or ("Paris", "Rome") in the order of their letters.
    """
    given = Counter(answer for answer in answers if answer is not None)
    if style == "math":
        group_of = _mathematical(given, equal)
    elif style == "choice":
        group_of = _choices(given, options or ())
    else:
        group_of = {answer: _plain(answer, style) for answer in given}
    numbers: dict[Hashable, int] = {}
    return [None if answer is None else numbers.setdefault(group_of[answer], len(numbers)) for answer in answers]


def _plain(answer: str, style: str) -> Hashable:
    if style == "text":
        return as_text(answer)
    if style == "number":
        number = quantity.quantity(answer.replace("\\%", "").replace("%", ""))
        return answer if number is None else numeric.as_key(number)
    return answer


def _mathematical(given: Counter[str], equal: Callable[[str, str], bool | None]) -> dict[str, Hashable]:
    unread: dict[str, list[str]] = {}  # by canonical spelling
    alike: dict[Hashable, dict[str, reading.Reading]] = {}  # by what they have in common if they are the same
    for answer in given:
        found = reading.read(answer)
        if found is None:
            unread.setdefault(canonical(answer), []).append(answer)
        else:
            alike.setdefault(reading.key(found), {})[answer] = found
    keys = {answer: key for common, readings in alike.items() for answer, key in _parted(common, readings).items()}
    spellings = sorted(unread)
    join = _Joined(spellings)
    prints = {spelling: numeric.fingerprint(spelling) for spelling in spellings}
    told = [(spelling, found) for spelling, found in prints.items() if found is not None]
    for at, (first, its) in enumerate(told):
        for second, other in told[at + 1 :]:
            if not join.are(first, second) and numeric.same_print(its, other):
                join.make(first, second)
    comparisons, failures = 0, Counter[str]()
    # the most frequent first, so that a bound leaves the rare ones alone
    often = sorted(spellings, key=lambda spelling: (-sum(given[answer] for answer in unread[spelling]), spelling))
    for at, first in enumerate(often):
        for second in often[at + 1 :]:
            if join.are(first, second) or (prints[first] is not None and prints[second] is not None):
                continue
            if comparisons == MOST_COMPARISONS or max(failures[first], failures[second]) >= MOST_FAILURES:
                continue
            comparisons += 1
            verdict = equal(*sorted((first, second)))
            if verdict is None:
                failures.update((first, second))
            elif verdict:
                join.make(first, second)
    for spelling, spelled in unread.items():
        keys |= dict.fromkeys(spelled, ("spelling", join.of(spelling)))
    return keys


def _parted(common: Hashable, readings: dict[str, reading.Reading]) -> dict[str, Hashable]:
    """Readings that are alike, such as 8 AM, 8 PM and 8: the full ones apart; one that tells less joins an only one."""
    details = {answer: reading.detail_key(found) for answer, found in readings.items()}
    told = [answer for answer, detail in details.items() if detail is not None]
    if not told:
        return dict.fromkeys(readings, common)

    def part(answer: str) -> Hashable:
        if details[answer] is not None:
            return details[answer]
        fits = {details[other] for other in told if reading.same(readings[other], readings[answer])}
        return fits.pop() if len(fits) == 1 else None

    return {answer: (common, part(answer)) for answer in readings}


def _choices(given: Counter[str], options: Sequence[str]) -> dict[str, Hashable]:
    """A letter, and the text that an option or an answer gives beside it, are one."""
    pairs = {answer: choice.parts(answer) for answer in given}
    known = choice.lettered(options) + [(letter, text) for letter, text in pairs.values() if letter and text]
    keys: dict[str, Hashable] = {}
    for answer, (letter, text) in pairs.items():
        letter = letter or choice.named(text or "", known)
        keys[answer] = ("letter", letter) if letter else ("text", text)
    return keys


class _Joined:
    """Sets of texts, each named by its smallest member."""

    def __init__(self, texts: Sequence[str]):
        self._parent = {text: text for text in texts}

    def of(self, text: str) -> str:
        while self._parent[text] != text:
            text = self._parent[text]
        return text

    def are(self, first: str, second: str) -> bool:
        return self.of(first) == self.of(second)

    def make(self, first: str, second: str) -> None:
        low, high = sorted((self.of(first), self.of(second)))
        self._parent[high] = low


def representatives(answers: Sequence[str | None], numbers: Sequence[int | None]) -> list[str | None]:
    """Each answer in the spelling that is the most frequent of its group, the first in alphabetical order among equals.

    Args:
        numbers: of the groups, from :func:`group`.
    """
    spellings: dict[int | None, Counter[str | None]] = {}
    for answer, number in zip(answers, numbers, strict=True):
        spellings.setdefault(number, Counter())[answer] += 1
    usual = {number: min(of, key=lambda answer: (-of[answer], answer or "")) for number, of in spellings.items()}
    return [usual[number] for number in numbers]
