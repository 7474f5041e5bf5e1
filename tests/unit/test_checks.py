# SPDX-License-Identifier: Apache-2.0
"""Every mistake stops a run before it starts, with one line that names the place and the remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForTokenClassification

from tempo_verl.cli.main import main as tempo_verl_command
from tempo_verl.config.cluster import check_accelerators, required_cpus
from tempo_verl.config.models import check_fetched, check_prompts
from tempo_verl.config.preflight import check
from tempo_verl.config.schema import read_settings
from tempo_verl.errors import UserError
from tempo_verl.trainer.manifest import write_manifest

DATA_COLUMNS = "prompt, data_source, reward_model.ground_truth"


class Run:
    """A valid configuration to spoil field by field; ``mend`` puts it back (composing one takes half a second)."""

    def __init__(self, config: DictConfig):
        self.config = config
        self._undo: list[tuple[str, Any]] = []

    def __setitem__(self, field: str, value: Any) -> None:
        section, _, name = field.rpartition(".")
        raw = OmegaConf.to_container(OmegaConf.select(self.config, section), resolve=False)
        self._undo.append((field, raw[name]))
        OmegaConf.update(self.config, field, value)

    def mend(self) -> None:
        for field, value in reversed(self._undo):
            OmegaConf.update(self.config, field, value)

    def is_refused(self, *fragments: object) -> None:
        """The check fails with one line that holds all ``fragments``."""
        with pytest.raises(UserError) as caught:
            check(self.config)
        message = str(caught.value)
        assert message.splitlines() == [message]
        for fragment in fragments:
            assert str(fragment) in message


@pytest.fixture(scope="module")
def composed(compose) -> DictConfig:
    return compose()


@pytest.fixture
def run(composed: DictConfig) -> Iterator[Run]:
    valid = Run(composed)
    yield valid
    valid.mend()


def question(text: Any, answer: str | None = "1") -> dict[str, Any]:
    prompt = [{"role": "user", "content": text}]
    return {"data_source": "test", "prompt": prompt, "reward_model": {"style": "exact", "ground_truth": answer}}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def many(prefix: str, count: int = 8) -> list[dict[str, Any]]:
    return [question(f"{prefix} {number}") for number in range(count)]


# ---------------------------------------------------------------------- what is right


def test_a_valid_run_passes_and_starts_no_ray(run: Run) -> None:
    check(run.config)
    assert not ray.is_initialized()


def test_ppo_needs_no_unlabeled_file_and_may_start_its_critic_from_the_policy(compose, tiny_policy: Path) -> None:
    check(compose(["method=ppo", "tempo.unlabeled.files=missing.parquet", f"critic.model.path='{tiny_policy}'"]))


def test_several_files_and_json_lines_are_read(run: Run, tmp_path: Path) -> None:
    lines = tmp_path / "more.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in many("more", 4)))
    run["tempo.labeled.files"] = [write(tmp_path / "some.parquet", many("some", 4)), str(lines)]
    check(run.config)


def test_an_unlabeled_set_needs_no_reward_model(run: Run, tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "data_source": "test"} for row in many("new")]
    run["tempo.unlabeled.files"] = write(tmp_path / "unlabeled.parquet", rows)
    check(run.config)


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files"])
def test_a_missing_file(run: Run, field: str, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.parquet")
    run[field] = path
    run.is_refused(f"{field}={path}", "no such file", "check the path")


@pytest.mark.parametrize("test_freq", [-1, 5])
def test_a_missing_validation_file(run: Run, test_freq: int, tmp_path: Path) -> None:
    run["trainer.test_freq"] = test_freq  # verl opens the file even if it never validates
    run["data.val_files"] = path = str(tmp_path / "nowhere.parquet")
    run.is_refused(f"data.val_files={path}", "no such file", "check the path")


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files", "data.val_files"])
@pytest.mark.parametrize("source", [None, "", " "])
def test_a_row_of_no_data_source(run: Run, field: str, source: str | None, tmp_path: Path) -> None:
    rows = [*many("new"), question("nameless") | {"data_source": source}]
    run["trainer.test_freq"] = 1
    run[field] = path = write(tmp_path / "nameless.parquet", rows)
    run.is_refused(f"{field}={path}: data_source is empty in 1 of 9 rows (first: row 8)", "name the set")


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files", "data.val_files"])
@pytest.mark.parametrize(
    ("style", "truth", "why"),
    [
        ("number", "many", "no number in 'many'"),
        ("grid", "no table", "style=grid"),
        ("math", " ", "empty"),
        ("choice", "E", "there is no option E, only A to D"),
        ("choice", "Oslo", "no option has this text (options: Paris, Rome, Bonn, Bern)"),
    ],
)
def test_a_truth_that_its_verifier_cannot_use(
    run: Run, field: str, style: str, truth: str, why: str, tmp_path: Path
) -> None:
    """One that only monitors would end the run as it is looked at."""
    cities = {"options": ["Paris", "Rome", "Bonn", "Bern"]} if style == "choice" else {"index": 1}
    useless = question("2") | {"reward_model": {"style": style, "ground_truth": truth}, "extra_info": cities}
    rows = [row | {"extra_info": cities} for row in many("1")]
    run["trainer.test_freq"] = 1
    run[field] = write(tmp_path / "useless.parquet", [*rows, useless, useless | {"prompt": question("3")["prompt"]}])
    run.is_refused(f"{field}: 1 of 2 ground truths", "first: row 8", repr(truth), f"style={style}", why, "mend them")


def test_no_file_named(run: Run) -> None:
    run["tempo.unlabeled.files"] = None
    run.is_refused("tempo.unlabeled.files is not set", "give a parquet file in verl's columns")


def test_an_unreadable_parquet_file(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is no parquet file")
    run["tempo.labeled.files"] = str(broken)
    run.is_refused(f"tempo.labeled.files={broken}", "cannot be read", "write it again")


def test_an_unreadable_json_file(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": [\n')
    run["tempo.labeled.files"] = str(broken)
    run.is_refused(f"tempo.labeled.files={broken}", "cannot be read", "write it again")


def test_a_wrong_extension(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "questions.csv"
    table.write_text("prompt\nwhy?\n")
    run["tempo.labeled.files"] = str(table)
    run.is_refused(f"tempo.labeled.files={table}", "not a .parquet, .json or .jsonl file")


@pytest.mark.parametrize("column", ["prompt", "data_source", "reward_model"])
def test_a_missing_column(run: Run, column: str, tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != column} for row in many("q")]
    run["tempo.labeled.files"] = path = write(tmp_path / "labeled.parquet", rows)
    found = ", ".join(rows[0])
    run.is_refused(f"tempo.labeled.files={path}", f"no column '{column}' (found {found})", DATA_COLUMNS)


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files"])
def test_an_empty_set(run: Run, field: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.Table.from_pylist(many("q")).slice(0, 0), path)
    run[field] = str(path)
    run.is_refused(f"{field}={path}", "no questions", "give a file with at least one row")


@pytest.mark.parametrize("answer", [None, ""])
def test_a_labeled_row_without_an_answer(run: Run, answer: str | None, tmp_path: Path) -> None:
    rows = many("q")
    rows[5] = question("unanswered", answer)
    run["tempo.labeled.files"] = path = write(tmp_path / "labeled.parquet", rows)
    run.is_refused(
        f"tempo.labeled.files={path}",
        "row 5",
        "reward_model.ground_truth",
        "add it, or move the row to tempo.unlabeled",
    )


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_row_without_a_prompt(run: Run, text: str | None, tmp_path: Path) -> None:
    rows = many("q")
    rows[3] = question(text)
    run["tempo.labeled.files"] = path = write(tmp_path / "labeled.parquet", rows)
    run.is_refused(f"tempo.labeled.files={path}", "row 3 has no prompt", "list of {role, content} messages")


@pytest.mark.parametrize("prompt", [None, "a plain text"])
def test_a_prompt_that_is_no_list_of_messages(run: Run, prompt: str | None, tmp_path: Path) -> None:
    rows = [{**row, "prompt": prompt} for row in many("q")]
    run["tempo.unlabeled.files"] = path = write(tmp_path / "unlabeled.parquet", rows)
    run.is_refused(f"tempo.unlabeled.files={path}", "row 0 has no prompt", "list of {role, content} messages")


@pytest.mark.parametrize(
    "twin",
    [
        "Find the ﬁrst café, 10²",
        "FIND THE FIRST CAFÉ, 10²",
        "  find\tthe  first\n cafe\u0301, 102 ",
        "Find the first café, １０2",
    ],
    ids=["ligature", "case", "space and combining accent", "full-width digits"],
)
def test_the_same_question_in_both_sets(run: Run, twin: str, tmp_path: Path) -> None:
    labeled = write(tmp_path / "labeled.parquet", [*many("q"), question("Find the first café, 10²")])
    unlabeled = write(tmp_path / "unlabeled.parquet", [*many("p"), question(twin, None)])
    run["tempo.labeled.files"], run["tempo.unlabeled.files"] = labeled, unlabeled
    run.is_refused("1 question(s)", labeled, unlabeled, "row 8", "remove them from one of the two sets")


def test_different_questions_may_be_similar(run: Run, tmp_path: Path) -> None:
    run["tempo.labeled.files"] = write(tmp_path / "labeled.parquet", many("What is 1 +"))
    run["tempo.unlabeled.files"] = write(tmp_path / "unlabeled.parquet", many("What is 11 +"))
    check(run.config)


@pytest.mark.parametrize(("stream", "size"), [("labeled", 32), ("unlabeled", 16)])
def test_a_batch_larger_than_its_set(run: Run, stream: str, size: int) -> None:
    run[f"tempo.{stream}.batch_size"] = size
    check(run.config)
    run[f"tempo.{stream}.batch_size"] = size + 1
    run.is_refused(f"tempo.{stream}.batch_size={size + 1}", f"({size} questions", f"set it to at most {size}")


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("mini", "batch", "size"),
    [
        ("actor_rollout_ref.actor.ppo_mini_batch_size", "tempo.unlabeled.batch_size", 4),
        ("tempo.calibration.mini_batch_size", "tempo.labeled.batch_size", 8),
    ],
    ids=["actor", "critic"],
)
@pytest.mark.parametrize("value", [3, 16])
def test_a_mini_batch_that_does_not_divide(run: Run, mini: str, batch: str, size: int, value: int) -> None:
    run[mini] = value
    run.is_refused(f"{mini}={value}", f"{batch}={size}", f"choose a divisor of {size}")


def test_in_ppo_the_policy_learns_on_the_labeled_batch(compose) -> None:
    Run(compose(["method=ppo", "actor_rollout_ref.actor.ppo_mini_batch_size=3"])).is_refused(
        "actor_rollout_ref.actor.ppo_mini_batch_size=3", "tempo.labeled.batch_size=8", "choose a divisor of 8"
    )
    Run(compose(["method=ppo", "tempo.labeled.n=3"])).is_refused(
        "tempo.labeled.n=3 must equal actor_rollout_ref.rollout.n=2"
    )


def test_an_actor_mini_batch_that_is_no_multiple_of_the_ranks(run: Run) -> None:
    run["trainer.n_gpus_per_node"] = 3
    run.is_refused(
        "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "8 samples",
        "3 data-parallel training processes",
        "change one of them",
    )


def test_a_critic_mini_batch_that_is_no_multiple_of_the_ranks(run: Run) -> None:
    run["trainer.nnodes"] = 3
    run["tempo.unlabeled.batch_size"] = 6
    run.is_refused(
        "tempo.calibration.mini_batch_size=8", "16 samples", "3 data-parallel training processes", "change one of them"
    )


@pytest.mark.parametrize(
    "field",
    [
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
        "critic.ppo_max_token_len_per_gpu",
    ],
)
def test_a_token_budget_below_the_longest_sample(run: Run, field: str) -> None:
    run[field] = 128
    check(run.config)
    run[field] = 39
    run.is_refused(f"{field}=39", "data.max_prompt_length + data.max_response_length=40", "raise it or shorten")
    run[field] = 127
    run.is_refused(f"{field}=127: verl adds rows of 128 tokens", "set it to 128 or more")


# ---------------------------------------------------------------------- configuration


def test_an_unknown_method(compose, run: Run) -> None:
    with pytest.raises(UserError, match="method=foo is unknown; choose one of empo, frozen_critic, grpo") as caught:
        compose(["method=foo"])
    assert len(str(caught.value).splitlines()) == 1
    run["tempo.method"] = "foo"
    run.is_refused("tempo.method=foo", "choose one of tempo, empo, frozen_critic")


@pytest.mark.parametrize(("override", "told"), [("tempo.foo=1", "tempo.foo"), ("critic.foo=1", "critic.foo")])
def test_an_override_of_an_unknown_field(compose, override: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        compose([override])
    assert len(str(caught.value).splitlines()) == 1


def test_an_added_unknown_field_and_a_wrong_type(compose) -> None:
    Run(compose(["+tempo.labeled.bach_size=1"])).is_refused(
        "tempo.labeled.bach_size is no field of this run", "did you mean tempo.labeled.batch_size?"
    )
    Run(compose(["tempo.labeled=5"])).is_refused("tempo.labeled", "not a container")
    Run(compose(["tempo.rounds=many"])).is_refused("tempo.rounds='many' does not fit", "valid integer")


def test_a_reversed_value_range(run: Run) -> None:
    run["tempo.value_range"] = [1.0, 0.0]
    run.is_refused("tempo.value_range=[1.0, 0.0]", "[low, high] with low < high, or null")


@pytest.mark.parametrize("name", ["gamma", "lam"])
def test_a_discounted_return(run: Run, name: str) -> None:
    run[f"algorithm.{name}"] = 0.95
    run.is_refused(f"algorithm.{name}=0.95", "must both be 1")


def test_a_kl_penalty_in_the_reward(run: Run) -> None:
    run["algorithm.use_kl_in_reward"] = True
    run.is_refused("algorithm.use_kl_in_reward=true", "use actor_rollout_ref.actor.use_kl_loss=true")


def test_a_disabled_critic(run: Run) -> None:
    run["critic.enable"] = False
    run.is_refused("critic.enable=False", "method=tempo needs a critic", "set it to true")


def test_another_trainer(run: Run) -> None:
    run["trainer.v1.trainer_mode"] = "sync"
    run.is_refused("trainer.v1.trainer_mode=sync", "must be tempo")


# ---------------------------------------------------------------------- checkpoints


def choosing(run: Run, tmp_path: Path, keep: str = "best") -> Path:
    """``run`` keeps the best checkpoint in a folder of its own, which is returned."""
    run["tempo.checkpoint.keep"], run["trainer.test_freq"] = keep, 1
    run["trainer.default_local_dir"] = str(tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def saved(folder: Path, *rounds: int) -> None:
    """verl's traces of checkpoints of these rounds."""
    for number in rounds:
        (folder / f"global_step_{number}").mkdir(parents=True)
        write_manifest(folder / f"global_step_{number}", {})
    (folder / "latest_checkpointed_iteration.txt").write_text(str(rounds[-1]))


