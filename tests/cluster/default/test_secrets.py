"""No secret is to be seen where people and programs look."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import Cluster, site


@pytest.fixture(scope="module")
def forbidden(cluster: Cluster) -> dict[str, str]:
    """Every secret in every form in which it could be printed, by what it is."""
    values = {
        **cluster.secrets("dev"),
        **cluster.secret("mlflow-dev", "mlflow-maintenance-dev"),
        **{f"postgres {key}": value for key, value in cluster.secret("pgsql", "dev-postgres-admin").items()},
        **{f"minio {key}": value for key, value in cluster.secret("pgsql", "minio-dev-admin").items()},
    }
    # User names and access keys are names, not secrets.
    names = ("AWS_ACCESS_KEY_ID", "BACKUP_AWS_ACCESS_KEY_ID", "postgres username", "minio access_key")
    secrets = {name: value for name, value in values.items() if name not in names}
    assert len(secrets) == 10
    forms = {}
    for name, value in secrets.items():
        forms[name] = value
        forms[f"{name} in base64"] = base64.b64encode(value.encode()).decode()
        forms[f"{name} in a URL"] = quote(value, safe="")
    return forms


def found(forbidden: dict[str, str], text: str) -> list[str]:
    return [name for name, value in forbidden.items() if value in text]


class Arguments(threading.Thread):
    """Collects the arguments of every process of this machine, pods' included, while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_text(errors="replace"))
                except OSError:
                    continue


@pytest.mark.parametrize(
    "args",
    [
        ("-vvv",),
        pytest.param(("-vvv", "--check", "--diff", "-e", "mlflow_server_cpu_request=300m"), marks=pytest.mark.full),
    ],
)
def test_no_secret_is_in_a_runs_output_nor_in_a_processs_arguments(
    cluster: Cluster, forbidden: dict[str, str], args: tuple[str, ...]
) -> None:
    arguments = Arguments()
    arguments.start()
    run = site("dev", args=args)
    arguments.over.set()
    arguments.join()
    assert run.status == 0, run.output
    assert found(forbidden, run.output) == []
    assert any("ansible-playbook" in seen for seen in arguments.seen)
    assert found(forbidden, "\n".join(arguments.seen)) == []


def test_a_first_runs_diff_and_a_rotated_password_show_no_secret(cluster: Cluster, forbidden: dict[str, str]) -> None:
    new = "a-new-database-password%&$(HOME)'\""
    run = site(
        "dev",
        args=(
            "-vvv",
            "--check",
            "--diff",
            "-e",
            json.dumps(
                {"mlflow_environment_secrets": {"database_password": new}, "mlflow_environment_secrets_at_once": True}
            ),
        ),
    )
    # Ansible itself prints the extra variables that it was given on the command line; people give a vault file.
    output = "\n".join(line for line in run.output.splitlines() if "mlflow_environment_secrets" not in line)
    assert run.status == 0, run.output
    assert "upgraded the" not in run.output, "the schema is what it was, whatever the password"
    assert found({**forbidden, "new": new, "new in base64": base64.b64encode(new.encode()).decode()}, output) == []


def test_no_secret_is_in_an_object_but_a_secret(cluster: Cluster, forbidden: dict[str, str]) -> None:
    for namespace in ("mlflow-dev", "pgsql"):
        for kind, items in {
            "ConfigMap": cluster.core.list_namespaced_config_map(namespace).items,
            "Pod": cluster.core.list_namespaced_pod(namespace).items,
            "Deployment": cluster.apps.list_namespaced_deployment(namespace).items,
            "StatefulSet": cluster.apps.list_namespaced_stateful_set(namespace).items,
            "Job": cluster.batch.list_namespaced_job(namespace).items,
            "Event": cluster.core.list_namespaced_event(namespace).items,
        }.items():
            text = json.dumps([cluster.api.sanitize_for_serialization(item) for item in items])
            assert found(forbidden, text) == [], f"in a {kind} of {namespace}"


def test_no_secret_is_in_a_pods_log(cluster: Cluster, forbidden: dict[str, str]) -> None:
    for namespace in ("mlflow-dev", "pgsql"):
        for pod in cluster.core.list_namespaced_pod(namespace).items:
            for container in (pod.spec.init_containers or []) + pod.spec.containers:
                log = cluster.core.read_namespaced_pod_log(pod.metadata.name, namespace, container=container.name)
                assert found(forbidden, log) == [], pod.metadata.name


def test_the_server_has_no_secret_of_upgrades_and_backups(cluster: Cluster) -> None:
    maintenance = cluster.secret("mlflow-dev", "mlflow-maintenance-dev")
    assert len(maintenance) == 3
    assert not set(maintenance) & set(cluster.secrets("dev"))
    pod = cluster.apps.read_namespaced_deployment("mlflow-dev", "mlflow-dev").spec.template.spec
    [server] = pod.containers
    assert "mlflow-maintenance-dev" not in str(server)
    assert "mlflow-maintenance-dev" not in str(pod.volumes)
