# SPDX-License-Identifier: Apache-2.0
"""Made-up run folders with numbers that can be worked out by hand."""

import json
from pathlib import Path

import numpy as np
import yaml

PAYLOAD = '</div><script>alert("x")</script><img src=x onerror=alert(1)>'  # what a response may hold
RIGHT = "1"
ROUNDS = 8

# question -> the answers of its 8 samples, before and after; None is a sample without an answer
UNLABELED = {
    "3+7=": ([RIGHT] + ["3"] * 3 + [None] * 4, [RIGHT] * 3 + ["3"] * 5),  # 1 right, then 3; voting picks 3
    "4+7=": (["2", RIGHT] * 4, [RIGHT] * 8),  # 4 right, then 8; the tied vote goes to "1"
}
HELDOUT = {
    "1+1=": ([RIGHT] * 4 + ["5"] * 4, [RIGHT] * 5 + ["5"] * 3),  # +1/8
    "2+1=": ([RIGHT] * 4 + ["5"] * 4, [RIGHT] * 3 + ["5"] * 5),  # -1/8
}


def write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def validation_rows(step: int, which: int) -> list[dict]:
    """A verl dump: uids differ from step to step, texts are padded, the first question has turns that do not count."""
    rows = []
    for number, (text, answers) in enumerate((UNLABELED | HELDOUT).items()):
        for session, answer in enumerate(answers[which]):
            acc = float(answer == RIGHT)
            row = {"input": f" {text}\n", "output": "…", "gts": RIGHT, "score": acc, "step": step, "acc": acc}
            rows.append(row | {"pred": answer, "uid": f"step{step}_prompt{number}_{session}_1"})
            if number == 0:
                rows.append(row | {"acc": 1.0, "pred": "9", "uid": f"step{step}_prompt{number}_{session}_0"})
    return rows


def round_metrics(step: int) -> dict:
    return {
        "tempo/labeled/accuracy": 0.6,
        "tempo/labeled/auroc": 0.8 - 0.01 * step,
        "tempo/labeled/brier": 0.2,
        "tempo/labeled/ece": 0.05,
        "tempo/labeled/gap": 0.01,
        "tempo/oracle/accuracy": 0.3,
        "tempo/oracle/auroc": 0.7,
        "tempo/unlabeled/reward_mean": 0.5,
        "tempo/unlabeled/entropy": 0.4,
        "tempo/unlabeled/response_length": 9.5,
        "tempo/unlabeled/distinct_answers": 2.5,
        "timing_s/gen": 2.0,
        "timing_s/step": 61.0,
        "timing_s/agent_loop/slowest": 1.0,
    }


def shown_response(kind: str, pieces: list, **other) -> dict:
    """A response to look at; ``pieces`` are (text, V)."""
    response = {
        "kind": kind, "score": 0.98, "index": 0, "id": "q-0", "data_source": "sums", "question": f"3+7=\n{PAYLOAD}",
        "reference": RIGHT, "sample": 2, "answer": PAYLOAD, "correct": False, "value": 0.98, "tokens": len(pieces),
        "truncated": False, "votes": 1, "samples": 4, "start": 0.25, "stretch": 1,
        "pieces": [{"text": text, "value": value} for text, value in pieces],
    }  # fmt: skip
    return response | other


def shown_document() -> dict:
    """A short response with markup in it, a long one in stretches, and one to a question of D_U."""
    short = [("It", 0.31), (" is", 0.12), ("\n", 0.5), (PAYLOAD, 0.7), ("two", 0.98)]
    long = [(f"{'step' * 8} {number:03d}, ", number / 399) for number in range(400)]
    unlabeled = {"reference": None, "correct": None, "answer": "2"}
    responses = [
        shown_response("deceived", short),
        shown_response("deceived", long, question="an_unbroken_word" * 40, stretch=41, tokens=16_384, truncated=True),
        shown_response("disputed", short, **unlabeled),
    ]
    return {"labeled": {"questions": 4, "responses": 16, "wrong": 6, "believed": 3}, "responses": responses}