@pytest.mark.parametrize("keep", ["last", "best", "both"])
def test_checkpoints_can_be_kept_selectively(run: Run, keep: str, tmp_path: Path) -> None:
    choosing(run, tmp_path, keep)
    check(run.config)


@pytest.mark.parametrize("keep", ["last", "best", "both"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trainer.max_actor_ckpt_to_keep", 2),
        ("trainer.max_critic_ckpt_to_keep", 2),
        ("trainer.del_local_ckpt_after_load", True),
        ("actor_rollout_ref.actor.checkpoint.async_save", True),
        ("critic.checkpoint.async_save", True),
    ],
)
def test_only_one_may_remove_checkpoints(run: Run, keep: str, field: str, value: Any, tmp_path: Path) -> None:
    choosing(run, tmp_path, keep)
    run[field] = value
    run.is_refused(f"{field}={value} does not go with tempo.checkpoint.keep={keep}", "leave it at", "or set keep=all")
    run["tempo.checkpoint.keep"] = "all"
    if field.endswith("async_save"):  # nobody knows when it is whole
        run.is_refused(f"{field}=True would leave the run without a whole checkpoint while one is saved")
    else:
        check(run.config)


def test_the_only_checkpoint_is_not_removed_before_the_next_is_whole(run: Run) -> None:
    for field in ("trainer.max_actor_ckpt_to_keep", "trainer.max_critic_ckpt_to_keep"):
        run[field] = 1
        run.is_refused(f"{field}=1 would leave the run without a whole checkpoint", "tempo.checkpoint.keep says which")
        run[field] = 2


