# SPDX-License-Identifier: Apache-2.0
"""Advantages on tensors small enough to work by hand."""

import pytest
import torch

from tempo_verl.algo.advantage import advantage, clip_values, final_value, whiten
from tempo_verl.algo.official import em_outcome_advantage, em_token_advantage, value_loss

# Three responses of up to 3 tokens; the middle one is padding through and through.
VALUES = torch.tensor([[0.1, 0.2, 0.4, 0.8], [9.0, 9.0, 9.0, 9.0], [0.5, 0.7, 0.3, 9.0]])
MASK = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0]])


def test_final_value_is_the_column_after_the_last_token() -> None:
    # row 0: 3 tokens -> column 3 = 0.8; row 2: 2 tokens -> column 2 = 0.3
    torch.testing.assert_close(final_value(VALUES, MASK), torch.tensor([0.8, 0.0, 0.3]))


def test_final_value_before_the_last_token_is_one_column_earlier() -> None:
    # row 0 -> column 2 = 0.4; row 2 -> column 1 = 0.7
    torch.testing.assert_close(final_value(VALUES, MASK, "before_last_token"), torch.tensor([0.4, 0.0, 0.7]))


def test_final_value_of_one_token_before_it_is_the_value_of_the_prompt() -> None:
    values, mask = torch.tensor([[0.6, 0.9]]), torch.tensor([[1]])
    assert final_value(values, mask, "before_last_token").tolist() == pytest.approx([0.6])
    assert final_value(values, mask, "after_last_token").tolist() == pytest.approx([0.9])


def test_final_value_skips_a_trailing_tool_turn() -> None:
    # own, tool, own, tool: the last own token is the third -> column 3 after it, column 2 before it
    values, mask = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]]), torch.tensor([[1, 0, 1, 0]])
    assert final_value(values, mask).tolist() == pytest.approx([0.3])
    assert final_value(values, mask, "before_last_token").tolist() == pytest.approx([0.2])


def test_final_value_refuses_unknown_names_and_verl_shaped_values() -> None:
    with pytest.raises(ValueError, match="after_last_token"):
        final_value(VALUES, MASK, "last")
    with pytest.raises(ValueError, match=r"\(B, T\+1\)"):
        final_value(VALUES[:, :-1], MASK)


def test_clip_values() -> None:
    values = torch.tensor([-0.5, 0.25, 1.5])
    assert clip_values(values, (0.0, 1.0)).tolist() == [0.0, 0.25, 1.0]
    assert clip_values(values, None) is values
    with pytest.raises(ValueError, match="low <= high"):
        clip_values(values, (1.0, 0.0))


def test_advantage_subtracts_the_value_before_the_token() -> None:
    # row 0: R = 0.8: 0.8 - (0.1, 0.2, 0.4) = (0.7, 0.6, 0.4)
    # row 1: padding; row 2: R = 0.3: 0.3 - (0.5, 0.7) = (-0.2, -0.4), third token masked
    got = advantage(VALUES, final_value(VALUES, MASK), MASK, whiten_advantage=False)
    expected = torch.tensor([[0.7, 0.6, 0.4], [0.0, 0.0, 0.0], [-0.2, -0.4, 0.0]])
    torch.testing.assert_close(got, expected)


def test_advantage_whitens_over_valid_tokens_only() -> None:
    # entries 0.7, 0.6, 0.4, -0.2, -0.4: mean 1.1 / 5 = 0.22
    # deviations 0.48, 0.38, 0.18, -0.42, -0.62; squares sum to .2304 + .1444 + .0324 + .1764 + .3844 = 0.968
    # unbiased variance 0.968 / 4 = 0.242, standard deviation 0.491935
    deviations = torch.tensor([[0.48, 0.38, 0.18], [0.0, 0.0, 0.0], [-0.42, -0.62, 0.0]])
    got = advantage(VALUES, final_value(VALUES, MASK), MASK)
    torch.testing.assert_close(got, deviations / 0.242**0.5, atol=1e-6, rtol=0)


def test_advantage_refuses_a_column_of_rewards() -> None:
    with pytest.raises(ValueError, match="reward must have shape"):
        advantage(VALUES, torch.zeros(3, 1), MASK)


def test_whiten_uses_the_unbiased_variance() -> None:
    # 1, 3: mean 2, unbiased variance (1 + 1) / 1 = 2 -> -+1 / sqrt(2); the 100 is masked
    got = whiten(torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1, 1, 0]))
    torch.testing.assert_close(got, torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0]))


