"""A database that must not be upgraded is refused before anything stops, and nobody notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import old_release
import pytest
from conftest import Cluster, Run, folded, site
from old_release import serves
from watching import bare_server, refused, state, user

# Without the role that mends the databases with an administrator's credentials.
AS_THE_MIGRATOR = ("--tags", "mlflow_schema,mlflow_server")


@pytest.fixture(scope="module", autouse=True)
def old(cluster: Cluster) -> None:
    """An old release whose databases were given to the migrator, which nobody noticed either."""
    old_release.filled(cluster)
    with user(cluster) as somebody:
        run = give_to_the_migrator()
    assert "from mlflow to mlflow_migrator" in folded(run.output)
    assert somebody.failures == []


def give_to_the_migrator() -> Run:
    run = site("dev", args=("--tags", "mlflow_database"))
    assert run.status == 0, run.output
    return run


@contextmanager
def edited(cluster: Cluster, edit: str, undo: str, database: str = "mlflow") -> Iterator[None]:
    """Change something in a database for a while."""
    with cluster.database("dev", database) as connection:
        connection.execute(edit)
    try:
        yield
    finally:
        with cluster.database("dev", database) as connection:
            connection.execute(undo)


def test_an_unknown_revision(cluster: Cluster) -> None:
    edit = "UPDATE alembic_version SET version_num = 'ffffffffffff'"
    with edited(cluster, edit, "UPDATE alembic_version SET version_num = 'b7e2c1a4d9f3'"):
        refused(cluster, "database mlflow at", "is at revision ffffffffffff", "nothing was changed")


@pytest.mark.full
def test_a_newer_revision_of_the_users(cluster: Cluster) -> None:
    edit = "UPDATE alembic_version_auth SET version_num = '0123456789ab'"
    undo = "UPDATE alembic_version_auth SET version_num = 'f1a2b3c4d5e6'"
    with edited(cluster, edit, undo, "mlflow_auth"):
        refused(cluster, "database mlflow_auth at", "is at revision 0123456789ab", "nothing was changed")


@pytest.mark.full
def test_a_second_row_of_the_version(cluster: Cluster) -> None:
    edit = "INSERT INTO alembic_version VALUES ('1971f2d9a75b')"
    with edited(cluster, edit, "DELETE FROM alembic_version WHERE version_num = '1971f2d9a75b'"):
        refused(cluster, "has 2 revisions at once (1971f2d9a75b, b7e2c1a4d9f3)", "nothing was changed")


@pytest.mark.full
def test_another_programs_database(cluster: Cluster) -> None:
    """Optuna has a table alembic_version too."""
    with cluster.database("dev", "postgres") as connection:
        old_release.create_database(connection, "optuna", "template0")
    try:
        with cluster.database("dev", "optuna") as connection:
            connection.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
            connection.execute("CREATE TABLE studies (study_id int PRIMARY KEY); CREATE TABLE trials (trial_id int)")
            connection.execute("INSERT INTO alembic_version VALUES ('v3.0.0.d'); INSERT INTO studies VALUES (1)")
        refused(
            cluster,
            "is at revision v3.0.0.d",
            "studies, trials",
            "another program",
            "nothing was changed",
            args=("-e", "mlflow_database_name=optuna"),
        )
        with cluster.database("dev", "optuna") as connection:
            tables = connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
            ).fetchall()
            assert tables == [("alembic_version",), ("studies",), ("trials",)]
            assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("v3.0.0.d",)]
    finally:
        with cluster.database("dev", "postgres") as connection:
            connection.execute("DROP DATABASE optuna WITH (FORCE)")


def test_a_session_that_holds_a_lock_idle_in_transaction(cluster: Cluster) -> None:
    login = ("mlflow", cluster.secrets("dev")["PGPASSWORD"])
    with cluster.database("dev", "mlflow", login) as connection, connection.transaction():
        connection.execute("SELECT count(*) FROM runs")
        pid = connection.info.backend_pid
        refused(cluster, f"pid {pid}, user mlflow", "idle in transaction", "nothing was changed")


def test_a_migrator_without_the_right_to_create(cluster: Cluster) -> None:
    with cluster.database("dev", "mlflow") as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM pg_database_owner, mlflow_migrator")
    words = ("role mlflow_migrator may not create tables in schema public", "GRANT USAGE, CREATE ON SCHEMA public")
    refused(cluster, *words, args=AS_THE_MIGRATOR)
    # With an administrator, the next run mends it.
    assert give_to_the_migrator().changed > 0


def test_a_wrong_password_of_the_migrator(cluster: Cluster) -> None:
    with cluster.database("dev", "mlflow") as connection:
        connection.execute("ALTER ROLE mlflow_migrator PASSWORD 'another-password'")
    run = refused(cluster, "mlflow_migrator", "password", args=AS_THE_MIGRATOR)
    print(f"a wrong password was told after {run.seconds:.1f} s of the run")
    # Most of it is what every run looks at first; test_jobs_by_hand.py measures the program's own ten seconds.
    assert run.seconds < 40
    assert give_to_the_migrator().changed > 0


def test_the_new_server_migrates_nothing_by_starting(cluster: Cluster) -> None:
    """Without the check of the pod's init container, as somebody would start it who does not know of it."""
    before = state(cluster)
    end = bare_server(cluster, "3.17.2")
    print(f"the new server alone: {end[-300:]}")
    assert state(cluster) == before
    assert serves(cluster)


def test_users_and_data_in_one_database(cluster: Cluster) -> None:
    """As a release before 3.6 could have it, when the inventory names another database for the users: it is empty."""
    tables = "CREATE TABLE users (id int, username text); CREATE TABLE experiment_permissions (id int)"
    owner = "ALTER TABLE users OWNER TO mlflow_migrator; ALTER TABLE experiment_permissions OWNER TO mlflow_migrator"
    user_row = "INSERT INTO users VALUES (1, 'alice')"
    with edited(cluster, f"{tables}; {owner}; {user_row}", "DROP TABLE users, experiment_permissions"):
        try:
            words = ("holds 1 of MLflow's users too", "Name mlflow as the auth database as well", "nothing was changed")
            refused(cluster, *words, args=("-e", "mlflow_database_auth_name=another"))
        finally:
            with cluster.database("dev", "postgres") as connection:
                connection.execute("DROP DATABASE IF EXISTS another WITH (FORCE)")