def test_verls_old_name_for_keeping_one_checkpoint(compose) -> None:
    Run(compose(["+trainer.remove_previous_ckpt_in_save=true", "tempo.checkpoint.keep=last"])).is_refused(
        "trainer.remove_previous_ckpt_in_save=True does not go with tempo.checkpoint.keep=last"
    )


@pytest.mark.parametrize("keep", ["best", "both"])
def test_the_best_is_found_by_validation(run: Run, keep: str, tmp_path: Path) -> None:
    choosing(run, tmp_path, keep)
    run["trainer.test_freq"] = -1
    run.is_refused("trainer.test_freq=-1", f"tempo.checkpoint.keep={keep} goes by the accuracy in validation")
    run["tempo.checkpoint.keep"] = "last"
    check(run.config)


@pytest.mark.parametrize("named", ["running_sums/unlabeled", ["running_sums/heldout", "running_sums/unlabeled"]])
def test_answers_of_unlabeled_questions_must_not_choose_a_checkpoint(
    run: Run, named: str | list[str], tmp_path: Path
) -> None:
    choosing(run, tmp_path)
    run["tempo.checkpoint.validation"] = named
    run.is_refused("tempo.checkpoint.validation=running_sums/unlabeled", "first: row 0", "name another data source")


def test_no_data_source_is_left_to_choose_by(run: Run, tmp_path: Path) -> None:
    choosing(run, tmp_path)
    run["data.val_files"] = run.config.tempo.unlabeled.files
    run.is_refused("tempo.checkpoint.validation", "no data source of data.val_files is left", "running_sums/unlabeled")


