# SPDX-License-Identifier: Apache-2.0
"""Metrics of a round, logged under ``tempo/`` through verl's logger. What is undefined in a round is absent from it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tempo_verl.algo.advantage import final_value
from tempo_verl.algo.calibration import calibration_metrics, position_mask
from tempo_verl.algo.evaluation import distinct_answers, question_measures
from tempo_verl.methods import Trained
from tempo_verl.rewards import SECONDS, one_spelling
from tempo_verl.trainer.log import Log


def prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    """``{prefix/name: value}``."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def labeled_metrics(final_value: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """How well the critic knows right from wrong on labelled samples it has not yet been fitted on.

    Args:
        final_value: (N,) the critic's P(right), from V(x, y_1:T) before this round's E-step.
        correct: (N,) in {0, 1}.
    """
    return prefixed("tempo/labeled", calibration_metrics(final_value, correct))


def measure_policy(trained: Trained, has_entropy: bool, log: Log) -> None:
    """Log what the policy was trained on, real unlabelled rows only, and a few numbers of each of them.

    Args:
        has_entropy: the update has left the (B, T) entropy in the queue. Else the actor's own mean is taken, if it was
            asked for one.
    """
    rows, samples = trained.unlabeled, trained.samples
    if rows is None:
        return
    ends = rows[samples.ends[rows]]  # one row a session
    no_others = np.array_equal(rows, np.arange(len(samples)))

    def those(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if no_others else tensor[rows]  # a copy of the largest tensors of a round

    mask, answers = those(samples.response_mask), None
    reward, advantages = those(trained.reward), those(trained.advantages)
    values = None if trained.values is None else those(trained.values)
    if all("pred" in info for info in samples.reward_info):  # else another reward manager is in use
        every = samples.answers
        answers = [every[row] for row in ends]
    entropy = those(samples.read("entropy")["entropy"].to_padded_tensor(0.0)) if has_entropy else None
    log.metrics.update(
        unlabeled_metrics(
            reward=trained.reward[ends],
            baseline_error=None if values is None else reward - values[:, 0],
            advantages=advantages,
            response_mask=mask,
            entropy=entropy,
            answers=answers,
            prompts=[samples.prompts[row] for row in ends],
        )
    )
    if entropy is None and "actor/entropy_loss" in log.metrics:
        log.metrics["tempo/unlabeled/entropy"] = log.metrics["actor/entropy_loss"]
    found = row_summaries(reward, advantages, mask, values)
    log.arrays.update({f"unlabeled_{name}": array for name, array in found.items()})
    log.arrays["unlabeled_key"] = np.array([samples.meta.keys[row] for row in rows], dtype=str)


def row_summaries(
    reward: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor, values: torch.Tensor | None
) -> dict[str, np.ndarray]:
    """A few numbers of each row, in place of one or two for each of its tokens.

    Args:
        reward: (N,) R.
        advantages, response_mask: (N, T).
        values: (N, T + 1); None without a critic.

    Returns:
        (N,) each: ``reward``; ``length``, the policy's own tokens; ``advantage``, its mean over them; with a critic
        ``value_first`` V(x), ``value_final`` V(x, y_1:T), and ``value_mean``, ``value_min`` and ``value_max`` over the
        positions t = 0..T. Of a row without tokens all but the reward is 0.
    """
    mask = response_mask.bool()
    length = mask.sum(dim=1)
    found = {
        "reward": reward,
        "length": length,
        "advantage": torch.where(mask, advantages, 0).sum(dim=1) / length.clamp(min=1),
    }
    if values is not None:
        here = position_mask(mask)
        found |= {
            "value_first": values[:, 0],
            "value_final": final_value(values, mask),
            "value_mean": torch.where(here, values, 0).sum(dim=1) / (length + 1),
            "value_min": values.masked_fill(~here, torch.inf).amin(dim=1),
            "value_max": values.masked_fill(~here, -torch.inf).amax(dim=1),
        }
        found |= {name: found[name].masked_fill(length == 0, 0) for name in found if name.startswith("value")}
    return {name: column.numpy() for name, column in found.items()}


def unlabeled_metrics(
    *,
    reward: torch.Tensor,
    baseline_error: torch.Tensor | None,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    entropy: torch.Tensor | None,
    answers: Sequence[str | None] | None,
    prompts: Sequence[str],
) -> dict[str, float]:
    """What the policy is trained on in this round: S sessions of N rows, real ones only.

    Args:
        reward: (S,) R.
        baseline_error: (N,) R - V(x), V(x) the critic's guess before the row; None without a critic.
        advantages, response_mask: (N, T); the advantages as the actor sees them.
        entropy: (N, T) policy entropy in nats, or None if it was not computed.
        answers: (S,) extracted answers; None if the reward manager in use does not tell them.
        prompts: (S,) uid of each session's prompt.

    Returns:
        ``baseline_error`` is the root mean square of R - V(x); ``response_length`` counts the policy's own tokens of a
        session; ``distinct_answers`` is the mean over prompts of the number of different answers among its responses.
    """
    if len(reward) == 0:
        return {}
    mask = response_mask.bool()
    metrics = {
        "reward_mean": reward.mean().item(),
        "reward_std": reward.std(unbiased=False).item(),
        "advantage_positive": (advantages[mask] > 0).float().mean().item(),
        "response_length": (mask.sum().float() / len(reward)).item(),
    }
    if baseline_error is not None:
        metrics["baseline_error"] = baseline_error.square().mean().sqrt().item()
    if answers is not None:
        by_prompt: dict[str, list[str | None]] = defaultdict(list)
        for prompt, answer in zip(prompts, answers, strict=True):
            by_prompt[prompt].append(answer)
        metrics["distinct_answers"] = float(np.mean([distinct_answers(group) for group in by_prompt.values()]))
        metrics["no_answer"] = float(np.mean([answer is None for answer in answers]))
    if entropy is not None:
        metrics["entropy"] = entropy[mask].mean().item()
    return prefixed("tempo/unlabeled", metrics)


def verifier_metrics(errors: Sequence[str]) -> dict[str, float]:
    """How often a verifier gave no verdict, by kind.

    Args:
        errors: one entry a response, "" where there is a verdict, else "timeout: ...", "crash: ..." or "error: ...".

    Returns:
        ``verifier_timeouts``, ``verifier_crashes`` and ``verifier_errors``, counts; empty if nothing was verified.
    """
    if not errors:
        return {}
    kinds = Counter(error.partition(":")[0] for error in errors)
    return {
        "verifier_timeouts": float(kinds["timeout"]),
        "verifier_crashes": float(kinds["crash"]),
        "verifier_errors": float(kinds["error"]),
    }


def validation_metrics(
    data_sources: Sequence[str],
    prompts: Sequence[str],
    found: Mapping[str, Sequence],
    expected: Mapping[tuple[str, str], int],
    timeout: float = SECONDS,
) -> dict[str, float]:
    """Validation by data source, in verl's names: mean@n, and unbiased pass@k and maj@k for k = 1, 2, 4, ..., n.

    verl's own ``best@k`` and ``maj@k`` resample with replacement, which is biased low, and slow on many questions.

    Args:
        data_sources, prompts: one entry a sample; ``prompts`` are uids.
        found: what the reward manager found out, one entry a sample: ``acc`` (or ``reward``), 0 or 1; ``pred``, the
            answer; ``style``, its verifier; ``verifier_error``, see :func:`verifier_metrics`.
        expected: (data source, prompt) -> samples asked for; one that failed counts as wrong.
        timeout: seconds for a comparison of two answers.
    """
    correct = found.get("acc") or found["reward"]
    answers = [answer or None for answer in found.get("pred") or [None] * len(correct)]
    if found.get("style"):
        answers = one_spelling(answers, prompts, found["style"], timeout=timeout)
    questions: dict[str, dict[str, list[tuple[float, str | None]]]] = defaultdict(lambda: defaultdict(list))
    for source, prompt, right, answer in zip(data_sources, prompts, correct, answers, strict=True):
        questions[source][prompt].append((right, answer))
    for (source, prompt), count in expected.items():
        group = questions[source][prompt]
        group += [(0.0, None)] * (count - len(group))
    metrics: dict[str, float] = {}
    for source, samples in questions.items():
        groups = list(samples.values())
        n = min(len(group) for group in groups)
        ks = sorted({2**power for power in range(n.bit_length())} | {n})
        measured = [question_measures([a for _, a in group], [right for right, _ in group], ks=ks) for group in groups]
        core = f"val-core/{source}/acc"
        names = {name: f"{core}/{name}" for k in ks for name in (f"pass@{k}", f"maj@{k}")}
        names |= {"avg": f"{core}/mean@{n}", "distinct_answers": f"val-aux/{source}/distinct_answers"}
        metrics |= {logged: float(np.mean([of[name] for of in measured])) for name, logged in names.items()}
    return metrics | prefixed("val-aux", verifier_metrics(found.get("verifier_error") or []))
