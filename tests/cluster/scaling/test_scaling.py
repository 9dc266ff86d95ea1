"""Replicas come and go with the load, and what an administrator does takes no more than one at a time."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cluster, Run, play, site, wait_until
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from load import Load
from metrics_server import MetricsServer

NAME, NAMESPACE = "mlflow-dev", "mlflow-dev"
# One core a pod, of which it uses more than a fifth as soon as somebody asks it something.
SMALL = ("-e", "mlflow_server_cpu_limit=1", "-e", "mlflow_server_target_cpu_percent=20")
UP_TO_TWO = (*SMALL, "-e", "mlflow_server_max_replicas=2")
TWO = (*SMALL, "-e", "mlflow_server_replicas=2")
SERVER = ("--tags", "mlflow_server")


@contextmanager
def load(*threads: Load) -> Iterator[None]:
    """Ask while something happens. None may fail."""
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.over.set()
            thread.join()
    assert all(thread.sent > 20 for thread in threads)
    assert [thread.failed for thread in threads] == [[] for _ in threads]


class Replicas(threading.Thread):
    """Watches how many replicas the Deployment is told to have, each time that it changes."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.cluster, self.seen, self.over = cluster, [], threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            self.seen.append(replicas(self.cluster))

    def __enter__(self) -> Replicas:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.over.set()
        self.join()


def replicas(cluster: Cluster) -> int:
    return cluster.apps.read_namespaced_deployment(NAME, NAMESPACE).spec.replicas


def ready(cluster: Cluster) -> int:
    """Ready pods that nobody has told to go."""
    return sum(
        any(state.type == "Ready" and state.status == "True" for state in pod.status.conditions)
        for pod in cluster.servers("dev")
    )


def made(cluster: Cluster) -> set[str]:
    """Which of the kinds that scaling can make are there."""
    budgets = client.PolicyV1Api(cluster.api).list_namespaced_pod_disruption_budget(NAMESPACE).items
    scalers = client.AutoscalingV2Api(cluster.api).list_namespaced_horizontal_pod_autoscaler(NAMESPACE).items
    return {"budget" for _ in budgets} | {"autoscaler" for _ in scalers}


def green(run: Run) -> Run:
    assert run.status == 0, run.output
    print(f"{run.seconds:.0f} s, changed={run.changed}")
    return run


@pytest.fixture(scope="module", autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    green(site("dev", args=SERVER))


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetricsServer]:
    server = MetricsServer(tmp_path_factory.mktemp("metrics"))
    yield server
    server.end()


def evict(cluster: Cluster, pod: str) -> int:
    """Ask the API to let a pod go, as kubectl drain does; the HTTP status of the answer."""
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod, namespace=NAMESPACE))
    try:
        cluster.core.create_namespaced_pod_eviction(pod, NAMESPACE, body)
    except ApiException as error:
        return error.status
    return 201


def test_without_the_metrics_server_an_autoscaler_is_refused_before_anything_changes(cluster: Cluster) -> None:
    before = cluster.resource_versions("dev")
    run = site("dev", args=UP_TO_TWO)
    assert run.status != 0
    assert "mlflow_server_max_replicas needs PodMetrics (metrics.k8s.io/v1beta1)" in run.output
    assert "expected a cluster with the metrics-server" in run.output
    assert cluster.resource_versions("dev") == before


def test_under_load_there_is_one_more_and_the_next_run_keeps_it(cluster: Cluster, metrics: MetricsServer) -> None:
    assert "changed" in site("dev", args=(*UP_TO_TWO, *SERVER, "--check")).output
    assert made(cluster) == set()
    green(site("dev", args=(*UP_TO_TWO, *SERVER)))
    assert (made(cluster), replicas(cluster)) == ({"budget", "autoscaler"}, 1)
    password, start = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"], time.monotonic()
    asking = [Load("/api/2.0/mlflow/experiments/get?experiment_id=0", 0.01, password) for _ in range(4)]
    with load(*asking):
        wait_until(lambda: replicas(cluster) == 2, 120, "the autoscaler starts a second pod")
        print(f"second pod wanted after {time.monotonic() - start:.0f} s, {sum(each.sent for each in asking)} requests")
        wait_until(lambda: ready(cluster) == 2, 60, "the second pod is ready")
        print(f"and ready after {time.monotonic() - start:.0f} s")
    with Replicas(cluster) as watched, load(Load("/health", 0.05)):
        assert green(site("dev", args=(*UP_TO_TWO, *SERVER))).changed == 0
        assert green(site("dev", args=(*UP_TO_TWO, *SERVER, "--check"))).changed == 0
    assert set(watched.seen) == {2}


