# SPDX-License-Identifier: Apache-2.0
"""The fields of a KubeRay RayJob that examples/cluster/kuberay.yaml uses; any other is refused.

Names and types are those of the RayJob definition of KubeRay v1.6.0 (Apache-2.0),
helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml. ``authOptions`` is there since v1.5.1,
``preRunningDeadlineSeconds`` since v1.6.0; with a token KubeRay asks for ``rayVersion``, at least 2.52.0.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Resources(Part):
    limits: dict[str, str]


class Mount(Part):
    name: str
    mountPath: str


class Container(Part):
    name: str
    image: str
    resources: Resources
    volumeMounts: list[Mount]


class Claim(Part):
    claimName: str


class EmptyDir(Part):
    medium: Literal["", "Memory"]


class Volume(Part):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class PodSpec(Part):
    containers: list[Container]
    volumes: list[Volume]


class Pod(Part):
    spec: PodSpec


class HeadGroup(Part):
    rayStartParams: dict[str, str]
    template: Pod


class WorkerGroup(Part):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=0)
    rayStartParams: dict[str, str]
    template: Pod


class AuthOptions(Part):
    mode: Literal["disabled", "token"]


class Cluster(Part):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class Spec(Part):
    entrypoint: str
    preRunningDeadlineSeconds: int = Field(gt=0)
    backoffLimit: int = Field(ge=0)
    shutdownAfterJobFinishes: bool
    rayClusterSpec: Cluster


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, Any]
    spec: Spec