def test_an_unknown_data_source_to_choose_by(run: Run, tmp_path: Path) -> None:
    choosing(run, tmp_path)
    run["tempo.checkpoint.validation"] = "aime"
    run.is_refused("tempo.checkpoint.validation=aime", "choose from running_sums/unlabeled, running_sums/heldout")


@pytest.mark.parametrize("mode", ["disable", "resume_path"])
def test_checkpoints_that_a_run_does_not_go_on_from(run: Run, mode: str, tmp_path: Path) -> None:
    folder = choosing(run, tmp_path, "last")
    run["trainer.resume_mode"], run["trainer.resume_from_path"] = mode, str(tmp_path / "global_step_1")
    (tmp_path / "global_step_1").mkdir()
    write_manifest(tmp_path / "global_step_1", {})
    check(run.config)
    saved(folder, 3)
    run.is_refused(f"trainer.resume_mode={mode}", folder, "tempo.checkpoint.keep=last would remove")
    run["trainer.val_only"] = True  # removes nothing
    run.is_refused("trainer.val_only=true would train")
    run["trainer.val_before_train"] = True
    check(run.config)


def test_stage_0_has_to_be_told_what_may_choose(run: Run, tmp_path: Path) -> None:
    choosing(run, tmp_path)
    run["tempo.method"], run["tempo.unlabeled.files"] = "ppo", None
    run["data.train_files"] = run.config.tempo.labeled.files
    run.is_refused("tempo.checkpoint.validation is not set", "running_sums/unlabeled, running_sums/heldout")
    run["tempo.checkpoint.validation"] = "running_sums/heldout"
    check(run.config)


