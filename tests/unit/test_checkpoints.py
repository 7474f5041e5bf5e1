# SPDX-License-Identifier: Apache-2.0
"""Which folders remain after saves and validations in any order, and what a run goes on from."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tempo_verl.config.resume import Fingerprint
from tempo_verl.config.start import start_path
from tempo_verl.data.validation import Questions, judging_sources
from tempo_verl.errors import UserError
from tempo_verl.trainer.checkpoints import Best, Checkpoints
from tempo_verl.trainer.keeper import Keeper, validation_accuracy
from tempo_verl.trainer.manifest import BEGUN, NAME, begin, read_manifest, write_manifest
from tempo_verl.trainer.metrics import validation_metrics

SOURCES = ["aime", "math"]
RESUMING = OmegaConf.create({"trainer": {"resume_mode": "auto", "val_only": False}})


class Training:
    """What verl and the trainer do to the folder of a run, without training."""

    def __init__(self, folder: Path, keep: str):
        self.checkpoints = Checkpoints(folder, keep)

    def write(self, folder: Path) -> None:
        """As verl does: the files of both roles, then the number."""
        number = folder.name.rpartition("_")[2]
        for role in ("actor", "critic"):
            weights = folder / role / "huggingface"
            weights.mkdir(parents=True, exist_ok=True)
            (weights / "model.safetensors").write_text(number)
        (self.checkpoints.folder / "latest_checkpointed_iteration.txt").write_text(number)

    def save(self, number: int) -> None:
        self.write(self.checkpoints.path(number))
        write_manifest(self.checkpoints.path(number), {"round": number})
        self.checkpoints.prune()

    def validate(self, number: int, accuracy: float) -> None:
        if self.checkpoints.is_better(number, accuracy):
            if not self.checkpoints.is_whole(number):
                self.save(number)
            self.checkpoints.set_best(Best(number, accuracy, SOURCES))

    def keeper(self, sources: list[str] = SOURCES) -> Keeper:
        return Keeper(self.checkpoints, sources, Fingerprint({}, {}))

    def rounds(self) -> list[int]:
        return sorted(self.checkpoints.rounds())


def start(tmp_path: Path, keep: str) -> Training:
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    return Training(tmp_path / "checkpoints", keep)


# ---------------------------------------------------------------------- what remains


def test_all_keeps_what_verl_saves(tmp_path: Path) -> None:
    run = start(tmp_path, "all")
    for number in (1, 2, 3):
        run.save(number)
    run.checkpoints.finish()
    assert run.rounds() == [1, 2, 3]


def test_last_keeps_the_newest(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    for number in (9, 10, 11):
        run.save(number)
        assert run.rounds() == [number]
    run.checkpoints.finish()
    assert run.rounds() == [11]
    assert run.checkpoints.latest() == 11


@pytest.mark.parametrize(("keep", "remain"), [("best", [2]), ("both", [2, 4])])
def test_the_best_outlives_the_newest(tmp_path: Path, keep: str, remain: list[int]) -> None:
    run = start(tmp_path, keep)
    seen = []
    for number, accuracy in enumerate([0.1, 0.5, 0.3, 0.4], start=1):
        run.save(number)
        run.validate(number, accuracy)
        seen.append(run.rounds())
    assert seen == [[1], [2], [2, 3], [2, 4]]  # while the run goes on it can be resumed at its newest
    assert run.checkpoints.latest() == 4
    run.checkpoints.finish()
    assert run.rounds() == remain
    assert run.checkpoints.latest() == remain[-1]
    assert run.checkpoints.best() == Best(2, 0.5, SOURCES)


def test_a_better_round_is_saved_out_of_turn(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    run.validate(0, 0.2)
    run.validate(5, 0.1)
    assert run.rounds() == [0]
    run.validate(10, 0.3)
    assert run.rounds() == [10]
    assert run.checkpoints.latest() == 10
    run.save(20)
    run.validate(20, 0.2)
    assert run.rounds() == [10, 20]


def test_nothing_better_than_the_start_is_an_outcome(tmp_path: Path) -> None:
    run = start(tmp_path, "best")
    for number, accuracy in enumerate([0.5, 0.5, 0.4]):
        if number:
            run.save(number)
        run.validate(number, accuracy)
    run.checkpoints.finish()
    assert run.rounds() == [0]  # the earliest of equals
    assert run.checkpoints.latest() == 0


def test_a_second_validation_does_not_improve_the_best(tmp_path: Path) -> None:
    run = start(tmp_path, "best")
    run.validate(4, 0.5)
    run.validate(4, 0.6)  # resumed with trainer.val_before_train=true: the same weights, other samples
    assert run.checkpoints.best() == Best(4, 0.5, SOURCES)


def test_the_best_is_known_again_after_an_interruption(tmp_path: Path) -> None:
    run = start(tmp_path, "best")
    run.validate(2, 0.5)
    run.save(4)
    begin(run.checkpoints.path(6))  # killed while round 6 was saved

    resumed = start(tmp_path, "best")
    resumed.checkpoints.check_start("auto", SOURCES)
    assert resumed.checkpoints.latest() == 4
    assert not resumed.checkpoints.is_whole(6)
    resumed.validate(5, 0.4)
    assert resumed.rounds() == [2, 4, 6]
    resumed.save(8)
    assert resumed.rounds() == [2, 8]
    resumed.checkpoints.finish()
    assert resumed.rounds() == [2]


def test_other_files_stay(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    others = ["global_step_1.tar", "my_global_step_1", "global_step_", "notes.txt"]
    for name in others:
        (run.checkpoints.folder / name).touch()
    run.save(1)
    run.save(2)
    assert {path.name for path in run.checkpoints.folder.iterdir()} == {
        *others, "global_step_2", "latest_checkpointed_iteration.txt", "keep.txt",
    }  # fmt: skip


def test_the_best_is_told_in_a_file(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    run.validate(3, 0.25)
    assert json.loads((run.checkpoints.folder / "best.json").read_text()) == {
        "round": 3, "accuracy": 0.25, "data_sources": SOURCES,
    }  # fmt: skip
    assert not list(run.checkpoints.folder.glob("*.new"))


# ---------------------------------------------------------------------- starting


def refused(run: Training, mode: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        run.checkpoints.check_start(mode, SOURCES)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


@pytest.mark.parametrize("keep", ["last", "best", "both"])
@pytest.mark.parametrize("mode", ["auto", "disable", "resume_path"])
def test_an_empty_folder_is_always_right(tmp_path: Path, keep: str, mode: str) -> None:
    run = Training(tmp_path / "nowhere", keep)
    run.checkpoints.check_start(mode, SOURCES)
    assert not run.checkpoints.folder.exists()


def test_a_finished_run_may_go_on(tmp_path: Path) -> None:
    run = start(tmp_path, "best")
    run.validate(1, 0.5)
    run.save(2)
    run.checkpoints.finish()
    run.checkpoints.check_start("auto", list(reversed(SOURCES)))
    assert run.rounds() == [1]


def test_a_new_start_beside_old_checkpoints_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    run.save(1)
    assert "trainer.resume_mode=disable" in refused(run, "disable")
    start(tmp_path, "all").checkpoints.check_start("disable", [])
    assert run.rounds() == [1]


@pytest.mark.parametrize("keep", ["last", "best", "both"])
def test_what_an_earlier_run_has_kept_is_not_removed(tmp_path: Path, keep: str) -> None:
    earlier = start(tmp_path, "all")
    for number in (1, 2, 3):
        earlier.save(number)
    assert "would remove the checkpoints of 2 earlier rounds (first: 1)" in refused(start(tmp_path, keep))
    assert earlier.rounds() == [1, 2, 3]


def test_a_run_that_was_killed_in_its_first_save_may_start_again(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    (run.checkpoints.path(1) / "actor").mkdir(parents=True)
    run.checkpoints.check_start("auto", [])


def test_the_best_is_not_removed_by_a_run_that_keeps_the_last(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    run.validate(1, 0.5)
    run.save(2)
    assert "would remove the checkpoints of 1 earlier rounds (first: 1)" in refused(start(tmp_path, "last"))
    start(tmp_path, "best").checkpoints.check_start("auto", SOURCES)


def test_a_best_round_that_a_run_does_not_come_from_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path, "best")
    run.validate(4, 0.5)
    (run.checkpoints.folder / "latest_checkpointed_iteration.txt").write_text("2")
    assert "round 4 is not there, or later" in refused(run)


def test_a_best_checkpoint_that_is_gone_is_refused(tmp_path: Path) -> None:
    run = start(tmp_path, "best")
    run.validate(4, 0.5)
    start(tmp_path, "last").save(6)  # keeps no best
    assert "round 4 is not there" in refused(run)
    (run.checkpoints.folder / "best.json").unlink()
    run.checkpoints.check_start("auto", SOURCES)


# ---------------------------------------------------------------------- what another run starts from


def test_a_run_starts_from_the_last_or_the_best_checkpoint_of_another(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    with pytest.raises(UserError, match=r"no last checkpoint there yet; run with trainer\.save_freq > 0"):
        start_path("actor", str(tmp_path), "last")
    run.save(1)
    with pytest.raises(UserError, match=r"no best checkpoint there yet; run with tempo\.checkpoint\.keep=best or both"):
        start_path("critic", str(tmp_path), "best")
    run.validate(1, 0.5)
    run.save(2)
    for folder in (tmp_path, tmp_path / "checkpoints"):  # a run folder, or verl's own
        for which, number in (("last", "2"), ("best", "1")):
            path = Path(str(start_path("actor", str(folder), which)))
            assert path.is_absolute()
            assert (path / "model.safetensors").read_text() == number
    assert start_path("actor", None, "last") is None
    with pytest.raises(UserError, match="no such folder; name the folder of a run"):
        start_path("actor", str(tmp_path / "nowhere"), "last")


# ---------------------------------------------------------------------- what is best


def questions(**prompts: list[str]) -> Questions:
    rows = [(source, prompt) for source, texts in prompts.items() for prompt in texts]
    texts, hashes = [prompt for _, prompt in rows], [f"hash of {prompt}" for _, prompt in rows]
    return question_set(texts, hashes, [source for source, _ in rows])


def question_set(texts: list[str], hashes: list[str], sources: list[str]) -> Questions:
    none: list[None] = [None] * len(texts)
    return Questions("files", [[]] * len(texts), texts, hashes, sources, ["exact"] * len(texts), none, none)


VALIDATION = questions(aime=["What is 1 + 1?"], math=["What is 2?", "And 3?"], own=["Why?"])


def test_by_default_every_data_source_without_a_question_of_d_u_chooses() -> None:
    assert judging_sources(VALIDATION, None, "own") == ["own"]
    with pytest.raises(UserError, match=r"tempo\.checkpoint\.validation is not set: without tempo\.unlabeled\.files"):
        judging_sources(VALIDATION, None, None)  # stage 0 does not know which of them are D_U
    assert judging_sources(VALIDATION, questions(u=["Something else"]), None) == ["aime", "math", "own"]
    assert judging_sources(VALIDATION, questions(u=["and  3 ?"]), None) == ["aime", "own"]
    assert judging_sources(VALIDATION, questions(u=["Why?", "what is 1+1?"]), []) == ["math"]


def test_named_data_sources_choose() -> None:
    unlabeled = questions(u=["And 3?"])
    assert judging_sources(VALIDATION, unlabeled, "own") == ["own"]
    assert judging_sources(VALIDATION, unlabeled, ["own", "aime", "own"]) == ["own", "aime"]


def test_a_question_of_d_u_in_another_template_is_one() -> None:
    unlabeled = question_set(["Solve: And 3? Think."], ["hash of And 3?"], ["u"])
    assert judging_sources(VALIDATION, unlabeled, None) == ["aime", "own"]
    with pytest.raises(UserError, match=r"validation=math has a question .* \(first: row 2 .*'And 3\?'\)"):
        judging_sources(VALIDATION, unlabeled, ["math", "own"])


@pytest.mark.parametrize(
    ("unlabeled", "named", "told"),
    [
        (["Why?"], "mine", "validation=mine is no data source of files; choose from aime, math, own"),
        (["Why?"], 5, "validation=5 is no data source"),
        (["Why?", "And 3?", "What is 1 + 1?"], None, "no data source of data.val_files is left"),
    ],
)
def test_nothing_to_choose_by(unlabeled: list[str], named: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        judging_sources(VALIDATION, questions(u=unlabeled), named)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_accuracy_is_the_mean_over_data_sources() -> None:
    metrics = validation_metrics(
        ["aime"] * 2 + ["math"] * 4 + ["aime/2"] * 2,
        ["a", "a", "b", "b", "c", "c", "d", "d"],
        {"acc": [1, 0, 1, 1, 1, 0, 0, 0], "pred": [""] * 8},
        {},
    )
    assert validation_accuracy(metrics, ["aime"]) == metrics["val-core/aime/acc/mean@2"] == 0.5
    assert validation_accuracy(metrics, ["aime", "math"]) == (0.5 + 0.75) / 2
    with pytest.raises(UserError, match="no question of data source gpqa was validated"):
        validation_accuracy(metrics, ["aime", "gpqa"])


def accuracy(value: float) -> dict[str, float]:
    return {f"val-core/{source}/acc/mean@4": value for source in SOURCES}


# ---------------------------------------------------------------------- saving between two rounds


def test_a_round_is_saved_when_it_is_over(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    keeper = run.keeper()
    keeper.validated(accuracy(0.5))
    keeper.judge(0)
    assert run.rounds() == []
    assert run.checkpoints.best() is None
    keeper.save(0, run.write)
    assert run.checkpoints.best() == Best(0, 0.5, SOURCES)
    keeper.save(1, lambda folder: pytest.fail("nobody asked for it"))
    keeper.due = True
    keeper.save(2, run.write)
    keeper.validated(accuracy(0.4))
    keeper.judge(3)
    keeper.save(3, lambda folder: pytest.fail("it is not better"))
    assert (run.rounds(), run.checkpoints.latest()) == ([0, 2], 2)


def test_a_round_is_saved_once(tmp_path: Path) -> None:
    """It was due, it is the best, and it was there when the run was resumed."""
    run, times = start(tmp_path, "best"), []
    for keeper in (run.keeper(), run.keeper()):
        keeper.settle(RESUMING)
        keeper.validated(accuracy(0.5))
        keeper.due = True
        keeper.judge(2)
        keeper.save(2, lambda folder: (times.append(folder), run.write(folder)))
    assert times == [run.checkpoints.path(2)]


def test_a_run_that_keeps_no_best_needs_no_accuracy(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    keeper = run.keeper([])
    keeper.validated({})
    keeper.judge(1)
    keeper.save(1, run.write)
    assert (run.checkpoints.best(), run.rounds()) == (None, [])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_full_disk_is_told_in_one_line_and_leaves_the_checkpoint_before(tmp_path: Path, error: Exception) -> None:
    run = start(tmp_path, "last")
    run.save(3)

    def fails(folder: Path) -> None:
        (folder / "actor").mkdir(parents=True)
        (folder / "actor" / "model.pt").write_text("half of")
        raise error

    keeper = run.keeper([])
    keeper.due = True
    with pytest.raises(UserError) as caught:
        keeper.save(6, fails)
    message = str(caught.value)
    assert message.startswith(f"the checkpoint of round 6 cannot be written to {run.checkpoints.path(6)} (")
    assert "GB are free there); the checkpoint of round 3 is untouched; make room" in message
    assert len(message.splitlines()) == 1
    assert [path.name for path in run.checkpoints.path(6).iterdir()] == [BEGUN]
    assert (run.checkpoints.latest(), run.checkpoints.settle()) == (3, (3, []))


def test_what_other_ranks_write_after_one_has_died_is_written_over(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    run.save(3)

    def dies(folder: Path) -> None:
        raise RuntimeError("a training worker died")

    def save() -> None:
        keeper = run.keeper([])
        keeper.settle(RESUMING)
        keeper.due = True
        keeper.save(6, dies if not late.exists() else run.write)

    late = run.checkpoints.path(6) / "actor" / "model_world_size_2_rank_0.pt"
    with pytest.raises(UserError, match="a training worker died"):
        save()
    late.parent.mkdir()
    late.write_text("half of")
    save()
    assert not late.exists()
    assert run.rounds() == [6]


# ---------------------------------------------------------------------- torn, truncated, changed


def spoil(folder: Path, how: str) -> str:
    """Damage a checkpoint. Returns what is told of it."""
    weights = folder / "actor" / "huggingface" / "model.safetensors"
    name = weights.relative_to(folder).as_posix()
    if how == "truncated":
        weights.write_text("")
        return f"{name} has 0 bytes instead of 1"
    if how == "changed":
        weights.write_text("x")
        return f"{name} was changed after it was saved"
    if how == "lost":
        weights.unlink()
        return f"{name} is missing"
    if how == "torn":
        (folder / NAME).write_text((folder / NAME).read_text()[:20])
    else:
        (folder / BEGUN).touch()
        (folder / NAME).unlink()
    return "manifest.json is missing or torn"


@pytest.mark.parametrize("how", ["truncated", "changed", "lost", "torn", "killed before the manifest"])
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path: Path, how: str) -> None:
    run = start(tmp_path, "all")
    for number in (1, 2, 3):
        run.save(number)
    why = spoil(run.checkpoints.path(3), how)
    assert run.checkpoints.latest() == (3 if how == "changed" else 2)  # hashes are read when a run goes on
    number, told = run.checkpoints.settle()
    assert number == 2
    assert told == [f"the checkpoint of round 3 cannot be used: {why} ({run.checkpoints.path(3)})"]
    assert run.checkpoints.named() == 2  # which verl resumes
    assert run.rounds() == [1, 2, 3]
    keeper = run.keeper([])
    keeper.due = True
    keeper.save(3, run.write)
    assert run.checkpoints.settle() == (3, [])


def test_what_is_the_best_is_known_even_if_the_run_was_killed_before_it_was_named(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    keeper = run.keeper()
    keeper.validated(accuracy(0.5))
    keeper.judge(2)
    keeper.save(2, run.write)
    assert (read_manifest(run.checkpoints.path(2)) or {})["better"]["accuracy"] == 0.5
    (run.checkpoints.folder / "best.json").unlink()
    assert run.keeper().settle(RESUMING) == (run.checkpoints.path(2), [])
    assert run.checkpoints.best() == Best(2, 0.5, SOURCES)


def test_a_run_that_begins_anew_writes_over_what_an_earlier_one_has_left(tmp_path: Path) -> None:
    earlier, run = start(tmp_path, "all"), start(tmp_path, "all")
    earlier.save(2)
    earlier.save(5)
    keeper, folder = run.keeper([]), run.checkpoints.path(2)
    keeper.due = True
    keeper.save(2, lambda folder: (run.write(folder), (folder / "new").touch()))
    assert (folder / "new").exists()
    assert run.checkpoints.settle() == (2, [])  # 5 is of another run


def test_checkpoints_of_verl_alone_are_neither_passed_over_nor_removed(tmp_path: Path) -> None:
    run = start(tmp_path, "last")
    run.write(run.checkpoints.path(5))
    told = r"the checkpoints of 1 rounds \(last: 5\) have no manifest\.json, which this version writes; move them away"
    with pytest.raises(UserError, match=told):
        run.checkpoints.settle()
    run.save(6)
    assert run.rounds() == [5, 6]
    keeper = run.keeper([])
    keeper.due = True
    with pytest.raises(UserError, match=r"has no manifest\.json, so it is not of this run; move it away"):
        keeper.save(5, run.write)
    assert run.rounds() == [5, 6]


def test_sizes_alone_tell_a_torn_file_but_not_a_changed_one(tmp_path: Path) -> None:
    run = start(tmp_path, "all")
    run.write(run.checkpoints.path(1))
    write_manifest(run.checkpoints.path(1), {}, hashes=False)
    spoil(run.checkpoints.path(1), "changed")
    assert run.checkpoints.settle() == (1, [])
    spoil(run.checkpoints.path(1), "truncated")
    assert run.checkpoints.settle()[0] is None


@pytest.mark.parametrize("tracker", ["", "x", None])
def test_a_torn_number_of_the_newest_is_found_again(tmp_path: Path, tracker: str | None) -> None:
    run = start(tmp_path, "all")
    run.save(1)
    run.save(2)
    path = run.checkpoints.folder / "latest_checkpointed_iteration.txt"
    path.unlink() if tracker is None else path.write_text(tracker)
    assert run.checkpoints.latest() == 2
    assert run.checkpoints.settle() == (2, [])
    assert path.read_text() == "2"


def test_without_any_whole_checkpoint_a_run_begins_anew(tmp_path: Path) -> None:
    run = start(tmp_path, "all")
    run.save(1)
    spoil(run.checkpoints.path(1), "lost")
    number, told = run.checkpoints.settle()
    assert (number, len(told)) == (None, 1)
    assert run.checkpoints.named() is None
    assert run.rounds() == [1]


def test_a_best_checkpoint_that_is_damaged_is_the_best_no_more(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    run.validate(1, 0.2)
    run.save(2)
    run.validate(3, 0.5)
    assert run.rounds() == [3]
    run.checkpoints.folder.joinpath("keep.txt").touch()
    run.save(4)
    spoil(run.checkpoints.path(4), "truncated")
    spoil(run.checkpoints.path(3), "changed")
    number, told = run.checkpoints.settle()
    assert number is None
    assert told[-1] == "round 3 is no longer the best: its checkpoint is gone"
    assert run.checkpoints.best() is None


def test_no_damaged_checkpoint_is_started_from(tmp_path: Path) -> None:
    run = start(tmp_path, "both")
    run.validate(1, 0.5)
    run.save(2)
    spoil(run.checkpoints.path(1), "truncated")
    with pytest.raises(UserError, match=r"global_step_1: no whole checkpoint \(.* has 0 bytes instead of 1\); choose"):
        start_path("actor", str(tmp_path), "best")


@pytest.mark.parametrize("removed", [0, 1, 2, 3])
def test_whenever_rotation_is_interrupted_a_whole_checkpoint_is_there(
    tmp_path: Path, removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(tmp_path, "last")
    run.save(1)
    calls = iter(range(10))

    def interrupted(path: Path) -> None:
        if next(calls) == removed:
            raise KeyboardInterrupt
        for file in sorted(path.rglob("*"))[:1]:
            file.unlink() if file.is_file() else None

    keeper = run.keeper([])
    keeper.due = True
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            keeper.save(2, run.write)
    assert run.checkpoints.settle() == (2, [])
