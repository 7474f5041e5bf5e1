# SPDX-License-Identifier: Apache-2.0
"""The CPU task: its facts, sets, verifier, tokenizer and pretraining."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tempo_verl.tasks.pretrain import IGNORE, build_model, encode, pretrain
from tempo_verl.tasks.running_sums import (
    ABILITY,
    END,
    MAX_PROMPT_LENGTH,
    MAX_RESPONSE_LENGTH,
    OPERANDS_PER_SUM,
    PAD,
    VERIFIER,
    VOCABULARY,
    RunningSums,
    build_tokenizer,
    extract,
    judged_steps,
    solve,
    verify,
    write_parquet,
)

PROMPT, RESPONSE = "3+7+5=", "70y55y"
SEEDS_AND_VARIANTS = [(seed, variant) for seed in (1, 2, 3) for variant in ("B", "W0")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


# ---------------------------------------------------------------------- facts and sets


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_fact_has_one_kind_and_hard_facts_a_wrong_value(seed: int) -> None:
    task = RunningSums(seed)
    facts = Counter((a, b) for (a, _), operands in task.operands.items() for b in operands)
    assert facts == Counter((a, b) for a in range(10) for b in range(10))
    counts = Counter(kind for (_, kind), operands in task.operands.items() for _ in operands)
    assert (
        counts == {kind: 10 * count for kind, count in OPERANDS_PER_SUM.items()} == {"easy": 60, "H_L": 20, "H_U": 20}
    )
    assert len(task.wrong_values) == 40
    assert all(0 <= wrong <= 9 and wrong != (a + b) % 10 for (a, b), wrong in task.wrong_values.items())


@pytest.mark.parametrize(("seed", "variant"), SEEDS_AND_VARIANTS)
def test_sets_have_their_sizes_lengths_and_no_common_prompt(seed: int, variant: str) -> None:
    sets = RunningSums(seed, variant).make_sets()
    assert {split: len(rows) for split, rows in sets.items()} == {"labeled": 512, "unlabeled": 96, "heldout": 96}
    prompts = [prompt for rows in sets.values() for prompt, _ in rows]
    assert len(set(prompts)) == len(prompts)
    for split, operands in {"labeled": {3, 4, 5}, "unlabeled": {4, 5, 6}, "heldout": {3, 4, 5}}.items():
        assert {len(re.findall(r"\d", prompt)) for prompt, _ in sets[split]} == operands
    for prompt, answer in (row for rows in sets.values() for row in rows):
        assert re.fullmatch(r"\d(\+\d)+=", prompt)
        assert len(prompt) <= MAX_PROMPT_LENGTH
        assert answer == str(sum(map(int, re.findall(r"\d", prompt))) % 10)


@pytest.mark.parametrize(("seed", "variant"), SEEDS_AND_VARIANTS)
def test_where_each_kind_of_fact_occurs(seed: int, variant: str) -> None:
    task = RunningSums(seed, variant)
    share = {}
    for split, rows in task.make_sets().items():
        kinds = [task.kinds(prompt) for prompt, _ in rows]
        counts = Counter(kind for prompt_kinds in kinds for kind in prompt_kinds)
        share[split] = {kind: counts[kind] / counts.total() for kind in OPERANDS_PER_SUM}
        if split == "unlabeled":
            assert all("H_U" in prompt_kinds for prompt_kinds in kinds)
    assert share["unlabeled"]["H_U"] > 0.25
    for split in ("labeled", "heldout"):
        assert share[split]["H_L"] > 0.2
        assert share[split]["H_U"] == 0 if variant == "W0" else 0.03 < share[split]["H_U"] < 0.2


def test_equal_fields_give_equal_data() -> None:
    task = RunningSums(seed=4, variant="W0")
    assert task.make_sets() == RunningSums(seed=4, variant="W0").make_sets()
    assert task.pretraining_samples(50) == RunningSums(seed=4, variant="W0").pretraining_samples(50)
    assert task.pretraining_samples(50, seed=1) != task.pretraining_samples(50, seed=2)
    assert task.make_sets() != RunningSums(seed=5, variant="W0").make_sets()


def test_data_do_not_depend_on_the_process() -> None:
    first = [("9+4+6+6+4+3=", "2"), ("0+7+6+6+1=", "0"), ("6+5+1+4+4+8=", "8")]
    assert RunningSums(seed=1).make_sets()["unlabeled"][:3] == first


def test_variants_share_facts_and_unlabeled_prompts() -> None:
    with_hard, without = RunningSums(variant="B"), RunningSums(variant="W0")
    assert with_hard.wrong_values == without.wrong_values
    assert with_hard.make_sets()["unlabeled"] == without.make_sets()["unlabeled"]


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant='C': expected one of B, W0"):
        RunningSums(variant="C")


# ---------------------------------------------------------------------- the corrupted writer


def test_writer_without_errors_solves_every_prompt() -> None:
    task = RunningSums(hard_fact_error=0, slip=0, wrong_marked_y=0, right_marked_n=0)
    for prompt, response in task.pretraining_samples(200):
        assert len(response) + 1 <= MAX_RESPONSE_LENGTH
        assert re.fullmatch(r"(\d\dy)+", response)
        assert re.findall(r"(\d)\dy", response) == re.findall(r"\d", prompt)[1:]
        assert verify(response, solve(prompt)) == (True, solve(prompt))


def test_writer_errs_at_the_stated_rates() -> None:
    task = RunningSums()
    hard, easy = Counter(), Counter()
    marked = {True: Counter(), False: Counter()}
    for prompt, response in task.pretraining_samples(5000):
        total = int(prompt[0])
        for operand, written, mark in re.findall(r"(\d)(\d)([yn])", response):
            fact, right = (total, int(operand)), (total + int(operand)) % 10
            total = int(written)  # an error is carried on
            if fact in task.wrong_values:
                hard["fixed wrong value" if total == task.wrong_values[fact] else "other"] += 1
            else:
                easy[total == right] += 1
            marked[total == right][mark] += 1
    assert hard["fixed wrong value"] / hard.total() == pytest.approx(0.7 + 0.3 * 0.06 / 9, abs=0.02)
    assert easy[False] / easy.total() == pytest.approx(0.06, abs=0.01)
    assert marked[False]["y"] / marked[False].total() == pytest.approx(0.10, abs=0.02)
    assert marked[True]["n"] / marked[True].total() == pytest.approx(0.03, abs=0.01)


def test_pretraining_sees_no_unlabeled_or_heldout_prompt() -> None:
    task = replace(RunningSums(), n_unlabeled=2000, n_heldout=2000)
    sets = task.make_sets()
    unseen = {prompt for split in ("unlabeled", "heldout") for prompt, _ in sets[split]}
    assert unseen.isdisjoint(prompt for prompt, _ in task.pretraining_samples(5000))


# ---------------------------------------------------------------------- verifier


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (RESPONSE, (True, "5")),
        ("70n55n", (True, "5")),  # marks do not matter
        ("72y55y", (True, "5")),  # nor do the sums on the way
        ("70y54y", (False, "4")),
        ("05y", (True, "5")),
        ("", (False, None)),
        ("70y55", (False, None)),  # cut off
        ("70y5", (False, None)),
        ("70y55y7", (False, None)),
        ("7y055y", (False, None)),
        ("70y 55y", (False, None)),
        ("70y55y\n", (False, None)),
        ("70Y55Y", (False, None)),
        ("3+7+5=70y55y", (False, None)),
        ("70y55y<eos>", (False, None)),
        ("٧٠y٥٥y", (False, None)),  # digits of another script
    ],
)
def test_verify(response: str, expected: tuple[bool, str | None]) -> None:
    assert verify(response, "5") == expected
    assert extract(response) == expected[1]


def test_verify_without_ground_truth_extracts_alone() -> None:
    assert verify(RESPONSE, None) == (False, "5")


def test_response_cut_at_the_length_limit_is_malformed() -> None:
    endless = "70y" * MAX_RESPONSE_LENGTH
    assert extract(endless[:MAX_RESPONSE_LENGTH]) is None


# ---------------------------------------------------------------------- parquet


def test_parquet_has_verl_columns(tmp_path: Path) -> None:
    rows = RunningSums(n_unlabeled=8).make_sets()["unlabeled"]
    path = tmp_path / "new" / "unlabeled.parquet"
    write_parquet(path, rows, split="unlabeled")
    table = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert set(table.column_names) == {"prompt", "data_source", "ability", "reward_model", "extra_info"}
    assert [(row["prompt"][0]["content"], row["reward_model"]["ground_truth"]) for row in table] == rows
    assert table[3] == {
        "prompt": [{"role": "user", "content": rows[3][0]}],
        "data_source": "running_sums/unlabeled",
        "ability": ABILITY,
        "reward_model": {"style": VERIFIER, "ground_truth": rows[3][1]},
        "extra_info": {"index": 3, "split": "unlabeled"},
    }


def test_parquet_takes_another_data_source(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [(PROMPT, "5")], split="heldout", data_source="sums")
    table = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert table["data_source"][:] == ["sums"]


# ---------------------------------------------------------------------- tokenizer


def assert_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == tokenizer.vocab_size == len(VOCABULARY) == 16
    assert tokenizer.convert_tokens_to_ids(list(VOCABULARY)) == list(range(16))
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == (END, PAD, None)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    ids = tokenizer.encode(PROMPT)
    assert ids == [VOCABULARY.index(character) for character in PROMPT]
    messages = [{"role": "user", "content": PROMPT}]
    templated = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert templated == ids
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == PROMPT
    response = [*tokenizer.encode(RESPONSE), tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(response, skip_special_tokens=True) == RESPONSE
    assert tokenizer.decode(response) == RESPONSE + END + PAD


def test_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert_tokenizer(tokenizer)


def test_tokenizer_survives_saving(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert_tokenizer(AutoTokenizer.from_pretrained(tmp_path))


def test_unknown_character_is_one_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.encode("\n") == [tokenizer.pad_token_id]


# ---------------------------------------------------------------------- pretraining


def test_labels_cover_the_response_and_its_end_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    inputs, labels = encode([(PROMPT, RESPONSE), ("1+2=", "23y")], tokenizer)
    assert inputs.shape == labels.shape == (2, len(PROMPT + RESPONSE) + 1)
    assert tokenizer.decode(inputs[1]) == "1+2=23y" + END + 5 * PAD
    assert [tokenizer.decode(row[row != IGNORE]) for row in labels] == [RESPONSE + END, "23y" + END]


def test_judged_steps() -> None:
    # 3 + 7 = 0; 0 + 5 = 5, written 6; 6 + 1 = 7, from the wrong sum
    assert judged_steps("3+7+5+1=", "70y56y17n") == [(True, True), (False, True), (True, False)]
    assert judged_steps("3+7+5+1=", "70y46y17n") == [(True, True)]  # another operand
    assert judged_steps("3+7+5+1=", "70y5") == [(True, True)]  # cut off
    assert judged_steps("3+7+5+1=", "") == []


def test_model_is_tiny_and_leaves_the_global_rng_alone() -> None:
    before = torch.get_rng_state()
    model = build_model(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert 120_000 < model.num_parameters() < 130_000
    assert model.config.vocab_size == len(VOCABULARY)
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_model_of_another_size() -> None:
    config = build_model(width=128, layers=5).config
    assert (config.hidden_size, config.num_hidden_layers) == (128, 5)
    with pytest.raises(ValueError, match="width=100: expected a multiple of 16"):
        build_model(width=100)


def test_pretrained_directory_loads_and_is_reproducible(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []
    threads = torch.get_num_threads()
    first = pretrain(tmp_path / "a", RunningSums(), steps=3, batch_size=8, progress=lambda *step: seen.append(step))
    second = pretrain(tmp_path / "b", RunningSums(), steps=3, batch_size=8)
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]
    assert first.loss == second.loss == seen[-1][2]
    assert torch.get_num_threads() == threads

    models = [AutoModelForCausalLM.from_pretrained(result.path) for result in (first, second)]
    for left, right in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(left, right)
    tokenizer = AutoTokenizer.from_pretrained(first.path)
    assert_tokenizer(tokenizer)
    for config in (models[0].config, models[0].generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    batch = tokenizer([PROMPT, "1+2="], padding=True, return_tensors="pt")
    generated = models[0].generate(**batch, do_sample=False, max_new_tokens=4)
    assert generated.shape[0] == 2


def test_pretraining_lowers_the_loss(tmp_path: Path) -> None:
    losses: list[float] = []
    pretrain(tmp_path, RunningSums(), steps=60, batch_size=16, progress=lambda step, steps, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
