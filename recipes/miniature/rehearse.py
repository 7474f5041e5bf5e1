# SPDX-License-Identifier: Apache-2.0
"""The miniature in one process, without Ray and verl's trainer, several times as fast: for choosing what to try.

    python recipes/miniature/rehearse.py --seeds 3,11 --methods tempo,tempo_pp --out runs/rehearsal

The task, the models, the settings of settings.yaml, the methods' own classes, verl's policy loss and the E-step's loss
are those of run.py. What is not: random numbers, order of samples, rollout engine, checkpoints. README.md compares the
two. Results of a table come from run.py.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from omegaconf import DictConfig, OmegaConf
from results import COLUMNS, DIGITS, run_script, write
from rich.console import Console
from run import SETTINGS, STAGE0, changed, chosen, numbers, overrides, written
from torch.nn.utils.rnn import pad_sequence

from tempo_verl.algo.advantage import on_tokens
from tempo_verl.algo.calibration import calibration_loss, calibration_metrics, position_mask
from tempo_verl.algo.evaluation import distinct_answers, pass_at_k
from tempo_verl.algo.jagged import of_rows, pad
from tempo_verl.algo.official import value_loss
from tempo_verl.data.aside import evenly_spaced
from tempo_verl.data.streams import Stream, row_of
from tempo_verl.doctor import surroundings
from tempo_verl.methods import Method, Round
from tempo_verl.tasks.running_sums import MAX_RESPONSE_LENGTH, RunningSums, build_tokenizer, judged_steps, verify

N = 8  # validation samples a question
LAST = 20  # rounds whose mean AUROC is told


@dataclass
class Samples:
    """See :class:`tempo_verl.methods.base.Samples`; each response is one row."""

    keys: list[str]  # <uid>_<session>
    tokens: list[tuple[list[int], list[int]]]  # prompt and response
    texts: list[tuple[str, str]]
    truths: list[str]
    written: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def real(self) -> np.ndarray:
        return np.ones(len(self), dtype=bool)

    ends = real

    @property
    def prompts(self) -> list[str]:
        return [key.split("_")[0] for key in self.keys]

    @property
    def questions(self) -> list[int]:
        return [row_of(prompt) for prompt in self.prompts]

    @property
    def sessions(self) -> list[str]:
        return self.keys

    @cached_property
    def response_mask(self) -> torch.Tensor:
        return of_rows([torch.ones(len(response), dtype=torch.bool) for _, response in self.tokens])

    @cached_property
    def verdicts(self) -> torch.Tensor:
        judged = (verify(response, truth)[0] for (_, response), truth in zip(self.texts, self.truths, strict=True))
        return torch.tensor([float(right) for right in judged])

    @property
    def answers(self) -> list[str | None]:
        return [verify(response, None)[1] for _, response in self.texts]

    @property
    def styles(self) -> list[str]:
        return ["running_sums"] * len(self)

    def rows(self, indices: Sequence[int]) -> Samples:
        columns = (self.keys, self.tokens, self.texts, self.truths)
        return Samples(*([column[index] for index in indices] for column in columns))

    def by_session(self) -> Samples:
        return self

    def find(self, part: Samples) -> np.ndarray:
        return np.flatnonzero(np.isin(self.keys, part.keys))

    def align(self, part: Samples, values: torch.Tensor) -> torch.Tensor:
        known = dict(zip(part.keys, values.tolist(), strict=True))
        return torch.tensor([known.get(key, 0.0) for key in self.keys])

    def write(self, **fields: Any) -> None:
        self.written |= fields

    @classmethod
    def joined(cls, *parts: Samples) -> Samples:
        names = ("keys", "tokens", "texts", "truths")
        return cls(*(list(chain.from_iterable(getattr(part, name) for part in parts)) for name in names))


@dataclass
class Log:
    """See :class:`tempo_verl.methods.base.Log`."""

    metrics: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        yield


def inputs(samples: Samples) -> torch.Tensor:
    """(B, longest) prompt and response, padded on the right, where a causal model's positions never look."""
    return pad_sequence([torch.tensor([*prompt, *response]) for prompt, response in samples.tokens], batch_first=True)


