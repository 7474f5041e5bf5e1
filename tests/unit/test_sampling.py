# SPDX-License-Identifier: Apache-2.0
"""Batched sampling with ``transformers``: exact samples, exact log-probabilities, every request for itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tempo_verl.backends.sampling import Completion, Request, generate, restrict
from tempo_verl.errors import UserError

law = settings(derandomize=True, deadline=None, max_examples=80)
PROMPTS = ("3+7+5=", "1+2+3+4+5+6=", "9+9+0=", "4+4+4+4=", "0+1+2=", "8+6+4+2=")
DRAWS = 4000

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_policy: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_policy: Path):
    return AutoTokenizer.from_pretrained(tiny_policy)


def ids(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def requests(tokenizer, **options) -> list[Request]:
    """One request a prompt, seeds 0, 1, ..."""
    return [
        Request(prompt_ids=ids(tokenizer, prompt), seed=seed, **{"max_tokens": 12, **options})
        for seed, prompt in enumerate(PROMPTS)
    ]


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def plain_log_probs(model, prompt: tuple[int, ...], response: list[int], temperature: float) -> torch.Tensor:
    """(len(response), V) of log_softmax(logits / temperature) by one forward pass over the unpadded sequence."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].float()
    return torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)


# ---------------------------------------------------------------------- what is drawn


def test_a_response_is_truncated_if_its_limit_ended_it(model, tokenizer) -> None:
    for ignore_eos in (False, True):
        for completion in generate(model, tokenizer, requests(tokenizer, max_tokens=30, ignore_eos=ignore_eos)):
            ended = not ignore_eos and completion.token_ids[-1] == tokenizer.eos_token_id
            assert completion.truncated == (not ended)
            assert ended or len(completion.token_ids) == 30
    at_once = requests(tokenizer, max_tokens=1, stop_token_ids=tuple(range(len(tokenizer))))
    assert not any(completion.truncated for completion in generate(model, tokenizer, at_once))


def test_a_batch_of_greedy_requests_equals_one_by_one(model, tokenizer) -> None:
    greedy = requests(tokenizer, temperature=0.0, ignore_eos=True)
    together = generate(model, tokenizer, greedy)
    alone = [generate(model, tokenizer, [request])[0] for request in greedy]
    assert tokens(together) == tokens(alone)
    for request, completion in zip(greedy, together, strict=True):
        argmax = plain_log_probs(model, request.prompt_ids, completion.token_ids, 1.0).argmax(dim=-1)
        assert completion.token_ids == argmax.tolist()


def test_log_probs_are_those_of_a_plain_forward_pass(model, tokenizer) -> None:
    batch = [
        replace(request, temperature=temperature, top_p=top_p, top_k=top_k)
        for request, temperature, top_p, top_k in zip(
            requests(tokenizer, ignore_eos=True),
            (1.0, 0.5, 2.0, 0.0, 1.3, 0.8),
            (1.0, 1.0, 0.7, 1.0, 1.0, 0.9),
            (-1, -1, -1, -1, 4, 3),
            strict=True,
        )
    ]
    for request, completion in zip(batch, generate(model, tokenizer, batch), strict=True):
        full = plain_log_probs(model, request.prompt_ids, completion.token_ids, request.temperature or 1.0)
        expected = full.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        assert len(completion.log_probs) == len(completion.token_ids) == 12
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected, rtol=0, atol=1e-4)


def test_a_seed_gives_the_same_sample_in_any_batch(model, tokenizer) -> None:
    batch = requests(tokenizer)
    together = generate(model, tokenizer, batch)
    assert generate(model, tokenizer, batch) == together
    torch.manual_seed(123)  # the global generator has no say
    assert tokens(generate(model, tokenizer, batch[::-1])) == tokens(together)[::-1]
    for request, completion in zip(batch, together, strict=True):
        alone = generate(model, tokenizer, [request])[0]
        assert alone.token_ids == completion.token_ids
        assert alone.log_probs == pytest.approx(completion.log_probs, abs=1e-5)


def test_different_seeds_give_different_samples(model, tokenizer) -> None:
    prompt = ids(tokenizer, PROMPTS[0])
    samples = tokens(generate(model, tokenizer, [Request(prompt, max_tokens=12, seed=seed) for seed in range(20)]))
    assert len(set(map(tuple, samples))) == 20


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"temperature": 1e-4}])
def test_the_narrowest_limits_are_greedy(model, tokenizer, limit: dict) -> None:
    greedy = generate(model, tokenizer, requests(tokenizer, temperature=0.0))
    assert tokens(generate(model, tokenizer, requests(tokenizer, **limit))) == tokens(greedy)


def test_greedy_and_sampled_requests_share_a_batch(model, tokenizer) -> None:
    sampled, greedy = requests(tokenizer), requests(tokenizer, temperature=0.0)
    mixed = [pair[row % 2] for row, pair in enumerate(zip(sampled, greedy, strict=True))]
    expected = zip(tokens(generate(model, tokenizer, sampled)), tokens(generate(model, tokenizer, greedy)), strict=True)
    assert tokens(generate(model, tokenizer, mixed)) == [pair[row % 2] for row, pair in enumerate(expected)]