def test_a_place_where_predictions_cannot_be_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "predictions.jsonl"):
        run["tempo.predictions.file"] = str(path)
        run.is_refused(f"tempo.predictions.file={path}: a file cannot be written there")
    run["tempo.predictions.file"] = str(tmp_path / "new" / "predictions.jsonl")
    check(run.config)


def test_replay_that_transfer_queue_cannot_hold(run: Run) -> None:
    run["tempo.calibration.replay.prompts"] = run.config.tempo.calibration.mini_batch_size
    run["tempo.calibration.replay.window"] = 7000
    # (7000 + 1) * 8 * 2 replayed, 16 labelled and 8 unlabelled
    run.is_refused("tempo.calibration.replay.window=7000", "would have to hold 112040 and holds 100000")
    run["transfer_queue.backend.SimpleStorage.total_storage_size"] = 112040
    check(run.config)


def test_replay_without_a_critic(run: Run) -> None:
    run["tempo.method"], run["tempo.allow_labels_on_unlabeled"] = "oracle", True
    run["critic.enable"], run["tempo.advantage"] = False, "group"
    run["tempo.calibration.replay.prompts"] = run.config.tempo.calibration.mini_batch_size
    run.is_refused("tempo.calibration.replay.prompts", "would have no effect: there is no critic (critic.enable=false)")


def test_a_best_checkpoint_of_other_data_sources(run: Run, tmp_path: Path) -> None:
    folder = choosing(run, tmp_path)
    run["tempo.rounds"] = 4
    saved(folder, 3)
    best = {"round": 3, "accuracy": 0.5, "data_sources": ["aime"]}
    (folder / "best.json").write_text(json.dumps(best))
    run.is_refused(folder / "best.json", "chosen by aime", "would choose by running_sums/heldout")
    (folder / "best.json").write_text(json.dumps(best | {"data_sources": ["running_sums/heldout"]}))
    check(run.config)


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize("field", ["actor_rollout_ref.model.path", "critic.model.path"])
def test_a_model_path_that_is_none(run: Run, field: str, tmp_path: Path) -> None:
    run[field] = str(tmp_path)
    run.is_refused(f"{field}={tmp_path}", "no config.json", "give a Hugging Face directory")
    run[field] = None
    run.is_refused(f"{field} is not set", "give a Hugging Face directory or name")


@pytest.mark.parametrize("field", ["actor_rollout_ref.model", "critic.model"])
@pytest.mark.parametrize("vocabulary", [15, 20], ids=["model too small", "model too large"])
def test_tokenizer_and_model_of_different_vocabularies(
    run: Run, tiny_critic: Path, field: str, vocabulary: int, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_critic, model)
    Qwen3Config.from_pretrained(model, vocab_size=vocabulary).save_pretrained(model)
    run[f"{field}.path"] = str(model)
    run.is_refused(
        f"{field}.path={model}", f"{vocabulary} ids", "its tokenizer 16", "use the tokenizer the model was trained with"
    )


