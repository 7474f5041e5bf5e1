# SPDX-License-Identifier: Apache-2.0
"""The responses that a run keeps to be looked at: which ones, how much of each, and how the report shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from run_folders import PAYLOAD, make_run
from test_report import Page

from tempo_verl.errors import UserError
from tempo_verl.evaluation.questions import Question
from tempo_verl.evaluation.samples import Sample
from tempo_verl.evaluation.shown import LONGEST, MOST, PIECES, Gallery, Piece, pieces, shown_file
from tempo_verl.report import build_report
from tempo_verl.report.shown import curve, headline, level, line, read_shown


def letters(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def utf8(ids: Sequence[int]) -> str:
    """As a byte-level tokenizer: half a character is U+FFFD."""
    return bytes(ids).decode("utf-8", "replace")


# ---------------------------------------------------------------------- pieces


def test_short_responses_are_kept_token_by_token() -> None:
    stretch, found = pieces(letters, [65, 66, 67], [0.5, 0.12345, 1.5, -0.25])
    assert stretch == 1
    assert found == [Piece("A", 0.123), Piece("B", 1.5), Piece("C", -0.25)]
    assert pieces(letters, [65, 66], None) == (1, [Piece("A", None), Piece("B", None)])


def test_long_responses_are_kept_in_stretches_with_the_mean_of_v() -> None:
    tokens = 40 * PIECES + 1  # 16,001 tokens
    ids = [97 + number % 26 for number in range(tokens)]
    values = [0.0, *(number / tokens for number in range(tokens))]
    stretch, found = pieces(letters, ids, values)
    assert (stretch, len(found)) == (41, 391)
    assert "".join(piece.text for piece in found) == letters(ids)
    assert found[1].value == pytest.approx(sum(range(41, 82)) / 41 / tokens, abs=5e-4)
    assert len(found[-1].text) == tokens - 390 * 41
    assert found[-1].value == pytest.approx(values[-1], abs=5e-3)


def test_a_piece_has_an_end_however_long_its_tokens_are() -> None:
    _, (found,) = pieces(lambda ids: "x" * 5000 * len(ids), [1], [0.0, 1.0])
    assert found.text == "x" * (LONGEST // 2) + " […] " + "x" * (LONGEST // 2)


@pytest.mark.parametrize("stretched", [False, True])
def test_characters_that_are_spread_over_tokens_stay_whole(stretched: bool) -> None:
    text = "né € 😀 x" * (200 if stretched else 1)
    ids = list(text.encode())
    stretch, found = pieces(utf8, ids, None)
    assert (stretch > 1) == stretched
    assert "".join(piece.text for piece in found) == text
    assert not any("\ufffd" in piece.text for piece in found)


def test_bytes_that_are_no_text_do_not_pile_up() -> None:
    asked = []

    def decode(ids: Sequence[int]) -> str:
        asked.append(len(ids))
        return utf8(ids)

    _, found = pieces(decode, [0xFF] * PIECES, None)
    assert "".join(piece.text for piece in found) == "\ufffd" * PIECES
    assert max(asked) <= 16


def test_spaces_of_a_tokenizer_that_puts_them_between_words() -> None:
    _, found = pieces(lambda ids: " ".join(letters([one]) for one in ids), [65, 66, 67], None)
    assert [piece.text for piece in found] == ["A", " B", " C"]


# ---------------------------------------------------------------------- what is kept


def question(index: int, truth: str | None = None) -> Question:
    return Question(index, f"id {index}", "set", [], f"question {index}", "hash", "math", truth)


def sample(index: int, number: int, answer: str | None, value: float | None, correct: bool | None = None) -> Sample:
    return Sample(index, f"id {index}", "hash", "set", number, 0, "", answer, correct, True, 2, False, value)


def kept(folder: Path, *batches: Sequence[Sample], truth: str | None = None) -> dict:
    gallery = Gallery(letters)
    for batch in batches:

        def trace(number: int, batch: Sequence[Sample] = batch):
            value = batch[number].value
            return [97 + batch[number].sample, 46], None if value is None else [0.5, value / 2, value]

        gallery.look(batch, {one.index: question(one.index, truth) for one in batch}, trace)
    gallery.write(folder / "shown.json")
    return json.loads((folder / "shown.json").read_text())


def test_confident_and_wrong_doubted_and_right_by_hand(tmp_path: Path) -> None:
    document = kept(
        tmp_path,
        [
            sample(0, 0, "5", 0.25, False),
            sample(0, 1, "7", 0.75, False),
            sample(0, 2, "3", 0.5, True),
            sample(1, 0, "3", 0.125, True),
            sample(1, 1, "3", 0.25, True),
        ],
        [sample(2, 0, None, 0.5, False), replace(sample(2, 1, "3", 1.0, False), error="it took too long")],
        truth="3",
    )
    assert document["labeled"] == {"questions": 3, "responses": 7, "wrong": 3, "believed": 2}
    found = [(of["kind"], of["index"], of["sample"], of["score"]) for of in document["responses"]]
    assert found == [
        ("deceived", 0, 1, 0.75), ("deceived", 2, 0, 0.5), ("underrated", 1, 0, -0.125), ("underrated", 0, 2, -0.5),
    ]  # fmt: skip
    first = document["responses"][0]
    assert (first["question"], first["reference"], first["votes"], first["samples"]) == ("question 0", "3", 1, 3)
    assert first["start"] == 0.5
    assert first["pieces"] == [{"text": "b", "value": 0.375}, {"text": ".", "value": 0.75}]


def test_questions_in_dispute_show_both_sides(tmp_path: Path) -> None:
    group = [sample(0, 0, "7", 0.125), sample(0, 1, "7", 0.25), sample(0, 2, "12", 0.875)]
    agreed = [sample(1, number, "7", 1.0) for number in range(3)]
    document = kept(tmp_path, [*group, *agreed])
    assert [(of["kind"], of["answer"], of["sample"], of["reference"]) for of in document["responses"]] == [
        ("disputed", "7", 1, None), ("disputed", "12", 2, None),
    ]  # fmt: skip
    assert document["labeled"]["questions"] == 0


def test_without_a_critic_the_votes_are_shown(tmp_path: Path) -> None:
    document = kept(tmp_path, [sample(0, 0, "7", None), sample(0, 1, "12", None), sample(1, 0, "7", None)])
    (first, second) = document["responses"]
    assert [first["answer"], second["answer"]] == ["12", "7"]
    assert (first["value"], first["start"], first["pieces"][0]) == (None, None, {"text": "b", "value": None})


def test_however_much_there_is_little_is_kept(tmp_path: Path) -> None:
    batches = [
        [sample(start + index, 0, "7", ((start + index) * 37 % 1000) / 1000, False) for index in range(100)]
        for start in range(0, 1000, 100)
    ]
    document = kept(tmp_path, *batches)
    values = [of["value"] for of in document["responses"]]
    assert values == sorted((number / 1000 for number in range(1000)), reverse=True)[: MOST["deceived"]]


# ---------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = make_run(tmp_path_factory.mktemp("shown") / "run")
    build_report(run)
    return (run / "report.html").read_text(encoding="utf-8")


def test_responses_are_shown_as_text(page: str) -> None:
    assert PAYLOAD not in page
    plain = re.sub(r"<[^>]*>", "", page)
    assert "&lt;/div&gt;&lt;script&gt;alert(&#34;" in plain
    tags = {tag for tag, _ in Page(page).tags}
    assert tags.isdisjoint({"script", "iframe", "a", "object"})
    assert not any(name.startswith("on") for _, attributes in Page(page).tags for name in attributes)


def test_every_token_has_its_colour_and_its_number(page: str) -> None:
    assert '<span class="v10" title="V 0.98">two</span>' in page
    assert '<span class="v1" title="V 0.12"> is</span>' in page
    assert page.count('class="v') >= 11  # the legend
    for words in (
        "Samples: is the critic deceived?",
        "Wrong answers that the critic believes most",
        "Unlabelled questions on which critic and vote disagree most",
        "Of 16 responses to 4 labelled questions 6 are wrong",
        "the critic gives 3 of these (50 %) a value of at least 0.5",
        "Right answer: 1",
        "V is the mean over stretches of 41 tokens",
    ):
        assert words in page


def test_long_responses_are_collapsed(page: str) -> None:
    opened = [attributes for tag, attributes in Page(page).tags if tag == "details" and attributes.get("class")]
    assert ["open" in attributes for attributes in opened] == [True, False, True]


def test_where_nothing_is_labelled_nobody_is_said_to_be_deceived(tmp_path: Path) -> None:
    kept(tmp_path, [sample(0, 0, "7", 0.125), sample(0, 1, "12", 0.875)])
    assert read_shown(tmp_path / "shown.json").title == "Samples: where critic and vote disagree"


def test_a_run_without_a_critic_has_no_colours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "tempo" / "predictions.shown.json"
    document = json.loads(path.read_text())
    document["responses"] = [
        of | {"value": None, "start": None, "pieces": [{"text": "two", "value": None}]}
        for of in document["responses"]
        if of["kind"] == "disputed"
    ]
    path.write_text(json.dumps(document))
    build_report(run)
    text = (run / "report.html").read_text()
    assert "Samples: where the votes are split" in text
    assert 'class="v1' not in text and "<svg" not in text
    path.unlink()
    build_report(run)
    assert "Samples:" not in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"labeled": {}, "responses": [{"kind": "x"}]}', '{"labeled": {"a": 1}}']
)
def test_a_broken_file_is_named(tmp_path: Path, broken: str) -> None:
    path = shown_file(tmp_path / "predictions.jsonl")
    path.write_text(broken)
    with pytest.raises(UserError, match=r"predictions\.shown\.json: not the samples of a run"):
        read_shown(path)


def test_a_file_of_a_gallery_can_be_read(tmp_path: Path) -> None:
    kept(tmp_path, [sample(0, 0, "7", 0.5, False), sample(0, 1, "7", -0.5, True)])
    found = read_shown(tmp_path / "shown.json")
    assert [group.title[:5] for group in found.groups] == ["Wrong", "Right"]
    assert asdict(found.groups[0].responses[0])["pieces"][0] == {"text": "a", "value": 0.25}
    assert curve(found.groups[1].responses[0]) == "0,20 200,40 400,40"  # V below 0 is drawn at 0
    assert headline(found.groups[1].responses[0]) == "answer 7, right, V -0.50, 2 of 2 votes"


def test_colours_and_lines() -> None:
    assert [level(value) for value in (-1.0, 0.04, 0.5, 0.97, 2.0, None)] == ["v0", "v0", "v5", "v10", "v10", ""]
    assert line("a\n b" + "c" * 200) == "a b" + "c" * 86 + "…"
