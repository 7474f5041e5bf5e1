# SPDX-License-Identifier: Apache-2.0
"""What is never trained on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fields import method_of
from hypothesis import given
from hypothesis import strategies as st

from tempo_verl.errors import UserError
from tempo_verl.trainer.guard import check_groups, check_range, reward_limits

WRONG = [float("nan"), float("inf"), -float("inf")]


class Rows:
    """As much of ``Samples`` as a check reads: keys of rows, prompts of sessions."""

    def __init__(self, prompts: list[str]):
        self.prompts = prompts
        self.meta = SimpleNamespace(keys=[f"{prompt}_{row}_0" for row, prompt in enumerate(prompts)])

    def __len__(self) -> int:
        return len(self.prompts)

    def by_session(self) -> Rows:
        return self


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.data())
def test_any_number_that_is_none_is_found_wherever_it_is(numbers: list[float], data) -> None:
    rows = Rows([f"p{row}" for row in range(len(numbers))])
    values = torch.tensor(numbers)
    check_range("rewards", values, (0.0, 1.0), rows)
    check_range("values", values.unsqueeze(1).repeat(1, 3), None, rows)
    row, wrong = data.draw(st.integers(0, len(numbers) - 1)), data.draw(st.sampled_from([*WRONG, -0.01, 1.01]))
    values[row] = wrong
    with pytest.raises(UserError, match=rf"rewards of 1 of {len(rows)} responses .* response p{row}_{row}_0\)"):
        check_range("rewards", values, (0.0, 1.0), rows)
    wide = torch.zeros(len(numbers), 4)
    wide[row, 2] = wrong
    if wrong in WRONG or wrong != wrong:
        with pytest.raises(UserError, match=rf"1 of {len(rows)} responses are not finite numbers"):
            check_range("values", wide, None, rows)
    else:
        check_range("values", wide, None, rows)


def test_the_remedy_is_that_of_what_is_wrong() -> None:
    with pytest.raises(UserError, match="lower the learning rates"):
        check_range("rewards", torch.tensor([float("nan")]), (0.0, 1.0), Rows(["p"]))
    with pytest.raises(
        UserError, match=r"not numbers from 0 to 1 \(first: 7, .* let its class say so \(reward_range\)"
    ):
        check_range("rewards", torch.tensor([7.0]), (0.0, 1.0), Rows(["p"]))


def test_a_reward_is_a_verdict_a_value_or_what_the_method_says_less_the_penalties() -> None:
    assert reward_limits(method_of()) == (0, 1)
    assert reward_limits(method_of(value_range=[-1, 2])) == (-1, 2)
    assert reward_limits(method_of(value_range=[0.2, 0.8])) == (0, 1)  # verdicts on D_L
    assert reward_limits(method_of(value_range=None)) is None
    assert reward_limits(method_of(shaping__format_penalty=0.5, shaping__overlong_penalty=2)) == (-2.5, 1)
    assert reward_limits(method_of(shaping__length_penalty=-0.5, shaping__overlong_penalty=0)) == (0, 1.5)


def test_missing_responses_are_counted_by_prompt() -> None:
    guard = method_of().settings.guard
    assert check_groups("labeled", Rows(["a", "a", "b"]), 3, 2, guard) == {
        "tempo/labeled/failed_prompts": 1.0, "tempo/labeled/partial_groups": 1.0,
    }  # fmt: skip
    with pytest.raises(
        UserError, match=r"4 of 6 labeled responses did not arrive, more than tempo\.guard\.max_missing"
    ):
        check_groups("labeled", Rows(["a", "b"]), 3, 2, guard)