def test_a_vocabulary_padded_to_a_round_number_is_right(run: Run, tiny_policy: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.add_tokens([f"<{number}>" for number in range(1000)])
    tokenizer.save_pretrained(tmp_path)
    Qwen3Config.from_pretrained(tiny_policy, vocab_size=1024).save_pretrained(tmp_path)
    run["actor_rollout_ref.model.path"] = str(tmp_path)
    check(run.config)


def test_a_model_without_a_tokenizer(run: Run, tiny_policy: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_policy / "config.json", tmp_path)
    run["actor_rollout_ref.model.path"] = str(tmp_path)  # transformers makes up a tokenizer of one token for it
    run.is_refused(f"actor_rollout_ref.model.path={tmp_path}", "its tokenizer 1", "use the tokenizer")
    run["actor_rollout_ref.model.tokenizer_path"] = elsewhere = str(tmp_path / "elsewhere")
    run.is_refused(
        f"actor_rollout_ref.model.tokenizer_path={elsewhere}", "no tokenizer there", "give the Hugging Face dir"
    )


def test_a_critic_without_a_value_head(run: Run, tiny_policy: Path) -> None:
    run["critic.model.path"] = str(tiny_policy)
    run.is_refused(
        f"critic.model.path={tiny_policy}",
        "no trained value head",
        "score.weight",
        "saved by stage 0 (method=ppo)",
        "critic.allow_new_value_head=true",
    )
    run["critic.allow_new_value_head"] = True
    check(run.config)


def test_a_critic_that_lost_its_head_weight(run: Run, tiny_critic: Path, tmp_path: Path) -> None:
    critic = tmp_path / "critic"
    shutil.copytree(tiny_critic, critic)
    weights = load_file(critic / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, critic / "model.safetensors", {"format": "pt"})
    run["critic.model.path"] = str(critic)
    run.is_refused(f"critic.model.path={critic}", "missing weight score.weight")


def test_a_classifier_of_two_classes_is_no_critic(run: Run, tiny_policy: Path, tmp_path: Path) -> None:
    critic = tmp_path / "critic"
    shutil.copytree(tiny_policy, critic)
    two = Qwen3Config.from_pretrained(tiny_policy, num_labels=2)
    Qwen3ForTokenClassification(two).save_pretrained(critic)
    run["critic.model.path"] = str(critic)
    run.is_refused(f"critic.model.path={critic}", "no trained value head", "score.weight")


def test_more_tokens_than_the_model_has_positions(compose, run: Run, tiny_policy: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    shutil.copytree(tiny_policy, small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 39}))
    run["actor_rollout_ref.model.path"] = str(small)
    run.is_refused(
        "data.max_prompt_length=16 + data.max_response_length=24 is more than the 39 positions", small, "lower one"
    )
    changed = "+actor_rollout_ref.model.override_config.max_position_embeddings=40"  # verl changes the model so
    check(compose([f"actor_rollout_ref.model.path='{small}'", changed]))


def test_a_tokenizer_without_a_chat_template(run: Run, tiny_policy: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(tiny_policy, plain)
    (plain / "chat_template.jinja").unlink()
    run["actor_rollout_ref.model.path"] = str(plain)
    run.is_refused(plain, "its tokenizer has no chat template", "chat_template.jinja")
    run["data.filter_overlong_prompts"] = True
    run.is_refused("its tokenizer has no chat template")


@pytest.mark.parametrize("field", ["tempo.labeled.files", "tempo.unlabeled.files"])
def test_prompts_longer_than_the_limit_are_counted_not_cut(run: Run, tmp_path: Path, field: str) -> None:
    rows = [question("1+1="), *(question("1+" * count + "1=") for count in (9, 11, 10)), *many("2", 4)]
    run[field] = write(tmp_path / "long.parquet", rows)
    run.is_refused(
        f"3 of 8 prompts of {field} have more than data.max_prompt_length=16 tokens",
        "(the longest: row 2, 24)",
        "raise it to 24, or leave them out with data.filter_overlong_prompts=true",
    )
    run["data.filter_overlong_prompts"] = True
    run["tempo.labeled.batch_size"] = run["tempo.unlabeled.batch_size"] = 4
    check(run.config)


def test_prompts_that_would_all_be_left_out(run: Run, tmp_path: Path) -> None:
    run["data.filter_overlong_prompts"] = True
    run["tempo.unlabeled.files"] = write(tmp_path / "long.parquet", [question("1+" * 11 + f"{n}=") for n in range(8)])
    run.is_refused(
        "data.filter_overlong_prompts=true would leave out all 8 prompts of tempo.unlabeled.files", "raise it to 24"
    )


@pytest.mark.parametrize("filtered", [False, True])
def test_a_chat_template_that_refuses_a_role(run: Run, tiny_policy: Path, tmp_path: Path, filtered: bool) -> None:
    """verl takes any error of a template for a prompt that is too long, and leaves the row out."""
    strict = tmp_path / "strict"
    shutil.copytree(tiny_policy, strict)
    template = (strict / "chat_template.jinja").read_text()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(refusal + template)
    with_system = question("1+1=")
    with_system["prompt"].insert(0, {"role": "system", "content": "1"})
    run["actor_rollout_ref.model.path"] = str(strict)
    run["data.filter_overlong_prompts"] = filtered
    check(run.config)
    run["tempo.unlabeled.files"] = write(tmp_path / "system.parquet", [*many("2", 7), with_system])
    run.is_refused(
        f"actor_rollout_ref.model.path={strict}",
        "cannot make the prompt of row 7 of tempo.unlabeled.files, roles system, user",
        "System role not supported",
        "write the prompts with roles that it takes",
    )


def test_prompts_for_a_policy_from_the_hub_are_looked_at_by_the_trainer(
    compose, tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "long.parquet", [question("1+" * 11 + "1="), *many("2", 7)])
    config = compose(["actor_rollout_ref.model.path=someone/model", f"tempo.unlabeled.files='{path}'"])
    tokenizer, architecture = AutoTokenizer.from_pretrained(tiny_policy), Qwen3Config.from_pretrained(tiny_policy)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, **options: architecture)
    check_prompts(config, {})  # nothing is fetched for the checks
    with pytest.raises(UserError, match=r"1 of 8 prompts of tempo\.unlabeled\.files have more than"):
        check_fetched(config, read_settings(config), tokenizer)