def optimizer(model: torch.nn.Module, optim: DictConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=optim.lr, betas=tuple(optim.betas), weight_decay=optim.weight_decay)


class Policy:
    """The policy, its rollouts and its updates by verl's loss. See :class:`tempo_verl.methods.base.Policy`."""

    def __init__(self, path: str, config: DictConfig):
        from transformers import AutoModelForCausalLM
        from verl.trainer.ppo.core_algos import get_policy_loss_fn
        from verl.utils.config import omega_conf_to_dataclass

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.tokenizer, self._config = build_tokenizer(), config
        self._actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
        if self._actor.use_kl_loss:
            raise typer.BadParameter("a KL penalty is not rehearsed", param_hint="--methods")
        self._loss = get_policy_loss_fn(self._actor.policy_loss.get("loss_mode", "vanilla"))
        self._optimizer = optimizer(self.model, config.actor_rollout_ref.actor.optim)
        self._rng = np.random.default_rng(config.actor_rollout_ref.rollout.seed)

    def draw(self, uids: Sequence[str], questions: Sequence[tuple[str, str]], n: int) -> Samples:
        """n responses to each (prompt, answer)."""
        asked = [question for question in questions for _ in range(n)]
        batch = self.tokenizer([prompt for prompt, _ in asked], return_tensors="pt", padding=True)
        drawn = self.model.generate(
            **batch, do_sample=True, top_k=0, max_new_tokens=MAX_RESPONSE_LENGTH, use_cache=True
        )[:, batch.input_ids.shape[1] :]
        keys = [f"{uid}_{number}" for uid in uids for number in range(n)]
        tokens, texts = [], []
        for (prompt, _), row in zip(asked, drawn.tolist(), strict=True):
            end = row.index(self.tokenizer.eos_token_id) + 1 if self.tokenizer.eos_token_id in row else len(row)
            tokens.append((self.tokenizer(prompt).input_ids, row[:end]))
            cut_off = end == len(row) and row[-1] != self.tokenizer.eos_token_id
            texts.append((prompt, "" if cut_off else self.tokenizer.decode(row[: end - 1])))
        return Samples(keys, tokens, texts, [answer for _, answer in asked])

    def batch(self, *parts: Samples) -> Samples:
        return Samples.joined(*parts)

    def penalties(self, samples: Samples) -> torch.Tensor:
        return torch.zeros(len(samples))

    def store(self, samples: Samples, reward: Any, advantages: torch.Tensor, values: Any) -> None:
        samples.write(advantages=advantages)

    def log_probs(self, samples: Samples) -> torch.Tensor:
        """(B, T)"""
        ids = inputs(samples)
        every = self.model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        chosen = every.gather(-1, ids[:, 1:, None]).squeeze(-1)
        rows = [row[len(p) - 1 : len(p) - 1 + len(r)] for row, (p, r) in zip(chosen, samples.tokens, strict=True)]
        return pad_sequence(rows, batch_first=True)

    def update(self, samples: Samples) -> None:
        config = self._config.actor_rollout_ref
        mini, order = config.actor.ppo_mini_batch_size * config.rollout.n, np.arange(len(samples))
        with torch.no_grad():
            old = self.log_probs(samples)
        advantages, mask = pad(samples.written["advantages"]), pad(samples.response_mask, False)
        if config.actor.shuffle:
            order = self._rng.permutation(order)
        for start in range(0, len(order), mini):
            chosen = order[start : start + mini]
            of, part = samples.rows(chosen), torch.from_numpy(chosen)
            longest = int(mask[part].sum(-1).max())
            own = mask[part, :longest]
            self._actor.global_batch_info.update(
                dp_size=1, batch_num_tokens=own.sum(), global_batch_size=len(chosen), loss_scale_factor=None
            )
            loss, _ = self._loss(
                old_log_prob=old[part, :longest],
                log_prob=self.log_probs(of),
                advantages=advantages[part, :longest],
                response_mask=own,
                loss_agg_mode=config.actor.loss_agg_mode,
                config=self._actor,
                rollout_is_weights=None,
            )
            step(self.model, self._optimizer, loss, config.actor.grad_clip)


