# SPDX-License-Identifier: Apache-2.0
"""The launchers of examples/cluster with real Ray clusters of several nodes: one process of the training is on each.

Two nodes of a Ray job have two loopback addresses of this machine. Three nodes under Slurm are network namespaces, with
nothing but an interface of their own; a stand-in for ``srun`` runs the tasks in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
PATIENCE = 1500  # seconds that a command may take on a busy machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, for the sockets of a Ray."""
    with tempfile.TemporaryDirectory(prefix="tv", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def environment(tmp_path: Path, short: Path, tiny_task: Path, tiny_policy: Path) -> dict[str, str]:
    """Of the launchers and of Ray's nodes: 6 logical CPUs each, whatever this machine has."""
    for name in ("placement", "home"):
        (tmp_path / name).mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "PYTEST_"))}
    return {
        **kept,
        "HOME": str(tmp_path / "home"),  # where Ray would look for a token of the user's
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "PLACEMENT": str(tmp_path / "placement"),
        "LABELED": str(tiny_task / "labeled.parquet"),
        "UNLABELED": str(tiny_task / "unlabeled.parquet"),
        "MODEL": str(tiny_policy),
        "OUT": str(tmp_path / "out"),
        "NODES": "2",
        "GPUS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(16).hex(),
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 6}),
        "RAY_TMPDIR": str(short),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    }


@pytest.fixture
def overrides(tiny_critic: Path) -> list[str]:
    """One round of the tiny task, on the cluster that is there."""
    return [
        "hardware=cpu",
        "ray_kwargs.ray_init.address=null",
        "ray_kwargs.ray_init.num_cpus=null",
        "ray_kwargs.ray_init.num_gpus=null",
        "actor_rollout_ref.model.external_lib=placement",
        f"critic.model.path='{tiny_critic}'",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=12",
        "data.max_prompt_length=16",
        "data.max_response_length=24",
        "tempo.rounds=1",
        "tempo.labeled.batch_size=12",
        "tempo.calibration.mini_batch_size=12",
        "tempo.unlabeled.batch_size=12",
    ]