def test_prompts_of_a_validation_that_takes_place_are_looked_at_too(run: Run, tmp_path: Path) -> None:
    run["data.val_files"] = write(tmp_path / "val.parquet", [question("1+" * 12 + "1=")])
    check(run.config)  # this run does not validate
    run["trainer.test_freq"] = 1
    run.is_refused("1 of 1 prompts of data.val_files have more than data.max_prompt_length=16 tokens")


@pytest.mark.parametrize("field", ["actor_rollout_ref.actor.optim.lr", "critic.optim.lr"])
@pytest.mark.parametrize("rate", [-1e-6, "fast", None])
def test_a_learning_rate_that_is_none(run: Run, field: str, rate: object) -> None:
    run[field] = rate
    run.is_refused(f"{field}=", "must be a number, 0 or more")


def test_more_training_processes_on_a_cpu_than_cores(run: Run) -> None:
    ranks = max(os.cpu_count() or 1, 2) + 1
    run["actor_rollout_ref.actor.ppo_mini_batch_size"] = run["tempo.unlabeled.batch_size"] = ranks
    run["tempo.calibration.mini_batch_size"] = run["tempo.labeled.batch_size"] = ranks
    run["trainer.n_gpus_per_node"] = ranks
    run.is_refused(
        f"trainer.n_gpus_per_node={ranks}", "on a CPU that is the number of training processes", "set it to 1"
    )


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["method=frozen_critic", "tempo.labeled.files=null"], "method=frozen_critic has no E-step"),
        (["method=frozen_critic"], "method=frozen_critic has no E-step"),
        (["method=grpo"], "there is no critic (critic.enable=false)"),
        (["method=official"], "method=official has no E-step"),
        (
            ["method=oracle", "tempo.allow_labels_on_unlabeled=true", "tempo.labeled.files=null"],
            "there are no labelled questions",
        ),
    ],
)
def test_a_warm_up_without_an_e_step(compose, overrides: list[str], why: str) -> None:
    run = Run(compose([*overrides, "tempo.calibration.warmup_rounds=1"]))
    run.is_refused("tempo.calibration.warmup_rounds=1: there is nothing to warm up", why, "set it to 0")


@pytest.mark.parametrize("method", ["ttrl", "official", "ppo", "frozen_critic"])
def test_the_gate_is_for_rewards_of_a_measured_critic(compose, method: str) -> None:
    overrides = [f"method={method}", "tempo.calibration.gate.min_auroc=0.7"]
    if method == "ttrl":
        overrides += ["tempo.ttrl.n_train=2", "tempo.ttrl.n_votes=2"]
    Run(compose(overrides)).is_refused("gate.min_auroc=0.7: the gate is for rewards of a critic", f"method={method}")


@pytest.mark.parametrize("method", ["frozen_critic", "official", "tempo"])
def test_replay_is_for_runs_with_e_steps(compose, method: str) -> None:
    replay = ["tempo.calibration.replay.prompts=64", "tempo.calibration.interval=0"]
    Run(compose([f"method={method}", *replay])).is_refused("replay.prompts=64 would have no effect")
    check(compose([*replay, "tempo.calibration.warmup_rounds=2"]))
    check(compose(["method=ppo", *replay]))


def test_where_a_run_starts_from(run: Run, tiny_policy: Path, tmp_path: Path) -> None:
    run["tempo.start_from"] = str(tmp_path / "nowhere")
    run.is_refused(f"tempo.start_from={tmp_path / 'nowhere'}", "no such folder; name the folder of a run")
    run["tempo.start_from"] = str(tmp_path)
    run.is_refused("no last checkpoint there yet; run with trainer.save_freq > 0")
    run["tempo.start_checkpoint"] = "best"
    run.is_refused("no best checkpoint there yet; run with tempo.checkpoint.keep=best or both")
    run["tempo.start_checkpoint"] = "last"
    (tmp_path / "global_step_3" / "actor").mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("3")
    run["actor_rollout_ref.model.path"] = f"${{tempo_start_path:actor,{tmp_path},last}}"
    run.is_refused("holds no model; that run has to save hf_model")
    saved = tmp_path / "global_step_3" / "actor" / "huggingface"
    (saved / "adapter").mkdir(parents=True)
    shutil.copy(tiny_policy / "config.json", saved)
    (saved / "adapter" / "adapter_model.safetensors").touch()
    run.is_refused("holds no model; that run has to save hf_model")
    shutil.copytree(tiny_policy, saved, dirs_exist_ok=True)
    check(run.config)  # this run names its critic itself
    run["critic.model.path"] = f"${{tempo_start_path:critic,{tmp_path},last}}"
    run.is_refused("critic/huggingface holds no critic; start from a run that has one, or set critic.model.path")


