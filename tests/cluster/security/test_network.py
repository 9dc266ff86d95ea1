"""Who reaches the environment's pods, and whom these reach; pods that no policy selects show that the way is there."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from conftest import TRY, Cluster, request, site, wait_until
from kubernetes.stream import stream

OTHERS = "network-test"
MLFLOW = "mlflow-dev"
NODE = "10.250.0.1"
IMAGE = "localhost/mlflow:3.17.2"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1001,
    "seccompProfile": {"type": "RuntimeDefault"},
}

# Listens at ports until it is killed.
LISTEN = """
import socket, sys, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
servers = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
signal.pause()
"""


class Pod:
    """A pod that listens at some ports and tries to connect."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, labels: dict[str, str], *ports: int) -> None:
        self.core, self.namespace, self.name = cluster.core, namespace, name
        self.remove()
        wait_until(lambda: not self._listed(), 60, f"pod {name} of before is gone")
        container = {
            "name": "main",
            "image": IMAGE,
            "command": ["python", "-c", LISTEN, *map(str, ports)],
            "securityContext": RESTRICTED,
        }
        spec = {"containers": [container], "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1}
        self.core.create_namespaced_pod(namespace, {"metadata": {"name": name, "labels": labels}, "spec": spec})

    def _listed(self) -> list:
        return self.core.list_namespaced_pod(self.namespace, field_selector=f"metadata.name={self.name}").items

    def wait(self) -> None:
        """Wait until it runs."""
        wait_until(lambda: self._listed()[0].status.phase == "Running", 60, f"pod {self.name} runs")

    @property
    def address(self) -> str:
        return self._listed()[0].status.pod_ip

    def remove(self) -> None:
        if self._listed():
            self.core.delete_namespaced_pod(self.name, self.namespace, grace_period_seconds=1)

    def reaches(self, *targets: str) -> set[str]:
        """Those of the targets that accept a connection from it."""
        return reaches(self.namespace, self.name, *targets)


def reaches(namespace: str, pod: str, *targets: str) -> set[str]:
    """Those of the targets that accept a connection from a pod's first container."""
    # A client of its own: to run a command in a pod, the library changes the one it is given.
    connect = Cluster().core.connect_get_namespaced_pod_exec
    command = ["python", "-c", TRY, *targets]
    return set(stream(connect, pod, namespace, command=command, stdout=True, stderr=True, stdin=False).split())


@pytest.fixture(scope="module")
def namespace(cluster: Cluster) -> Iterator[str]:
    """Another namespace."""
    names = {item.metadata.name for item in cluster.core.list_namespace().items}
    if OTHERS not in names:
        cluster.core.create_namespace({"metadata": {"name": OTHERS}})
    yield OTHERS
    cluster.core.delete_namespace(OTHERS)


@pytest.fixture(scope="module")
def pods(cluster: Cluster, namespace: str) -> Iterator[dict[str, Pod]]:
    """A stranger in another namespace, another environment's services, and a pod beside MLflow that is nobody's."""
    labels = {"app.kubernetes.io/name": "postgres", "app.kubernetes.io/instance": "other"}
    pods = {
        "stranger": Pod(cluster, namespace, "stranger", {}),
        "others": Pod(cluster, "pgsql", "network-test-others", labels, 5432, 9000),
        "nobodys": Pod(cluster, MLFLOW, "network-test-nobodys", {}, 5000, 8080),
    }
    for pod in pods.values():
        pod.wait()
    yield pods
    for pod in pods.values():
        pod.remove()


@pytest.fixture
def node_port() -> Iterator[str]:
    """A listener on the node's own address."""
    with socket.create_server((NODE, 0)) as listener:
        yield f"{NODE}:{listener.getsockname()[1]}"


def server(cluster: Cluster) -> tuple[str, str]:
    """The name and the address of the server's pod."""
    [pod] = cluster.servers("dev")
    return pod.metadata.name, pod.status.pod_ip


def test_the_servers_pod_reaches_its_own_services_and_nothing_else(
    cluster: Cluster, pods: dict[str, Pod], node_port: str
) -> None:
    own = {"dev-postgres.pgsql.svc.cluster.local:5434", "minio-dev.pgsql.svc.cluster.local:9000", f"{MLFLOW}:5000"}
    others = {f"{pods['others'].address}:5432", f"{pods['others'].address}:9000"}
    beyond = {*others, node_port, f"{NODE}:6443", "10.96.0.1:443"}
    # With no policy, all of it is there.
    assert pods["nobodys"].reaches(*own, *beyond) == {*own, *beyond} - {f"{MLFLOW}:5000"}
    assert reaches(MLFLOW, server(cluster)[0], *own, *beyond) == own


def test_a_pod_of_another_namespace_reaches_no_pod_of_the_environment(cluster: Cluster, pods: dict[str, Pod]) -> None:
    beside = f"{pods['nobodys'].address}:5000"
    mlflow = {f"mlflow-dev.{MLFLOW}.svc.cluster.local:5000", f"{server(cluster)[1]}:5000"}
    assert pods["stranger"].reaches(beside, *mlflow) == {beside}
    # While clients outside of the cluster do.
    assert request("dev", "/health").status == 200


def test_it_is_the_policies_that_close_a_pod(cluster: Cluster, pods: dict[str, Pod], node_port: str) -> None:
    # What a Job of the environment would be: one that the same policies select.
    job, stranger = pods["nobodys"], pods["stranger"]
    own, beyond = "minio-dev.pgsql.svc.cluster.local:9000", {f"{pods['others'].address}:9000", node_port}
    assert job.reaches(own, *beyond) == {own, *beyond}
    assert stranger.reaches(f"{job.address}:5000", f"{job.address}:8080")
    labels = {"app.kubernetes.io/instance": "dev"}
    cluster.core.patch_namespaced_pod(job.name, MLFLOW, {"metadata": {"labels": labels}})
    try:
        wait_until(lambda: job.reaches(own, *beyond) == {own}, 60, "the policies apply to the pod")
        assert job.reaches(f"{MLFLOW}:5000") == {f"{MLFLOW}:5000"}
        assert not stranger.reaches(f"{job.address}:5000", f"{job.address}:8080")
    finally:
        labels = {"app.kubernetes.io/instance": None}
        cluster.core.patch_namespaced_pod(job.name, MLFLOW, {"metadata": {"labels": labels}})


def test_no_pod_has_a_token_of_the_api_server(cluster: Cluster) -> None:
    pods = cluster.core.list_namespaced_pod(MLFLOW, label_selector="app.kubernetes.io/instance=dev").items
    assert pods
    for pod in pods:
        assert pod.spec.service_account_name == "mlflow-dev"
        sources = [source for volume in pod.spec.volumes if volume.projected for source in volume.projected.sources]
        assert not [source for source in sources if source.service_account_token]


@pytest.mark.full
def test_a_namespace_is_let_in_by_its_name_and_without_policies_everybody_is(
    cluster: Cluster, pods: dict[str, Pod]
) -> None:
    mlflow = f"mlflow-dev.{MLFLOW}.svc.cluster.local:5000"

    def run(**variables: object) -> set[str]:
        done = site("dev", args=("--skip-tags", "mlflow_verification", "-e", json.dumps(variables)))
        assert done.status == 0, done.output
        return {item.metadata.name for item in cluster.networking.list_namespaced_network_policy(MLFLOW).items}

    before = {item.metadata.name for item in cluster.networking.list_namespaced_network_policy(MLFLOW).items}
    assert run(mlflow_server_allowed_namespaces=[OTHERS]) == before
    wait_until(lambda: pods["stranger"].reaches(mlflow), 60, "the namespace that is named is let in")
    # Other rules of what may be reached are another policy, and the one of before goes when the servers have changed.
    more = {"to": [{"ipBlock": {"cidr": f"{NODE}/32"}}], "ports": [{"protocol": "TCP", "port": 6443}]}
    assert len(run(mlflow_environment_extra_egress=[more]) - before) == 1
    wait_until(lambda: not pods["stranger"].reaches(mlflow), 60, "it is shut out again")
    assert reaches(MLFLOW, server(cluster)[0], f"{NODE}:6443")
    assert run(mlflow_environment_network_policies=False) == set()
    wait_until(lambda: pods["stranger"].reaches(mlflow), 60, "without a policy everybody is let in")
    assert run() == before
    wait_until(lambda: not pods["stranger"].reaches(mlflow), 60, "the policies are back")
