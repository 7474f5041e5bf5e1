# SPDX-License-Identifier: Apache-2.0
"""The ``official`` functions against recorded outputs of the official repository's own code, to 1e-6.

Two recordings: ``official_tempo.json``, and ``official_tempo_range.json`` with values beyond [-1, 1] and prompts with
one response. TEMPO_PARITY_FILE names another one of the first kind.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tempo_verl.algo.official import em_outcome_advantage, em_token_advantage, value_loss

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared" / "parity"  # where the recordings come from, if it is there
TOLERANCE = {"atol": 1e-6, "rtol": 0}


def cases(name: str) -> list[dict[str, Any]]:
    return json.loads(Path(os.environ.get("TEMPO_PARITY_FILE", HERE / name)).read_text())


CASES = cases("official_tempo.json")
RANGE = json.loads((HERE / "official_tempo_range.json").read_text())


@pytest.fixture(params=CASES, ids=lambda case: f"seed{case['seed']}")
def case(request: pytest.FixtureRequest) -> Any:
    return request.param


def tensors(case: Any) -> dict[str, torch.Tensor]:
    names = ("values", "token_level_rewards", "response_mask", "is_labeled", "new_values")
    return {name: torch.tensor(case["inputs"][name]) for name in names}


@pytest.mark.parametrize("name", ["official_tempo.json", "official_tempo_range.json"])
def test_the_recordings_are_those_that_were_made(name: str) -> None:
    assert json.loads((HERE / name).read_text())
    if (SHARED / name).exists():
        assert (HERE / name).read_bytes() == (SHARED / name).read_bytes()


def test_the_second_recording_has_what_it_is_for() -> None:
    assert any(min(map(case["inputs"]["uid"].count, case["inputs"]["uid"])) == 1 for case in RANGE)
    assert any(torch.tensor(case["inputs"]["values"]).abs().max() > 1 for case in RANGE)


@pytest.mark.parametrize("case", RANGE, ids=lambda case: f"seed{case['seed']}")
def test_values_beyond_the_range_and_prompts_with_one_response(case: Any) -> None:
    x = {name: torch.tensor(value) for name, value in case["inputs"].items() if name != "uid"}
    args = (x["values"], x["token_level_rewards"], x["response_mask"], x["is_labeled"])
    uid = case["inputs"]["uid"]
    for kind, found in (("em_token", em_token_advantage(*args)), ("em", em_outcome_advantage(*args, uid))):
        for name, tensor in zip(("advantages", "returns"), found, strict=True):
            torch.testing.assert_close(tensor, torch.tensor(case["expected"][kind][name]), **TOLERANCE)


def test_em_token(case: Any) -> None:
    x = tensors(case)
    advantages, returns = em_token_advantage(x["values"], x["token_level_rewards"], x["response_mask"], x["is_labeled"])
    expected = case["expected"]["em_token"]
    torch.testing.assert_close(advantages, torch.tensor(expected["advantages"]), **TOLERANCE)
    torch.testing.assert_close(returns, torch.tensor(expected["returns"]), **TOLERANCE)


def test_em_outcome(case: Any) -> None:
    x = tensors(case)
    advantages, returns = em_outcome_advantage(
        x["values"], x["token_level_rewards"], x["response_mask"], x["is_labeled"], case["inputs"]["uid"]
    )
    expected = case["expected"]["em"]
    torch.testing.assert_close(advantages, torch.tensor(expected["advantages"]), **TOLERANCE)
    torch.testing.assert_close(returns, torch.tensor(expected["returns"]), **TOLERANCE)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("returns_from", ["em_token", "em"])  # equal on labelled rows, so the loss cannot differ
def test_value_loss(case: Any, mode: str, returns_from: str) -> None:
    x = tensors(case)
    returns = torch.tensor(case["expected"][returns_from]["returns"])
    loss, clipfrac = value_loss(
        x["new_values"], x["values"], returns, x["response_mask"], x["is_labeled"],
        case["inputs"]["cliprange_value"], mode,
    )  # fmt: skip
    expected = case["expected"][f"value_loss/{mode}"]
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(expected["loss"], abs=1e-6)
    assert float(clipfrac) == pytest.approx(expected["clipfrac"], abs=1e-6)


def test_flags_and_uids_may_be_lists_arrays_or_tensors(case: Any) -> None:
    x = tensors(case)
    uid = case["inputs"]["uid"]
    args = (x["values"], x["token_level_rewards"], x["response_mask"])
    flags = x["is_labeled"]
    expected, _ = em_outcome_advantage(*args, flags, uid)
    as_numbers = torch.tensor([int(prompt) for prompt in uid])
    for same_flags in (flags.tolist(), flags.bool().tolist(), flags.numpy().astype(object), flags[:, None]):
        for same_uid in (as_numbers, as_numbers.numpy(), tuple(uid)):
            got, _ = em_outcome_advantage(*args, same_flags, same_uid)
            torch.testing.assert_close(got, expected, atol=0, rtol=0)


def test_an_empty_row_changes_nothing(case: Any) -> None:
    x = tensors(case)
    uid = case["inputs"]["uid"]

    def padded(name: str) -> torch.Tensor:
        fill = 0.0 if name == "response_mask" else 7.0
        return torch.cat([x[name], torch.full_like(x[name][:1], fill)])

    columns = [padded(name) for name in ("values", "token_level_rewards", "response_mask")]
    flags = torch.cat([x["is_labeled"], torch.ones(1)])
    token, token_returns = em_token_advantage(*columns, flags)
    outcome, _ = em_outcome_advantage(*columns, flags, [*uid, uid[0]])
    torch.testing.assert_close(token[:-1], torch.tensor(case["expected"]["em_token"]["advantages"]), **TOLERANCE)
    torch.testing.assert_close(outcome[:-1], torch.tensor(case["expected"]["em"]["advantages"]), **TOLERANCE)
    cliprange = case["inputs"]["cliprange_value"]
    for mode in ("token-mean", "seq-mean-token-mean"):
        loss, _ = value_loss(padded("new_values"), columns[0], token_returns, columns[2], flags, cliprange, mode)
        assert float(loss) == pytest.approx(case["expected"][f"value_loss/{mode}"]["loss"], abs=1e-6)
