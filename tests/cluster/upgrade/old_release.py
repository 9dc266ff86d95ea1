"""The environment dev as a user of an old release of MLflow has it, and looks at what it holds.

Everything is the release's own: server, client, databases. Both databases belong to the role `mlflow`, as they did
before there was one that only upgrades them.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import urllib3
from conftest import Cluster, apply, request, site, wait_until
from old_objects import NAME, NAMESPACE, manifests
from reading import fill, read_inside

# Quick to start, and to upgrade from.
FAULTS_FROM = "3.16.0"
DATABASES = ("mlflow", "mlflow_auth")
EXPERIMENT_0 = "/api/2.0/mlflow/experiments/get?experiment_id=0"


def prepare() -> None:
    """Make the namespace, the Secrets and the bucket, which are the same for every release."""
    run = site("dev", args=("--tags", "mlflow_database,mlflow_object_store"))
    assert run.status == 0, run.output


def deploy(cluster: Cluster, release: str, *, auth_database: str = "mlflow_auth") -> None:
    """Start a release on empty databases and an empty bucket, and wait until it serves."""
    remove(cluster)
    cluster.delete_versions("dev", "mlflow")
    with cluster.database("dev", "postgres") as connection:
        for name in DATABASES:
            create_database(connection, name, "template0")
    start(cluster, release, auth_database)


@functools.cache
def filled(cluster: Cluster) -> dict[str, Any]:
    """Have the release of the tests of faults ready, with data, and saved; what its own client reads."""
    prepare()
    deploy(cluster, FAULTS_FROM)
    fill(cluster)
    before = read_inside(cluster)
    save(cluster)
    return before


def save(cluster: Cluster) -> None:
    """Keep copies of the databases beside them, to begin again from."""
    with cluster.database("dev", "postgres") as connection:
        for name in DATABASES:
            # PostgreSQL copies only what nobody uses. The server connects again by itself.
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            create_database(connection, f"{name}_saved", name)
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def restart(cluster: Cluster) -> dict[str, Any]:
    """Begin again from what was filled: the same release and databases, and nothing else; what its client read."""
    before = filled(cluster)
    remove(cluster)
    with cluster.database("dev", "postgres") as connection:
        for name in DATABASES:
            create_database(connection, name, f"{name}_saved")
    start(cluster, FAULTS_FROM)
    return before


def remove(cluster: Cluster) -> None:
    """Remove the server with all its Jobs, and the databases with the role that upgrades them."""
    options = {"propagation_policy": "Background", "grace_period_seconds": 0}
    cluster.apps.delete_collection_namespaced_deployment(NAMESPACE, **options)
    cluster.batch.delete_collection_namespaced_job(NAMESPACE, **options)
    # As long as there is a ReplicaSet, it makes another pod for each that is deleted.
    wait_until(lambda: not cluster.apps.list_namespaced_replica_set(NAMESPACE).items, 60, "no more pods are made")
    cluster.core.delete_collection_namespaced_pod(NAMESPACE, grace_period_seconds=0)
    wait_until(lambda: not cluster.core.list_namespaced_pod(NAMESPACE).items, 60, "the pods are gone")
    with cluster.database("dev", "postgres") as connection:
        for name in DATABASES:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS mlflow_migrator")


def create_database(connection: Any, name: str, template: str) -> None:
    """As an old environment has it, or a copy of one."""
    connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    connection.execute(f"CREATE DATABASE {name} OWNER mlflow ENCODING 'UTF8' TEMPLATE {template}")
    connection.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")


def start(cluster: Cluster, release: str, auth_database: str = "mlflow_auth") -> None:
    apply(manifests(release, auth_database))
    wait_until(lambda: serves(cluster), 180, f"MLflow {release} serves")


def serves(cluster: Cluster) -> bool:
    """Whether the administrator gets an answer to what needs both databases."""
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    deployment = cluster.apps.read_namespaced_deployment(NAME, NAMESPACE)
    try:
        return bool(deployment.status.ready_replicas) and request("dev", EXPERIMENT_0, password=password).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def image(cluster: Cluster) -> str:
    """The image that the Deployment wants."""
    return cluster.apps.read_namespaced_deployment(NAME, NAMESPACE).spec.template.spec.containers[0].image


def timed(what: str, function: Any, *arguments: Any) -> Any:
    """Call a function and say how long it took, for the report of the run."""
    start = time.monotonic()
    answer = function(*arguments)
    print(f"{what}: {time.monotonic() - start:.1f} s", flush=True)
    return answer


def releases() -> list[str]:
    """The releases to upgrade from."""
    return os.environ.get("MLFLOW_UPGRADE_FROM", "3.4.0").split()
