# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong: each command is to end with one clear line, quickly, and with no traceback.

See reliability.md. Nothing is trained: a mistake that is not found would start a training, which is then ended and
counted as not found.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import typer
from reliability import Made, make

LONGEST = 60.0  # seconds

# `tempo-verl train` with a valid run and one mistake. {d} is a folder with spoilt files.
OVERRIDES = """
tempo.rounds=-1
tempo.rounds=many
tempo.round=3
method=tmpo
hardware=tpu
tempo.method=no.module:Name
tempo.method=json:loads
tempo.labeled.batch_size=0
tempo.labeled.batch_size=1000
tempo.labeled.files={d}/missing.parquet
tempo.labeled.files={d}
tempo.labeled.files={d}/empty.parquet
tempo.labeled.files={d}/torn.parquet
tempo.labeled.files={d}/text.parquet
tempo.labeled.files={d}/no_prompt.parquet
tempo.labeled.files={d}/no_answers.parquet
tempo.labeled.files={d}/null_prompt.parquet
tempo.labeled.files={d}/bad_style.parquet
tempo.labeled.files={d}/function.parquet
tempo.labeled.files={d}/bad_truth.parquet
tempo.labeled.files={d}/no_source.parquet
tempo.labeled.files={d}/pickle.pkl
tempo.labeled.files={d}/broken.jsonl
tempo.labeled.files={d}/long.parquet
tempo.labeled.files={d}/unlabeled.parquet
tempo.unlabeled.files=null
tempo.labeled.files=null
tempo.unlabeled.repeat=0
tempo.unlabeled.focus=1.5
tempo.calibration.lr=-1
tempo.calibration.lr=fast
tempo.calibration.mini_batch_size=3
tempo.calibration.replay.prompts=3
tempo.calibration.replay.window=100000000
tempo.calibration.gate.min_auroc=high
tempo.final_value=last
tempo.value_range=[1,0]
tempo.advantage=gae
tempo.alarms.stop=[everything]
tempo.checkpoint.keep=first
tempo.checkpoint.keep=best trainer.test_freq=-1
tempo.predictions.labeled=3
tempo.predictions.file={d}
tempo.verifier.timeout=0
tempo.guard.max_missing_share=-1
tempo.start_from={d}/missing
tempo.start_from={d}
tempo.start_checkpoint=newest
critic.model.path={d}/missing
critic.model.path={d}/no_model
critic.model.path={made}/policy critic.allow_new_value_head=false
actor_rollout_ref.model.path=null
actor_rollout_ref.model.path=~/model
actor_rollout_ref.model.path={d}/other_vocabulary
actor_rollout_ref.model.path={d}/no_template
actor_rollout_ref.actor.optim.lr=-1
actor_rollout_ref.actor.ppo_mini_batch_size=3
actor_rollout_ref.rollout.n=0
actor_rollout_ref.rollout.n=x
data.max_prompt_length=1
data.max_response_length=100000
data.val_files={d}/missing.parquet
algorithm.adv_estimator=grpo
algorithm.gamma=0.9
algorithm.use_kl_in_reward=true
trainer.n_gpus_per_node=64
trainer.val_only=true trainer.val_before_train=false
trainer.resume_mode=resume_path
trainer.resume_mode=resume_path trainer.resume_from_path={d}/global_step_1
trainer.default_hdfs_dir=hdfs://x/y
trainer.max_actor_ckpt_to_keep=1
trainer.v1.trainer_mode=sync
critic.enable=false
critic.ppo_epochs=2
ray_kwargs.ray_init.num_cpus=2
+ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=secret
just words
=3
tempo.rounds=
""".strip().splitlines()
# Other commands.
COMMANDS = """
train --run-dir {d}/empty.parquet
report {d}/missing
report {d}
report {d}/empty.parquet
answer
evaluate {made}/policy
evaluate {d}/missing --data {made}/data/heldout.parquet --out {d}/out
evaluate {made}/policy --data {d}/missing.parquet --out {d}/out
evaluate {made}/policy --data {d}/torn.parquet --out {d}/out
evaluate {made}/policy --data {made}/data/heldout.parquet --out {d}/empty.parquet
evaluate {made}/policy --data {made}/data/heldout.parquet --out {d}/out --n 0
evaluate {made}/policy --data {made}/data/heldout.parquet --out {d}/out --k 99 --n 2
evaluate {made}/policy --data {made}/data/heldout.parquet --out {d}/out --critic {made}/policy
answer --samples {d}/missing --out {d}/p.jsonl
answer {made}/policy --data {made}/data/heldout.parquet --out {d}
prepare {d}/missing.csv --out {d}/o.parquet --as labeled
prepare {d}/broken.jsonl --out {d}/o.parquet --as labeled
prepare {d}/empty.csv --out {d}/o.parquet --as labeled
prepare {d}/pickle.pkl --out {d}/o.parquet --as labeled
prepare {d}/unknown.xyz --out {d}/o.parquet --as labeled
prepare {d}/columns.csv --out {d}/o.parquet --as labeled
prepare {d}/good.csv --out {d}/o.parquet --as training
prepare {d}/good.csv --out {d} --as labeled
prepare {d}/good.csv --out {d}/o.parquet --as labeled --template nothing
prepare {d}/good.csv --out {d}/o.parquet --as labeled --sample 0
doctor tempo.rounds=-1
doctor --gpu
quickstart --run-dir {made}
quickstart --seed x
nothing
""".strip().splitlines()


