# SPDX-License-Identifier: Apache-2.0
"""A Ray that a run starts for itself is reached from this machine only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from ipaddress import ip_address

from tempo_verl.config.cluster import LOOPBACK, loopback

SCRIPT = """
import json, psutil, ray

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
told = ray.get(ray.remote(lambda: ray.util.get_node_ip_address()).remote())  # what TransferQueue binds to
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
found = [at.laddr.ip for process in processes for at in process.net_connections() if at.status == psutil.CONN_LISTEN]
ray.shutdown()
print(json.dumps([told, found]))
"""


def test_nothing_of_a_local_ray_listens_elsewhere() -> None:
    environment = {**os.environ, **LOOPBACK}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    told, found = json.loads(done.stdout.splitlines()[-1])
    addresses = [ip_address(text) for text in (told, *found)]
    assert len(found) > 5
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses), addresses


def test_a_run_that_joins_a_cluster_is_left_alone(compose) -> None:
    assert loopback(compose()) == LOOPBACK
    assert loopback(compose(["ray_kwargs.ray_init.address=auto"])) == {}
    assert loopback(compose(["hardware=fsdp"])) == {}
