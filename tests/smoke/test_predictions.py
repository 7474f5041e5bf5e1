# SPDX-License-Identifier: Apache-2.0
"""The predictions that a run leaves: votes, critic values, verdicts and probabilities recomputed from its samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import Evidence, equal
from transformers import AutoTokenizer

from tempo_verl.evaluation.answers import Calibrator, elect
from tempo_verl.evaluation.critic import Critic
from tempo_verl.evaluation.equal_cost import read_comparison
from tempo_verl.evaluation.judged import read_judged
from tempo_verl.evaluation.label_next import rank
from tempo_verl.evaluation.questions import load_questions, prompt_ids
from tempo_verl.evaluation.samples import Sample, written_samples
from tempo_verl.evaluation.shown import MOST, shown_file
from tempo_verl.evaluation.summary import by_question
from tempo_verl.report.shown import read_shown
from tempo_verl.rewards import score
from tempo_verl.tasks.running_sums import RunningSums, write_parquet
from tempo_verl.trainer.predictions import Predictions

N = 4
TOO_LONG = 3  # the row that verl leaves out of D_U
VALUE_TOLERANCE = 1e-4  # another batch, in float32


EQUAL = (8 + 4) * 4 // 16 + N  # of both streams for each question that verl leaves in D_U, and the answers


@pytest.fixture(scope="module")
def found(tour, tmp_path_factory: pytest.TempPathFactory, compose) -> Evidence:
    """One round of a policy that gives answers, and its predictions in several batches; D_U with a too long prompt."""
    return a_round(tour, compose, tmp_path_factory.mktemp("predictions"), "equal")


@pytest.fixture(scope="module")
def without(tour, tmp_path_factory: pytest.TempPathFactory, compose) -> Evidence:
    """The same, and the starting policy is not asked."""
    return a_round(tour, compose, tmp_path_factory.mktemp("without"), 0)


def a_round(tour, compose, folder: Path, before: int | str) -> Evidence:
    task = RunningSums(seed=1, n_labeled=32, n_unlabeled=16, n_heldout=16)
    rows = task.make_sets()["unlabeled"]
    rows.insert(TOO_LONG, ("1+" * 10 + "1=", "1"))
    write_parquet(folder / "unlabeled.parquet", rows, "unlabeled")
    config = compose(
        [
            *tour.models,
            "actor_rollout_ref.rollout.n=4",
            "tempo.rounds=1",
            f"tempo.unlabeled.files='{folder / 'unlabeled.parquet'}'",
            "data.filter_overlong_prompts=true",
            "tempo.calibration.epochs=20",  # until values are above 0, where they weigh
            f"tempo.predictions.file='{folder / 'predictions.jsonl'}'",
            f"tempo.predictions.n={N}",
            "tempo.predictions.labeled=32",
            f"tempo.predictions.before={before}",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempo_verl.trainer.predictions.BATCH", 6 * N)
        return tour.leg(config, moments=["end"], folder=folder)


def test_every_question_of_d_u_is_answered_by_the_weighted_vote(found: Evidence) -> None:
    predictions = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    questions = load_questions("--data", [found.folder / "unlabeled.parquet"], with_answers=False)
    samples, labeled = found.drawn
    calibrator = Calibrator(labeled)
    assert [(row["index"], row["question"]) for row in predictions] == [(q.index, q.text) for q in questions]
    left_out = predictions.pop(TOO_LONG)
    assert (left_out["answer"], left_out["probability"], left_out["samples"]) == (None, None, 0)
    assert sum(any(votes["weight"] for votes in row["votes"].values()) for row in predictions) > 8
    assert any(row["answer"] != row["majority"] for row in predictions)
    for row, mine in zip(predictions, by_question(samples), strict=True):
        assert [sample.sample for sample in mine] == list(range(row["samples"])) == list(range(N))
        weight: dict[str, float] = {}
        for sample in mine:
            if sample.answer is not None:
                weight[sample.answer] = weight.get(sample.answer, 0.0) + min(max(sample.value, 0.0), 1.0)
        assert {answer: votes["weight"] for answer, votes in row["votes"].items()} == pytest.approx(weight)
        assert sum(votes["count"] for votes in row["votes"].values()) == sum(s.answer is not None for s in mine)
        assert (row["calibrated"], row["basis"]) == (True, "critic value")
        if weight:
            assert weight[row["answer"]] == max(weight.values())
            assert row["probability"] == calibrator.probability(elect(mine))
            assert row["rationale"]["response"] == mine[row["rationale"]["sample"]].response


def test_the_values_are_those_of_the_final_critic(found: Evidence, tiny_task: Path, tiny_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    critic = Critic(str(found.model(1, "critic", "end")))

    def valued(samples: list[Sample], file: Path) -> tuple[list[float], list[float]]:
        questions = load_questions("--data", [file], with_answers=False)
        prompts = prompt_ids(questions, tokenizer, "qwen3", name="", chat_template_kwargs={}, max_prompt_tokens=24)
        ends = [[] if sample.truncated else [tokenizer.eos_token_id] for sample in samples]
        tokens = [tokenizer(sample.response)["input_ids"] + end for sample, end in zip(samples, ends, strict=True)]
        # not those that have a special token within them, which their text leaves out
        whole = [(sample, ids) for sample, ids in zip(samples, tokens, strict=True) if len(ids) == sample.tokens]
        assert len(whole) > len(samples) / 2
        expected = critic.final_values([prompts[sample.index] for sample, _ in whole], [ids for _, ids in whole])
        return [sample.value for sample, _ in whole], expected

    for samples, file in zip(found.drawn, (found.folder / "unlabeled", tiny_task / "labeled"), strict=True):
        values, expected = valued(samples, file.with_suffix(".parquet"))
        assert values == pytest.approx(expected, abs=VALUE_TOLERANCE)


def test_only_labelled_samples_have_verdicts(found: Evidence, tiny_task: Path) -> None:
    samples, labeled = found.drawn
    assert {sample.correct for sample in samples} == {None}
    questions = load_questions("--data", [tiny_task / "labeled.parquet"], with_answers=True)
    assert len(labeled) == 32 * N
    for sample in labeled:
        verdict = score(sample.response, questions[sample.index].ground_truth, questions[sample.index].style)
        assert (sample.correct, sample.answer) == (verdict.correct, verdict.answer)


def test_the_samples_to_look_at_are_those_of_the_predictions(
    found: Evidence, tiny_task: Path, tiny_policy: Path
) -> None:
    path = shown_file(found.folder / "predictions.jsonl")
    document, exhibit = json.loads(path.read_text()), read_shown(path)
    samples, labeled = found.drawn
    wrong = [sample for sample in labeled if not sample.correct]
    believed = sum(sample.value >= 0.5 for sample in wrong)
    assert document["labeled"] == {"questions": 32, "responses": 32 * N, "wrong": len(wrong), "believed": believed}
    deceived, underrated, disputed = (group.responses for group in exhibit.groups)
    worst = [max(s.value for s in group if not s.correct) for group in by_question(wrong)]
    assert [of.value for of in deceived] == sorted(worst, reverse=True)[: MOST["deceived"]]
    assert [of.correct for of in (*deceived, *underrated)] == [False] * len(deceived) + [True] * len(underrated)
    questions = load_questions("--data", [tiny_task / "labeled.parquet"], with_answers=True)
    for of in (*deceived, *underrated):
        assert (of.reference, of.question) == (questions[of.index].ground_truth, questions[of.index].text)
    assert {(of.reference, of.correct) for of in disputed} == {(None, None)}
    # of both streams: the text that the predictions hold, a piece a token, and the critic's value at the end
    for drawn, group in ((labeled, [*deceived, *underrated]), (samples, disputed)):
        sample_of = {(sample.index, sample.sample): sample for sample in drawn}
        for of in group:
            sample = sample_of[of.index, of.sample]
            assert ("".join(piece.text for piece in of.pieces), of.answer) == (sample.response, sample.answer)
            assert (len(of.pieces), of.stretch, of.value) == (sample.tokens, 1, sample.value)
            assert of.pieces[-1].value == pytest.approx(sample.value, abs=6e-4)  # rounded
    # the first question to label is the first that is shown
    first = rank(found.folder / "predictions.jsonl").lines[0]
    assert (first["index"], first["score"]) == (disputed[0].index, pytest.approx(disputed[0].score, abs=1e-4))


def test_v_along_a_response_is_that_of_its_prefixes(found: Evidence, tiny_task: Path, tiny_policy: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    of = read_shown(shown_file(found.folder / "predictions.jsonl")).groups[0].responses[0]
    questions = load_questions("--data", [tiny_task / "labeled.parquet"], with_answers=False)
    (prompt,) = prompt_ids(
        [questions[of.index]], tokenizer, "qwen3", name="", chat_template_kwargs={}, max_prompt_tokens=24
    )
    ids = [tokenizer.convert_tokens_to_ids(piece.text) for piece in of.pieces if piece.text]
    prefixes = [ids[: length + 1] for length in range(len(ids))]
    expected = Critic(str(found.model(1, "critic", "end"))).final_values([prompt] * len(ids), prefixes)
    assert [piece.value for piece in of.pieces if piece.text] == pytest.approx(expected, abs=6e-4)


def test_nothing_stays_in_the_queue(found: Evidence) -> None:
    assert found.left_in_queue == set()


# ---------------------------------------------------------------------- the policy that the run started with


def test_asking_the_starting_policy_changes_nothing_that_follows(found: Evidence, without: Evidence) -> None:
    for role in ("actor", "critic"):
        assert equal(found.weights_of(1, role, "end"), without.weights_of(1, role, "end"))
    first, second = (run.metrics[1] for run in (found, without))
    indifferent = ("timing", "perf", "tempo/time", "tempo/memory", "actor/perf", "critic/perf")
    learned = [name for name in second if not name.startswith(indifferent)]
    assert len(learned) > 20
    assert {name: first[name] for name in learned} == {name: second[name] for name in learned}
    name = "predictions.jsonl"
    assert (found.folder / name).read_bytes() == (without.folder / name).read_bytes()
    assert not (without.folder / "predictions_before.jsonl").exists()
    assert not (without.folder / "predictions_compared.json").exists()


def test_the_starting_policy_has_as_many_samples_as_the_run_draws(found: Evidence) -> None:
    settings, samples = written_samples(found.folder / "predictions_before.samples")
    predictions = [json.loads(line) for line in (found.folder / "predictions_before.jsonl").read_text().splitlines()]
    assert settings["n"] == EQUAL
    assert predictions.pop(TOO_LONG)["samples"] == 0
    assert [row["samples"] for row in predictions] == [EQUAL] * 16
    assert {sample.correct for sample in samples} == {None}  # no verdict is written before the run is over
    assert len({sample.response for sample in samples}) > 1
    assert all(
        row["answer"] == elect(group).answer for row, group in zip(predictions, by_question(samples), strict=True)
    )


def test_the_comparison_follows_from_samples_and_question_file(found: Evidence) -> None:
    compared = read_comparison(found.folder / "predictions_compared.json")
    questions = load_questions("--data", [found.folder / "unlabeled.parquet"], with_answers=True)
    assert (compared["equal"], compared["rounds"], compared["questions"], compared["judged"]) == (EQUAL, 1, 16, 16)
    for side, n in (("before", EQUAL), ("after", N)):
        name = "predictions_before.samples" if side == "before" else "predictions.samples"
        _, samples = written_samples(found.folder / name)
        right = [
            score(one.response, questions[one.index].ground_truth, questions[one.index].style).correct
            for one in samples
        ]
        assert compared[side]["samples"] == n
        assert compared[side]["measures"]["avg"]["value"] == pytest.approx(sum(right) / (16 * n))


def test_the_answers_are_judged_for_the_report(found: Evidence) -> None:
    judged = read_judged(found.folder / "predictions_judged.json")
    questions = load_questions("--data", [found.folder / "unlabeled.parquet"], with_answers=True)
    lines = (found.folder / "predictions.jsonl").read_text().splitlines()
    answered = [one for one in map(json.loads, lines) if one["answer"] is not None]
    right = [one["answer"] == questions[one["index"]].ground_truth for one in answered]
    assert judged.right == right
    assert judged.probability == [one["probability"] for one in answered]


def test_a_run_that_goes_on_does_not_ask_again(found: Evidence, without: Evidence, tour, tmp_path: Path) -> None:
    """The trainer is that of ``without``, which has the same models, questions and schedule. No port: a draw fails."""
    trainer = tour._trainer
    settings = trainer.method.settings.predictions

    def told(folder: Path, number: int) -> list[str]:
        settings.before, settings.file = "equal", str(folder / "predictions.jsonl")
        again = Predictions(trainer.config, trainer.method, trainer.streams, trainer.monitor.judge)
        return again.before(None, number)

    kept = shutil.copytree(
        found.folder / "predictions_before.samples", tmp_path / "kept" / "predictions_before.samples"
    )
    whole = (kept / "samples.jsonl").read_bytes()
    assert told(tmp_path / "kept", 1) == told(tmp_path / "kept", 2) == []  # killed before, and after, a checkpoint
    assert (kept / "samples.jsonl").read_bytes() == whole
    (line,) = told(tmp_path / "nothing", 2)
    assert "goes on from round 1 and has no answers of the policy that it started with" in line
    (kept / "settings.json").unlink()  # killed while they were written
    assert told(tmp_path / "kept", 2) == [line.replace("nothing", "kept")]
    with pytest.raises(AttributeError):  # it would draw
        told(tmp_path / "kept", 1)
