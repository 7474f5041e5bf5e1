# SPDX-License-Identifier: Apache-2.0
"""However verl's training worker cuts, packs, spreads and stores a batch, the critic and the policy learn the same.

A leg is verl's own worker on 16 rows, for the critic or for the policy: outputs, an update, outputs again. It is
compared with the plain leg (padded rows, one micro-batch, one rank, float32), and that one with transformers alone.
The ways to run it::

    packed        use_remove_padding: all rows of a micro-batch in one sequence
    dynamic       micro-batches of at most 64 tokens
    ranks         two processes, each with half of the rows
    ulysses       two processes, each with half of the tokens of every packed micro-batch
    flash         the path of flash attention, with a kernel for a CPU (tests/flash_stand_in.py)
    bf16          mixed precision as on accelerators
    offload       of parameters and optimiser; on a CPU they stay in the same memory, but go the same path
    checkpointed  gradients
    reload        saved after the first update and loaded by a new worker, which makes a second one

COVERING has those together that meet in one piece of code: packing, micro-batches and what is shared out (where rows
begin, masks, the seam between two ranks, what the loss is divided by); bf16 and packing (the dtype of what is
unpacked); offload, checkpointing and reload (where parameters and the optimiser's state are). The rest of the product,
each way alone, verl's other losses, and the transformers that verl pins for accelerators are for `make test-all`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import requires
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from legs import ROWS, Leg, Outcome, Ranks, batch
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

PARTS = ("critic", "actor")
LR = 1e-3

# float32: the same sums in another order. Outputs are of the size of 1 to 6. An update moves them by 1.5, and AdamW
# divides a gradient, with its rounding, by its own size. Measured: outputs 1.5e-6, losses and norms 1e-7.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
# bfloat16 has 8 bits: what is stored is off by up to 2^-8 of its size, and three layers have rounded before that.
# Measured: values .009, log-probabilities .026, losses and norms .8 %.
BFLOAT16 = {"rtol": 2**-6, "atol": 2**-5}
WRONG = 0.1  # far above both

POLICY = "actor_rollout_ref.actor"
ENGINE = {"critic": "critic.fsdp", "actor": f"{POLICY}.fsdp_config"}
MODEL = {"critic": "critic.model", "actor": "actor_rollout_ref.model"}
BUDGETS = {
    "critic": ("critic.ppo_max_token_len_per_gpu", "critic.ppo_infer_max_token_len_per_gpu"),
    "actor": (f"{POLICY}.ppo_max_token_len_per_gpu", "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"),
}
# verl averages these over micro-batches, however much is in each
OF_MICRO_BATCHES = ("actor/pg_clip", "actor/ppo_kl", "perf/", "mfu")


def leg(part: str, ways: str = "", *options: str, **attributes) -> Leg:
    """The leg of a part that goes these ways."""
    engine, model, named = ENGINE[part], MODEL[part], ways.split()
    of_way = {
        "packed": [f"{model}.use_remove_padding=true"],
        "dynamic": [f"{budget}=64" for budget in BUDGETS[part]],
        "ulysses": [f"{engine}.ulysses_sequence_parallel_size=2"],
        "flash": [f"{model}.override_config.attn_implementation=packed_cpu"],
        # the critic's values too, as verl has it; test_value_head.py is about a head in float32
        "bf16": [f"{engine}.mixed_precision.param_dtype=bf16", *["critic.float32_head=false"] * (part == "critic")],
        "offload": [f"{engine}.param_offload=true", f"{engine}.optimizer_offload=true"],
        "checkpointed": [f"{model}.enable_gradient_checkpointing=true"],
    }
    chosen = [option for way in named for option in of_way.get(way, [])]
    ranks, reload = 1 + bool({"ranks", "ulysses"} & set(named)), "reload" in named
    return Leg(part, (*chosen, *options), ranks=ranks, updates=1 + reload, reload=reload, **attributes)


PLAIN = {part: Leg(part, updates=2) for part in PARTS}
COVERING = [
    "packed",
    "ranks packed dynamic",
    "packed flash ulysses dynamic",
    "bf16 packed",
    "ranks packed dynamic offload checkpointed reload",
]
SHARED = ["", "packed", "packed flash", "ranks", "ranks packed", "packed flash ulysses"]
ALL = [
    " ".join(filter(None, ways))
    for ways in product(SHARED, ["", "dynamic"], ["", "bf16"], ["", "offload reload"], ["", "checkpointed"])
]
WAYS = COVERING + [pytest.param(ways, marks=pytest.mark.slow) for ways in ALL if ways and ways not in COVERING]

# Part, the critic's loss, options. Three of verl's losses are left out, as they depend on how a batch is cut: clip_cov
# and kl_cov choose tokens within a micro-batch, geo_mean takes the mean over one without its share of the batch.
LOSSES = {
    "seq-mean-token-mean": ("critic", "calibration", ["tempo.calibration.loss_agg_mode=seq-mean-token-mean"]),
    "clipped": ("critic", "clipped", []),
    "gspo, kl, entropy": (
        "actor",
        "",
        [f"{POLICY}.policy_loss.loss_mode=gspo", f"{POLICY}.use_kl_loss=true", f"{POLICY}.entropy_coeff=0.01"],
    ),
}
OTHER_LOSSES = {
    f"{field}={value}": ("actor", "", [f"{POLICY}.{field}={value}", f"{POLICY}.policy_loss.dro_beta=0.1"])
    for field, value in [
        *(("loss_agg_mode", mode) for mode in ("seq-mean-token-mean", "seq-mean-token-sum")),
        *(("policy_loss.loss_mode", mode) for mode in ("dppo_tv", "dppo_kl", "sapo", "gpg", "dro", "cispo")),
    ]
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, compose) -> Iterator[Callable[[Leg], Outcome]]:
    """``outcome(leg)``, each leg run once."""
    with outcomes(tmp_path_factory.mktemp("ranks"), compose) as run:
        yield run


@contextmanager
def outcomes(folder: Path, compose, packages: Path | None = None) -> Iterator[Callable[[Leg], Outcome]]:
    config = compose([f"tempo.calibration.lr={LR}", f"{POLICY}.optim.lr={LR}"])
    ranks = Ranks(folder, packages)
    yield cache(lambda leg: ranks.run(leg, config))
    ranks.close()


def assert_same(found: Outcome, plain: Outcome, tolerance: dict[str, float] = FLOAT32) -> None:
    """Outputs of every row, and the metrics of updates, as far as the leg went."""
    for mine, others in zip(found.outputs, plain.outputs, strict=False):
        for row, expected in zip(mine, others, strict=True):
            np.testing.assert_allclose(row, expected, **tolerance, equal_nan=False)
    for mine, expected in zip(found.metrics, plain.metrics, strict=False):
        names = {name for name in expected if not name.startswith(OF_MICRO_BATCHES)}
        assert {"loss", "grad_norm"} <= names <= mine.keys()
        for name in names:
            np.testing.assert_allclose(mine[name], expected[name], **tolerance, equal_nan=False, err_msg=name)


def assert_went(found: Outcome, ways: str) -> None:
    """The engine took the options: seen by what it gave its model, and what it says of itself."""
    named, (rows, columns) = set(ways.split()), zip(*found.inputs, strict=True)
    tokens = batch(leg("critic"))["input_ids"].offsets()
    given = tokens[ROWS // 2 if "ranks" in named else ROWS].item()
    if "packed" in named:
        pieces = 2 if "ulysses" in named else 1
        assert set(rows) == {1}
        assert given <= pieces * sum(columns) < given + pieces * len(rows)  # padded to whole pieces
    else:
        assert sum(rows) == (ROWS // 2 if "ranks" in named else ROWS)
    assert (len(rows) > 1) == ("dynamic" in named)
    assert found.dtype == ("torch.bfloat16" if "bf16" in named else "torch.float32")
    assert found.is_offloaded == ("offload" in named)
    assert found.is_checkpointed == ("checkpointed" in named)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("ways", WAYS)
def test_every_way_learns_the_same(outcome, part: str, ways: str) -> None:
    found = outcome(leg(part, ways))
    assert_went(found, ways)
    assert_same(found, outcome(PLAIN[part]), BFLOAT16 if "bf16" in ways else FLOAT32)


@pytest.mark.parametrize("name", [*LOSSES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_LOSSES)])
def test_every_loss_is_the_same_however_a_batch_is_cut(outcome, name: str) -> None:
    part, loss, options = (LOSSES | OTHER_LOSSES)[name]
    plain, found = (outcome(leg(part, ways, *options, loss=loss)) for ways in ("", "ranks packed dynamic"))
    assert_same(found, plain)
    assert abs(plain.metrics[0]["loss"] - outcome(PLAIN[part]).metrics[0]["loss"]) > 1e-3  # the option was taken


@pytest.mark.parametrize("part", PARTS)
def test_ulysses_without_flash_attention_is_wrong(outcome, part: str) -> None:
    """verl exchanges tokens between ranks in the path of flash attention alone. With sdpa each sees its own ones.

    Nothing is raised, so such a run has to be refused. Where this fails, verl has mended it.
    """
    found, plain = (np.concatenate(outcome(ran).outputs[0]) for ran in (leg(part, "packed ulysses"), PLAIN[part]))
    assert np.abs(found - plain).max() > WRONG


# ---------------------------------------------------------------------- rows without a token to learn from

HALF = tuple(range(ROWS // 2, ROWS))
SYNTHETIC = {
    "token-mean": leg("critic", synthetic=HALF),
    "seq-mean-token-mean": leg("critic", "", *LOSSES["seq-mean-token-mean"][2], synthetic=HALF),
    "clipped": leg("critic", loss="clipped", synthetic=HALF),
    "policy": leg("actor", synthetic=HALF),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_a_rank_may_have_synthetic_rows_alone(outcome, name: str) -> None:
    plain = SYNTHETIC[name]
    ranks = leg(plain.part, "ranks packed dynamic", *plain.options, loss=plain.loss, synthetic=HALF)
    assert_same(outcome(ranks), outcome(plain))


@pytest.mark.parametrize("name", SYNTHETIC)
def test_an_update_on_synthetic_rows_alone(outcome, name: str) -> None:
    """A critic's loss and gradient are 0 there.

    verl's loss of the policy is 0 / 0, its gradient 0. AdamW then moves all weights by its momentum, which is why the
    port leaves such rows out. Where that fails, verl has mended it.
    """
    one = outcome(SYNTHETIC[name])
    two = outcome(replace(SYNTHETIC[name], mini_batch=ROWS // 2))
    share = 1 if name == "seq-mean-token-mean" else 1 / 2  # verl reports the mean of two; that loss is a mean over rows
    assert two.metrics[0]["grad_norm"] == pytest.approx(share * one.metrics[0]["grad_norm"], rel=1e-5)
    if name == "policy":
        assert np.isnan(two.metrics[0]["loss"])
        assert np.abs(np.concatenate(two.outputs[1]) - np.concatenate(one.outputs[1])).max() > WRONG
    else:
        assert two.metrics[0]["loss"] == pytest.approx(share * one.metrics[0]["loss"], rel=1e-5)
        assert np.isfinite(np.concatenate(two.outputs[1])).all()


# ---------------------------------------------------------------------- the plain leg itself


def error(values: list[torch.Tensor], rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The E-step's: mean of (V - c)^2 over all positions in the mask."""
    errors = [(row["loss_mask"] * (v - row["outcome"]) ** 2).sum() for row, v in zip(rows, values, strict=True)]
    return sum(errors) / sum(row["loss_mask"].sum() for row in rows)


