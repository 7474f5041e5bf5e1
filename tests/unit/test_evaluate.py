# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl evaluate`` on the tiny task: its numbers recomputed from its samples, killed runs, mistakes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from tempo_verl.backends.sampling import Request, generate
from tempo_verl.cli.main import main as tempo_verl_command
from tempo_verl.data.aside import evenly_spaced
from tempo_verl.data.validation import read_questions
from tempo_verl.errors import UserError
from tempo_verl.evaluation.draw import sample_seed
from tempo_verl.evaluation.engines import Sampling, TransformersEngine
from tempo_verl.evaluation.evaluate import evaluate
from tempo_verl.evaluation.questions import Question, aligned, load_questions, prompt_ids
from tempo_verl.tasks.running_sums import solve

pytestmark = pytest.mark.usefixtures("one_thread")
N = 4


@pytest.fixture(scope="module")
def sampling(skilled_policy: Path, tiny_critic: Path) -> Sampling:
    return Sampling(str(skilled_policy), str(tiny_critic), n=N, max_tokens=16, engine="transformers", batch_size=24)


@pytest.fixture(scope="module")
def files(tiny_task: Path) -> list[Path]:
    return [tiny_task / "heldout.parquet", tiny_task / "unlabeled.parquet"]


@pytest.fixture(scope="module")
def done(sampling: Sampling, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished evaluation."""
    folder = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate(sampling, files, folder, quiet(), ks=[1, 3, 4])
    return folder


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def refused(message: str, *arguments: Any, **options: Any) -> None:
    """The evaluation is refused in one line, and leaves nothing behind."""
    out = arguments[2]
    before = sorted(out.rglob("*"))
    with pytest.raises(UserError, match=message) as caught:
        evaluate(*arguments, quiet(), **options)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(out.rglob("*")) == before


def write_questions(path: Path, questions: list[tuple[str, str | None]]) -> Path:
    style = "tempo_verl.tasks.running_sums:verify"
    table = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": prompt}],
            "reward_model": {"style": style, "ground_truth": truth},
        }
        for prompt, truth in questions
    ]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


# ---------------------------------------------------------------------- the samples


def test_every_question_has_its_samples(done: Path, files: list[Path]) -> None:
    questions = [row for file in files for row in pq.read_table(file).to_pylist()]
    found = rows(done)
    assert [(row["index"], row["sample"]) for row in found] == [(i, s) for i in range(32) for s in range(N)]
    for row in found:
        question = questions[row["index"]]
        truth = question["reward_model"]["ground_truth"]
        assert row["data_source"] == question["data_source"]
        assert row["correct"] == (row["answer"] == truth == solve(question["prompt"][0]["content"]))
        assert row["seed"] == sample_seed(1, row["index"], row["sample"])
    assert len({row["seed"] for row in found}) == 32 * N
    assert 10 < sum(row["correct"] for row in found) < 32 * N - 10  # enough of both to tell measures apart


def test_a_sample_can_be_drawn_and_valued_alone(done: Path, sampling: Sampling, files: list[Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sampling.model)
    policy = AutoModelForCausalLM.from_pretrained(sampling.model, dtype=torch.float32).eval()
    critic = AutoModelForTokenClassification.from_pretrained(sampling.critic, dtype=torch.float32).eval()
    questions = [row["prompt"][0]["content"] for file in files for row in pq.read_table(file).to_pylist()]
    for row in rows(done)[::17]:
        prompt = tokenizer(questions[row["index"]])["input_ids"]
        drawn = generate(policy, tokenizer, [Request(tuple(prompt), 16, row["seed"])])[0]
        assert tokenizer.decode(drawn.token_ids, skip_special_tokens=True) == row["response"]
        assert row["tokens"] == len(drawn.token_ids)
        assert row["truncated"] == (drawn.token_ids[-1] != tokenizer.eos_token_id)
        with torch.inference_mode():
            after_last_token = critic(torch.tensor([prompt + drawn.token_ids])).logits[0, -1, 0]
        assert row["value"] == pytest.approx(float(after_last_token), abs=1e-5)


def test_batches_do_not_change_the_samples(done: Path, sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    evaluate(replace(sampling, batch_size=7), files, tmp_path, quiet(), limit=6)
    for row, expected in zip(rows(tmp_path), rows(done), strict=False):
        assert row == expected | {"value": pytest.approx(expected["value"], abs=1e-5)}


def test_prompts_are_those_of_the_rollouts(compose, sampling: Sampling, files: list[Path]) -> None:
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    model = omega_conf_to_dataclass(compose().actor_rollout_ref.model)  # as BatchRolloutManager does
    chat = create_continuous_token_builder(
        model.tokenizer, hf_model_type=model.hf_config.model_type, chat_template_kwargs={}
    )
    questions = load_questions("--data", files, with_answers=True)
    tokenizer = AutoTokenizer.from_pretrained(sampling.model)
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    for options in ({}, {"add": "1+"}):
        for one in (model.tokenizer, tokenizer):
            one.chat_template = "{{ add or '' }}" + template + "{% if add_generation_prompt %}={% endif %}"
        chat.chat_template_kwargs = options
        prompts = prompt_ids(
            questions, tokenizer, "qwen3", name="m", chat_template_kwargs=options, max_prompt_tokens=16
        )
        rendered = [options.get("add", "") + question.text + "=" for question in questions]
        assert prompts == [tuple(chat.build_initial_tokens(question.messages)) for question in questions]
        assert prompts == [tuple(tokenizer(text)["input_ids"]) for text in rendered]


def test_rows_that_were_left_out_do_not_move_the_others() -> None:
    def asked(index: int, text: str) -> Question:
        return Question(index, f"id {index}", "set", [], text, "", "exact", None)

    questions = [asked(number, text) for number, text in enumerate(["a", "too long", "b", "a"])]
    of_rows = aligned(questions, ["a", "b", "a"])
    assert of_rows is not None
    assert [question.index for question in of_rows] == [0, 2, 3]
    assert aligned(questions, ["A", "x", "y", "z"]) == questions  # all there, whatever was made of the texts
    assert aligned(questions, ["A", "b", "a"]) is None
    assert aligned(questions, ["b", "b", "a"]) is None


@pytest.mark.parametrize(("count", "most"), [(150, 128), (33, 32), (7, 7), (5, 128), (2400, 64)])
def test_questions_are_spread_over_their_set(count: int, most: int) -> None:
    rows = evenly_spaced(count, most)
    assert len(rows) == len(set(rows)) == min(count, most)
    assert set(np.diff(rows)) <= {count // len(rows), count // len(rows) + 1}


def test_the_verifier_is_that_of_the_data_source(tmp_path: Path) -> None:
    row = {
        "data_source": "org/gpqa_diamond",
        "prompt": [{"role": "user", "content": "A or B?"}],
        "reward_model": {"style": "rule", "ground_truth": "A"},
        "extra_info": {"id": "q-7"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "choice.parquet")
    (asked,) = load_questions("--data", [tmp_path / "choice.parquet"], with_answers=True)
    assert (asked.style, asked.id, asked.ground_truth, asked.text) == ("choice", "q-7", "A", "A or B?")
    assert read_questions("f", str(tmp_path / "choice.parquet"), needs_answers=True).styles == ["choice"]
    (unanswered,) = load_questions("--data", [tmp_path / "choice.parquet"], with_answers=False)
    assert unanswered == replace(asked, ground_truth=None)


# ---------------------------------------------------------------------- the measures


def test_the_results_can_be_recomputed_from_the_samples(done: Path) -> None:
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows(done):
        groups[row["index"]].append(row)
    expected: dict[str, list[float]] = defaultdict(list)
    for group in groups.values():
        expected["avg@4"].append(np.mean([row["correct"] for row in group]))
        for k in (1, 3, 4):
            drawn = list(combinations(group, k))
            expected[f"pass@{k}"].append(np.mean([any(row["correct"] for row in of) for of in drawn]))
            for name, weight in (("maj", lambda row: 1.0), ("weighted_maj", lambda row: min(max(row["value"], 0), 1))):
                expected[f"{name}@{k}"].append(np.mean([elects_right(of, weight) for of in drawn]))
        expected["best_of@4"].append(max(group, key=lambda row: row["value"])["correct"])
        answers = Counter(row["answer"] for row in group if row["answer"] is not None)
        expected["distinct_answers"].append(len(answers))
        expected["no_answer"].append(1 - answers.total() / N)
        share = np.array(list(answers.values())) / max(answers.total(), 1)
        if answers:
            expected["answer_entropy"].append(-(share * np.log(share)).sum())
        for name, column in (("formatted", "formatted"), ("response_tokens", "tokens"), ("truncated", "truncated")):
            expected[name].append(np.mean([row[column] for row in group]))
    found = results(done)["overall"]
    assert (found["questions"], found["labeled"], found["samples"]) == (32, 32, 32 * N)
    assert found["measures"].keys() == expected.keys()
    for name, values in expected.items():
        estimate = found["measures"][name]
        assert estimate["value"] == pytest.approx(np.mean(values), abs=1e-12), name
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert estimate["questions"] == len(values)


def elects_right(drawn: tuple[dict[str, Any], ...], weight) -> bool:
    votes: dict[str, tuple[float, int]] = {}
    for row in drawn:
        if row["answer"] is not None:
            heavy, count = votes.get(row["answer"], (0.0, 0))
            votes[row["answer"]] = (heavy + weight(row), count + 1)
    if not votes:
        return False
    winner = min(votes, key=lambda answer: (-votes[answer][0], -votes[answer][1], answer))
    return any(row["correct"] for row in drawn if row["answer"] == winner)


def test_each_data_source_is_a_set_of_its_own(done: Path) -> None:
    found = results(done)
    assert list(found["sources"]) == ["running_sums/heldout", "running_sums/unlabeled"]
    for name, one in found["sources"].items():
        of = [row["correct"] for row in rows(done) if row["data_source"] == name]
        assert one["measures"]["avg@4"]["value"] == pytest.approx(np.mean(of))
        values = [row["value"] for row in rows(done) if row["data_source"] == name]
        assert one["calibration"]["brier"] == pytest.approx(np.mean(np.square(np.array(values) - of)))
    table = (done / "table.md").read_text()
    assert [f"| {name} | avg@4 |" in table for name in [*found["sources"], "overall"]] == [True] * 3
    assert found["versions"]["transformers"] and found["machine"]["cores"]
    assert found["settings"]["n"] == N and found["settings"]["engine"] == "transformers"


def test_without_ground_truths_nothing_is_said_about_correctness(sampling: Sampling, tmp_path: Path) -> None:
    one = replace(sampling, n=1, critic=None)
    none = write_questions(tmp_path / "none.parquet", [("1+2+3=", None), ("4+5+6=", "")])
    found = evaluate(one, [none], tmp_path / "none", quiet())
    assert found["notes"] == ["no question has a ground truth: nothing is said about correctness."]
    assert {"avg@1", "pass@1", "maj@1"}.isdisjoint(found["overall"]["measures"])
    assert found["overall"]["measures"]["response_tokens"]["value"] > 0
    assert all(row["correct"] is None for row in rows(tmp_path / "none"))

    some = write_questions(tmp_path / "some.parquet", [("1+2+3=", "6"), ("4+5+6=", None), ("7+8+9=", "4")])
    found = evaluate(one, [some], tmp_path / "some", quiet())
    assert found["notes"] == ["1 of 3 questions have no ground truth; accuracies leave them out."]
    judged = [row["correct"] for row in rows(tmp_path / "some") if row["index"] != 1]
    assert found["overall"]["measures"]["pass@1"]["value"] == np.mean(judged)
    assert found["overall"]["measures"]["pass@1"]["questions"] == 2


# ---------------------------------------------------------------------- two evaluations


def test_a_comparison_pairs_questions_by_their_text(done: Path, sampling: Sampling, files: list[Path], tmp_path: Path):
    colder = replace(sampling, temperature=0.3)
    found = evaluate(colder, files[::-1], tmp_path, quiet(), ks=[1], limit=20, other=done)  # other places in the file
    assert found["difference"]["overall"]["questions"] == 20
    assert found["notes"] == ["differences are over the 20 questions in both."]
    mean = [defaultdict(list) for _ in range(2)]
    for per_question, folder in zip(mean, (done, tmp_path), strict=True):
        for row in rows(folder):
            per_question[row["hash"]].append(row["correct"])
    gains = [np.mean(mean[1][key]) - np.mean(mean[0][key]) for key in mean[1]]
    difference = found["difference"]["overall"]["measures"]["avg@4"]
    assert difference["value"] == pytest.approx(np.mean(gains))
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert "| difference |" in (tmp_path / "table.md").read_text()


def test_a_comparison_with_itself_is_zero(done: Path, sampling: Sampling, files: list[Path]) -> None:
    found = evaluate(sampling, files, done, quiet(), ks=[1, 3, 4], other=done)
    for one in found["difference"]["overall"]["measures"].values():
        assert one["value"] == one["low"] == one["high"] == 0
    assert found["difference"]["overall"]["measures"].keys() == found["overall"]["measures"].keys()


def test_what_cannot_be_compared(done: Path, sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("use the same --n", replace(sampling, n=2), files, out, other=done)
    other = write_questions(tmp_path / "other.parquet", [("0+0+0=", "0")])
    refused("no question in both", sampling, [other], out, other=done)
    refused("cannot be read.*tempo-verl evaluate wrote", sampling, files, out, other=tmp_path)


# ---------------------------------------------------------------------- interruptions


@pytest.mark.parametrize("cut", [1, 40, 2000])
def test_a_killed_evaluation_goes_on(done: Path, sampling: Sampling, files: list[Path], tmp_path: Path, cut: int):
    folder = tmp_path / "killed"
    shutil.copytree(done, folder)
    (folder / "results.json").unlink()
    path = folder / "samples.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])  # in the middle of a line
    whole = content[:-cut].rpartition(b"\n")[0]
    with pytest.raises(UserError, match="samples are missing"):
        evaluate(sampling, files, tmp_path / "other", quiet(), other=folder)
    evaluate(sampling, files, folder, quiet(), ks=[1, 3, 4])
    assert path.read_bytes().startswith(whole)
    for row, expected in zip(rows(folder), rows(done), strict=True):
        assert row == expected | {"value": pytest.approx(expected["value"], abs=1e-5)}
    assert results(folder)["overall"]["measures"]["avg@4"] == results(done)["overall"]["measures"]["avg@4"]


def test_samples_are_saved_as_they_are_drawn(
    sampling: Sampling, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = replace(sampling, batch_size=None)  # its own: few enough that little is lost
    draw, batches = TransformersEngine.generate, []

    def dies_in_the_second_batch(self, prompts, seeds):
        batches.append(len(prompts))
        if len(batches) == 2:
            raise MemoryError
        return draw(self, prompts, seeds)

    monkeypatch.setattr(TransformersEngine, "generate", dies_in_the_second_batch)
    with pytest.raises(MemoryError):
        evaluate(engine, files, tmp_path, quiet())
    # an eighth of its largest batch
    assert len(rows(tmp_path)) == batches[0] == (8 if torch.cuda.is_available() else 2)
    console = quiet()
    evaluate(engine, files, tmp_path, console)
    assert (
        f"{batches[0]} samples are in {tmp_path} already, {32 * N - batches[0]} are missing" in console.file.getvalue()
    )
    assert len(rows(tmp_path)) == sum(batches) - batches[1] == 32 * N


def test_a_finished_evaluation_needs_no_model(done: Path, files: list[Path], sampling: Sampling, tmp_path: Path):
    folder = tmp_path / "out"
    shutil.copytree(done, folder)
    before = (folder / "samples.jsonl").read_bytes()
    again = evaluate(sampling, files, folder, quiet(), ks=[2])
    assert "pass@2" in again["overall"]["measures"] and "pass@4" not in again["overall"]["measures"]
    assert (folder / "samples.jsonl").read_bytes() == before


def test_a_folder_belongs_to_its_settings(done: Path, sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    refused("made with temperature=1.0, not 0.5", replace(sampling, temperature=0.5), files, done)
    refused("made with seed=1, not 2", replace(sampling, seed=2), files, done)
    refused("made with critic=.*, not None", replace(sampling, critic=None), files, done)
    refused("made with data_sha256=", sampling, files[:1], done)
    refused("made with questions=32, not 5", sampling, files, done, limit=5)
    policy = tmp_path / "policy"
    shutil.copytree(sampling.model, policy)
    evaluate(replace(sampling, model=str(policy), critic=None, n=1), files, tmp_path / "out", quiet(), limit=1)
    (policy / "model.safetensors").touch()  # another training run saved its model here
    refused(
        "model_fingerprint", replace(sampling, model=str(policy), critic=None, n=1), files, tmp_path / "out", limit=1
    )


def test_an_unreadable_line_is_refused(done: Path, sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(done, folder)
    path = folder / "samples.jsonl"
    for broken in (b"{no json}", b"[1]", b'{"index": 1}'):
        lines = path.read_bytes().split(b"\n")
        lines[2] = broken
        path.write_bytes(b"\n".join(lines))
        refused(r"samples.jsonl, line 3: not a sample", sampling, files, folder)


# ---------------------------------------------------------------------- mistakes


def test_mistakes_are_told_before_anything_is_drawn(
    sampling: Sampling, files: list[Path], tiny_policy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused("--k=8: pass@k and maj@k need 1 <= k <= n; use a k of at most 4", sampling, files, out, ks=[1, 8])
    refused("--k=0", sampling, files, out, ks=[0])
    refused("--data=.*: no such file", sampling, [tmp_path / "nowhere.parquet"], out)
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"question": "1+1=", "answer": "2"}\n')
    refused(
        "no column 'prompt' .*; tempo-verl prepare .*plain.jsonl --out NEW.parquet --as KIND", sampling, [plain], out
    )
    (tmp_path / "plain.csv").write_text("question,answer\n1+1=,2\n")
    refused("not a .parquet, .json or .jsonl file; tempo-verl prepare", sampling, [tmp_path / "plain.csv"], out)
    refused("cannot be read.*give a Hugging Face model", replace(sampling, model=str(tmp_path / "m")), files, out)
    refused("more than --max-prompt-tokens=5; raise it", replace(sampling, max_prompt_tokens=5), files, out)
    refused("set it to at most 24[0-9]", replace(sampling, max_tokens=250), files, out)
    refused("no trained value head.*score.weight", replace(sampling, critic=str(tiny_policy)), files, out)
    refused("--critic=.*cannot be read", replace(sampling, critic=str(tmp_path / "c")), files, out)
    refused("--engine=tpu: unknown", replace(sampling, engine="tpu"), files, out)
    bad = pa.Table.from_pylist(
        [
            {
                "data_source": "sums",
                "prompt": [{"role": "user", "content": "1+1="}],
                "reward_model": {"style": "number", "ground_truth": "two"},
            }
        ]
    )
    pq.write_table(bad, tmp_path / "bad.parquet")
    refused("row 0 has a ground truth of no use to style=number", sampling, [tmp_path / "bad.parquet"], out)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed(sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    refused(
        r"vLLM is not installed; pip install 'tempo-verl\[vllm\]'", replace(sampling, engine="vllm"), files, tmp_path
    )
    assert replace(sampling, engine="auto").chosen_engine == "transformers"


def test_a_model_without_a_chat_template(sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(sampling.model, model)
    (model / "chat_template.jinja").unlink()
    refused("its tokenizer has no chat template", replace(sampling, model=str(model)), files, tmp_path / "out")
    (model / "chat_template.jinja").write_text("{{ raise_exception('no user') }}")
    refused("chat template cannot make.*no user", replace(sampling, model=str(model)), files, tmp_path / "out")


def test_a_critic_of_another_vocabulary(sampling: Sampling, files: list[Path], tmp_path: Path) -> None:
    critic = tmp_path / "critic"
    shutil.copytree(sampling.critic, critic)
    tokenizer = AutoTokenizer.from_pretrained(critic)
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(critic)
    refused("its tokenizer is not that of", replace(sampling, critic=str(critic)), files, tmp_path / "out")


# ---------------------------------------------------------------------- the command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["tempo-verl", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        tempo_verl_command()
    return exit.value.code or 0


def test_the_command(
    sampling: Sampling,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    given = ["evaluate", sampling.model, "--data", files[0], "--n", 2, "--max-tokens", 16, "--out", tmp_path / "out"]
    assert command(monkeypatch, *given, "--k", "1,2", "--limit", 3, "--chat-template-kwargs", '{"a": 1}') == 0
    assert "pass@2" in capsys.readouterr().out
    assert results(tmp_path / "out")["settings"]["chat_template_kwargs"] == {"a": 1}
    assert command(monkeypatch, *given, "--k", "1,4") == 2
    assert command(monkeypatch, *given, "--k", "one") == 2
    assert command(monkeypatch, *given, "--chat-template-kwargs", "[1]") == 2
    assert command(monkeypatch, *given, "--chat-template-kwargs", "{") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip().split("=")[0] for line in told] == ["--k"] * 2 + ["--chat-template-kwargs"] * 2
