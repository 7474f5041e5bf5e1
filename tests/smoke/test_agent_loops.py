# SPDX-License-Identifier: Apache-2.0
"""verl's own agent loop: tools, several turns, several outputs a session, and sessions that fail."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from agent_loops import HINT
from harness import Evidence
from ray import cloudpickle
from verl.workers.rollout.replica import TokenOutput

from tempo_verl.algo.jagged import tokens_of
from tempo_verl.errors import UserError
from tempo_verl.tasks.running_sums import END, VOCABULARY
from tempo_verl.trainer.batch import Samples
from tempo_verl.trainer.log import Log

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import a test

LOOPS = [
    "actor_rollout_ref.rollout.agent.agent_loop_manager_class=null",
    f"actor_rollout_ref.rollout.multi_turn.function_tool_path='{Path(__file__).parents[1] / 'agent_loops.py'}'",
    "actor_rollout_ref.rollout.multi_turn.format=always",
    "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=2",
]
TOLERANCE = 1e-4  # of float32 forward passes of the same weights in another batch, and what is computed from them
OUTPUTS = [1, 2, 3, 1]  # of the sessions of a prompt, by the loop `drafts`


@pytest.fixture(scope="module")
def files(tiny_task: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that name both sets; half of D_L asks for the tool, all else for drafts."""
    folder, overrides = tmp_path_factory.mktemp("agents"), []
    for name in ("labeled", "unlabeled"):
        rows = pq.read_table(tiny_task / f"{name}.parquet").to_pylist()
        for number, row in enumerate(rows):
            row["agent_name"] = "tool_agent" if name == "labeled" and number % 2 else "drafts"
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
        overrides.append(f"tempo.{name}.files='{folder / name}.parquet'")
    return overrides


