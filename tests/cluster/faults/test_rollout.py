"""A rolling change at two replicas drops no request."""

from __future__ import annotations

import threading
import time

import pytest
import urllib3
from conftest import Cluster, request, site


class Load(threading.Thread):
    """Asks one path again and again, each time on a new connection, and keeps what failed."""

    def __init__(self, path: str, every: float, password: str | None = None) -> None:
        super().__init__(daemon=True)
        self.path, self.every, self.password = path, every, password
        self.sent, self.failed = 0, []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.every):
            self.sent += 1
            try:
                status = request("dev", self.path, password=self.password).status
            except urllib3.exceptions.HTTPError as error:
                self.failed.append(str(error))
            else:
                if status != 200:
                    self.failed.append(str(status))


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
