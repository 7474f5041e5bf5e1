# SPDX-License-Identifier: Apache-2.0
"""``recipes/miniature/rehearse.py``: every kind of method takes its rounds, once; the table is made of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

REHEARSE = Path(__file__).parents[2] / "recipes" / "miniature" / "rehearse.py"
SMALL = ("rounds=2", "pretrain_steps=20", "stage0_rounds=2", "stage0_warmup=1", "task.n_labeled=200", "test_freq=2")
TRUST = REHEARSE.with_name("trust.py")
WITH_CRITIC = ("tempo", "tempo_pp", "official", "ppo")
METHODS = "tempo,tempo_pp,official,ppo,grpo,ttrl,trapo"


@pytest.mark.slow
def test_methods_are_rehearsed_once(tmp_path: Path) -> None:
    command = [sys.executable, str(REHEARSE), "--out", str(tmp_path), "--seeds", "1", "--methods", METHODS]
    command += [part for change in SMALL for part in ("--set", change)]
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    made: list[dict[Path, int]] = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        made.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")})
    assert made[0] == made[1]
    for name in METHODS.split(","):
        rows = [json.loads(line) for line in (tmp_path / "seed_1" / f"{name}.jsonl").read_text().splitlines()]
        assert [row["round"] for row in rows] == [0, 2]
        assert all(math.isfinite(row[column]) for row in rows for column in ("accuracy", "heldout", "pass@8"))
        assert f"| `{name}` | {100 * rows[-1]['accuracy']:.1f} % |" in done.stdout
    assert {path.name for path in tmp_path.rglob("*.samples.json")} == {f"{name}.samples.json" for name in WITH_CRITIC}
    done = subprocess.run([sys.executable, str(TRUST), str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith(f"{len(WITH_CRITIC)} policies\n"), done.stderr
    written = pd.read_csv(tmp_path / "metrics.csv")
    assert list(written["method"].unique()) == METHODS.split(",")
    about = json.loads((tmp_path / "about.json").read_text())
    assert about[0]["command"].startswith(f"python recipes/miniature/rehearse.py --seeds 1 --methods {METHODS} --set ")
