# SPDX-License-Identifier: Apache-2.0
"""``examples/smollm2``: its questions as `tempo-verl prepare` reads them, and what its scripts refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tempo_verl.data.prepare import Settings, prepare
from tempo_verl.rewards import score

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
SIZES = {"labeled": 40, "unlabeled": 12, "heldout": 8}


def run(script: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLE / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def make(out: Path, seed: int) -> dict[str, list[dict]]:
    """The rows of each set, as the script writes them."""
    sizes = [part for name, size in SIZES.items() for part in (f"--{name}", size)]
    done = run("questions.py", "--out", out, "--seed", seed, *sizes)
    assert done.returncode == 0, done.stderr
    return {name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] for name in SIZES}


def asked(row: dict) -> list[int]:
    return [int(number) for number in row["messages"][-1]["content"].split()]


def test_questions_are_right_and_in_one_set_only(tmp_path: Path) -> None:
    sets = make(tmp_path / "a", seed=3)
    assert {name: len(rows) for name, rows in sets.items()} == SIZES
    for rows in sets.values():
        for row in rows:
            numbers = asked(row)
            assert len(set(numbers)) == 3
            assert all(10 <= number <= 99 for number in numbers)
            assert row["answer"] == str(max(numbers))
            assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "user"]
            shot, answer = (message["content"] for message in row["messages"][1:3])
            assert answer == str(max(int(number) for number in shot.split()))
    threes = {name: {frozenset(asked(row)) for row in rows} for name, rows in sets.items()}
    assert {name: len(found) for name, found in threes.items()} == SIZES
    assert all(not threes[one] & threes[other] for one, other in combinations(SIZES, 2))


def test_a_seed_gives_the_same_questions_again(tmp_path: Path) -> None:
    first = make(tmp_path / "a", seed=3)
    assert make(tmp_path / "b", seed=3) == first
    assert make(tmp_path / "c", seed=4) != first


def test_prepare_keeps_the_chat_and_checks_with_math(tmp_path: Path) -> None:
    rows = make(tmp_path, seed=1)["labeled"]
    prepare(Settings((str(tmp_path / "labeled.jsonl"),), tmp_path / "labeled.parquet", "labeled", template="keep"))
    prepared = pq.read_table(tmp_path / "labeled.parquet").to_pylist()
    assert [row["prompt"] for row in prepared] == [row["messages"] for row in rows]
    assert [row["reward_model"] for row in prepared] == [
        {"ground_truth": row["answer"], "style": "math"} for row in rows
    ]
    assert score("85", "85", "math").correct
    assert not score("85 40", "85", "math").correct


@pytest.mark.parametrize("given", ["missing.gguf", "full"])
def test_convert_refuses_in_one_line(given: str, tmp_path: Path) -> None:
    source, out = tmp_path / "model.gguf", tmp_path / "out"
    if given == "full":
        source.write_bytes(b"GGUF")
        out.mkdir()
        (out / "file").touch()
    refused = run("convert.py", source, out)
    assert refused.returncode == 2
    (line,) = refused.stderr.strip().splitlines()
    assert line == (
        f"convert: {out} is not empty; name another folder, or remove it"
        if given == "full"
        else f"convert: {source}: no such file; give a GGUF file"
    )


def test_results_put_both_stages_in_a_table(tmp_path: Path) -> None:
    validation = {"val-core/unlabeled/acc/mean@4": 0.25, "val-core/heldout/acc/mean@4": 0.5}
    fresh = {"tempo/labeled/accuracy": 0.375, "perf/time_per_step": 40.0}
    monitored = {"tempo/labeled/auroc": 0.75, "tempo/oracle/accuracy": 0.125, "tempo/oracle/auroc": 0.625}
    logs = {"stage0": [validation, fresh, fresh], "tempo": [validation, fresh | monitored | validation]}
    for stage, rounds in logs.items():
        (tmp_path / stage).mkdir()
        rows = [json.dumps({"step": step, "data": data}) for step, data in enumerate(rounds)]
        (tmp_path / stage / "metrics.jsonl").write_text("\n".join(rows))
        (tmp_path / stage / "config.yaml").write_text("tempo: {method: tempo}\n")
        info = {"versions": {"verl": "0.9.1"}, "machine": {"cores": 2}, "seconds": {"training": 60.0}}
        (tmp_path / stage / "run.json").write_text(json.dumps(info))
    done = run("results.py", tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert list(zip(metrics["stage"], metrics["round"], strict=True)) == [
        ("stage0", 0), ("stage0", 1), ("stage0", 2), ("tempo", 0), ("tempo", 1)
    ]  # fmt: skip
    last = metrics.iloc[-1]
    assert (last["labeled"], last["unlabeled"], last["auroc_labeled"], last["auroc_unlabeled"]) == (
        0.375, 0.125, 0.75, 0.625
    )  # fmt: skip
    assert (last["val_unlabeled"], last["val_heldout"], last["seconds"]) == (0.25, 0.5, 40.0)
    assert metrics["val_heldout"].notna().tolist() == [True, False, False, True, True]
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["seconds"] == {"stage0": {"training": 60.0}, "tempo": {"training": 60.0}}
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
