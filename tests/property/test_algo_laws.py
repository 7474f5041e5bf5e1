# SPDX-License-Identifier: Apache-2.0
"""Laws that hold for every batch, whatever its numbers."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tempo_verl.algo.advantage import advantage, final_value, whiten
from tempo_verl.algo.calibration import calibration_loss, calibration_metrics, position_mask
from tempo_verl.algo.evaluation import pass_at_k
from tempo_verl.algo.official import em_outcome_advantage, em_token_advantage, value_loss

law = settings(derandomize=True, deadline=None, max_examples=60, print_blob=True)
MODES = ("token-mean", "seq-mean-token-mean")
FINAL = ("after_last_token", "before_last_token")
unit = st.floats(-1, 2, width=32)


@dataclass
class Batch:
    """values (B, T+1), mask (B, T) with holes and empty rows, target (B,), all float64; seed for permutations."""

    values: Tensor
    mask: Tensor
    target: Tensor
    seed: int

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    rows, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 6))

    def matrix(elements: st.SearchStrategy[float], width: int) -> Tensor:
        size = rows * width
        flat = draw(st.lists(elements, min_size=size, max_size=size))
        return torch.tensor(flat, dtype=torch.float64).reshape(rows, width)

    bit = st.sampled_from([0.0, 1.0])
    target = matrix(bit, 1).squeeze(1)
    return Batch(matrix(unit, tokens + 1), matrix(bit, tokens), target, draw(st.integers(0, 2**31)))


def same(got: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, atol=atol, rtol=1e-9)


def credit(batch: Batch, which: str = FINAL[0]) -> Tensor:
    return advantage(batch.values, final_value(batch.values, batch.mask, which), batch.mask)


@law
@given(batches(), st.sampled_from(FINAL), st.sampled_from(MODES))
def test_row_order_does_not_matter(batch: Batch, which: str, mode: str) -> None:
    order = torch.randperm(len(batch.values), generator=batch.generator)
    moved = Batch(batch.values[order], batch.mask[order], batch.target[order], 0)
    same(final_value(moved.values, moved.mask, which), final_value(batch.values, batch.mask, which)[order])
    same(credit(moved, which), credit(batch, which)[order])
    same(
        calibration_loss(moved.values, moved.target, position_mask(moved.mask), mode),
        calibration_loss(batch.values, batch.target, position_mask(batch.mask), mode),
    )


@law
@given(batches(), st.integers(0, 3), st.integers(0, 3), st.sampled_from(FINAL), st.sampled_from(MODES))
def test_padding_does_not_matter(batch: Batch, columns: int, rows: int, which: str, mode: str) -> None:
    def grow(x: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(x, (0, columns, 0, rows), value=fill)

    # nan is the harshest padding: whatever reads it shows
    target = torch.nn.functional.pad(batch.target, (0, rows), value=float("nan"))
    padded = Batch(grow(batch.values, float("nan")), grow(batch.mask, 0), target, 0)
    size = len(batch.values)
    final = final_value(padded.values, padded.mask, which)
    same(final[:size], final_value(batch.values, batch.mask, which))
    assert not final[size:].any()
    same(credit(padded, which), grow(credit(batch, which), 0))
    same(position_mask(padded.mask), grow(position_mask(batch.mask), 0))
    same(
        calibration_loss(padded.values, padded.target, position_mask(padded.mask), mode),
        calibration_loss(batch.values, batch.target, position_mask(batch.mask), mode),
    )


@law
@given(batches())
def test_a_masked_token_is_not_counted(batch: Batch) -> None:
    valid = batch.mask.bool()
    x = batch.values[:, 1:]
    # whitening the kept entries alone gives the same numbers
    same(whiten(x, batch.mask)[valid], whiten(x[valid], torch.ones_like(x[valid])))
    assert not whiten(x, batch.mask)[~valid].any()
    assert not credit(batch)[~valid].any()
    # the mean over the kept positions alone is the loss
    keep = position_mask(batch.mask).bool()
    errors = (batch.values - batch.target[:, None])[keep].square()
    expected = errors.mean() if keep.any() else torch.zeros((), dtype=torch.float64)
    same(calibration_loss(batch.values, batch.target, keep), expected)


@law
@given(batches(), st.floats(0.1, 10), st.floats(-5, 5))
def test_whitening_forgets_positive_scale_and_shift(batch: Batch, scale: float, shift: float) -> None:
    x, valid = batch.values[:, 1:], batch.mask.bool()
    # the 1e-8 added to the variance is felt by tiny spreads
    assume(valid.sum() > 1 and x[valid].var() > 1e-2)
    white = whiten(x, batch.mask)
    same(whiten(scale * x + shift, batch.mask), white, atol=1e-3)
    assert float(white[valid].mean()) == pytest.approx(0, abs=1e-9)
    assert float(white[valid].var()) == pytest.approx(1, abs=1e-5)


@law
@given(batches(), st.integers(1, 5), st.sampled_from(MODES))
def test_micro_batch_losses_add_up_to_the_whole(batch: Batch, size: int, mode: str) -> None:
    mask = position_mask(batch.mask)
    assume(mask.any())
    totals = {"num_positions": int(mask.sum()), "num_sequences": int(mask.any(dim=1).sum())}
    whole_values, split_values = (batch.values.clone().requires_grad_() for _ in range(2))
    whole = calibration_loss(whole_values, batch.target, mask, mode)
    parts = zip(split_values.split(size), batch.target.split(size), mask.split(size), strict=True)
    split = torch.stack([calibration_loss(*part, mode, **totals) for part in parts]).sum()
    same(split, whole)
    whole.backward()
    split.backward()
    assert whole_values.grad is not None and split_values.grad is not None
    same(split_values.grad, whole_values.grad)


@law
@given(batches())
def test_the_advantage_orders_tokens_by_how_low_the_value_before_them_was(batch: Batch) -> None:
    got = credit(batch)
    for row, valid in enumerate(batch.mask.bool()):
        before, gained = batch.values[row, :-1][valid], got[row][valid]
        higher = before[:, None] > before[None, :]
        assert (gained[:, None] <= gained[None, :])[higher].all()


@law
@given(batches(), st.lists(st.booleans(), min_size=5, max_size=5))
def test_official_functions_obey_row_order_and_padding(batch: Batch, flags: list[bool]) -> None:
    rows = len(batch.values)
    values, labeled = batch.values[:, :-1], torch.tensor(flags[:rows])
    rewards = torch.zeros_like(values)
    rewards[:, 0] = batch.target
    uid = torch.arange(rows) % 2
    order = torch.randperm(rows, generator=batch.generator)

    def outputs(select: Tensor, columns: int) -> list[Tensor]:
        v, r, m = (torch.nn.functional.pad(x[select], (0, columns)) for x in (values, rewards, batch.mask))
        token, returns = em_token_advantage(v, r, m, labeled[select])
        outcome, _ = em_outcome_advantage(v, r, m, labeled[select], uid[select])
        losses = [value_loss(v + 0.3, v, returns, m, labeled[select], 0.1, mode)[0] for mode in MODES]
        width = values.shape[1]
        return [token[:, :width], returns[:, :width], outcome[:, :width], *losses]

    for got, expected in zip(outputs(order, 2), outputs(torch.arange(rows), 0), strict=True):
        same(got, expected[order] if expected.ndim else expected, atol=1e-6)


scored = st.lists(st.tuples(st.integers(-100, 200), st.booleans()), min_size=1, max_size=30)


@law
@given(scored, st.floats(0.1, 5), st.floats(-2, 2))
def test_auroc_depends_on_order_alone(samples: list[tuple[int, bool]], scale: float, shift: float) -> None:
    # hundredths, so that no transform below merges two scores by rounding
    score, correct = np.array([s for s, _ in samples]) / 100, np.array([c for _, c in samples])
    auroc = calibration_metrics(score, correct).get("auroc")
    for transformed in (scale * score + shift, np.exp(score), score**3, np.arctan(score)):
        assert calibration_metrics(transformed, correct).get("auroc") == auroc
    if auroc is not None:
        assert calibration_metrics(-score, correct)["auroc"] == pytest.approx(1 - auroc)


@law
@given(scored)
def test_calibration_metrics_keep_their_ranges(samples: list[tuple[int, bool]]) -> None:
    score, correct = np.array([s for s, _ in samples]) / 100, np.array([c for _, c in samples])
    metrics = calibration_metrics(score, correct)
    assert metrics["gap"] == pytest.approx(metrics["value_mean"] - metrics["accuracy"])
    assert metrics["brier"] >= metrics["gap"] ** 2 - 1e-12
    clipped_gap = abs(score.clip(0, 1).mean() - correct.mean())
    assert clipped_gap - 1e-12 <= metrics["ece"] <= 1
    # an oracle is calibrated
    oracle = calibration_metrics(correct.astype(float), correct)
    assert oracle["brier"] == oracle["ece"] == oracle["gap"] == 0
    assert oracle.get("auroc", 1) == oracle.get("explained_variance", 1) == 1


counts = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n)))


@law
@given(counts)
def test_pass_at_k_equals_enumeration(numbers: tuple[int, int, int]) -> None:
    n, c, k = numbers
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@law
@given(st.integers(1, 200))
def test_pass_at_k_grows_with_k_and_c(n: int) -> None:
    c = np.arange(n + 1)
    table = np.array([pass_at_k(n, c, k) for k in range(n + 1)])  # (k, c)
    assert ((table >= 0) & (table <= 1)).all()
    assert (np.diff(table, axis=0) >= -1e-12).all()
    assert (np.diff(table, axis=1) >= -1e-12).all()
