# SPDX-License-Identifier: Apache-2.0
"""Jagged tensors give what padded ones give, and nothing on the way is rows x longest."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tempo_verl.algo import advantage as algo
from tempo_verl.algo.calibration import position_mask
from tempo_verl.algo.jagged import Rows, by_row, jagged, last_token, of_rows, pad, starts, tokens_of, unpad
from tempo_verl.algo.official import em_outcome_advantage, em_token_advantage, last_token_reward
from tempo_verl.errors import UserError
from tempo_verl.trainer.batch import final_values_of, response_values
from tempo_verl.trainer.guard import check_range
from tempo_verl.trainer.metrics import positive_share, row_summaries

law = settings(derandomize=True, deadline=None, max_examples=80, print_blob=True)


@dataclass
class Batch:
    """The same rows in both forms.

    Attributes:
        masks: (T_i,) bool each: tool turns are holes, a synthetic row is all False, a row may have no entry at all.
        values: (T_i + 1,) float32 each.
        reward: (B,) float32.
        groups: (B,) prompts.
    """

    masks: list[Tensor]
    values: list[Tensor]
    reward: Tensor
    groups: list[int]

    def padded(self) -> tuple[Tensor, Tensor]:
        """Values and mask, 9 where a row has ended."""
        sequence = torch.nn.utils.rnn.pad_sequence
        mask = sequence(self.masks, batch_first=True)
        return sequence(self.values, batch_first=True, padding_value=9.0), mask.long()

    def jagged(self) -> tuple[Tensor, Tensor]:
        return of_rows(self.values), of_rows(self.masks)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    masks = draw(st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=6))
    masks = [[True] * len(mask) if draw(st.booleans()) else mask for mask in masks]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = [torch.rand(len(mask) + 1, generator=generator) * 3 - 1 for mask in masks]
    groups = [draw(st.integers(0, 2)) for _ in masks]
    return Batch(
        [torch.tensor(mask, dtype=torch.bool) for mask in masks],
        values, torch.rand(len(masks), generator=generator), groups,
    )  # fmt: skip


EMPTY = Batch([torch.zeros(0, dtype=torch.bool)], [torch.tensor([0.5])], torch.tensor([0.5]), [0])
SYNTHETIC = Batch(
    [torch.ones(3, dtype=torch.bool), torch.zeros(1, dtype=torch.bool)],
    [torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6])], torch.tensor([0.4, 0.0]), [0, 1],
)  # fmt: skip


def same(found: Tensor, expected: Tensor, like: Tensor) -> None:
    """A jagged tensor with rows as long as those of ``like``, and the entries of a padded one."""
    assert found.is_nested == like.is_nested is True
    assert found.dtype == expected.dtype
    for row, other in zip(found.unbind(), expected, strict=True):
        torch.testing.assert_close(row, other[: len(row)], atol=1e-6, rtol=1e-6)
    assert Rows.of(found).lengths.tolist() == Rows.of(like).lengths.tolist()


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Batch], Tensor]] = {
    "advantage": lambda values, mask, batch: algo.advantage(values, batch.reward, mask),
    "advantage, not whitened": lambda values, mask, batch: algo.advantage(
        values, batch.reward, mask, whiten_advantage=False
    ),
    "group_advantage": lambda values, mask, batch: algo.group_advantage(batch.reward, batch.groups, mask),
    "group_advantage of sessions": lambda values, mask, batch: algo.group_advantage(
        batch.reward, [0] * len(batch.groups), mask, batch.groups
    ),
    "on_tokens": lambda values, mask, batch: algo.on_tokens(batch.reward, mask),
    "on_tokens, of flags": lambda values, mask, batch: algo.on_tokens(batch.reward < 0.5, mask),
    "last_token_reward": lambda values, mask, batch: last_token_reward(batch.reward, mask),
    "whiten": lambda values, mask, batch: algo.whiten(Rows.of(values).without_last().tensor, mask),
    "em_token": lambda values, mask, batch: em_token_advantage(*official(values, mask, batch))[0],
    "em_token returns": lambda values, mask, batch: em_token_advantage(*official(values, mask, batch))[1],
    "em": lambda values, mask, batch: em_outcome_advantage(*official(values, mask, batch), batch.groups)[0],
    "em returns": lambda values, mask, batch: em_outcome_advantage(*official(values, mask, batch), batch.groups)[1],
    "em with sessions": lambda values, mask, batch: em_outcome_advantage(
        *official(values, mask, batch), [0] * len(batch.groups), final=batch.reward, sessions=batch.groups
    )[0],
}


def official(values: Tensor, mask: Tensor, batch: Batch) -> tuple[Any, ...]:
    labeled = [group == 0 for group in batch.groups]
    return Rows.of(values).without_last().tensor, last_token_reward(batch.reward, mask), mask, labeled


@pytest.mark.parametrize("name", FUNCTIONS)
@law
@given(batches())
@example(EMPTY)
@example(SYNTHETIC)
def test_what_a_token_gets_does_not_depend_on_the_form(name: str, batch: Batch) -> None:
    expected = FUNCTIONS[name](*batch.padded(), batch)
    values, mask = batch.jagged()
    same(FUNCTIONS[name](values, mask, batch), expected, mask)
    if name.startswith(("advantage", "whiten")):  # what a critic in bfloat16 gives
        half = FUNCTIONS[name](batch.padded()[0].bfloat16(), batch.padded()[1], batch)
        torch.testing.assert_close(pad(FUNCTIONS[name](values.bfloat16(), mask, batch)), half)


@law
@given(batches(), st.sampled_from(["after_last_token", "before_last_token"]))
@example(EMPTY, "after_last_token")
@example(SYNTHETIC, "before_last_token")
def test_what_a_row_gets_does_not_depend_on_the_form(batch: Batch, which: str) -> None:
    (values, mask), (wide, wide_mask) = batch.jagged(), batch.padded()
    assert torch.equal(algo.final_value(values, mask, which), algo.final_value(wide, wide_mask, which))
    assert last_token(mask).tolist() == last_token(wide_mask).tolist()
    assert tokens_of(mask).tolist() == wide_mask.sum(dim=1).tolist()
    same(position_mask(mask).long(), position_mask(wide_mask), values)
    same(algo.clip_values(values, (0.0, 1.0)), algo.clip_values(wide, (0.0, 1.0)), values)
    for found, expected in zip(
        algo.masked_moments(Rows.of(values).without_last().tensor, mask),
        algo.masked_moments(wide[:, :-1], wide_mask),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    advantages, wide_advantages = (
        algo.advantage(x, batch.reward, m, whiten_advantage=False) for x, m in ((values, mask), (wide, wide_mask))
    )
    narrow = row_summaries(batch.reward, advantages, mask, values)
    for name, column in row_summaries(batch.reward, wide_advantages, wide_mask, wide).items():
        np.testing.assert_allclose(narrow[name], column, rtol=1e-5, atol=1e-6, err_msg=name)
        assert narrow[name].dtype == column.dtype
    chosen = np.array(batch.groups) == 0
    shares = [positive_share(x, m, chosen) for x, m in ((advantages, mask), (wide_advantages, wide_mask))]
    assert shares[0] == shares[1] or np.isnan(shares).all()


@law
@given(batches(), st.lists(st.integers(1, 3), min_size=6, max_size=6))
def test_the_values_of_a_response_are_the_end_of_what_the_critic_gives(batch: Batch, prompts: list[int]) -> None:
    rows = [torch.cat([torch.full((n - 1,), 7.0), row]) for n, row in zip(prompts, batch.values, strict=False)]
    lengths = np.array([len(mask) for mask in batch.masks])
    found = response_values(of_rows(rows), lengths)
    same(found, final_values_of(of_rows(rows), lengths.tolist()), of_rows(batch.values))
    assert response_values(of_rows([row.bfloat16() for row in rows]), lengths).dtype == torch.float32


@law
@given(batches(), st.data())
def test_a_number_that_is_none_is_found_in_either_form(batch: Batch, data: st.DataObject) -> None:
    class Samples:
        class meta:
            keys = [f"u_{row}_0" for row in range(len(batch.masks))]

        def __len__(self) -> int:
            return len(batch.masks)

    values = [row.clone() for row in batch.values]
    row = data.draw(st.integers(0, len(values) - 1))
    check_range("values", of_rows(values), None, Samples())
    values[row][data.draw(st.integers(0, len(values[row]) - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    for form in (of_rows(values), torch.nn.utils.rnn.pad_sequence(values, batch_first=True)):
        with pytest.raises(UserError, match=rf"values of 1 of {len(values)} .* response u_{row}_0\)"):
            check_range("values", form, None, Samples())
    check_range("values", torch.full((2, 4), 3e38), None, Samples())  # finite, and their sum is not


@law
@given(batches())
def test_forms_are_taken_back(batch: Batch) -> None:
    values, mask = batch.jagged()
    assert [row.tolist() for row in unpad(pad(values), values).unbind()] == [row.tolist() for row in batch.values]
    assert by_row(batch.reward, mask).values().tolist() == [
        r for r, m in zip(batch.reward.tolist(), batch.masks, strict=True) for _ in m
    ]
    assert [here for _, here in Rows.of(values).blocks(5)][-1].stop == sum(map(len, batch.values))


def test_forms_do_not_mix() -> None:
    values, mask = of_rows([torch.rand(3), torch.rand(2)]), of_rows([torch.ones(2), torch.ones(1)])
    for wrong in (mask, pad(mask), of_rows([torch.ones(2), torch.ones(2)])):
        with pytest.raises(ValueError, match="one entry more in each row"):
            algo.advantage(values if wrong is not mask else mask, torch.zeros(2), wrong)


def test_whitening_by_blocks_is_that_of_float64() -> None:
    size = algo.BLOCK * 2 + 1000
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(size, generator=generator) * 1e-3 + 100  # a large mean, a small spread
    for mask in (torch.ones(size, dtype=torch.bool), torch.rand(size, generator=generator) < 0.5):
        mean, variance = algo.masked_moments(x, mask)
        kept = x[mask].double()
        assert mean.item() == pytest.approx(kept.mean().item(), rel=1e-13)
        assert variance.item() == pytest.approx(kept.var().item(), rel=1e-9)
        assert algo.masked_moments(torch.full((size,), 0.1), mask)[1].item() == 0.0


# ---------------------------------------------------------------------- the size of what is made


class Largest(TorchDispatchMode):
    """The most bytes that one tensor has had which torch made."""

    size = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor) and not tensor.is_nested:
                self.size = max(self.size, tensor.numel() * tensor.itemsize)
        return found


def test_one_long_response_costs_no_more_than_its_tokens() -> None:
    """2,000 short rows and one of 100,000 tokens: padded, one bool tensor would be 200 MB; the tokens are 120,000."""
    lengths = np.array([10] * 2000 + [100_000])
    tokens, offsets = int(lengths.sum()), starts(lengths)
    prompts = np.full(len(lengths), 20)
    output = jagged(torch.rand(tokens + int(prompts.sum())), starts(lengths + prompts))
    holes = torch.rand(tokens) < 0.9
    reward_of = [f"p{row % 40}" for row in range(len(lengths))]
    labeled = np.arange(len(lengths)) % 2 == 0

    def a_round() -> None:
        mask = jagged(holes, offsets)
        values = algo.clip_values(response_values(output, lengths), (0.0, 1.0))
        reward = algo.final_value(values, mask)
        advantages = algo.advantage(values, reward, mask)
        algo.group_advantage(reward, reward_of, mask)
        rewards = last_token_reward(reward, mask)
        columns = Rows.of(values).without_last().tensor
        em_token_advantage(columns, rewards, mask, labeled)
        em_outcome_advantage(columns, rewards, mask, labeled, reward_of)
        algo.on_tokens(reward, mask)
        position_mask(mask)
        positive_share(advantages, mask, labeled)
        row_summaries(reward, advantages, mask, values)

    a_round()  # what is imported and cached once is not of a round
    most = 16 * tokens  # bytes: a float64 copy and a little more
    with Largest() as made:
        a_round()
    assert 0 < made.size <= most
    tracemalloc.start()  # numpy's memory
    try:
        a_round()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 5 * most  # all tensors of a round that are alive at one time
