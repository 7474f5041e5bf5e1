# SPDX-License-Identifier: Apache-2.0
"""Read a run folder.

A part of the folder that is missing becomes a line in ``notes``; a part that is there but broken is the user's mistake
and raises ``UserError`` (a ``ValueError``) naming file and line.
"""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tempo_verl.algo.evaluation import pass_at_k, question_measures
from tempo_verl.algo.statistics import QuestionKey, question_keys
from tempo_verl.config.flat import flatten
from tempo_verl.errors import UserError
from tempo_verl.evaluation.equal_cost import PREDICTIONS, comparison_file, read_comparison
from tempo_verl.evaluation.judged import Judged, judged_file, read_judged
from tempo_verl.report.shown import SHOWN, Exhibit, read_shown
from tempo_verl.rewards import one_spelling

PHASES = ("stage0", "tempo")
POOLED_ROUNDS = 3
OTHER_SET = "other"
PASS_AT = (4, 8)  # beside n
COMPARED = comparison_file(Path(PREDICTIONS)).name
JUDGED = judged_file(Path(PREDICTIONS)).name

Metrics = dict[int, dict[str, float]]  # step -> name -> value
Measures = dict[str, float]  # of one question: avg@n, pass@k, maj@n, distinct answers, no answer found
Validation = dict[str, dict[QuestionKey, Measures]]  # set name -> question


@dataclass
class Pool:
    """Critic values at the final token and correctness of the labelled rollouts of some consecutive rounds."""

    rounds: list[int]
    value: np.ndarray  # (N,) float
    correct: np.ndarray  # (N,) bool


@dataclass
class RunData:
    """What a run folder holds. ``metrics`` and ``validation`` have one entry per phase that was found.

    A run of ``tempo-verl train`` has the phase ``tempo`` alone, whatever its method.
    """

    name: str
    metrics: dict[str, Metrics] = field(default_factory=dict)
    validation: dict[str, dict[int, Validation]] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)  # "first", "middle" and "last" rounds
    config: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # config, by dotted keys
    method: str | None = None
    compared: dict[str, Any] | None = None  # votes before and after, see evaluation.equal_cost.compare
    judged: Judged | None = None  # the probabilities of its answers to D_U
    info: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shown: Exhibit | None = None  # samples to look at

    def series(self, phase: str, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, sorted by step; two empty lists where it was never logged."""
        points = [(step, row[name]) for step, row in sorted(self.metrics.get(phase, {}).items()) if name in row]
        return [step for step, _ in points], [value for _, value in points]

    def section(self, key: str) -> dict[str, Any]:
        """A part of ``run.json``; empty where there is none."""
        found = self.info.get(key)
        return found if isinstance(found, dict) else {}


def read_run(run_dir: Path) -> RunData:
    """Read every part of a run folder that is there.

    Raises:
        UserError: the folder does not exist, holds neither metrics nor validation dumps, or has a broken file.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"no run folder at {run_dir}; give the folder a training run wrote")
    run = RunData(name=run_dir.resolve().name)
    if not (info := run_dir / "run.json").is_file():
        run.notes.append("run.json is missing: command, versions and phase times are not shown.")
    run.info = _read_object(info)
    sets = _read_sets(run_dir)
    config = run_dir / "config.yaml"
    if config.is_file():
        run.config = config.read_text(encoding="utf-8")
    else:
        run.notes.append("config.yaml is missing: the configuration is not shown.")
    run.settings = _settings(config, run.config)
    run.method = run.settings.get("tempo.method") or run.info.get("method")
    stages = any((run_dir / phase).is_dir() for phase in PHASES)  # else a single training run (tempo-verl train)
    folders = {phase: run_dir / phase for phase in PHASES} if stages else {"tempo": run_dir}
    for phase, folder in folders.items():
        if metrics := _read_metrics(folder, run.notes):
            run.metrics[phase] = metrics
        if validation := _read_validations(folder / "validation", sets, run.notes):
            run.validation[phase] = validation
    if not run.metrics and not run.validation:
        raise UserError(f"no metrics in {run_dir}: expected metrics.jsonl, tempo/metrics.jsonl or stage0/metrics.jsonl")
    run.shown = read_shown(folders["tempo"] / SHOWN)
    for phase in folders:
        if phase not in run.metrics:
            run.notes.append(f"{_short(folders[phase] / 'metrics.jsonl')} is missing: its curves are left out.")
    if "tempo" not in run.validation:
        run.notes.append(f"{_short(folders['tempo'] / 'validation')} is missing: no intervals over questions.")
    run.pools = _read_pools(folders["tempo"] / "rounds", run.notes)
    if (judged := folders["tempo"] / JUDGED).is_file():
        run.judged = read_judged(judged)
    if (compared := folders["tempo"] / COMPARED).is_file():
        run.compared = read_comparison(compared)
    elif run.settings.get("tempo.predictions.before") and (folders["tempo"] / PREDICTIONS).is_file():
        run.notes.append(f"{COMPARED} is missing: nothing is said of what sampling more would have given.")
    return run