@pytest.mark.parametrize(
    "limits", [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_p": 0.6}, {"top_k": 5}, {"top_k": 8, "top_p": 0.5}]
)
def test_samples_have_the_distribution_asked_for(model, tokenizer, limits: dict) -> None:
    prompt = ids(tokenizer, PROMPTS[0])
    batch = [Request(prompt, max_tokens=1, seed=seed, **limits) for seed in range(DRAWS)]
    counts = np.bincount([drawn[0] for drawn in tokens(generate(model, tokenizer, batch))], minlength=16)

    probability = plain_log_probs(model, prompt, [0], limits.get("temperature", 1.0))[0].exp().numpy().astype(float)
    order = np.argsort(-probability)
    before = np.cumsum(probability[order]) - probability[order]
    kept = order[(before < limits.get("top_p", 2.0)) & (np.arange(16) < limits.get("top_k", 16))]
    expected = DRAWS * probability[kept] / probability[kept].sum()

    assert counts[kept].sum() == DRAWS  # nothing else is ever drawn
    assert expected.min() > 5  # what the test needs
    # Seeds are fixed, so this is one number, not a coin: an exact sampler gives less than 1e-3 once in a thousand.
    assert chisquare(counts[kept], expected).pvalue > 1e-3


def test_later_tokens_have_their_distribution_too(model, tokenizer) -> None:
    prompt = ids(tokenizer, PROMPTS[0])
    batch = [Request(prompt, max_tokens=2, seed=seed, ignore_eos=True) for seed in range(DRAWS)]
    pairs = np.array(tokens(generate(model, tokenizer, batch)))
    first = np.bincount(pairs[:, 0]).argmax()
    counts = np.bincount(pairs[pairs[:, 0] == first, 1], minlength=16)
    probability = plain_log_probs(model, prompt, [int(first), 0], 1.0)[1].exp().numpy().astype(float)
    assert chisquare(counts, counts.sum() * probability / probability.sum()).pvalue > 1e-3


# ---------------------------------------------------------------------- where a response ends


def test_every_row_has_its_own_length(model, tokenizer) -> None:
    batch = [replace(request, max_tokens=row + 1) for row, request in enumerate(requests(tokenizer, ignore_eos=True))]
    longest = generate(model, tokenizer, requests(tokenizer, ignore_eos=True))
    for row, completion in enumerate(generate(model, tokenizer, batch)):
        assert completion.token_ids == longest[row].token_ids[: row + 1]
        assert completion.log_probs == pytest.approx(longest[row].log_probs[: row + 1], abs=1e-5)


def test_the_end_token_ends_a_response_and_belongs_to_it(model, tokenizer) -> None:
    end, prompt = tokenizer.eos_token_id, ids(tokenizer, PROMPTS[0])
    batch = [Request(prompt, max_tokens=40, seed=seed) for seed in range(40)]
    lengths = set()
    for completion in generate(model, tokenizer, batch):
        assert end not in completion.token_ids[:-1]
        assert completion.token_ids[-1] == end or len(completion.token_ids) == 40
        assert len(completion.log_probs) == len(completion.token_ids)
        lengths.add(len(completion.token_ids))
    assert len(lengths) > 5
    for row, completion in enumerate(
        generate(model, tokenizer, [replace(r, ignore_eos=r.seed % 2 == 0) for r in batch])
    ):
        assert (len(completion.token_ids) == 40) if row % 2 == 0 else (end not in completion.token_ids[:-1])


def test_every_end_token_of_the_model_counts(model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = requests(tokenizer, temperature=0.0, ignore_eos=True)
    free = tokens(generate(model, tokenizer, greedy))
    second_end = free[0][4]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, second_end])
    stopped = generate(model, tokenizer, [replace(greedy[0], ignore_eos=False)])[0].token_ids
    ends = [place for place, token in enumerate(free[0]) if token in (second_end, tokenizer.eos_token_id)]
    assert stopped == free[0][: ends[0] + 1]