@pytest.mark.parametrize("mask", [[0, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]])
def test_whiten_without_spread_gives_zeros(mask: list[int]) -> None:
    got = whiten(torch.full((3,), 0.3), torch.tensor(mask))
    torch.testing.assert_close(got, torch.zeros(3), atol=1e-6, rtol=0)


def test_whiten_ignores_nan_in_padding() -> None:
    got = whiten(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(got, torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0]))


def test_dtypes_are_kept() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        values = VALUES.to(dtype)
        assert final_value(values, MASK).dtype == dtype
        assert advantage(values, final_value(values, MASK).float(), MASK).dtype == dtype


# --- the official repository's variants, b_t columns only ---


def test_em_token_by_hand() -> None:
    # labelled row: R = 1, credit 1 - (0.5, 0.75) = (0.5, 0.25)
    # unlabelled row, one token: R = last valid value = 0.25, credit 0 although its own reward says 1
    values, mask = torch.tensor([[0.5, 0.75], [0.25, 9.0]]), torch.tensor([[1, 1], [1, 0]])
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    advantages, returns = em_token_advantage(values, rewards, mask, [1, 0])
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0], [0.25, 0.0]]))
    # credits 0.5, 0.25, 0: mean 0.25, unbiased variance (0.0625 + 0 + 0.0625) / 2 = 0.0625, deviation 0.25
    # masked entry: (0 - 0.25) / 0.25 = -1, as the official code leaves it
    torch.testing.assert_close(advantages, torch.tensor([[1.0, 0.0], [-1.0, -1.0]]), atol=1e-6, rtol=0)


def test_em_outcome_by_hand() -> None:
    # prompt a: labelled R = 1, unlabelled R = 0.5: mean 0.75, unbiased std sqrt(2 * 0.0625 / 1) = 0.353553
    # -> +-0.25 / 0.353554 = +-0.707105; prompt b has one response: 0, its R counts nowhere
    values, mask = torch.tensor([[0.1, 0.2], [0.3, 0.5], [0.25, 9.0]]), torch.tensor([[1, 1], [1, 1], [1, 0]])
    rewards = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    advantages, returns = em_outcome_advantage(values, rewards, mask, torch.tensor([1, 0, 0]), ["a", "a", "b"])
    expected = torch.tensor([[0.707105, 0.707105], [-0.707105, -0.707105], [0.0, 0.0]])
    torch.testing.assert_close(advantages, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0], [0.3, 0.5], [0.25, 0.0]]))


def test_value_loss_by_hand() -> None:
    # row 0: new mean 0.5, old mean 0.1, range 0.1 -> mean 0.2, every value shifted by -0.3: (0.1, 0.3)
    #        errors to R = 1: plain (0.36, 0.16), clipped (0.81, 0.49); the larger: sum 1.3
    # row 1: one token, unchanged: error (0.5 - 0)^2 = 0.25; row 2: not labelled
    new = torch.tensor([[0.4, 0.6], [0.5, 9.0], [5.0, 5.0]])
    old = torch.tensor([[0.0, 0.2], [0.5, 9.0], [0.0, 0.0]])
    returns = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1]])
    expected = {
        "token-mean": 0.5 * 1.55 / 3,  # 3 labelled tokens
        "seq-mean-token-mean": 0.5 * (0.65 + 0.25) / 2,
        "seq-mean-token-sum": 0.5 * 1.55 / 2,
        "seq-mean-token-sum-norm": 0.5 * 1.55 / 2 / 2,  # divided by the width, 2 tokens
    }
    for mode, value in expected.items():
        loss, clipfrac = value_loss(new, old, returns, mask, [True, True, False], 0.1, mode)
        assert float(loss) == pytest.approx(value, abs=1e-6)
        assert float(clipfrac) == pytest.approx(2 / 3)  # 2 of the 3 tokens are in row 0
    with pytest.raises(ValueError, match="loss_agg_mode"):
        value_loss(new, old, returns, mask, [1, 1, 0], 0.1, "mean")


def test_value_loss_without_labelled_rows_is_zero_and_differentiable() -> None:
    new = torch.ones(2, 3, requires_grad=True)
    for mode in ("token-mean", "seq-mean-token-mean"):
        loss, clipfrac = value_loss(new, torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3), [0, 0], 0.1, mode)
        loss.backward()
        assert loss.item() == clipfrac.item() == 0
    assert new.grad is not None and not new.grad.any()
