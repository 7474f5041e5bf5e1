# SPDX-License-Identifier: Apache-2.0
"""The E-step loss as verl's training workers call it: TensorDicts of jagged fields, cut into micro-batches."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.metric import Metric
from verl.workers.engine.utils import prepare_micro_batches

from tempo_verl.algo.calibration import position_mask
from tempo_verl.trainer.batch import as_jagged, final_values_of
from tempo_verl.trainer.losses import value_calibration_loss

MODES = ["token-mean", "seq-mean-token-mean"]

# Critic output over prompt and response (one value after each input token), length of the response, correctness.
# Prompts of 2 and 1 tokens: V(x) is the value after the last of them.
ROWS = [([9.0, 0.5, 0.0, 1.0], 2, 1.0), ([0.5, 0.25], 1, 0.0)]
# squared errors: (0.5 - 1)^2, (0 - 1)^2, (1 - 1)^2 = 0.25, 1, 0; and 0.25, 0.0625
LOSS = {"token-mean": 1.5625 / 5, "seq-mean-token-mean": (1.25 / 3 + 0.3125 / 2) / 2}
# a third row that verl adds to make the batch divisible: its response_mask is 0 throughout
SYNTHETIC = ([7.0, 7.0, 7.0], 1, 0.0)


def batch(rows: list[tuple[list[float], int, float]], real: int | None = None, dp_size: int = 1) -> TensorDict:
    """A mini-batch as it reaches the workers; ``real`` rows are genuine, the rest synthetic. ``values`` rides along."""
    real = len(rows) if real is None else real
    mask = [position_mask(torch.full((1, length), int(row < real)))[0] for row, (_, length, _) in enumerate(rows)]
    data = tu.get_tensordict(
        {
            "input_ids": as_jagged([torch.zeros(len(values), dtype=torch.int64) for values, _, _ in rows]),
            "responses": as_jagged([torch.zeros(length, dtype=torch.int64) for _, length, _ in rows]),
            "loss_mask": as_jagged(mask),
            "outcome": torch.tensor([[outcome] for _, _, outcome in rows]),
            "values": as_jagged([torch.tensor(values) for values, _, _ in rows]),
        }
    )
    tu.assign_non_tensor(
        data, dp_size=dp_size, batch_num_tokens=data["loss_mask"].sum().item(), global_batch_size=len(rows)
    )
    return data


def loss_of(data: TensorDict, mode: str) -> tuple[torch.Tensor, dict[str, Metric]]:
    return value_calibration_loss({"values": data["values"]}, data, loss_agg_mode=mode)


# ---------------------------------------------------------------------- the loss


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_worked_by_hand(mode: str) -> None:
    loss, metrics = loss_of(batch(ROWS), mode)
    assert loss.item() == pytest.approx(LOSS[mode])
    assert metrics["critic/vf_loss"].aggregate() == pytest.approx(LOSS[mode])
    assert metrics["critic/vpred_mean"].aggregate() == pytest.approx((0.5 + 0.0 + 1.0 + 0.5 + 0.25) / 5)


@pytest.mark.parametrize("mode", MODES)
def test_an_outcome_that_comes_back_jagged_from_the_queue(mode: str) -> None:
    data = batch(ROWS)
    data["outcome"] = as_jagged([torch.tensor([outcome]) for _, _, outcome in ROWS])
    assert loss_of(data, mode)[0].item() == pytest.approx(LOSS[mode])


def test_every_value_from_the_prompt_to_the_last_token_gets_its_gradient() -> None:
    data = batch(ROWS)
    values = data["values"].values().clone().requires_grad_()
    full = torch.nested.nested_tensor_from_jagged(values, data["values"].offsets())
    value_calibration_loss({"values": full}, data, loss_agg_mode="token-mean")[0].backward()
    # 2 (V - c) / 5; nothing inside the prompt, and V(x, y_1:T) of the second row pulls: 2 * 0.25 / 5
    torch.testing.assert_close(values.grad, torch.tensor([0.0, -0.2, -0.4, 0.0, 0.2, 0.1]))


def test_the_final_value_pulls_even_if_all_others_are_right() -> None:
    data = batch([([0.0, 0.0, 0.0, 1.0], 3, 0.0)])
    values = data["values"].values().clone().requires_grad_()
    full = torch.nested.nested_tensor_from_jagged(values, data["values"].offsets())
    value_calibration_loss({"values": full}, data, loss_agg_mode="token-mean")[0].backward()
    assert values.grad.tolist() == [0.0, 0.0, 0.0, 0.5]


def test_synthetic_rows_do_not_count() -> None:
    loss, metrics = loss_of(batch([*ROWS, SYNTHETIC], real=2), "token-mean")
    expected, expected_metrics = loss_of(batch(ROWS), "token-mean")
    assert loss.item() == pytest.approx(expected.item())
    for name, metric in expected_metrics.items():
        assert metrics[name].aggregate() == pytest.approx(metric.aggregate())


@pytest.mark.parametrize("mode", MODES)
def test_synthetic_rows_get_no_gradient(mode: str) -> None:
    data = batch([SYNTHETIC, *ROWS], real=0)
    tu.assign_non_tensor(data, batch_num_tokens=5)  # other micro-batches hold the real rows
    values = data["values"].values().clone().requires_grad_()
    full = torch.nested.nested_tensor_from_jagged(values, data["values"].offsets())
    loss, _ = value_calibration_loss({"values": full}, data, loss_agg_mode=mode)
    loss.backward()
    assert loss.item() == 0
    assert values.grad.abs().sum() == 0


# ---------------------------------------------------------------------- cut into pieces


def many(count: int = 8) -> list[tuple[list[float], int, float]]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        prompt, response = 1 + number % 3, 1 + (5 * number) % 7
        rows.append((torch.rand(prompt + response, generator=generator).tolist(), response, float(number % 2)))
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "cut",
    [{"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 2}, {"use_dynamic_bsz": True, "max_token_len_per_gpu": 12}],
)
def test_verls_micro_batches_add_up_to_the_whole(mode: str, cut: dict[str, int]) -> None:
    data = batch(many())
    whole, whole_metrics = loss_of(data, mode)
    tu.assign_non_tensor(data, **cut)
    micro_batches, _ = prepare_micro_batches(data)
    assert len(micro_batches) > 2
    parts = [loss_of(micro_batch, mode) for micro_batch in micro_batches]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item())
    for name, metric in whole_metrics.items():
        total = metric.init_list()
        for _, metrics in parts:
            total.extend(metrics[name])
        assert total.aggregate() == pytest.approx(metric.aggregate())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dp_size", [2, 4])
def test_the_mean_over_data_parallel_ranks_is_the_whole(mode: str, dp_size: int) -> None:
    data = batch(many(), dp_size=dp_size)  # verl sums batch_num_tokens over the ranks
    whole, whole_metrics = loss_of(batch(many()), mode)
    bounds = range(0, 9, 8 // dp_size)
    ranks = [loss_of(tu.index_select_tensor_dict(data, list(range(*ends))), mode) for ends in pairwise(bounds)]
    assert sum(loss.item() for loss, _ in ranks) / dp_size == pytest.approx(whole.item())
    for name, metric in whole_metrics.items():
        assert Metric.aggregate_dp([metrics[name] for _, metrics in ranks]) == pytest.approx(metric.aggregate())


# ---------------------------------------------------------------------- values out of a critic pass


def test_final_values_are_the_last_t_plus_one() -> None:
    full = as_jagged([torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([6.0, 7.0])])
    values = final_values_of(full, [2, 1])
    assert values.tolist() == [[3.0, 4.0, 5.0], [6.0, 7.0, 0.0]]


def test_final_values_keep_the_graph() -> None:
    flat = torch.arange(7.0, requires_grad=True)
    full = torch.nested.nested_tensor_from_jagged(flat, torch.tensor([0, 5, 7]))
    final_values_of(full, [2, 1]).sum().backward()
    assert flat.grad.tolist() == [0, 0, 1, 1, 1, 1, 1]
