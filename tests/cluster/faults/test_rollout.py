"""A rolling change at two replicas drops no request."""

from __future__ import annotations

import time

import pytest
from conftest import Cluster, site
from load import Load


@pytest.fixture
def two_replicas():
    run = site("dev", args=("-e", "mlflow_server_replicas=2"))
    assert run.status == 0, run.output
    yield
    run = site("dev")
    assert run.status == 0, run.output


def test_a_rolling_change_drops_no_request(cluster: Cluster, two_replicas: None) -> None:
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    loads = [
        Load("/health", 0.05),
        Load("/api/2.0/mlflow/experiments/get?experiment_id=0", 0.5, password),
    ]
    for load in loads:
        load.start()
    time.sleep(2)
    run = site("dev", args=("-e", "mlflow_server_replicas=2", "-e", "mlflow_server_cpu_request=200m"))
    time.sleep(10)
    for load in loads:
        load.over.set()
        load.join()
    print(f"rolling change: {run.seconds:.0f} s, requests sent {[load.sent for load in loads]}")
    assert run.status == 0, run.output
    assert run.changed > 0
    assert all(load.sent > 20 for load in loads)
    assert [load.failed for load in loads] == [[], []]