class Client:
    """Stands in for verl's inference client. The n-th response to a context has n steps, each with the sum n.

    Of contexts that begin with an odd operand, the second response fails.
    """

    def __init__(self) -> None:
        self.asked: Counter[tuple[int, ...]] = Counter()

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_options) -> TokenOutput:
        context = tuple(prompt_ids)
        self.asked[context] += 1
        number = self.asked[context]
        if number == 2 and context[0] % 2:
            raise RuntimeError("no response")
        ids = [VOCABULARY.index(token) for token in [*f"1{number}y" * number, END]]
        steps = {"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), stop_reason="completed", extra_fields=steps)


@pytest.fixture(scope="module")
def trainer(tour, compose, files):
    """The trainer with its streams, and verl's agent loop on a client that answers at once."""
    yield tour.agents(compose([*tour.models, "actor_rollout_ref.rollout.n=4", *LOOPS, *files]), Client())
    tour.clear()


def collected(trainer, *streams: str) -> list[Samples]:
    submitted = [trainer.port.submit(getattr(trainer.streams, name).next_batch(), 0) for name in streams]
    parts, _ = trainer.port.collect(0, *submitted)
    return parts


def test_outputs_of_a_session_are_scored_and_counted_as_one(trainer) -> None:
    labeled, unlabeled = collected(trainer, "labeled", "unlabeled")
    for samples in (labeled, unlabeled):
        # of the last output: rows are in order
        texts = dict(zip(samples.sessions, map(trainer.port.reader(samples), range(len(samples))), strict=True))
        answers = {session: None if HINT in text else text[-2] for session, text in texts.items()}
        assert samples.answers == [answers[session] for session in samples.sessions]
        assert samples.by_session().answers == list(answers.values())
    truths = [row["ground_truth"] for row in labeled.read_once("reward_model")]
    right = [float(answer == truth) for answer, truth in zip(labeled.answers, truths, strict=True)]
    assert labeled.verdicts.tolist() == right
    with pytest.raises(UserError, match=r"responses came without a verdict \(reward_extra_info\.acc\)"):
        _ = unlabeled.verdicts


def test_sessions_that_failed_are_missing_and_others_are_whole(trainer) -> None:
    (samples,) = collected(trainer, "unlabeled")
    first = dict(zip(samples.prompts, (ids[0] for ids in samples.read("prompts")["prompts"].unbind()), strict=True))
    sessions = Counter(key.split("_")[0] for key in set(samples.sessions))
    assert {uid: count < 4 for uid, count in sessions.items()} == {uid: bool(token % 2) for uid, token in first.items()}
    assert any(count < 4 for count in sessions.values())
    for session, count in Counter(samples.sessions).items():
        assert count == OUTPUTS[int(session.split("_")[1])]

    padded = trainer.port.balanced(samples, 16, Log(), "padded", "policy")
    assert len(padded) % 16 == 0
    assert len(padded) > len(samples)
    assert padded.real.sum() == len(samples)
    assert sorted(padded.by_session().meta.keys) == sorted(samples.by_session().meta.keys)
    assert tokens_of(padded.response_mask)[~padded.real].sum() == 0
    values = torch.rand(len(padded))
    of_session = dict(zip(padded.by_session().sessions, values[torch.from_numpy(padded.ends)].tolist(), strict=True))
    assert padded.align(padded, values).tolist() == [of_session.get(session, 0.0) for session in padded.sessions]


# ---------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(tour, compose, files) -> Evidence:
    """A round of TEMPO with a tool, drafts and labelled rows in the policy's loss, corrected, and its predictions."""
    options = [
        "actor_rollout_ref.rollout.n=4",
        "tempo.rounds=1",
        "tempo.actor_on_labeled=true",
        "tempo.whiten=false",
        "tempo.predictions.n=2",
        "tempo.predictions.labeled=0",
        "algorithm.rollout_correction.rollout_is=token",
        "algorithm.rollout_correction.rollout_rs=token_k1",
        "algorithm.rollout_correction.rollout_rs_threshold=2.0",
    ]
    config = compose([*tour.models, *LOOPS, *files, *options])
    config.tempo.predictions.file = str(Path(tour.folder) / "agents.jsonl")
    return tour.leg(config, moments=["start", "between", "end"], rows=True)


def test_the_verdict_on_a_session_is_the_target_of_all_its_outputs(trained: Evidence) -> None:
    outcome: dict[str, set[float]] = {}
    for key, (_, target) in trained.fitted[1].items():
        outcome.setdefault(key.rpartition("_")[0], set()).add(target)
    real = {session: targets for session, targets in outcome.items() if session.startswith("labeled")}
    assert all(len(targets) == 1 for targets in real.values())
    dump = trained.dump(1)  # a session is measured once
    assert len(real) == len(dump["labeled_correct"]) == len(dump["labeled_value"]) == len(dump["labeled_key"]) == 8 * 4
    share = np.mean([target for (target,) in real.values()])
    assert trained.metrics[1]["tempo/labeled/accuracy"] == pytest.approx(share)
    assert trained.changed(1, "critic", "start", "between")


def test_the_value_after_a_session_rewards_all_its_outputs(trained: Evidence) -> None:
    rows, values = trained.rows[1], trained.values(1, "between").clip(0, 1)
    unlabeled = [row for row, session in enumerate(rows["sessions"]) if session.startswith("unlabeled")]
    assert Counter(Counter(rows["sessions"][row] for row in unlabeled).values()) == {1: 8, 2: 4, 3: 4}
    reward = {rows["sessions"][row]: values[row, rows["lengths"][row]] for row in unlabeled if rows["ends"][row]}
    for row in unlabeled:
        assert rows["reward"][row] == pytest.approx(reward[rows["sessions"][row]], abs=TOLERANCE)
        expected = rows["reward"][row] - values[row, : rows["lengths"][row]]
        assert rows["advantages"][row].numpy() == pytest.approx(expected, abs=TOLERANCE)
    assert trained.metrics[1]["tempo/unlabeled/reward_mean"] == pytest.approx(np.mean(list(reward.values())), abs=1e-4)
    dump = trained.dump(1)
    assert len(dump["unlabeled_reward"]) == len(dump["unlabeled_correct"]) == len(unlabeled) == 4 * sum(OUTPUTS)
    verdicts = {
        (key.rpartition("_")[0], c) for key, c in zip(dump["unlabeled_key"], dump["unlabeled_correct"], strict=True)
    }
    assert len(verdicts) == len(reward)  # one for all outputs of a session
    accuracy = np.mean([correct for _, correct in verdicts])
    assert trained.metrics[1]["tempo/oracle/accuracy"] == pytest.approx(accuracy)
    assert trained.changed(1, "actor")


def test_what_a_tool_says_is_in_no_loss(trained: Evidence) -> None:
    rows, said = trained.rows[1], torch.tensor([VOCABULARY.index(token) for token in HINT])
    turns = 0
    for row, (ids, length) in enumerate(zip(rows["input_ids"], rows["lengths"], strict=True)):
        mask, response = rows["mask"][row, :length].bool(), ids[-length:]
        assert (rows["advantages"][row][~mask] == 0).all()
        if rows["real"][row] and not mask.all():
            assert response[~mask].tolist() == said.tolist()
            turns += 1
    assert turns > 0


def test_a_batch_of_sessions_is_whole_mini_batches(trained: Evidence) -> None:
    rows, metrics = trained.rows[1], trained.metrics[1]
    assert len(rows["real"]) % 16 == 0  # 4 prompts of 4
    assert not rows["real"].all()
    assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(1.0, abs=1e-3)  # the two policies agree here
    assert metrics["rollout_corr/rollout_rs_masked_fraction"] == 0.0
    assert trained.left_in_queue == set()


def test_a_prediction_counts_sessions(trained: Evidence) -> None:
    drawn, _ = trained.drawn
    assert Counter((sample.index, sample.sample) for sample in drawn) == Counter(
        (index, number) for index in range(16) for number in range(2)
    )
    assert all(sample.value is not None for sample in drawn)
