"""A pod that dies takes no run and no artifact with it."""

from __future__ import annotations

import pytest
from conftest import Cluster, mlflow_client, wait_until

LOG_RUN = """
mlflow.set_experiment("durability")
with mlflow.start_run() as run:
    mlflow.log_param("alpha", "0.5")
    mlflow.log_metric("loss", 0.25, step=1)
    mlflow.log_text("the artifact's own words", "notes.txt")
answer = run.info.run_id
"""
READ_RUN = """
run = mlflow.get_run({run_id!r})
with tempfile.TemporaryDirectory() as folder:
    path = mlflow.artifacts.download_artifacts(run_id={run_id!r}, artifact_path="notes.txt", dst_path=folder)
    text = pathlib.Path(path).read_text()
answer = [run.data.params, run.data.metrics, text]
"""


@pytest.mark.parametrize(
    ("namespace", "selector"),
    [
        ("mlflow-dev", "app.kubernetes.io/name=mlflow"),
        ("pgsql", "app.kubernetes.io/name=postgres,app.kubernetes.io/instance=dev"),
        ("pgsql", "app.kubernetes.io/name=minio,app.kubernetes.io/instance=dev"),
    ],
    ids=["mlflow", "postgres", "minio"],
)
def test_killing_a_pod_loses_nothing(cluster: Cluster, namespace: str, selector: str) -> None:
    secrets = cluster.secrets("dev")
    run_id = mlflow_client("dev", secrets, LOG_RUN)
    cluster.kill(namespace, selector)
    answer = mlflow_client("dev", secrets, READ_RUN.format(run_id=run_id))
    assert answer == [{"alpha": "0.5"}, {"loss": 0.25}, "the artifact's own words"]
    wait_until(lambda: all_ready(cluster), 60, "every pod is ready again")


def all_ready(cluster: Cluster) -> bool:
    deployment = cluster.apps.read_namespaced_deployment("mlflow-dev", "mlflow-dev")
    return deployment.status.ready_replicas == deployment.spec.replicas
