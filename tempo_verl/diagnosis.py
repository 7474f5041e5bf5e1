# SPDX-License-Identifier: Apache-2.0
"""``tempo-verl doctor``: the installation, and a run before it is started.

Every check is made and told, not the first alone that fails. Nothing is written, and no model is loaded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from tempo_verl.config.cluster import LOOPBACK, check_accelerators, running_cluster, training_device
from tempo_verl.doctor import check_plugin, check_versions, registered, versions
from tempo_verl.errors import Skipped, UserError

SECONDS = 180  # for a Ray to start, and a worker to import verl
STYLES = {"ok": "green", "failed": "red", "skipped": "yellow"}
WORDS = {"ok": "in order", "failed": "not in order", "skipped": "skipped"}


@dataclass(frozen=True)
class Finding:
    """What became of a check.

    Attributes:
        check: what was looked at.
        state: whether it is in order; ``skipped`` where it could not be looked at.
        told: one line: what was found; or what is wrong and the remedy; or why it was skipped.
    """

    check: str
    state: Literal["ok", "failed", "skipped"]
    told: str = ""


class Doctor:
    """Makes the checks.

    Args:
        ray: whether to start a small Ray on this machine for a moment.

    Attributes:
        findings: of the checks so far, in their order.
    """

    def __init__(self, ray: bool = True):
        self._ray = ray
        self._results: dict[str, Any] = {}
        self.findings: list[Finding] = []

    @property
    def well(self) -> bool:
        """Whether nothing failed."""
        return all(finding.state != "failed" for finding in self.findings)

    def installation(self) -> None:
        """Versions, and the plugin in this process and in a worker of Ray."""
        self._look("versions", check_versions)
        loaded = self._look("plugin", _in_driver)
        self._look("plugin in a Ray worker", partial(self._in_worker, loaded))

    def run(self, overrides: Sequence[str], run_dir: Path) -> None:
        """What ``tempo-verl train`` would check of this run, and the room for what it writes.

        Args:
            overrides: as of ``tempo-verl train``.
            run_dir: of the run, there or not.
        """
        # not at the top: the installation is looked at where these cannot be imported, too
        from tempo_verl.config.checks import SETTINGS
        from tempo_verl.config.preflight import MODELS, QUESTIONS
        from tempo_verl.config.resume import check_folder
        from tempo_verl.config.secrets import check_secrets
        from tempo_verl.config.space import check_disk, check_shared_memory

        if not self._look("configuration", partial(_compose, overrides, run_dir)):
            self.findings.append(Finding("the run", "skipped", "its configuration has to be mended first"))
            return
        config, method = self._results["configuration"]
        self._look("secrets", partial(check_secrets, config))
        self._look("run folder", partial(check_folder, run_dir, config))
        for name, look in SETTINGS:
            self._look(name, partial(look, config, method))
        self._look("GPUs of this machine", partial(self._gpus, config))
        for name, look_at in MODELS:
            self._look(name, partial(look_at, config))
        self._look("critic and policy", partial(_same_tokens, config))
        for name, about in QUESTIONS:
            if (questions := self._results.get("question files")) is None:
                self.findings.append(Finding(name, "skipped", "the question files have to be mended first"))
            else:
                self._look(name, partial(about, config, method, questions))
        self._look("disk", partial(check_disk, config))
        self._look("shared memory", partial(check_shared_memory, config))

    def _look(self, name: str, check: Callable[[], Any]) -> bool:
        """Make a check. Returns whether it is in order."""
        try:
            result = check()
        except UserError as error:
            known = any(finding.told == str(error) for finding in self.findings)
            self.findings.append(Finding(name, "skipped" if known else "failed", "as above" if known else str(error)))
            return False
        except Skipped as why:
            self.findings.append(Finding(name, "skipped", str(why)))
            return False
        except Exception as error:
            if self.well:
                raise
            # a check may rely on what another, which failed, looks at
            told = f"what failed above has to be mended first ({type(error).__name__})"
            self.findings.append(Finding(name, "skipped", told))
            return False
        self._results[name] = result
        self.findings.append(Finding(name, "ok", result if isinstance(result, str) else ""))
        return True

    def _in_worker(self, loaded: bool) -> str:
        if not self._ray:
            raise Skipped("--no-ray")
        if not loaded:
            raise Skipped("the plugin has to load here first")
        told, self._results["resources"] = ask_worker()
        return told

    def _gpus(self, config: DictConfig) -> str:
        """Where a run starts a Ray of its own; a running cluster was asked by ``check_ray``."""
        if (device := training_device(config)) == "cpu":
            raise Skipped("trainer.device=cpu")
        if running_cluster(config.ray_kwargs.get("ray_init", {}).get("address")) is not None:
            raise Skipped("the run joins a cluster, which was asked already")
        if (resources := self._results.get("resources")) is None:
            raise Skipped("no Ray was started")
        ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
        # that Ray was started with one CPU, the run's has more
        cpus = config.ray_kwargs.get("ray_init", {}).get("num_cpus") or os.cpu_count() or 1
        here = [{**resources, "CPU": cpus}]
        check_accelerators("this machine", here, config.trainer.nnodes, config.trainer.n_gpus_per_node, device)
        return f"{resources.get('NPU' if device == 'npu' else 'GPU', 0):g} here, {ranks} needed"


def _in_driver() -> str:
    check_plugin()
    from verl.plugin.platform import get_platform

    return f"{registered()}; platform: {get_platform().device_name}"


def ask_worker() -> tuple[str, dict[str, float]]:
    """What ``import verl`` brings into a worker of a Ray that is started for it, and what that Ray sees.

    It is started by a process of its own, and ends with it.

    Raises:
        UserError: Ray does not start or answer, or the worker has no plugin.
    """
    code = f"from {__name__} import in_ray; in_ray()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**LOOPBACK, **os.environ},
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise UserError(f"no worker of Ray answered within {SECONDS} s; see /tmp/ray/session_latest/logs") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # Ray takes its processes down
            process.wait(30)
    if process.returncode != 0:
        last = next((line for line in reversed(error.splitlines()) if line.strip()), "no output")
        raise UserError(f"Ray does not start here ({last.strip()}); see /tmp/ray/session_latest/logs")
    told, failed, resources = json.loads(out.splitlines()[-1])
    if failed:
        raise UserError(f"a worker of Ray does not have it ({failed}); install the same environment on every node")
    return told, resources


def in_ray() -> None:
    """Of the process that :func:`ask_worker` starts: print what a worker told, else why it failed, and resources."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        told, failed = ray.get(ray.remote(registered).remote()), None
    except ray.exceptions.RayTaskError as error:
        told, failed = None, str(error.cause).partition("\n")[0]
    finally:
        resources = ray.cluster_resources()
        ray.shutdown()
    print(json.dumps([told, failed, resources]))