def step(model: torch.nn.Module, of: torch.optim.Optimizer, loss: torch.Tensor, clip: float) -> None:
    of.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    of.step()


class Critic:
    """The critic, its replay and its E-step. See :class:`tempo_verl.methods.base.Critic`."""

    def __init__(self, path: str, config: DictConfig, method: Method):
        from transformers import AutoConfig

        from tempo_verl.compat import ALLOW_NEW_VALUE_HEAD, FLOAT32_HEAD, load_valuehead_model

        about = AutoConfig.from_pretrained(path, num_labels=1)
        setattr(about, FLOAT32_HEAD, True)
        setattr(about, ALLOW_NEW_VALUE_HEAD, True)
        self.model = load_valuehead_model(path, torch.float32, about, False)
        self._config, self._method, self._settings = config, method, method.settings
        self._optimizer = optimizer(self.model, config.critic.optim)
        self._rng = np.random.default_rng(self._settings.labeled.seed)
        self._earlier: deque[tuple[Samples, torch.Tensor, torch.Tensor]] = deque()
        self.log = Log()

    def _rows(self, samples: Samples) -> list[torch.Tensor]:
        every = self.model(input_ids=inputs(samples), use_cache=False).logits.squeeze(-1)
        return [row[len(p) - 1 : len(p) + len(r)] for row, (p, r) in zip(every, samples.tokens, strict=True)]

    @torch.no_grad()
    def values(self, samples: Samples) -> torch.Tensor:
        return of_rows(self._rows(samples))

    def measure(self, samples: Samples) -> torch.Tensor:
        values = self.values(samples)
        score = self._method.probability(values, samples.response_mask).numpy()
        found = calibration_metrics(score, samples.verdicts.numpy())
        self.log.metrics |= {f"tempo/labeled/{name}": value for name, value in found.items()}
        return values

    def fit(self, samples: Samples, target: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        replay, n = self._settings.calibration.replay, self._settings.labeled.n
        while len(self._earlier) > replay.window:
            self._earlier.popleft()
        fresh = (samples, target, torch.ones(len(samples)) if weight is None else weight)
        earlier = [(old, row) for old in self._earlier for row in range(len(old[0]))]
        count = min(replay.prompts * n, len(earlier)) // self._mini * self._mini
        drawn = [earlier[row] for row in self._rng.choice(len(earlier), count, replace=False)] if count else []
        rows = [(fresh, row) for row in range(len(samples))] + drawn
        self._earlier.append(fresh)
        for start in self._starts(rows):
            of = Samples.joined(*(old[0].rows([row]) for old, row in start))
            targets, weights = (torch.tensor([float(old[which][row]) for old, row in start]) for which in (1, 2))
            mask = pad(on_tokens(weights, position_mask(of.response_mask)))
            loss = calibration_loss(
                pad_sequence(self._rows(of), batch_first=True), targets, mask, self._settings.calibration.loss_agg_mode
            )
            step(self.model, self._optimizer, loss, self._config.critic.grad_clip)

    def train(self, samples: Samples) -> None:
        """The official scheme's clipped loss, on the labelled rows of its batch."""
        written = {name: pad(samples.written[name].float()) for name in ("values", "returns", "loss_mask")}
        for start in self._starts(list(range(len(samples)))):
            new = pad_sequence(self._rows(samples.rows(start)), batch_first=True)[:, :-1]
            old, returns, mask = (column[start, : new.shape[1]] for column in written.values())
            loss, _ = value_loss(new, old, returns, mask, mask.bool().any(1), self._config.critic.cliprange_value)
            step(self.model, self._optimizer, loss, self._config.critic.grad_clip)

    @property
    def _mini(self) -> int:
        return self._settings.calibration.mini_batch_size * self._settings.labeled.n

    def _starts(self, rows: list) -> Iterator[list]:
        for _ in range(self._settings.calibration.epochs):
            order = self._rng.permutation(len(rows))
            for start in range(0, len(rows), self._mini):
                yield [rows[row] for row in order[start : start + self._mini]]


def accuracies(policy: Policy, sets: dict[str, list[tuple[str, str]]], seed: int) -> dict[str, float]:
    """What a validation tells, by the names of results.py."""
    found: dict[str, float] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in ("unlabeled", "heldout"):
            drawn = policy.draw([str(row) for row in range(len(sets[name]))], sets[name], N)
            right = drawn.verdicts.numpy().reshape(-1, N)
            if name == "heldout":
                found["heldout"] = float(right.mean())
                continue
            steps = [judged for prompt, response in drawn.texts for judged in judged_steps(prompt, response)]
            marks = [marked for is_right, marked in steps if not is_right]
            answers = np.array(drawn.answers, dtype=object).reshape(-1, N)
            found |= {
                "accuracy": float(right.mean()),
                "pass@8": float(np.mean(pass_at_k(N, right.sum(1).astype(int), N))),
                "distinct": float(np.mean([distinct_answers(row.tolist()) for row in answers])),
                "wrong_marked_y": float(np.mean(marks)) if marks else float("nan"),
            }
    return found


def rehearse(out: Path, settings: Any, seed: int, name: str) -> list[dict[str, Any]]:
    """Train one method of one seed. Returns its rows, one a validation."""
    from transformers.utils import logging as transformers_logging

    from tempo_verl.config.schema import read_settings
    from tempo_verl.launch import resolve_config

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    folder = out / f"seed_{seed}"
    told, start, task = folder / f"{name}.jsonl", folder / STAGE0, RunningSums(seed=seed, **settings.task)
    if told.is_file():
        return [json.loads(line) for line in told.read_text().splitlines()]
    paths = (folder / "policy", folder / "critic_start") if name == STAGE0 else (start / "actor", start / "critic")
    models = [f"actor_rollout_ref.model.path='{paths[0]}'", f"critic.model.path='{paths[1]}'"]
    config = resolve_config([*overrides(settings, folder.resolve(), seed, name), *models, "tempo.start_from=null"])
    method: Method = read_settings(config)
    torch.manual_seed(seed)
    policy = Policy(str(paths[0]), config)
    critic = Critic(str(paths[1]), config, method) if config.critic.enable else None
    sets = task.make_sets()
    streams = {of: _stream(of, sets[of], getattr(method.settings, of)) for of in ("labeled", "unlabeled")}
    rows, aurocs, began = [], [], time.monotonic()
    rounds, every = method.settings.rounds, settings.test_freq
    for number in range(rounds + 1):
        if number:
            plan = method.plan(number)
            labeled = unlabeled = None
            if plan.label and method.settings.labeled.files and method.draws_labeled(critic is not None):
                labeled = _drawn(policy, streams["labeled"], sets["labeled"], method.settings.labeled.n)
            if plan.improve and method.needs.unlabeled:
                n = method.responses() or config.actor_rollout_ref.rollout.n
                unlabeled = _drawn(policy, streams["unlabeled"], sets["unlabeled"], n)
            log = Log()
            if critic is not None:
                critic.log = log
            trained = method.step(Round(number, plan, labeled, unlabeled, critic, policy, log))
            if trained.unlabeled is not None and trained.reward is not None:
                learnt = trained.samples.rows(trained.unlabeled)
                found = calibration_metrics(trained.reward[trained.unlabeled].numpy(), learnt.verdicts.numpy())
                log.metrics["tempo/oracle/auroc"] = found.get("auroc", float("nan"))
            aurocs.append([log.metrics.get(of, float("nan")) for of in ("tempo/oracle/auroc", "tempo/labeled/auroc")])
        if number % every == 0 or number == rounds:
            recent = np.array(aurocs[-LAST:] or [[np.nan, np.nan]], dtype=float)
            means = [None if np.isnan(column).all() else float(np.nanmean(column)) for column in recent.T]
            told_now = {"auroc_unlabeled": means[0], "auroc_labeled": means[1]}
            rows.append(
                {"seed": seed, "method": name, "round": number, **accuracies(policy, sets, seed), **told_now,
                 "seconds": round(time.monotonic() - began, 1)}
            )  # fmt: skip
    if name == STAGE0:
        for model, role in ((policy.model, "actor"), (critic.model, "critic")):
            model.save_pretrained(start / role)
            policy.tokenizer.save_pretrained(start / role)
    elif critic is not None:
        told.with_suffix(".samples.json").write_text(json.dumps(last_answers(policy, critic, method, sets, seed)))
    told.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def last_answers(
    policy: Policy, critic: Critic, method: Method, sets: dict[str, list[tuple[str, str]]], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """What the trained policy answers and the critic says of it, for trust.py.

    Returns:
        Of D_U, the held-out questions and as many of D_L, N samples a question one after the other: ``answer``,
        ``correct`` and ``value``.
    """
    spaced = evenly_spaced(len(sets["labeled"]), len(sets["heldout"]))
    asked = {
        "unlabeled": sets["unlabeled"],
        "heldout": sets["heldout"],
        "labeled": [sets["labeled"][row] for row in spaced],
    }
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, questions in asked.items():
            drawn = policy.draw([str(row) for row in range(len(questions))], questions, N)
            values = method.probability(critic.values(drawn), drawn.response_mask).tolist()
            columns = zip(drawn.answers, drawn.verdicts.tolist(), values, strict=True)
            found[name] = [{"answer": a, "correct": bool(c), "value": value} for a, c, value in columns]
    return found


def _stream(name: str, rows: list[tuple[str, str]], settings: Any) -> Stream:
    return Stream(name, [{"index": row} for row in range(len(rows))], settings.batch_size, True, settings.seed)  # type: ignore[arg-type]


def _drawn(policy: Policy, stream: Stream, rows: list[tuple[str, str]], n: int) -> Samples:
    uids = stream.next_batch()["uid"].tolist()
    return policy.draw(uids, [rows[row_of(uid)] for uid in uids], n)


def begin(out: Path, settings: Any, seed: int) -> None:
    """Question sets, pretrained policy and critic, stage 0."""
    from tempo_verl.quickstart import write_questions
    from tempo_verl.tasks.pretrain import pretrain

    folder, task = out / f"seed_{seed}", RunningSums(seed=seed, **settings.task)
    write_questions(folder, task)
    for name, size in (("policy", {}), ("critic_start", settings.critic)):
        if not (folder / name / "tokenizer.json").is_file():
            pretrain(folder / name, task, settings.pretrain_steps, seed=seed, **size)
    rehearse(out, settings, seed, STAGE0)


def all_of(out: Path, settings: Any, seeds: Sequence[int], names: Sequence[str], jobs: int, console: Console) -> list:
    """Rows of every training."""
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(begin, out, settings, seed) for seed in seeds]):
            future.result()
        futures = {pool.submit(rehearse, out, settings, seed, name): (seed, name) for seed in seeds for name in names}
        for future in as_completed(futures):
            rows += future.result()
            last = rows[-1]
            console.print(f"seed {last['seed']}, {last['method']}: {last['accuracy']:.3f}, {last['seconds']} s")
    return rows


def main(
    seeds: Annotated[str, typer.Option(help="As in run.py.")] = "3,11",
    out: Annotated[Path, typer.Option(help="Folder; what is there is not trained again.")] = Path("runs/rehearsal"),
    methods: Annotated[str | None, typer.Option(help="As in run.py.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="As in run.py.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, a core each.")] = 2,
) -> None:
    """Rehearse methods and variants; make the table and the figures."""
    settings, console = changed(OmegaConf.load(SETTINGS), False, changes or []), Console()
    order = chosen(methods, settings)
    rows = all_of(out, settings, numbers(seeds), order, jobs, console)
    rows.sort(key=lambda row: (row["seed"], order.index(row["method"]), row["round"]))
    every = pd.DataFrame(rows)
    seconds = every.groupby(["method", "seed"])["seconds"].max().groupby("method").apply(list).to_dict()
    about = {
        "command": written("rehearse.py", seeds, methods, changes or [], jobs),
        **surroundings(),
        "seconds": seconds,
    }
    for line in write(every.reindex(columns=COLUMNS).round(DIGITS), [about], out):
        console.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_script(main)
