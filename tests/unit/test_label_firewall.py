# SPDX-License-Identifier: Apache-2.0
"""What a method is handed leads to no answer of D_U: the firewall is how the parts are built, not a list of names."""

from __future__ import annotations

import ast
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fields import method_of

import tempo_verl
from tempo_verl.data.monitor import Monitor, verdicts
from tempo_verl.data.streams import Answer, Streams
from tempo_verl.methods import Plan, Round
from tempo_verl.trainer.batch import of_keys
from tempo_verl.trainer.critic import Critic
from tempo_verl.trainer.log import Log
from tempo_verl.trainer.policy import Policy
from tempo_verl.trainer.port import Port
from tempo_verl.trainer.replay import Replay
from tempo_verl.trainer.watch import Watch

PACKAGE = Path(tempo_verl.__file__).parent
SECRET = "the answer 4711"


class Rows(list):
    """A dataset of one question with its answer."""

    def __init__(self):
        super().__init__([{"raw_prompt": "?", "reward_model": {"ground_truth": SECRET}, "index": 0}])


def reachable(start: Any) -> list[Any]:
    """Everything that is held, directly or not: attributes, items, entries. Functions are opaque."""
    found, waiting = [], [start]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type) or callable(value):
            continue
        seen.add(id(value))
        found.append(value)
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += list(value)
        else:
            waiting += list(vars(value).values()) if hasattr(value, "__dict__") else []
    return found


class VerlTrainer(SimpleNamespace):
    """The members of verl's trainer that the port takes."""

    def __getattr__(self, name: str):
        if name.startswith(("_", "on_")):
            return lambda *args, **options: None
        raise AttributeError(name)


@pytest.fixture
def parts(compose) -> tuple[VerlTrainer, Round]:
    """A trainer that holds streams and monitor, and a round as it makes one."""
    method = method_of(unlabeled__batch_size=1)
    streams, answers = Streams.build(
        method, Rows(), None, Watch(method.settings.alarms, method.settings.calibration.gate, method.settings.guard)
    )
    trainer = VerlTrainer(
        config=compose(), tokenizer=None, use_critic=True, use_reference_policy=False, critic_wg=object(),
        actor_rollout_wg=object(), checkpoint_manager=object(),
        replay_buffer=SimpleNamespace(collect=lambda: None, wait=lambda: None, first_error=str),
        streams=streams, monitor=Monitor(answers),
    )  # fmt: skip
    port, log = Port(trainer), Log()
    samples = of_keys("train", [("unlabeled-0-0_0_0", {})])
    critic, policy = Critic(port, method, Replay(1, 1), 1, log), Policy(port, method, log)
    return trainer, Round(1, Plan(True, True), None, samples, critic, policy, log)


def test_nothing_in_reach_of_a_round_holds_an_answer(parts: tuple[VerlTrainer, Round]) -> None:
    trainer, round = parts
    assert any(isinstance(value, Answer) and value.ground_truth == SECRET for value in reachable(trainer))
    held = reachable(round)
    assert any(isinstance(value, Port) for value in held)
    assert SECRET not in [value for value in held if isinstance(value, str)]
    assert not any(isinstance(value, Monitor | Answer | Rows | Streams | VerlTrainer | Future) for value in held)


def test_what_the_monitor_finds_during_the_update_is_out_of_its_reach(parts: tuple[VerlTrainer, Round]) -> None:
    trainer, round = parts
    checks = trainer.monitor.begin(round.unlabeled.meta.keys, lambda: lambda row: SECRET)
    assert verdicts(checks, round.unlabeled.meta.keys).tolist() == [1.0]
    assert any(isinstance(value, Future) for value in reachable(checks))
    held = reachable(round)
    assert not any(isinstance(value, Future) for value in held)
    assert SECRET not in [value for value in held if isinstance(value, str)]


def test_methods_import_neither_verl_nor_ray_nor_the_trainer() -> None:
    for path in (PACKAGE / "methods").glob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
        for module in imported:
            assert module.split(".")[0] not in {"verl", "ray", "transfer_queue", "tensordict"}, path
            assert not module.startswith(("tempo_verl.trainer", "tempo_verl.data", "tempo_verl.backends")), path


def test_monitoring_comes_after_the_update() -> None:
    tree = ast.parse((PACKAGE / "trainer" / "trainer.py").read_text())
    (step,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "step"]
    calls = {ast.unparse(node.func): node.lineno for node in ast.walk(step) if isinstance(node, ast.Call)}
    # checks begin in processes of their own before it; what they find is nowhere but in what ``begin`` returns
    assert calls["self.monitor.begin"] < calls["self.method.step"] < calls["verdicts"] < calls["self.monitor.metrics"]
    (handed,) = [node for node in ast.walk(step) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Round"]
    assert "checks" not in ast.unparse(handed)
    read = [node.lineno for node in ast.walk(step) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
            and node.id == "checks"]  # fmt: skip
    assert read == [calls["verdicts"]]


def test_only_the_trainer_knows_the_monitor() -> None:
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "import Monitor" in path.read_text() or "monitoring_answers" in path.read_text()
    }
    assert importers == {"data/streams.py", "trainer/trainer.py"}


def test_the_trainer_never_names_a_ground_truth() -> None:
    for folder in ("trainer", "methods"):
        for path in (PACKAGE / folder).glob("*.py"):
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not {"ground_truth", "reward_model"} & constants, path


def test_one_module_talks_to_transfer_queue_and_one_to_verls_trainer() -> None:
    def users(name: str) -> set[str]:
        return {
            path.relative_to(PACKAGE).as_posix()
            for path in PACKAGE.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if (isinstance(node, ast.Import) and any(alias.name.startswith(name) for alias in node.names))
            or (isinstance(node, ast.ImportFrom) and str(node.module).startswith(name))
        }

    assert users("transfer_queue") == {"trainer/batch.py"}
    assert users("verl.trainer.ppo") == {
        "config/preflight.py", "doctor.py", "trainer/arrivals.py", "trainer/correction.py", "trainer/port.py",
        "trainer/trainer.py",
    }  # fmt: skip