def surrogate(log_probs: list[torch.Tensor], rows: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """PPO's, clipped at .2, and at 3 where the advantage is negative: mean over all tokens in the mask."""
    losses = []
    for row, now in zip(rows, log_probs, strict=True):
        ratio, advantage = (now - row["old_log_probs"]).exp(), row["advantages"]
        clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        limited = torch.where(advantage < 0, torch.minimum(clipped, -3 * advantage), clipped)
        losses.append((limited * row["response_mask"]).sum())
    return sum(losses) / sum(row["response_mask"].sum() for row in rows)


@pytest.mark.parametrize("part", PARTS)
def test_the_plain_leg_is_that_of_transformers(outcome, tiny_critic, tiny_policy, part: str) -> None:
    auto, path, loss = {
        "critic": (AutoModelForTokenClassification, tiny_critic, error),
        "actor": (AutoModelForCausalLM, tiny_policy, surrogate),
    }[part]
    model = auto.from_pretrained(path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.01)
    rows = list(batch(PLAIN[part]).unbind(0))
    assert any(row["response_mask"].diff().tolist().count(1) for row in rows)  # a tool's turn within a response

    def outputs() -> list[torch.Tensor]:
        """Row by row, unpadded."""
        found = []
        for row in rows:
            logits = model(input_ids=row["input_ids"][None]).logits[0, -(len(row["responses"]) + 1) :]
            if part == "actor":
                logits = logits[:-1].log_softmax(-1).gather(-1, row["responses"][:, None])
            found.append(logits[:, 0])
        return found

    alone, now = Outcome(), outputs()
    alone.outputs.append([row.tolist() for row in now])
    for _ in range(PLAIN[part].updates):
        value = loss(now, rows)
        optimizer.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        now = outputs()
        alone.metrics.append({"loss": value.item(), "grad_norm": norm.item()})
        alone.outputs.append([row.tolist() for row in now])
    assert_same(outcome(PLAIN[part]), alone)
    moved = np.abs(np.subtract(np.concatenate(alone.outputs[1]), np.concatenate(alone.outputs[0])))
    assert moved.max() > WRONG  # an update that the other tests would miss otherwise


# ---------------------------------------------------------------------- as verl pins transformers for accelerators


@pytest.fixture(scope="module")
def pinned(request) -> tuple[str, Path]:
    """Version, and a folder with it that is kept for the next time. What it needs itself is in place already."""
    pins = [Requirement(line) for line in requires("verl")]
    (pin,) = [pin for pin in pins if pin.name == "transformers" and "vllm" in str(pin.marker)]
    version = str(pin.specifier).removeprefix("==")
    folder = request.config.cache.mkdir(f"transformers-{version}") / "packages"
    if not folder.is_dir():
        part = folder.with_name("part")
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(part)]
        found = subprocess.run([*install, f"transformers=={version}"], capture_output=True, text=True)
        if found.returncode:
            pytest.skip(f"pip cannot install transformers=={version}: {found.stderr.strip().splitlines()[-1]}")
        part.rename(folder)
    return version, folder


@pytest.mark.slow
def test_verls_transformers_gives_the_same(outcome, pinned, tmp_path, compose) -> None:
    version, packages = pinned
    with outcomes(tmp_path, compose, packages) as of_pinned:
        for part in PARTS:
            for ran in (PLAIN[part], *(leg(part, ways) for ways in COVERING)):
                found = of_pinned(ran)
                assert found.transformers == version
                assert_same(found, outcome(PLAIN[part]), BFLOAT16 if "bfloat16" in found.dtype else FLOAT32)