def make_run(run: Path) -> Path:
    stage0 = [{"step": step, "data": {"tempo/labeled/accuracy": 0.1 * step}} for step in range(5)]
    write_lines(run / "stage0" / "metrics.jsonl", stage0)
    start = {"step": 0, "data": {"val-core/sums/acc/mean@8": 0.4}}
    rounds = [{"step": step, "data": round_metrics(step)} for step in range(1, ROUNDS + 1)]
    write_lines(run / "tempo" / "metrics.jsonl", [start, *rounds])
    write_lines(run / "tempo" / "validation" / "0.jsonl", validation_rows(0, 0))
    write_lines(
        run / "tempo" / "validation" / "10.jsonl", validation_rows(10, 1)
    )  # after 0 and 8 in number, not in text
    write_lines(run / "tempo" / "validation" / "8.jsonl", validation_rows(8, 0))
    (run / "tempo" / "rounds").mkdir()
    rng = np.random.default_rng(0)
    for step in range(1, ROUNDS + 1):
        value = rng.random(32)
        correct = (rng.random(32) < value).astype(np.float32)
        np.savez(run / "tempo" / "rounds" / f"round_{step:06d}.npz", labeled_value=value, labeled_correct=correct)
    (run / "sets.json").write_text(json.dumps({"unlabeled": list(UNLABELED), "heldout": list(HELDOUT)}))
    info = {"command": ["tempo-verl", "train", "a b"], "seed": 7, "versions": {"verl": "0.9.1"}}
    (run / "run.json").write_text(
        json.dumps(info | {"machine": {"cores": 2}, "seconds": {"stage0": 65, "tempo": 250.5}})
    )
    (run / "tempo" / "predictions.shown.json").write_text(json.dumps(shown_document()))
    (run / "config.yaml").write_text("tempo:\n  method: tempo\n  note: <script>alert(1)</script>\n")
    return run


def make_seed(run: Path, seed: int, heldout: dict[int, float], alarms: tuple[int, ...] = (), **config) -> Path:
    """A run of ``tempo-verl train`` with three rounds.

    Args:
        heldout: round -> accuracy on the held-out set; on D_U it is 0.1 more.
        alarms: the rounds in which the AUROC alarm is on.
        config: added to the ``tempo`` section.
    """
    rows = []
    for step in range(4):
        data = {}
        if step:
            data = {
                "tempo/labeled/auroc": 0.5 + 0.1 * seed,
                "tempo/labeled/gap": 0.01 * step,
                "tempo/unlabeled/entropy": 0.4,
                "tempo/alarm/auroc": float(step in alarms),
                "timing_s/gen": 2.0 * seed,
                "timing_s/step": 10.0,
            }
        for name, more in (("heldout", 0.0), ("unlabeled", 0.1)) if step in heldout else ():
            data[f"val-core/sums/{name}/acc/mean@8"] = heldout[step] + more
            data |= {f"val-core/sums/{name}/acc/{kind}@{k}": 0.5 for kind in ("pass", "maj") for k in (1, 2, 4, 8)}
            data[f"val-aux/sums/{name}/distinct_answers"] = 3.0
        rows.append({"step": step, "data": data})
    write_lines(run / "metrics.jsonl", rows)
    rng = np.random.default_rng(seed)
    (run / "rounds").mkdir()
    for step in (1, 2, 3):
        arrays = {"labeled_value": rng.random(32), "labeled_correct": rng.random(32) < 0.5}
        np.savez(run / "rounds" / f"round_{step:06d}.npz", **arrays)
    settings = {
        "tempo": {
            "method": "tempo",
            "labeled": {"seed": seed, "files": f"{run}/labeled.parquet"},
            "unlabeled": {"seed": seed, "files": f"{run}/unlabeled.parquet"},
            **config,
        },
        "critic": {"model": {"path": f"{run}/stage0/checkpoints/global_step_25/critic/huggingface"}},
        "trainer": {"total_training_steps": config.get("rounds"), "experiment_name": run.name},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "run.json").write_text(json.dumps({"versions": {"verl": "0.9.1"}, "seconds": {"training": 60}}))
    return run
