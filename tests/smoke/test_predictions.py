# SPDX-License-Identifier: Apache-2.0
"""The predictions that a run leaves: votes, critic values, verdicts and probabilities recomputed from its samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from harness import Evidence
from transformers import AutoTokenizer

from tempo_verl.evaluation.answers import Calibrator, elect
from tempo_verl.evaluation.critic import Critic
from tempo_verl.evaluation.questions import load_questions, prompt_ids
from tempo_verl.evaluation.samples import Sample
from tempo_verl.evaluation.summary import by_question
from tempo_verl.rewards import score
from tempo_verl.tasks.running_sums import RunningSums, write_parquet

N = 4
TOO_LONG = 3  # the row that verl leaves out of D_U
VALUE_TOLERANCE = 1e-4  # another batch, in float32


@pytest.fixture(scope="module")
def found(tour, tmp_path_factory: pytest.TempPathFactory, compose) -> Evidence:
    """One round of a policy that gives answers, and its predictions in several batches; D_U with a too long prompt."""
    folder = tmp_path_factory.mktemp("predictions")
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


def test_nothing_stays_in_the_queue(found: Evidence) -> None:
    assert found.left_in_queue == set()
