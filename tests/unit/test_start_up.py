# SPDX-License-Identifier: Apache-2.0
"""What ``tempo-verl train`` does before it trains: how little it imports, and what a mistake leaves behind."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tempo_verl.config.composed import resolve_config
from tempo_verl.errors import UserError
from tempo_verl.launch import Run, run_training
from tempo_verl.lazy import import_lazily, is_waiting
from tempo_verl.run import LOCK

IMPORTED = """
import sys
from tempo_verl.cli.main import main
from tempo_verl.lazy import is_waiting

sys.argv = ["tempo-verl", "train", "tempo.rounds=-1"]
try:
    main()
except SystemExit:
    print(is_waiting("torch"), sorted({"verl", "transformers", "sklearn", "scipy", "pandas"} & set(sys.modules)))
"""


@pytest.fixture
def lazy_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package that was imported lazily; its file ``ran`` appears once its code runs."""
    package = tmp_path / "waits_for_use"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nvalue = 3\n")
    (package / "part.py").write_text("import waits_for_use\nvalue = waits_for_use.value + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_lazily(package.name)
    yield package.name
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


def test_a_mistake_in_a_setting_is_told_without_torch_and_verl(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "tempo-verl: tempo.rounds=-1 must be at least 1\n"
    assert done.stdout == "True []\n"


def test_a_lazy_module_runs_once_it_is_used(lazy_module: str, tmp_path: Path) -> None:
    waits_for_use = importlib.import_module(lazy_module)
    assert is_waiting(lazy_module)
    assert not (tmp_path / "ran").exists()
    assert waits_for_use.value == 3
    assert not is_waiting(lazy_module)
    assert type(waits_for_use) is types.ModuleType
    with pytest.raises(AttributeError):
        _ = waits_for_use.nothing


def test_a_part_of_a_lazy_package_loads_the_package(lazy_module: str) -> None:
    part = importlib.import_module(f"{lazy_module}.part")
    assert part.value == 4
    assert not is_waiting(lazy_module)


def test_a_lazy_module_that_fails_fails_at_every_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_when_used.py").write_text("raise RuntimeError('broken')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_lazily("breaks_when_used")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            _ = importlib.import_module("breaks_when_used").value


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tempo.round=3", "tempo.round=3: there is no such setting; did you mean tempo.rounds? (+tempo.round=3 would"),
        ("trainer.savefreq=2", "did you mean trainer.save_freq?"),
        ("actor_rollout_ref.actor.lr=1", "did you mean actor_rollout_ref.actor.optim.lr?"),
        ("=3", "must be a string or a list"),
        ("nothing.like.it=2", "nothing.like.it=2: there is no such setting (+nothing.like.it=2 would add it)"),
    ],
)
def test_a_setting_that_there_is_not_is_told_with_the_nearest(override: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_config(["hardware=cpu", override])
    assert told in str(caught.value)


def test_a_model_that_is_refused_leaves_the_folder_as_it_was(compose, tiny_policy: Path, tmp_path: Path) -> None:
    """The models are looked at in the process that would train."""
    valid = compose()
    overrides = [
        "hardware=cpu",
        "tempo.rounds=2",
        f"tempo.labeled.files='{valid.tempo.labeled.files}'",
        f"tempo.unlabeled.files='{valid.tempo.unlabeled.files}'",
        "tempo.labeled.batch_size=8",
        "tempo.unlabeled.batch_size=4",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        f"actor_rollout_ref.model.path='{tiny_policy}'",
        f"critic.model.path='{tiny_policy}'",
    ]
    fresh, used = Run(tmp_path / "fresh"), Run(tmp_path / "used")
    used.log.parent.mkdir(parents=True)
    used.log.write_text("ValueError: of an earlier run\n")
    used.metrics.write_text("{}\n")
    used.status.write_text(json.dumps({"state": "failed", "error": "of an earlier run"}))
    before = {path: path.read_bytes() for path in used.folder.rglob("*") if path.is_file()}
    for run in (fresh, used):
        with pytest.raises(UserError, match=rf"^critic\.model\.path={tiny_policy}: no trained value head"):
            run_training(
                run, overrides, Console(quiet=True), title="training", ended=lambda seconds: pytest.fail("began")
            )
    assert not fresh.folder.exists()
    found = {path: path.read_bytes() for path in used.folder.rglob("*") if path.is_file() and path.name != LOCK}
    assert found == before
