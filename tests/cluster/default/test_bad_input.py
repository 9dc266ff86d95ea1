"""Bad input is refused with one clear message, before anything changes."""

from __future__ import annotations

import json

import pytest
from conftest import Cluster, request, site


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"mlflow_environment_name": "qa"}, "mlflow_environment_name is 'qa'; expected one of dev, stg, prod"),
        ({"mlflow_database_host": ""}, "mlflow_database_host is ''; expected a host name"),
        ({"mlflow_database_host": None}, "mlflow_database_host"),
        ({"mlflow_server_node_port": 5000}, "mlflow_server_node_port is 5000; expected a port from 30000 to 32767"),
        ({"mlflow_server_node_port": "http"}, "mlflow_server_node_port"),
        ({"mlflow_server_node_port": 30902}, "minio-dev-external"),
        ({"mlflow_object_store_endpoint": "s3://mlflow"}, "expected http(s)://host[:port]"),
        (
            {"mlflow_environment_secrets": {"admin_password": "short"}},
            "admin_password has 5 characters; expected at least 12",
        ),
        ({"mlflow_environment_kubeconfig": "/nonexistent/kubeconfig"}, "/nonexistent/kubeconfig"),
        ({"mlflow_environment_context": "nowhere"}, "nowhere"),
        ({"mlflow_environment_secrets_source": "magic"}, "mlflow_environment_secrets_source"),
        ({"mlflow_server_replicas": "many"}, "mlflow_server_replicas"),
    ],
    ids=json.dumps,
)
def test_bad_input_is_refused_before_anything_changes(cluster: Cluster, variables: dict, message: str) -> None:
    before = cluster.resource_versions("dev")
    run = site("dev", args=("-e", json.dumps(variables)), timeout=60)
    assert run.status != 0, run.output
    assert message in run.output
    assert "Traceback" not in run.output
    assert run.changed == 0
    assert cluster.resource_versions("dev") == before


def test_an_unreachable_cluster_is_told_with_its_address(tmp_path, cluster: Cluster) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "c",
            }
        )
    )
    run = site("dev", args=("-e", f"mlflow_environment_kubeconfig={kubeconfig}"), timeout=60)
    assert run.status != 0
    assert "https://127.0.0.1:1" in run.output
    assert "Traceback" not in run.output
    assert run.seconds < 30


def test_an_environment_without_an_inventory_is_refused() -> None:
    run = site("qa", timeout=60)
    assert run.status != 0
    assert "inventories/qa" in run.output


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param("localhost/mlflow:0.0.0", "localhost/mlflow:0.0.0", id="no such image"),
        pytest.param("localhost/postgres:15", "mlflow", id="not an image of MLflow", marks=pytest.mark.full),
    ],
)
def test_an_image_that_cannot_run_fails_soon_and_the_old_version_serves(
    cluster: Cluster, image: str, message: str
) -> None:
    pods = {
        name: version for name, version in cluster.resource_versions("dev").items() if name.startswith("Deployment ")
    }
    run = site("dev", args=("-e", f"mlflow_environment_image={image}"), timeout=300)
    assert run.status != 0
    assert message in run.output
    assert "Traceback" not in run.output
    assert run.seconds < 90
    after = {
        name: version for name, version in cluster.resource_versions("dev").items() if name.startswith("Deployment ")
    }
    assert after == pods
    assert request("dev", "/health").status == 200
    # Running again with the right one finishes the job.
    again = site("dev")
    assert again.status == 0, again.output
