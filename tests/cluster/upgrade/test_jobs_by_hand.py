"""Copies of the Job that a run leaves behind, started by hand under other names."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import pytest
from conftest import Cluster, site, wait_until
from old_objects import NAME, NAMESPACE
from old_release import restart
from reading import differences, read_outside

pytestmark = pytest.mark.full


@functools.cache
def manifest(cluster: Cluster) -> dict:
    """What the Job of a run that upgraded was made of, without what names it."""
    restart(cluster)
    run = site("dev")
    assert run.status == 0, run.output
    jobs = [
        job
        for job in cluster.batch.list_namespaced_job(NAMESPACE).items
        if "upgrade" in job.spec.template.spec.containers[0].command
    ]
    template = cluster.api.sanitize_for_serialization(jobs[-1].spec.template)
    template["metadata"] = {"labels": {"app.kubernetes.io/name": "by-hand"}}
    return {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimit": 0, "template": template}}


@pytest.fixture
def before(cluster: Cluster) -> dict[str, Any]:
    """An old release whose databases belong to the migrator, stopped; what its own client reads."""
    manifest(cluster)
    before = restart(cluster)
    run = site("dev", args=("--tags", "mlflow_database"))
    assert run.status == 0, run.output
    cluster.apps.patch_namespaced_deployment_scale(NAME, NAMESPACE, {"spec": {"replicas": 0}})
    return before


def test_of_two_at_once_one_upgrades_and_the_other_waits(cluster: Cluster, before: dict[str, Any]) -> None:
    names = ("by-hand-one", "by-hand-other")
    for name in names:
        cluster.batch.create_namespaced_job(NAMESPACE, manifest(cluster) | {"metadata": {"name": name}})
    pods = [ended_pod(cluster, name) for name in names]
    assert [pod.status.phase for pod in pods] == ["Succeeded", "Succeeded"]
    logs = [cluster.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE) for pod in pods]
    reports = [json.loads(log.splitlines()[-1]) for log in logs]
    assert sorted(report["changed"] for report in reports) == [False, True]
    assert [report["tracking"]["state"] for report in reports] == ["current", "current"]
    assert [log for log in logs if "Traceback" in log] == []
    run = site("dev")
    assert run.status == 0, run.output
    assert differences(before, read_outside(cluster)) == []


def test_a_wrong_password_is_told_within_ten_seconds(cluster: Cluster, before: dict[str, Any]) -> None:
    job = copy.deepcopy(manifest(cluster)) | {"metadata": {"name": "wrong-password"}}
    pod = job["spec"]["template"]["spec"]
    for container in pod["initContainers"] + pod["containers"]:
        for variable in container.get("env", []):
            if variable["name"] == "PGPASSWORD":
                variable.pop("valueFrom")
                variable["value"] = "a-wrong-password"
    cluster.batch.create_namespaced_job(NAMESPACE, job)
    ended = ended_pod(cluster, "wrong-password").status.init_container_statuses[0].state.terminated
    print(f"after {(ended.finished_at - ended.started_at).total_seconds():.0f} s: {ended.message}")
    assert ended.exit_code == 13
    assert (ended.finished_at - ended.started_at).total_seconds() <= 10
    assert "refuses role mlflow_migrator" in ended.message
    assert "a-wrong-password" not in ended.message


def ended_pod(cluster: Cluster, job: str) -> Any:
    """The pod of a Job, when it has ended."""

    def ended() -> list[Any]:
        pods = cluster.core.list_namespaced_pod(NAMESPACE, label_selector=f"job-name={job}").items
        return [pod for pod in pods if pod.status.phase in ("Succeeded", "Failed")]

    wait_until(ended, 180, f"the Job {job} ends")
    return ended()[0]
