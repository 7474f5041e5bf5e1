# SPDX-License-Identifier: Apache-2.0
"""``recipes/miniature/run.py --fast`` as a user runs it: from nothing to the table, and once more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).parents[2] / "recipes" / "miniature" / "run.py"


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(RUN), "--out", str(out), "--seeds", "5", "--fast", *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)


@pytest.mark.slow
def test_a_miniature_is_made_once(tmp_path: Path) -> None:
    first = run(tmp_path, "--methods", "tempo")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 trainings to do, 0 done" in first.stdout

    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["round"].tolist() == [0, 1, 2]
    assert metrics["accuracy"].between(0, 1).all()
    assert metrics["auroc_unlabeled"].notna().tolist() == [False, True, True]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert f"| `tempo` | {100 * metrics['accuracy'].iloc[-1]:.1f} % |" in table
    assert table.strip() in first.stdout
    (votes,) = pd.read_csv(tmp_path / "equal_cost.csv").to_dict("records")
    # two rounds of 128 samples for 96 questions, and the eight that each is answered with
    assert (votes["samples_before"], votes["equal"], votes["samples_after"]) == (11, 11, 8)
    assert all(0 <= votes[f"{vote}_{when}"] <= 1 for vote in ("majority", "weighted") for when in ("before", "after"))
    assert f"| `tempo` | 11 | 8 | {100 * votes['majority_before']:.1f} % |" in table
    assert (tmp_path / "report" / "report.html").is_file()
    for name in ("accuracy", "diversity", "auroc"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000

    tempo = tmp_path / "seed_5" / "tempo"
    predictions = [json.loads(line) for line in (tempo / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 96
    assert all(prediction["samples"] == 8 for prediction in predictions)
    assert [folder.name for folder in (tempo / "checkpoints").glob("global_step_*")] == ["global_step_2"]

    rounds = [json.loads(line)["data"] for line in (tempo / "metrics.jsonl").read_text().splitlines()]
    assert all(data["tempo/unlabeled/entropy"] > 0 for data in rounds)  # though in bypass mode
    (about,) = json.loads((tmp_path / "about.json").read_text(encoding="utf-8"))
    assert about["command"] == "python recipes/miniature/run.py --seeds 5 --methods tempo --fast --jobs 2"
    assert {name: len(seconds) for name, seconds in about["seconds"].items()} == {"stage0": 1, "tempo": 1}

    trained = (tempo / "run.json").read_text()
    again = run(tmp_path, "--methods", "tempo")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "0 trainings to do, 2 done" in again.stdout
    assert (tempo / "run.json").read_text() == trained
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "metrics.csv"), metrics)

    begun = tempo / "command.txt"
    begun.write_text(begun.read_text().replace("tempo.rounds=2", "tempo.rounds=3"))
    other = run(tmp_path, "--methods", "tempo")
    assert other.returncode == 2
    assert other.stderr.strip().splitlines()[-1].startswith("miniature: --out: ")


def test_an_unknown_method_is_one_line(tmp_path: Path) -> None:
    refused = run(tmp_path, "--methods", "tempoo")
    assert refused.returncode == 2
    assert refused.stderr.strip().startswith("miniature: --methods=tempoo: tempoo is unknown; choose from tempo,")
    assert len(refused.stderr.strip().splitlines()) == 1