def test_the_models_own_generation_settings_do_not_bend_the_distribution(
    model, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = requests(tokenizer)
    expected = generate(model, tokenizer, batch)
    own = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=9.0, suppress_tokens=[0, 1, 2], min_new_tokens=12,
        eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    monkeypatch.setattr(model, "generation_config", own)
    assert generate(model, tokenizer, batch) == expected
    assert model.generation_config is own


def test_stop_token_ids_of_a_row(model, tokenizer) -> None:
    batch = requests(tokenizer, ignore_eos=True)
    free = tokens(generate(model, tokenizer, batch))
    batch[1] = replace(batch[1], stop_token_ids=(free[1][5], 99))
    stopped = tokens(generate(model, tokenizer, batch))
    assert stopped[1] == free[1][: free[1].index(free[1][5]) + 1]
    assert stopped[:1] + stopped[2:] == free[:1] + free[2:]


def test_stop_strings_of_a_row_may_span_tokens(model, tokenizer) -> None:
    batch = requests(tokenizer, ignore_eos=True)
    free = tokens(generate(model, tokenizer, batch))
    text = tokenizer.decode(free[2][4:7])
    batch[2] = replace(batch[2], stop=("no such text", text))
    stopped = tokens(generate(model, tokenizer, batch))
    assert tokenizer.decode(stopped[2]).endswith(text)  # kept in the response
    assert stopped[2] == free[2][: len(stopped[2])]
    assert text not in tokenizer.decode(stopped[2][:-1])
    assert stopped[:2] + stopped[3:] == free[:2] + free[3:]


# ---------------------------------------------------------------------- sampling parameters of verl and vLLM


def test_the_defaults_are_plain_sampling() -> None:
    request = Request.from_sampling_params([1, 2], {}, max_tokens=8, seed=3)
    assert request == Request(prompt_ids=(1, 2), max_tokens=8, seed=3, temperature=1.0, top_p=1.0, top_k=-1)


def test_all_parameters_are_read() -> None:
    params = {
        "temperature": 0.6, "top_p": 0.9, "top_k": 20, "seed": 0, "max_tokens": 5, "stop": "END", "stop_token_ids": [4],
        "ignore_eos": True, "logprobs": True, "repetition_penalty": 1.0, "presence_penalty": None,
    }  # fmt: skip
    assert Request.from_sampling_params([1], params, max_tokens=8, seed=3) == Request(
        prompt_ids=(1,), max_tokens=5, seed=0, temperature=0.6, top_p=0.9, top_k=20, stop=("END",), stop_token_ids=(4,),
        ignore_eos=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("params", "limit"), [({"max_new_tokens": 4}, 4), ({"max_tokens": 100}, 8), ({"max_tokens": None}, 8)]
)
def test_no_request_is_longer_than_the_response_length(params: dict, limit: int) -> None:
    assert Request.from_sampling_params([1], params, max_tokens=8, seed=0).max_tokens == limit


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}=1\.1 is not implemented by rollout\.name=transformers; use vllm"):
        Request.from_sampling_params([1], {name: 1.1}, max_tokens=8, seed=0)


# ---------------------------------------------------------------------- top-k and top-p

logits = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=10)


def kept(row: list[float], top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (V,) and which of them survive (V,)."""
    log_probs = torch.log_softmax(torch.tensor([row]), dim=-1)
    limited = restrict(log_probs, torch.tensor([top_k]), torch.tensor([top_p]))
    stays = limited.isfinite()
    assert torch.equal(limited[stays], log_probs[stays])  # what stays is not renormalised here
    return log_probs[0].exp(), stays[0]


@law
@given(logits, st.floats(0, 0.999))
def test_top_p_keeps_the_smallest_set_with_that_mass(row: list[float], top_p: float) -> None:
    probability, stays = kept(row, len(row), top_p)
    mass = probability[stays].sum().item()
    assert mass >= top_p - 1e-5
    assert mass - probability[stays].min().item() <= top_p + 1e-5 or stays.sum() == 1
    if not stays.all():
        assert probability[stays].min() >= probability[~stays].max()


@law
@given(logits, st.integers(1, 12))
def test_top_k_keeps_the_k_likeliest(row: list[float], top_k: int) -> None:
    probability, stays = kept(row, top_k, 1.0)
    assert stays.sum() == min(top_k, len(row))
    if not stays.all():
        assert probability[stays].min() >= probability[~stays].max()


@law
@given(logits, st.integers(1, 12), st.floats(0, 1))
def test_the_likeliest_token_always_stays(row: list[float], top_k: int, top_p: float) -> None:
    probability, stays = kept(row, top_k, top_p)
    assert probability[stays].max() == probability.max()
    assert 1 <= stays.sum() <= top_k


@law
@given(logits, st.integers(1, 12), st.floats(0, 1))
def test_both_limits_hold_at_once(row: list[float], top_k: int, top_p: float) -> None:
    both, by_k, by_p = kept(row, top_k, top_p)[1], kept(row, top_k, 1.0)[1], kept(row, len(row), top_p)[1]
    assert torch.equal(both, by_k & by_p)


def test_rows_are_limited_one_by_one() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2]] * 4).log()
    limited = restrict(log_probs, torch.tensor([3, 1, 3, 2]), torch.tensor([1.0, 1.0, 0.6, 1.0]))
    assert limited.isfinite().tolist() == [[True] * 3, [True, False, False], [True, True, False], [True, True, False]]
    assert restrict(log_probs, torch.tensor([3] * 4), torch.ones(4)) is log_probs  # nothing to do


def test_the_first_batches_are_small() -> None:
    from tempo_verl.evaluation.draw import batches

    assert [len(batch) for batch in batches(range(200), 64)] == [8, 16, 32, 64, 64, 16]
    assert [item for batch in batches(range(20), 4) for item in batch] == list(range(20))
    assert list(batches([], 64)) == []