def test_a_node_that_is_drained_gets_one_pod_at_a_time(cluster: Cluster, metrics: MetricsServer) -> None:
    pods = [pod.metadata.name for pod in cluster.servers("dev")]
    assert len(pods) == 2
    with load(Load("/health", 0.05)):
        assert [evict(cluster, pod) for pod in pods] == [201, 429]
        wait_until(lambda: ready(cluster) == 2, 60, "another pod has taken its place")
    assert pods[1] in [pod.metadata.name for pod in cluster.servers("dev")]


@pytest.mark.full
def test_replicas_stay_when_the_autoscaler_goes_and_when_it_comes(cluster: Cluster, metrics: MetricsServer) -> None:
    with Replicas(cluster) as watched:
        green(site("dev", args=(*TWO, *SERVER)))
        assert made(cluster) == {"budget"}
        planned = green(site("dev", args=(*UP_TO_TWO, *SERVER, "--check", "--diff")))
        assert not re.search(r'^[-+]\s+"?replicas"?:', planned.output, re.MULTILINE)
        green(site("dev", args=(*UP_TO_TWO, *SERVER)))
        assert made(cluster) == {"budget", "autoscaler"}
        # Of a number that nobody has set any more, Kubernetes makes 1 at once.
        time.sleep(2)
    assert set(watched.seen) == {2}


def test_argo_cd_is_told_no_number_either(metrics: MetricsServer, tmp_path: Path) -> None:
    repository = {"repository": tmp_path, "repository_url": "https://git.example.com/deployments.git"}
    written = [word for name, value in repository.items() for word in ("-e", f"mlflow_gitops_{name}={value}")]
    green(play("playbooks/render.yml", "dev", args=(*UP_TO_TWO, *written)))
    objects = [yaml.safe_load(file.read_text()) for file in tmp_path.rglob("*.yaml")]
    by_kind = {item["kind"]: item["spec"] for item in objects if "spec" in item}
    assert "replicas" not in by_kind["Deployment"]
    assert by_kind["HorizontalPodAutoscaler"]["maxReplicas"] == 2
    # An Application that held the number until now would otherwise leave one replica.
    application = by_kind["ApplicationSet"]["template"]["spec"]
    [ignored] = application["ignoreDifferences"]
    assert (ignored["kind"], ignored["jsonPointers"]) == ("Deployment", ["/spec/replicas"])
    assert "RespectIgnoreDifferences=true" in application["syncPolicy"]["syncOptions"]
    allowed = {entry["kind"] for entry in by_kind["AppProject"]["namespaceResourceWhitelist"]}
    assert {"HorizontalPodAutoscaler", "PodDisruptionBudget"} <= allowed


def test_every_pod_runs_on_the_nodes_that_are_meant(tmp_path: Path) -> None:
    where = {"nodeSelector": {"pool": "mlflow"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]}
    settings = {
        "mlflow_server_node_selector": where["nodeSelector"],
        "mlflow_server_tolerations": where["tolerations"],
        "mlflow_backup_schedule": "0 3 * * *",
        "mlflow_gc_schedule": "0 4 * * *",
        "mlflow_gitops_repository": str(tmp_path),
        "mlflow_gitops_repository_url": "https://git.example.com/deployments.git",
    }
    green(play("playbooks/render.yml", "dev", args=("-e", json.dumps(settings))))
    pods: dict[str, list[dict[str, Any]]] = {}
    for file in tmp_path.rglob("*.yaml"):
        found = yaml.safe_load(file.read_text())
        spec = found.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template", {"spec": spec})
        if "containers" in template["spec"]:
            pods.setdefault(found["kind"], []).append(template["spec"])
    # The servers, the schema's hook, backups and clean-ups.
    assert {kind: len(found) for kind, found in pods.items()} == {"Deployment": 1, "Pod": 1, "CronJob": 2}
    specs = [spec for found in pods.values() for spec in found]
    assert [{name: spec.get(name) for name in where} for spec in specs] == [where] * 4


def test_without_several_replicas_nothing_of_it_is_left(cluster: Cluster) -> None:
    green(site("dev", args=SERVER))
    assert (made(cluster), replicas(cluster)) == (set(), 1)