def command_of(run: RunData) -> str | None:
    """The command that ``run.json`` tells."""
    command = run.info.get("command")
    return shlex.join(map(str, command)) if isinstance(command, list) else command


def _settings(path: Path, text: str | None) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    return flatten(settings) if isinstance(settings, dict) else {}


def read_jsonl(path: Path, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a JSON-lines file.

    A last line without its line feed is what a killed writer leaves behind: it is ignored, with a note, if it does not
    parse. Lines end at a line feed only; generated text may hold other separators.

    Raises:
        UserError: any other line that is not a JSON object, with file and line number.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            if number == len(lines):
                notes.append(f"{_short(path)} ends in a cut-off line, which is ignored.")
                return
            raise UserError(f"{path}, line {number}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield number, row


def _short(path: Path) -> str:
    """The path below the run folder, for notes: ``tempo/metrics.jsonl``."""
    parts = path.parts
    return "/".join(parts[max((i for i, part in enumerate(parts) if part in PHASES), default=len(parts) - 1) :])


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_sets(run_dir: Path) -> dict[str, str]:
    """Prompt text -> set name, from ``sets.json``; empty without one, then ``data_source`` is the set's name."""
    path = run_dir / "sets.json"
    name_of: dict[str, str] = {}
    for name, prompts in _read_object(path).items():
        if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError(f"{path}: set {name!r} must be a list of prompt texts")
        for prompt in map(str.strip, prompts):
            if name_of.setdefault(prompt, name) != name:
                raise UserError(f"{path}: prompt {prompt!r} is in both {name_of[prompt]!r} and {name!r}")
    return name_of


def _read_metrics(folder: Path, notes: list[str]) -> Metrics:
    """``metrics.1.jsonl``, ``metrics.2.jsonl``, ... (earlier parts of a resumed run), then ``metrics.jsonl``.

    Values that are not numbers are dropped: verl's file logger writes NaN as null.
    """
    files = [path for _, path in _numbered(folder, r"metrics\.(\d+)\.jsonl")]
    if (last := folder / "metrics.jsonl").is_file():
        files.append(last)
    metrics: Metrics = defaultdict(dict)
    for path in files:
        for number, row in read_jsonl(path, notes):
            step, data = row.get("step"), row.get("data")
            if type(step) is not int or not isinstance(data, dict):
                raise UserError(f'{path}, line {number}: expected {{"step": int, "data": {{...}}}}')
            metrics[step] |= {name: float(v) for name, v in data.items() if _is_number(v)}
    return dict(metrics)


def _numbered(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """The files of a folder whose name matches, with the number in it, in numeric order; [] if there is no folder."""
    found = ((re.fullmatch(pattern, path.name), path) for path in folder.glob("*"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _read_validations(folder: Path, sets: Mapping[str, str], notes: list[str]) -> dict[int, Validation]:
    dumps = {step: _read_validation(path, sets, notes) for step, path in _numbered(folder, r"(\d+)\.jsonl")}
    return {step: dump for step, dump in dumps.items() if dump}


def _read_validation(path: Path, sets: Mapping[str, str], notes: list[str]) -> Validation:
    """Group the rows of one verl dump by set and question.

    A row's uid is ``<prompt>_<session>_<index>``; of the outputs of one session only the last index was scored. Prompt
    uids are drawn anew at each validation, so questions are matched between steps by their text.
    """
    sessions: dict[str, dict[str, tuple[int, dict[str, Any]]]] = defaultdict(dict)
    for number, row in read_jsonl(path, notes):
        if not isinstance(row.get("input"), str) or not (_is_number(row.get("acc")) or _is_number(row.get("score"))):
            raise UserError(f"{path}, line {number}: a validation row needs 'input' and a number 'acc' or 'score'")
        parts = str(row.get("uid", f"{row['input']}_{number}_0")).rsplit("_", 2)
        prompt, session, index = parts if len(parts) == 3 and parts[2].isdecimal() else (row["input"], str(number), "0")
        if int(index) >= sessions[prompt].get(session, (-1, row))[0]:
            sessions[prompt][session] = (int(index), row)
    questions = [[row for _, row in outputs.values()] for outputs in sessions.values()]
    _respell(questions)
    texts = [rows[0]["input"].strip() for rows in questions]
    names = [sets.get(t) or str(r[0].get("data_source", OTHER_SET)) for t, r in zip(texts, questions, strict=True)]
    if sets and (unassigned := names.count(OTHER_SET)):
        notes.append(f"{_short(path)}: {unassigned} questions are in no set of sets.json; shown as {OTHER_SET!r}.")
    n = {name: max(len(r) for of, r in zip(names, questions, strict=True) if of == name) for name in set(names)}
    validation: Validation = defaultdict(dict)
    for name, key, rows in zip(names, question_keys(texts), questions, strict=True):
        validation[name][key] = _measures(rows, n[name])
    return dict(validation)


def _respell(questions: Sequence[Sequence[dict[str, Any]]]) -> None:
    """Give answers that say the same one spelling within a question, as in training, where rows name their verifier."""
    known = [(str(at), row) for at, rows in enumerate(questions) for row in rows if row.get("style") and "pred" in row]
    spelled = one_spelling(
        [_answer(row) for _, row in known], [at for at, _ in known], [row["style"] for _, row in known]
    )
    for (_, row), answer in zip(known, spelled, strict=True):
        row["pred"] = answer


def _answer(row: Mapping[str, Any]) -> str | None:
    return None if row["pred"] is None else str(row["pred"]).strip() or None


def _measures(rows: Sequence[Mapping[str, Any]], n: int) -> Measures:
    """The measures of one question; samples that failed are missing from the dump and count as wrong, as in training.

    Args:
        rows: its samples; what needs answers is absent where one has no ``pred`` column.
        n: samples asked for.
    """
    failed = n - len(rows)
    correct = [(row["acc"] if _is_number(row.get("acc")) else row["score"]) > 0.5 for row in rows] + [False] * failed
    answers: list[str | None] | None = None
    if all("pred" in row for row in rows):
        found = [_answer(row) for row in rows]
        answers = found + [None] * failed
    measured = question_measures(answers, correct, ks=[n])
    names = {
        "avg": f"avg@{n}",
        f"maj@{n}": f"maj@{n}",
        "distinct_answers": "distinct answers",
        "no_answer": "no answer found",
    }
    return {
        **{shown: measured[name] for name, shown in names.items() if name in measured},
        **{f"pass@{k}": float(pass_at_k(n, sum(correct), k)) for k in {*PASS_AT, n} if 1 < k <= n},
    }


def windows(rounds: Sequence[int]) -> dict[str, list[int]]:
    """The first and the last ``POOLED_ROUNDS`` of some rounds, fewer if they would overlap, and as many between."""
    if not rounds:
        return {}
    size = min(POOLED_ROUNDS, max(1, len(rounds) // 2))
    chosen = {"first": list(rounds[:size])}
    if len(rounds) >= 3 * size:
        middle = (len(rounds) - size) // 2
        chosen["middle"] = list(rounds[middle : middle + size])
    if len(rounds) > 1:
        chosen["last"] = list(rounds[-size:])
    return chosen


def _read_pools(folder: Path, notes: list[str]) -> dict[str, Pool]:
    """The calibrating rounds in :func:`windows`; those without an E-step hold no values of labelled rollouts."""
    paths = {}
    files = _numbered(folder, r"round_(\d+)\.npz")
    for number, path in files:
        try:
            with np.load(path) as arrays:
                if arrays.get("labeled_value", np.empty(0)).size:
                    paths[number] = path
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            if path != files[-1][1]:
                raise UserError(f"{path}: not a readable .npz file ({error})") from None
            notes.append(f"{_short(path)} is cut off and ignored.")
    if not paths:
        notes.append(f"{_short(folder)} holds no critic values of labelled rollouts: no reliability diagram.")
    return {
        which: _read_pool({number: paths[number] for number in rounds})
        for which, rounds in windows(list(paths)).items()
    }


def _read_pool(paths: Mapping[int, Path]) -> Pool:
    values, corrects = [], []
    for path in paths.values():
        with np.load(path) as arrays:
            value, correct = arrays["labeled_value"], arrays.get("labeled_correct")
        if correct is None or value.ndim != 1 or value.shape != correct.shape or not np.isfinite(value).all():
            raise UserError(f"{path}: labeled_value and labeled_correct must both be (N,), without gaps")
        values.append(value.astype(float))
        corrects.append(correct > 0.5)
    return Pool(list(paths), np.concatenate(values), np.concatenate(corrects))
