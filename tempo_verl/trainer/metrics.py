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
from tempo_verl.algo.jagged import Rows, first_entries, spread, tokens_of
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


def measure_policy(trained: Trained, has_entropy: bool, mean_entropy: bool, log: Log) -> None:
    """Log what the policy was trained on, real unlabelled rows only, and a few numbers of each of them.

    Args:
        has_entropy: the update has left the (B, T_i) entropy in the queue. Else the actor's own mean is taken, if it
            was asked for one.
        mean_entropy: verl has logged the mean over the batch as ``actor/entropy``: that is it, where no others are in.
    """
    rows, samples = trained.unlabeled, trained.samples
    if rows is None:
        return
    ends = rows[samples.ends[rows]]  # one row a session
    chosen = np.zeros(len(samples), dtype=bool)
    chosen[rows] = True
    mask, entropy, answers = samples.response_mask, None, None
    if all("pred" in info for info in samples.reward_info):  # else another reward manager is in use
        every = samples.answers
        answers = [every[row] for row in ends]
    if mean_entropy and np.array_equal(chosen, samples.real):
        entropy = log.metrics["actor/entropy"]
    elif has_entropy:
        stored, flat = Rows.of(samples.read("entropy")["entropy"]), mask.values()
        entropy = stored.flat[flat & spread(torch.from_numpy(chosen), stored.lengths)].mean().item()
    else:
        entropy = log.metrics.get("actor/entropy_loss")
    log.metrics.update(
        unlabeled_metrics(
            reward=trained.reward[ends],
            baseline_error=None if trained.values is None else (trained.reward - first_entries(trained.values))[rows],
            advantage_positive=positive_share(trained.advantages, mask, chosen),
            tokens=int(tokens_of(mask)[rows].sum()),
            entropy=entropy,
            answers=answers,
            prompts=[samples.prompts[row] for row in ends],
        )
    )
    for name, column in row_summaries(trained.reward, trained.advantages, mask, trained.values).items():
        log.arrays[f"unlabeled_{name}"] = column[rows]  # numbers are picked, not tensors of tokens
    log.arrays["unlabeled_key"] = np.array([samples.meta.keys[row] for row in rows], dtype=str)


def row_summaries(
    reward: torch.Tensor, advantages: torch.Tensor, response_mask: torch.Tensor, values: torch.Tensor | None
) -> dict[str, np.ndarray]:
    """A few numbers of each row, in place of one or two for each of its tokens.

    Args:
        reward: (N,) R.
        advantages, response_mask: (N, T), padded or jagged.
        values: (N, T + 1), likewise; None without a critic.

    Returns:
        (N,) each: ``reward``; ``length``, the policy's own tokens; ``advantage``, its mean over them; with a critic
        ``value_first`` V(x), ``value_final`` V(x, y_1:T), and ``value_mean``, ``value_min`` and ``value_max`` over the
        positions t = 0..T. Of a row without tokens all but the reward is 0.
    """
    length, mask, positions = tokens_of(response_mask), None, None
    if length.sum() < len(Rows.of(response_mask).flat):  # else there is nothing to leave out
        mask, positions = Rows.of(response_mask), Rows.of(position_mask(response_mask))
    (total,) = _over(Rows.of(advantages), mask, (np.add, 0.0))
    found = {"reward": reward.numpy(), "length": length, "advantage": total / np.maximum(length, 1).astype(total.dtype)}
    if values is not None:
        kinds = (np.add, 0.0), (np.minimum, np.inf), (np.maximum, -np.inf)
        total, lowest, highest = _over(Rows.of(values), positions, *kinds)
        of_values = {
            "value_first": first_entries(values).numpy(),
            "value_final": final_value(values, response_mask).numpy(),
            "value_mean": total / (length + 1).astype(total.dtype),
            "value_min": lowest,
            "value_max": highest,
        }
        found |= {name: np.where(length == 0, 0, column) for name, column in of_values.items()}
    return found


def _over(rows: Rows, mask: Rows | None, *kinds: tuple[np.ufunc, float]) -> list[np.ndarray]:
    """(B,) of each kind: a reduction of each row over its mask, and what stands in for the entries outside."""
    found: list[list[np.ndarray]] = [[] for _ in kinds]
    for part, here in rows.blocks():
        entries, offsets = rows.flat[here], rows.offsets[part.start : part.stop + 1] - here.start
        hidden = np.zeros(0, dtype=bool) if mask is None else ~mask.flat[here].bool().numpy()
        if some := hidden.any():
            entries = entries.clone()
        for (function, outside), into in zip(kinds, found, strict=True):
            if some:
                np.copyto(entries.numpy(), outside, where=hidden)
            into.append(Rows(entries, offsets).reduce(function, outside))
    return [np.concatenate(columns) if columns else np.zeros(0, dtype=np.float32) for columns in found]


def positive_share(advantages: torch.Tensor, response_mask: torch.Tensor, chosen: np.ndarray) -> float:
    """Share of the policy's own tokens in some rows whose advantage is above 0; nan without any.

    Args:
        advantages, response_mask: (B, T), padded or jagged.
        chosen: (B,) bool, the rows.
    """
    rows, mask, positive, total = Rows.of(advantages), Rows.of(response_mask), 0, 0
    for part, here in rows.blocks():
        valid = mask.flat[here].bool()
        if not chosen[part].all():
            valid = valid & spread(torch.from_numpy(chosen[part]), rows.lengths[part])
        positive += int(np.count_nonzero((rows.flat[here].numpy() > 0) & valid.numpy()))
        total += int(np.count_nonzero(valid.numpy()))
    return float(np.float32(positive) / np.float32(total)) if total else float("nan")


def unlabeled_metrics(
    *,
    reward: torch.Tensor,
    baseline_error: torch.Tensor | None,
    advantage_positive: float,
    tokens: int,
    entropy: float | None,
    answers: Sequence[str | None] | None,
    prompts: Sequence[str],
) -> dict[str, float]:
    """What the policy is trained on in this round: S sessions of N rows, real ones only.

    Args:
        reward: (S,) R.
        baseline_error: (N,) R - V(x), V(x) the critic's guess before the row; None without a critic.
        advantage_positive: share of the tokens whose advantage, as the actor sees it, is above 0.
        tokens: of the policy's own in the N rows.
        entropy: the policy's mean over them in nats, or None if it was not computed.
        answers: (S,) extracted answers; None if the reward manager in use does not tell them.
        prompts: (S,) uid of each session's prompt.

    Returns:
        ``baseline_error`` is the root mean square of R - V(x); ``response_length`` counts the policy's own tokens of a
        session; ``distinct_answers`` is the mean over prompts of the number of different answers among its responses.
    """
    if len(reward) == 0:
        return {}
    metrics = {
        "reward_mean": reward.mean().item(),
        "reward_std": reward.std(unbiased=False).item(),
        "advantage_positive": advantage_positive,
        "response_length": float(np.float32(tokens) / np.float32(len(reward))),
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
        metrics["entropy"] = entropy
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