def run(*command: str | Path, environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output; what is left of it after PATIENCE seconds is killed with its group."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def trained_on(environment: dict[str, str]) -> list[str]:
    """Addresses of the nodes of the training's ranks, no two of which are on one node."""
    ranks = sorted(Path(environment["PLACEMENT"]).iterdir())
    assert [path.name for path in ranks] == [str(rank) for rank in range(len(ranks))]
    nodes = [path.read_text().split() for path in ranks]
    assert len({node for node, _ in nodes}) == len(nodes)
    (metrics,) = Path(environment["OUT"]).rglob("metrics.jsonl")
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == [1]
    assert (Path(environment["OUT"]) / "report.html").is_file()
    return sorted(address for _, address in nodes)


# ---------------------------------------------------------------------- ray job submit


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def dashboard(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """Address of the dashboard of a Ray cluster of two nodes."""
    port, dashboard, client = (_free_port() for _ in range(3))
    nodes = [
        ["--head", "--node-ip-address=127.0.0.2", f"--port={port}", "--dashboard-host=127.0.0.1",
         f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"],
        [f"--address=127.0.0.2:{port}", "--node-ip-address=127.0.0.3"],
    ]  # fmt: skip
    common = [
        "--num-gpus=1",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--object-store-memory=200000000",
        "--block",
    ]
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = []
    try:
        with (tmp_path / "ray.log").open("w") as log:
            for options in nodes:
                agent = f"--dashboard-agent-listen-port={_free_port()}"
                command = ["ray", "start", *options, agent, *common]
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                _wait_for(f"127.0.0.2:{port}", len(processes), environment, tmp_path / "ray.log")
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        for process in reversed(processes):
            process.terminate()  # it takes its Ray down
            process.wait(60)


def _wait_for(address: str, nodes: int, environment: dict[str, str], log: Path) -> None:
    for _ in range(60):
        status = subprocess.run(
            ["ray", "status", f"--address={address}"], env=environment, capture_output=True, text=True, check=False
        )
        if status.stdout.count("\n 1 node_") >= nodes:
            return
        time.sleep(2)
    pytest.fail(f"not {nodes} Ray nodes at {address}: {status.stderr}\n{log.read_text()}")


def test_a_ray_job_trains_on_two_nodes_and_succeeds(
    dashboard: str, environment: dict[str, str], overrides: list[str]
) -> None:
    environment = environment | {"DASHBOARD": dashboard}
    status, output = run("bash", CLUSTER / "ray_job.sh", *overrides, environment=environment | {"NODES": "3"})
    assert status == 1, output
    assert "has only 2 of 3 nodes (trainer.nnodes) with 1 GPUs" in output
    assert "127.0.0.3: 1 GPUs, 6 CPUs" in output
    assert not Path(environment["OUT"]).exists()

    status, output = run("bash", CLUSTER / "ray_job.sh", *overrides, environment=environment)
    assert status == 0, output
    assert "succeeded" in output
    assert trained_on(environment) == ["127.0.0.2", "127.0.0.3"]


# ---------------------------------------------------------------------- nodes with interfaces of their own

NAMES = [f"tempo-verl-{os.getpid()}-{i}" for i in range(3)]
ADDRESSES = ["198.18.77.1", "198.18.77.2", "198.18.77.3"]  # of a range that is set aside for tests of networks
# Each node has a folder of its own for its Ray, as on a disk of its own. A task that fails ends the others, as
# --kill-on-bad-exit has it.
SRUN = f"""#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
[[ $1 != hostname ]] || {{ echo {ADDRESSES[0]}; exit; }}
names=({" ".join(NAMES)})
for i in "${{!names[@]}}"; do
    mkdir -p "$RAY_TMPDIR/$i"
    SLURM_NODEID=$i ip netns exec "${{names[i]}}" \\
        bash -c 'mount --bind "$RAY_TMPDIR/$SLURM_NODEID" "$RAY_TMPDIR" && exec "$@"' task "$@" &
done
for _ in "${{names[@]}}"; do wait -n || {{ kill $(jobs -p); wait; exit 1; }}; done
"""


def _ip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


def _processes(name: str) -> list[int]:
    return [int(pid) for pid in _ip("netns", "pids", name).stdout.split()]


def left_on(name: str) -> list[str]:
    """Commands that still run in a namespace after a minute, in which Ray's agents notice that their Ray has ended."""
    for _ in range(60):
        if not (left := _processes(name)):
            return []
        time.sleep(1)
    return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in left]


@pytest.fixture
def hosts(environment: dict[str, str], tmp_path: Path) -> Iterator[list[str]]:
    """Three network namespaces on a switch, which is one too, and a ``srun`` that runs one task in each."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` on PATH (Debian's iproute2)")
    switch, made = f"tempo-verl-{os.getpid()}-switch", []
    try:
        for name in (switch, *NAMES):
            if (done := _ip("netns", "add", name)).returncode:
                pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")
            made.append(name)
        if (done := _ip("-n", switch, "link", "add", "bridge", "type", "bridge")).returncode:
            pytest.skip(f"virtual interfaces are not permitted here: {done.stderr.strip()}")
        commands = [f"-n {switch} link set bridge up"]
        for port, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
            commands += [
                f"link add eth0 netns {name} type veth peer name port{port} netns {switch}",
                f"-n {switch} link set port{port} master bridge up",
                f"-n {name} addr add {address}/24 dev eth0",
                f"-n {name} link set eth0 up",
                f"-n {name} link set lo up",
                # Ray finds a node's own address by a route to elsewhere
                f"-n {name} route add default dev eth0",
            ]
        for command in commands:
            done = _ip(*command.split())
            assert done.returncode == 0, f"ip {command}: {done.stderr}"
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/srun").write_text(SRUN)
        (tmp_path / "bin/srun").chmod(0o755)
        environment |= {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}",
            "GLOO_SOCKET_IFNAME": "eth0",
            "SLURM_SUBMIT_DIR": str(CLUSTER),
            "SLURM_NNODES": "3",
            "SLURM_CPUS_PER_TASK": "1",
        }
        yield NAMES
    finally:
        for name in made:
            for pid in _processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "delete", name)


def test_slurm_trains_on_three_nodes_with_addresses_of_their_own(
    hosts: list[str], environment: dict[str, str], overrides: list[str]
) -> None:
    del environment["RAY_AUTH_TOKEN"]  # it makes one
    status, output = run("bash", CLUSTER / "slurm.sbatch", *overrides, environment=environment | {"WAIT": "600"})
    assert status == 0, output
    assert trained_on(environment) == ADDRESSES
    assert [left_on(name) for name in hosts] == [[], [], []]


def test_a_node_that_does_not_come_is_told(hosts: list[str], environment: dict[str, str]) -> None:
    more = {"NODE_RANK": "0", "HEAD": ADDRESSES[0], "WAIT": "60"}
    status, output = run("ip", "netns", "exec", hosts[0], "bash", CLUSTER / "node.sh", environment=environment | more)
    assert status == 1, output
    assert f"only 1 of 2 nodes joined the Ray cluster at {ADDRESSES[0]}:6379 after 60 s" in output
    assert left_on(hosts[0]) == []
