"""The shipped inventories say what people and Terraform rely on, and an overlay cannot reach the wrong cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def variables(host: str, *inventories: Path) -> dict:
    """A host's variables, as ansible-inventory resolves them."""
    done = subprocess.run(
        ["ansible-inventory", *[f"--inventory={path}" for path in inventories], "--host", host],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("environment", "node_port", "database_port"), [("dev", 30502, 5434), ("stg", 30501, 5433), ("prod", 30500, 5432)]
)
@pytest.mark.parametrize("overlay", [None, "demo", "embedded"])
def test_an_environment_has_its_addresses_with_every_overlay(
    environment: str, node_port: int, database_port: int, overlay: str | None
) -> None:
    inventories = [ROOT / "inventories" / name for name in (environment, overlay) if name]
    found = variables(f"mlflow-{environment}", *inventories)
    assert found["mlflow_environment_name"] == environment
    assert found["mlflow_server_node_port"] == node_port
    assert found["mlflow_database_host"] == f"{environment}-postgres.pgsql.svc.cluster.local"
    assert found["mlflow_database_port"] == database_port
    assert found["mlflow_object_store_endpoint"] == f"http://minio-{environment}.pgsql.svc.cluster.local:9000"
    assert found["mlflow_object_store_bucket"] == "mlflow"


def test_secrets_are_generated_in_dev_alone() -> None:
    sources = {
        name: variables(f"mlflow-{name}", ROOT / "inventories" / name)["mlflow_environment_secrets_source"]
        for name in ("dev", "stg", "prod")
    }
    assert sources == {"dev": "generated", "stg": "inventory", "prod": "inventory"}


@pytest.mark.parametrize("environment", ["dev", "stg", "prod"])
@pytest.mark.parametrize("overlay", ["demo", "embedded"])
def test_an_overlay_is_a_trial_whatever_the_environment(environment: str, overlay: str) -> None:
    found = variables(f"mlflow-{environment}", *[ROOT / "inventories" / name for name in (environment, overlay)])
    assert found["mlflow_environment_secrets_source"] == "generated"
    assert found["mlflow_environment_production"] is False


def test_on_the_embedded_cluster_an_inventorys_own_cluster_is_never_used(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "inventories", tmp_path / "inventories", symlinks=True)
    named = tmp_path / "inventories/prod/group_vars/prod/cluster.yml"
    named.write_text("mlflow_environment_kubeconfig: /home/me/.kube/prod\nmlflow_environment_context: prod\n")
    prod, embedded = tmp_path / "inventories/prod", tmp_path / "inventories/embedded"
    assert variables("mlflow-prod", prod)["mlflow_environment_context"] == "prod"
    found = variables("mlflow-prod", prod, embedded)
    assert found["mlflow_environment_kubeconfig"] == "/var/lib/ansible-mlflow/kubeconfig"
    assert found["mlflow_environment_context"] == ""


@pytest.mark.parametrize("order", [("stg", "prod"), ("prod", "stg"), ("prod", "stg", "embedded")])
def test_an_environments_own_value_beats_a_shared_one_in_a_run_of_several(
    tmp_path: Path, order: tuple[str, ...]
) -> None:
    shutil.copytree(ROOT / "inventories", tmp_path / "inventories", symlinks=True)
    for environment in ("stg", "prod"):
        own = tmp_path / f"inventories/{environment}/group_vars/{environment}/own.yml"
        own.write_text(f"mlflow_environment_namespace: own-{environment}\n")
    inventories = [tmp_path / "inventories" / name for name in order]
    for environment in ("stg", "prod"):
        found = variables(f"mlflow-{environment}", *inventories)
        assert found["mlflow_environment_namespace"] == f"own-{environment}"
        assert found["mlflow_environment_kubeconfig"] == (
            "/var/lib/ansible-mlflow/kubeconfig" if "embedded" in order else ""
        )
