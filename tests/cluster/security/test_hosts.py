"""By which names and addresses MLflow lets itself be called: a page of somebody else's must not pass for it."""

from __future__ import annotations

import pytest
import urllib3
from conftest import NODE_PORTS, Cluster

SERVICE = (
    "mlflow-dev",
    "mlflow-dev.mlflow-dev",
    "mlflow-dev.mlflow-dev.svc",
    "mlflow-dev.mlflow-dev.svc.cluster.local",
)
EXPERIMENT_0 = "/api/2.0/mlflow/experiments/get?experiment_id=0"


def status(cluster: Cluster, address: str, path: str, host: str) -> int:
    """What MLflow answers its administrator who calls it by a host's name."""
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    headers = {"Host": host, **urllib3.make_headers(basic_auth=f"admin:{password}")}
    return urllib3.request("GET", f"http://{address}{path}", headers=headers, timeout=20, retries=False).status


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:30502", 200),
        ("localhost", 200),
        *((host, 200) for name in SERVICE for host in (name, f"{name}:5000")),
        ("evil.test", 403),
        ("evil.test:5000", 403),
        ("mlflow-dev.evil.test", 403),
        ("localhost.evil.test:30502", 403),
    ],
)
def test_only_the_names_that_are_meant_are_served(cluster: Cluster, host: str, expected: int) -> None:
    assert status(cluster, f"localhost:{NODE_PORTS['dev']}", EXPERIMENT_0, host) == expected


@pytest.mark.parametrize("port", ["", ":5000"])
def test_a_pods_address_is_served_as_prometheus_calls_it(cluster: Cluster, port: str) -> None:
    address = cluster.servers("dev")[0].status.pod_ip
    # Metrics are there only where they were asked for; what matters is that the name is not what is refused.
    assert status(cluster, f"{address}:5000", "/metrics", f"{address}{port}") != 403
    assert status(cluster, f"{address}:5000", EXPERIMENT_0, f"{address}{port}") == 200
    assert status(cluster, f"{address}:5000", "/metrics", "evil.test") == 403