def spoil(folder: Path, made: Made) -> None:
    """Write the files that the commands name."""
    rows = pq.read_table(made.folder / "data" / "labeled.parquet").to_pylist()

    def variant(name: str, change: Callable[[dict], object] | None, some: list[dict] = rows) -> None:
        copied = [json.loads(json.dumps(row)) for row in some]
        for row in copied if change else []:
            change(row)  # type: ignore[misc]
        pq.write_table(pa.Table.from_pylist(copied), folder / f"{name}.parquet")

    variant("no_prompt", lambda row: row.pop("prompt"))
    variant("no_answers", lambda row: row["reward_model"].update(ground_truth=None))
    variant("null_prompt", lambda row: row.update(prompt=None))
    variant("bad_style", lambda row: row["reward_model"].update(style="nothing"))
    variant("function", lambda row: row["reward_model"].update(style="os:abort"))
    variant("bad_truth", lambda row: row["reward_model"].update(style="number", ground_truth="many"))
    variant("no_source", lambda row: row.update(data_source=""))
    variant("long", lambda row: row.update(prompt=[{"role": "user", "content": "1+1=" * 30}]))
    pq.write_table(pq.read_table(folder / "no_prompt.parquet").slice(0, 0), folder / "empty.parquet")
    whole = (made.folder / "data" / "labeled.parquet").read_bytes()
    (folder / "torn.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "text.parquet").write_text("question,answer\n1,2\n")
    (folder / "pickle.pkl").write_bytes(
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x05abort\x93)R."
    )
    (folder / "broken.jsonl").write_text('{"question": "1", "answer": "1"}\n{"question": \n')
    shutil.copy(made.folder / "data" / "unlabeled.parquet", folder / "unlabeled.parquet")
    (folder / "empty.csv").write_text("")
    (folder / "unknown.xyz").write_text("x")
    (folder / "columns.csv").write_text("a,b\n1,2\n")
    (folder / "good.csv").write_text("question,answer\nWhat is 1+1?,2\n")
    (folder / "no_model").mkdir()
    (folder / "global_step_1").mkdir()
    for name in ("other_vocabulary", "no_template"):
        shutil.copytree(made.folder / "policy", folder / name)
    (folder / "no_template" / "chat_template.jinja").unlink()
    config = folder / "other_vocabulary" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 5}))


def main(out: Annotated[Path, typer.Option(help="JSON lines, one a command.")] = Path("bad_inputs.jsonl")) -> None:
    """Try every mistake; print those that were not told well."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    found = []
    with tempfile.TemporaryDirectory() as temporary, out.open("w") as lines:
        made, folder = make(Path(temporary) / "made", steps=1), Path(temporary) / "spoilt"
        folder.mkdir()
        spoil(folder, made)
        valid = made.overrides("tempo", 2)
        names = {"{d}": str(folder), "{made}": str(made.folder)}
        runs = (str(folder / f"run_{number}") for number in range(len(OVERRIDES)))
        wrong = [(["train", "--run-dir", run, *valid], words) for run, words in zip(runs, OVERRIDES, strict=True)]
        for before, words in [*wrong, *[([], words) for words in COMMANDS]]:
            filled = words
            for name, path in names.items():
                filled = filled.replace(name, path)
            told = tried([*before, *filled.split()], words)
            found.append(told)
            print(json.dumps(told), file=lines, flush=True)
            if told["verdict"] != "told":
                print(json.dumps(told), flush=True)
    seconds = sorted(told["seconds"] for told in found)
    print(f"{len(found)} mistakes; told in one line: {sum(told['verdict'] == 'told' for told in found)}; tracebacks: "
          f"{sum(told['verdict'] == 'traceback' for told in found)}; median {seconds[len(seconds) // 2]:.1f} s, "
          f"slowest {seconds[-1]:.1f} s")  # fmt: skip


def tried(arguments: list[str], mistake: str) -> dict:
    """Run a command to its end, or to the time in which a training would have begun."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tempo_verl.cli.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, errors = process.communicate()
        errors += "\nno mistake was found"
    lines = [line for line in errors.splitlines() if line.strip()]
    verdict = "told"
    if "Traceback" in output + errors:
        verdict = "traceback"
    elif process.returncode != 2 or "no mistake was found" in errors:
        verdict = f"status {process.returncode}"
    elif len(lines) != 1 and "Usage:" not in errors:
        verdict = f"{len(lines)} lines"
    seconds = round(time.monotonic() - started, 1)
    return {"mistake": mistake, "verdict": verdict, "seconds": seconds, "told": lines[-1][:300] if lines else ""}


if __name__ == "__main__":
    typer.run(main)