def test_answers_of_unlabeled_questions_are_trained_on_only_if_that_is_allowed(
    compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "method_that_looks.py").write_text(
        "from tempo_verl.methods.oracle import Oracle\n"
        "class Looks(Oracle):\n    name = 'looks'\n    def check(self, config): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for override in ("method=oracle", "tempo.method=method_that_looks:Looks"):
        Run(compose([override])).is_refused("set tempo.allow_labels_on_unlabeled=true if that is what you want")
        check(compose([override, "tempo.allow_labels_on_unlabeled=true"]))


# ---------------------------------------------------------------------- Ray


@pytest.mark.parametrize(("cores", "workers"), [(2, 1), (16, 4), (192, 8)])
def test_workers_fit_the_cores(compose, monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    config = compose(["hardware=fsdp"])
    assert config.reward.num_workers == config.actor_rollout_ref.rollout.agent.num_workers == workers
    assert compose().reward.num_workers == 1
    assert compose(["hardware=fsdp", "reward.num_workers=3"]).actor_rollout_ref.rollout.agent.num_workers == 3


def test_too_few_ray_cpus(run: Run) -> None:
    assert required_cpus(1, 1) == 6
    run["ray_kwargs.ray_init.num_cpus"] = 6
    check(run.config)
    run["ray_kwargs.ray_init.num_cpus"] = 5
    run.is_refused("has 5 CPUs, this run needs 6", "raise ray_kwargs.ray_init.num_cpus", "num_data_storage_units")
    run["transfer_queue.backend.SimpleStorage.num_data_storage_units"] = 8
    run["ray_kwargs.ray_init.num_cpus"] = 12
    run.is_refused("has 12 CPUs, this run needs 13")


def test_too_few_cpus_in_a_running_cluster(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}])
    run.is_refused("the Ray cluster has 4 CPUs, this run needs 6")


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (None, "only 1 of 2 nodes"),
        ({"GPU": 4.0, "CPU": 64.0}, "only 1 of 2 nodes"),  # 12 GPUs, but 8 of them on one node only
        ({"GPU": 8.0, "CPU": 20.0}, "only 1 of 2 nodes"),  # verl reserves 24 CPUs there
        ({"NPU": 8.0, "CPU": 64.0}, "only 1 of 2 nodes"),
        ({"GPU": 8.0, "CPU": 64.0}, None),
    ],
)
def test_a_node_that_is_missing_is_told_with_what_was_expected(
    second: dict[str, float] | None, told: str | None
) -> None:
    nodes = [{"node:10.0.0.1": 1.0, "node:__internal_head__": 1.0, "GPU": 8.0, "CPU": 64.0}]
    nodes += [] if second is None else [{"node:10.0.0.2": 1.0, **second}]
    if told is None:
        check_accelerators("the Ray cluster", nodes, nnodes=2, n_gpus_per_node=8, device="cuda")
        return
    with pytest.raises(UserError) as refused:
        check_accelerators("the Ray cluster", nodes, nnodes=2, n_gpus_per_node=8, device="cuda")
    message = str(refused.value)
    assert message.startswith(f"the Ray cluster has {told} (trainer.nnodes) with 8 GPUs (trainer.n_gpus_per_node)")
    assert "10.0.0.1: 8 GPUs, 64 CPUs" in message
    assert (second is None) == ("10.0.0.2" not in message)


def test_one_node_may_hold_what_two_would() -> None:
    check_accelerators("the Ray cluster", [{"GPU": 16.0, "CPU": 64.0}], nnodes=2, n_gpus_per_node=8, device="cuda")


# ---------------------------------------------------------------------- launchers

MISTAKE = ["hardware=cpu", "tempo.labeled.files=missing.parquet", "actor_rollout_ref.model.path=policy"]
TOLD = "tempo-verl: tempo.labeled.files=missing.parquet: no such file; check the path"


def test_verls_launcher_stops_with_one_line_and_starts_nothing(tmp_path: Path) -> None:
    shipped = ["--config-path", "pkg://tempo_verl.config", "--config-name", "tempo_trainer"]
    result = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *shipped, *MISTAKE],
        cwd=tmp_path,
        env={**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stderr.splitlines() == [TOLD]
    assert result.returncode == 2
    assert os.listdir(tmp_path) == []


def test_our_launcher_stops_with_one_line_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tempo-verl", "train", "--run-dir", "run", *MISTAKE])
    with pytest.raises(SystemExit) as exit:
        tempo_verl_command()
    assert capsys.readouterr().err.splitlines() == [TOLD]
    assert exit.value.code == 2
    assert not ray.is_initialized()
    assert os.listdir(tmp_path) == []
