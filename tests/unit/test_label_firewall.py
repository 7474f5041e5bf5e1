# SPDX-License-Identifier: Apache-2.0
"""Read off the source: the E-step and the M-step have no path to the monitoring answers of D_U."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tempo_verl

PACKAGE = Path(tempo_verl.__file__).parent
CLASSES = {"TempoTrainer": "tempo_trainer.py", "OfficialRound": "official_round.py", "Predictions": "predict.py"}


def methods_of(tree: ast.Module, name: str) -> dict[str, ast.FunctionDef]:
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {node.name: node for node in found.body if isinstance(node, ast.FunctionDef)}


def own_attributes(node: ast.AST, context: type[ast.expr_context] = ast.Load) -> set[str]:
    """Names after ``self.`` in a piece of code."""
    return {
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.ctx, context)
        and isinstance(part.value, ast.Name)
        and part.value.id == "self"
    }


@pytest.fixture(scope="module")
def methods() -> dict[str, ast.FunctionDef]:
    trees = {name: ast.parse((PACKAGE / "trainer" / file).read_text()) for name, file in CLASSES.items()}
    return {name: body for class_, tree in trees.items() for name, body in methods_of(tree, class_).items()}


def reachable(methods: dict[str, ast.FunctionDef], start: str) -> set[str]:
    """Methods of the trainer that ``start`` may come to."""
    found, new = set(), {start}
    while new:
        found |= new
        new = {name for method in new for name in own_attributes(methods[method]) & methods.keys()} - found
    return found


@pytest.mark.parametrize("phase", ["_rollout", "_e_step", "_m_step", "_labeled_step", "_official_step", "_predict"])
def test_no_training_phase_comes_to_the_store(methods: dict[str, ast.FunctionDef], phase: str) -> None:
    within = reachable(methods, phase)
    assert len(within) > 3
    assert "_monitor" not in within
    assert not any("monitor" in own_attributes(methods[name]) for name in within)


def test_the_store_is_made_once_and_read_in_one_place(methods: dict[str, ast.FunctionDef]) -> None:
    assert {name for name, body in methods.items() if "monitor" in own_attributes(body, ast.Store)} == {
        "_init_dataloader"
    }
    assert {name for name, body in methods.items() if "monitor" in own_attributes(body)} == {"_monitor"}
    assert {name for name, body in methods.items() if "_monitor" in own_attributes(body)} == {"step"}


def test_monitoring_comes_after_the_update(methods: dict[str, ast.FunctionDef]) -> None:
    calls = {
        node.func.attr: node.lineno
        for node in ast.walk(methods["step"])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert calls["_m_step"] < calls["_monitor"]
    # what it finds goes into the metrics and is handed to nobody
    returned = [
        node for node in ast.walk(methods["_monitor"]) if isinstance(node, ast.Return) and node.value is not None
    ]
    assert returned == []
    assert own_attributes(methods["_monitor"], ast.Store) == set()


def test_only_the_trainer_knows_the_store() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "MonitorStore" in path.read_text() or "monitoring_answers" in path.read_text()
    }
    assert importers == {"data/monitor.py", "data/streams.py", "trainer/tempo_trainer.py"}


def test_the_trainer_never_names_a_ground_truth() -> None:
    for path in (PACKAGE / "trainer").glob("*.py"):
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not {"ground_truth", "reward_model"} & constants, path
