"""A rolling change at two replicas drops no request."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator

import pytest
from conftest import NODE_PORTS, Cluster, Run, play, wait_until
from load import Load
from test_durability import all_ready


def deploy(*args: str) -> Run:
    """The part of a deployment that starts servers."""
    run = play("playbooks/deploy.yml", "dev", args=("--tags", "mlflow_server", *args))
    assert run.status == 0, run.output
    return run


@pytest.fixture
def two_replicas() -> Iterator[None]:
    deploy("-e", "mlflow_server_replicas=2")
    yield
    deploy()


def test_a_server_that_ends_tells_its_clients_to_connect_anew(cluster: Cluster) -> None:
    [pod] = cluster.servers("dev")
    connection = http.client.HTTPConnection("localhost", NODE_PORTS["dev"], timeout=20)

    def told() -> bool:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        return answer.getheader("connection") == "close"

    assert not told()
    cluster.core.delete_namespaced_pod(pod.metadata.name, "mlflow-dev")
    wait_until(told, 60, "an answer says that the connection ends")
    wait_until(lambda: all_ready(cluster), 60, "another one is ready")


# In make test, rotations show the same.
@pytest.mark.full
def test_a_rolling_change_drops_no_request(cluster: Cluster, two_replicas: None) -> None:
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    loads = [
        Load("/health", 0.02),
        Load("/health", 0.05),
        Load("/api/2.0/mlflow/experiments/get?experiment_id=0", 0.5, password),
    ]
    for load in loads:
        load.start()
    time.sleep(2)
    run = deploy("-e", "mlflow_server_replicas=2", "-e", "mlflow_server_cpu_request=200m")
    time.sleep(10)
    for load in loads:
        load.over.set()
        load.join()
    print(f"rolling change: {run.seconds:.0f} s, requests sent {[load.sent for load in loads]}")
    assert run.changed > 0
    assert all(load.sent > 20 for load in loads)
    assert [load.failed for load in loads] == [[]] * len(loads)