def _compose(overrides: Sequence[str], run_dir: Path) -> tuple[DictConfig, Any]:
    """The configuration of the run, and its method."""
    from tempo_verl.config.composed import resolve_config
    from tempo_verl.config.schema import read_settings
    from tempo_verl.run import Run

    config = resolve_config([*Run(run_dir).overrides(), *overrides])
    return config, read_settings(config)


def _same_tokens(config: DictConfig) -> str:
    """The critic is given the policy's token ids."""
    from transformers import AutoTokenizer

    if not config.critic.enable:
        raise Skipped("no critic")
    vocabularies = []
    for options in (config.actor_rollout_ref.model, config.critic.model):
        path = str(options.get("tokenizer_path") or options.path)
        if not Path(path).is_dir():
            raise Skipped(f"{path} is no directory here")
        vocabularies.append(
            AutoTokenizer.from_pretrained(path, trust_remote_code=options.trust_remote_code).get_vocab()
        )
    if vocabularies[0] != vocabularies[1]:
        raise UserError(
            f"critic.model.path={config.critic.model.path}: its tokenizer is not that of the policy, whose token ids "
            "it has to read; start it from the same model, or use the critic that was trained with this policy"
        )
    return f"the same {len(vocabularies[0])} tokens"


def show(doctor: Doctor, console: Console) -> None:
    """Versions as a table, and a line for each check."""
    table = Table("package", "version", title="tempo-verl doctor")
    for package, number in versions().items():
        table.add_row(package, number)
    console.print(table)
    for finding in doctor.findings:
        console.print(WORDS[finding.state], style=STYLES[finding.state], end=": ")
        told = f"{finding.check}: {finding.told}" if finding.told else finding.check
        console.print(told, markup=False, highlight=False, soft_wrap=True)


def as_json(doctor: Doctor) -> str:
    """One object: ``ok``, ``versions`` by package, and ``checks``, each as :class:`Finding`."""
    checks = [asdict(finding) for finding in doctor.findings]
    return json.dumps({"ok": doctor.well, "versions": versions(), "checks": checks}, ensure_ascii=False)
