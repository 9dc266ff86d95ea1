"""Users and runs in one database, as a release before 3.6 left them there; those releases do not even start on it."""

from __future__ import annotations

import old_release
import pytest
from conftest import Cluster, folded, site
from old_objects import NAME, NAMESPACE
from old_release import image
from reading import differences, execute, fill, read_inside, read_outside
from watching import state

pytestmark = pytest.mark.full

MOVE = (
    "export PGPASSWORD=$POSTGRES_PASSWORD PGUSER=$POSTGRES_USER PGHOST=127.0.0.1; set -e; "
    "pg_dump --table=users --table='*_permissions' mlflow_auth | psql -q -v ON_ERROR_STOP=1 mlflow"
)


def test_users_and_runs_in_one_database_of_3_4(cluster: Cluster) -> None:
    old_release.prepare()
    old_release.deploy(cluster, "3.4.0")
    fill(cluster)
    before = read_inside(cluster)
    cluster.apps.patch_namespaced_deployment_scale(NAME, NAMESPACE, {"spec": {"replicas": 0}})
    execute(cluster, "dev-postgres-0", "pgsql", ["sh", "-c", MOVE])
    with cluster.database("dev", "postgres") as connection:
        old_release.create_database(connection, "mlflow_auth", "template0")

    shared = state(cluster)
    refused = site("dev")
    assert refused.status != 0
    assert "holds 6 of MLflow's users too" in folded(refused.output), refused.output
    assert state(cluster) == shared

    # The way that the message names.
    run = site("dev", args=("-e", "mlflow_database_auth_name=mlflow"))
    assert run.status == 0, run.output
    assert "Traceback" not in run.output
    assert image(cluster) == "localhost/mlflow:3.17.2"
    assert differences(before, read_outside(cluster)) == []
    again = site("dev", args=("-e", "mlflow_database_auth_name=mlflow"))
    assert (again.status, again.changed) == (0, 0), again.output
