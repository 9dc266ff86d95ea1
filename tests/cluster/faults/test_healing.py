"""What somebody deleted by hand is there again after the next run."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from conftest import Cluster, request, s3, site


def delete_bucket(cluster: Cluster) -> None:
    cluster.delete_versions("dev", "mlflow")
    cluster.object_store("dev").remove_bucket("mlflow")


def delete_access_key(cluster: Cluster) -> None:
    from minio import MinioAdmin
    from minio.credentials import StaticProvider

    admin = cluster.secret("pgsql", "minio-dev-admin")
    MinioAdmin(
        endpoint="localhost:30902",
        credentials=StaticProvider(admin["access_key"], admin["secret_key"]),
        secure=False,
    ).user_remove(cluster.secrets("dev")["AWS_ACCESS_KEY_ID"])


def revoke_grants(cluster: Cluster) -> None:
    for name in ("mlflow", "mlflow_auth"):
        with cluster.database("dev", name) as connection:
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC, pg_database_owner, mlflow")
            connection.execute(f"REVOKE ALL ON DATABASE {name} FROM mlflow, mlflow_migrator")


def let_the_server_migrate(cluster: Cluster) -> None:
    with cluster.database("dev", "postgres") as connection:
        connection.execute("REVOKE mlflow FROM mlflow_migrator")
        connection.execute("GRANT mlflow_migrator TO mlflow")
    for name in ("mlflow", "mlflow_auth"):
        with cluster.database("dev", name) as connection:
            connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC, mlflow")


def give_everything_to_the_server(cluster: Cluster) -> None:
    """As it was before there were two roles."""
    for name in ("mlflow", "mlflow_auth"):
        with cluster.database("dev", name) as connection:
            connection.execute(f"ALTER DATABASE {name} OWNER TO mlflow")
            tables = connection.execute("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
            for (table,) in tables.fetchall():
                connection.execute(f"ALTER TABLE {table} OWNER TO mlflow")


def change_passwords(cluster: Cluster) -> None:
    with cluster.database("dev", "postgres") as connection:
        for role in ("mlflow", "mlflow_migrator"):
            connection.execute(f"ALTER ROLE {role} PASSWORD 'another-password'")


def delete_deployment(cluster: Cluster) -> None:
    cluster.apps.delete_namespaced_deployment("mlflow-dev", "mlflow-dev", propagation_policy="Foreground")


def delete_config_map(cluster: Cluster) -> None:
    cluster.core.delete_namespaced_config_map("mlflow-config-dev", "mlflow-dev")


def edit_config_map(cluster: Cluster) -> None:
    cluster.core.patch_namespaced_config_map("mlflow-config-dev", "mlflow-dev", {"data": {"MLFLOW_WORKERS": "7"}})


def delete_service(cluster: Cluster) -> None:
    cluster.core.delete_namespaced_service("mlflow-dev", "mlflow-dev")


def assert_the_server_works_and_cannot_migrate(cluster: Cluster) -> None:
    for name, table, versions in (
        ("mlflow", "experiments", "alembic_version"),
        ("mlflow_auth", "users", "alembic_version_auth"),
    ):
        with cluster.database("dev", name) as connection, connection.transaction(force_rollback=True):
            connection.execute("SET SESSION AUTHORIZATION mlflow")
            connection.execute(f"DELETE FROM {table} WHERE false")
            for statement in (
                "CREATE TABLE public.another ()",
                "CREATE SCHEMA another",
                f"ALTER TABLE {table} ADD COLUMN another int",
                f"DROP TABLE {table}",
                f"UPDATE {versions} SET version_num = version_num",
                "SET ROLE mlflow_migrator",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                    connection.execute(statement)


@pytest.mark.parametrize(
    "harms",
    [
        (delete_bucket, delete_access_key, edit_config_map, revoke_grants, let_the_server_migrate),
        (give_everything_to_the_server, change_passwords, delete_deployment, delete_config_map, delete_service),
    ],
    ids=lambda harms: ", ".join(harm.__name__ for harm in harms),
)
def test_the_next_run_restores_what_was_harmed(cluster: Cluster, harms: tuple[Callable[[Cluster], None], ...]) -> None:
    # Secrets are generated once: a run that healed by making others would be no healing.
    secrets, config = cluster.secrets("dev"), cluster.config("dev")
    for harm in harms:
        harm(cluster)
    run = site("dev")
    assert run.status == 0, run.output
    assert run.changed > 0, run.output
    assert cluster.secrets("dev") == secrets
    assert cluster.config("dev") == config
    assert_the_server_works_and_cannot_migrate(cluster)
    assert s3("dev", secrets["AWS_ACCESS_KEY_ID"], secrets["AWS_SECRET_ACCESS_KEY"]).bucket_exists("mlflow")
    answer = request(
        "dev", "/api/2.0/mlflow/experiments/get?experiment_id=0", password=secrets["MLFLOW_AUTH_ADMIN_PASSWORD"]
    )
    assert answer.status == 200, answer.data
