"""The databases of MLflow: how they are reached, and in which state they are."""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import closing
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

import history as revisions
from history import History, mlflow_version, named
from problems import Exit, SchemaError, one_line, say, seconds_of

CONNECT_TIMEOUT = 5
# MLflow before 3.6 kept the auth tables' revision, which never changed, in Alembic's usual version table.
FIRST_AUTH_REVISION = "8606fa83a998"
AUTH_VERSION_TABLE = "alembic_version_auth"
TRACKING_TABLES = frozenset({"experiments", "runs"})
VARIABLES = {
    "tracking": "MLFLOW_BACKEND_STORE_URI",
    "registry": "MLFLOW_REGISTRY_STORE_URI",
    "auth": "MLFLOW_AUTH_DATABASE_URI",
}
EXPECTED_URI = "expected postgresql+psycopg2://user@host:port/database"

# What a server says when trying again is useless: (its words, ours). A server with translated messages is retried.
TERMINAL = (
    ("password authentication failed", "the password is wrong, or the role does not exist"),
    ("no password supplied", "PGPASSWORD is not set"),
    ("no pg_hba.conf entry", "pg_hba.conf does not allow this role, database or address"),
    ("is not permitted to log in", "the role may not log in"),
    ("permission denied for database", "the role may not connect"),
    ('database ".*" does not exist', "it does not exist"),
    ('role ".*" does not exist', "the role does not exist"),
    ("server does not support SSL", "it offers no TLS, which mlflow_database_tls_mode asks for"),
    ("certificate verify failed", "its certificate is not signed by mlflow_database_ca_certificate, or not valid now"),
    ("does not match host name", "its certificate is for another name than mlflow_database_host"),
    ("invalid (connection|URI|sslmode)", "the parameters of its URI are wrong"),
)


@dataclass
class Store:
    """One database with one of MLflow's schemas, and what was found in it.

    ``tree`` says which of the image's two histories is meant: the registry's tables are the tracking store's.
    """

    name: str
    uri: str
    parameters: dict = field(repr=False)
    history: History = field(repr=False)
    version_table: str = "alembic_version"
    state: str = "unknown"
    revision: str | None = None
    before: str | None = None
    pending: list[str] = field(default_factory=list)
    problem: str = ""
    users: int = 0
    # An auth store of before 3.6, whose revision has to be written down first.
    unstamped: bool = False

    @property
    def tree(self) -> str:
        return "auth" if self.name == "auth" else "tracking"

    @property
    def label(self) -> str:
        where = self.parameters
        return f"the {self.name} database {where['dbname']} at {where['host']}:{where['port']}"

    @property
    def place(self) -> tuple:
        """What tells two databases apart."""
        return tuple(self.parameters[key] for key in ("host", "port", "dbname"))

    def report(self) -> dict:
        """What the JSON report says of it."""
        return {
            "database": self.parameters["dbname"],
            "state": self.state,
            "before": self.before,
            "revision": self.revision,
            "head": self.history.head,
            "pending": self.pending,
        }


def parse_uri(uri: str, variable: str) -> dict:
    """The connection parameters of a SQLAlchemy URI for PostgreSQL."""
    parts = urlsplit(uri)
    try:
        port = parts.port
    except ValueError:
        port = -1
    database = unquote(parts.path.lstrip("/"))
    if parts.scheme not in ("postgresql", "postgresql+psycopg2") or not parts.hostname or not database or port == -1:
        # It may carry a password, so it is not repeated.
        raise SchemaError(Exit.USAGE, f"{variable}: {EXPECTED_URI}")
    parameters = dict(parse_qsl(parts.query))
    parameters |= {"host": parts.hostname, "port": port or 5432, "dbname": database}
    if parts.username:
        parameters["user"] = unquote(parts.username)
    if parts.password:
        parameters["password"] = unquote(parts.password)
    return parameters


def read_stores() -> list[Store]:
    """The stores that the environment names, in the order in which they are upgraded."""
    stores = []
    for name, variable in VARIABLES.items():
        uri = os.environ.get(variable, "")
        if not uri:
            continue
        store = Store(
            name, uri, parse_uri(uri, variable), revisions.read_history("auth" if name == "auth" else "tracking")
        )
        if name == "auth":
            store.version_table = revisions.auth_version_table()
        if name != "registry" or store.place != stores[0].place:
            stores.append(store)
    if not stores or stores[0].name != "tracking":
        raise SchemaError(Exit.USAGE, f"{VARIABLES['tracking']}: {EXPECTED_URI}")
    return stores


def connect(store: Store, seconds: float, options: str = ""):
    """A connection in autocommit mode; a server that cannot be reached is tried for so many seconds."""
    import psycopg2

    parameters = {"connect_timeout": CONNECT_TIMEOUT, **store.parameters}
    parameters["application_name"] = f"mlflow-schema {socket.gethostname()}"
    if options:
        present = parameters.get("options", os.environ.get("PGOPTIONS", ""))
        parameters["options"] = f"{present} {options}".strip()
    end = time.monotonic() + seconds
    while True:
        try:
            connection = psycopg2.connect(**parameters)
        except psycopg2.Error as error:
            text = one_line(error)
            for pattern, words in TERMINAL:
                if re.search(pattern, text):
                    user = parameters.get("user", "")
                    raise SchemaError(Exit.ACCESS, f"{store.label} refuses role {user}: {words}") from None
            if time.monotonic() >= end:
                told = f"{store.label} cannot be reached ({seconds:.0f} s tried): {text[-300:]}"
                raise SchemaError(Exit.RETRYABLE, told) from None
            say(f"{store.label} cannot be reached yet; trying again")
            time.sleep(1)
        else:
            connection.autocommit = True
            return connection


def query(connection, statement: str, *values) -> list[tuple]:
    """The rows of a statement."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def inspect_all(stores: list[Store]) -> None:
    """Find out in which state every database is, and refuse where an upgrade would do harm."""
    seconds = seconds_of("MLFLOW_SCHEMA_CONNECT_SECONDS", 60)
    import psycopg2

    for store in stores:
        with closing(connect(store, seconds)) as connection:
            try:
                inspect(store, connection)
            except psycopg2.errors.InsufficientPrivilege as error:
                told = f"{store.label} has tables of another role, or of another program: {one_line(error)}"
                raise SchemaError(Exit.ACCESS, f"{told}; nothing was changed") from None
    judge_together(stores)
    problems = [f"{store.label} {store.problem}" for store in stores if store.problem]
    if problems:
        raise SchemaError(Exit.REFUSED, "; ".join(problems) + "; nothing was changed")


def inspect(store: Store, connection) -> None:
    """Find out in which state one database is."""
    # Every schema on the search path counts: MLflow uses the first, its tables may stand in any.
    tables = {
        row[0]
        for row in query(
            connection,
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p') AND n.nspname = ANY(current_schemas(false))",
        )
    }
    versions = {
        table: [row[0] for row in query(connection, f"SELECT version_num FROM {table}")]  # noqa: S608 - constants
        for table in ("alembic_version", AUTH_VERSION_TABLE)
        if table in tables
    }
    store.users = query(connection, "SELECT count(*) FROM users")[0][0] if auth_tables_in(tables) else 0
    judge(store, tables, versions)


def auth_tables_in(tables: set[str]) -> bool:
    """Whether the tables of MLflow's auth store are there."""
    return {"users", "experiment_permissions"} <= tables or {"users", "roles", "role_permissions"} <= tables


def foreign_tables(tables: set[str]) -> set[str]:
    """The tables that tell that a tracking database is not empty; the auth store's may be there already."""
    auth = {"users", "alembic_version", AUTH_VERSION_TABLE}
    if auth_tables_in(tables):
        auth |= {table for table in tables if table.endswith("_permissions") or table.startswith(("role", "user_"))}
    return tables - auth


def judge(store: Store, tables: set[str], versions: dict[str, list[str]]) -> None:
    """Set a store's state from the tables of its database and the rows of its version tables (pure)."""
    rows = versions.get(store.version_table, [])
    store.revision, store.pending, store.problem, store.unstamped = ", ".join(sorted(rows)) or None, [], "", False
    if len(rows) > 1:
        store.state = "several-heads"
        store.problem = (
            f"has {len(rows)} revisions at once ({store.revision}) in {store.version_table}, left by an interrupted or "
            f"foreign upgrade: see which one its tables have, and delete the other rows"
        )
    elif store.tree == "auth":
        judge_auth(store, tables, versions)
    elif rows:
        judge_versioned(store, tables, present=tables >= TRACKING_TABLES)
        if store.state == "foreign" and auth_tables_in(tables) and store.revision == FIRST_AUTH_REVISION:
            store.state = "shared"
            store.problem = (
                "keeps the revision of MLflow's users in alembic_version, as an MLflow before 3.6 did that shared it "
                "with them: docs/upgrading.md says how to take them apart"
            )
    elif tables >= TRACKING_TABLES or foreign_tables(tables):
        present = tables >= TRACKING_TABLES
        store.state = "unversioned" if present else "foreign"
        what = "MLflow's tables, but no revision" if present else "tables of another program"
        store.problem = (
            f"has {what} ({', '.join(sorted(foreign_tables(tables))[:5])}); MLflow needs a database of its own"
        )
    else:
        store.state, store.pending = "empty", store.history.pending(None)


def judge_auth(store: Store, tables: set[str], versions: dict[str, list[str]]) -> None:
    """The auth store's part of :func:`judge`."""
    present = auth_tables_in(tables)
    if store.version_table != AUTH_VERSION_TABLE and versions.get(AUTH_VERSION_TABLE):
        store.state, store.revision = "ahead", ", ".join(versions[AUTH_VERSION_TABLE])
        store.problem = ahead_words("auth", store.revision)
    elif store.revision:
        judge_versioned(store, tables, present)
    elif present:
        # It has no version table of its own, so it is of an MLflow before 3.6, which had one revision only.
        store.revision, store.unstamped = FIRST_AUTH_REVISION, True
        store.state, store.pending = "behind", store.history.pending(FIRST_AUTH_REVISION)
    else:
        store.state, store.pending = "empty", store.history.pending(None)


def judge_versioned(store: Store, tables: set[str], present: bool) -> None:
    """The state of a database that has one revision."""
    revision = str(store.revision)
    if not present:
        store.state = "foreign"
        others = ", ".join(sorted(tables - {store.version_table})[:5]) or "none"
        store.problem = (
            f"is at revision {revision}, but lacks the tables of MLflow's {store.name} store (its tables: {others}): "
            f"another program uses {store.version_table} there; MLflow needs a database of its own"
        )
    elif revision in store.history.parents:
        store.pending = store.history.pending(revision)
        store.state = "behind" if store.pending else "current"
    elif revisions.releases_of(store.tree, revision):
        store.state, store.problem = "ahead", ahead_words(store.tree, revision)
    else:
        store.state = "foreign"
        store.problem = (
            f"is at revision {revision}, which neither MLflow {mlflow_version()} nor any release known here has: a "
            f"newer MLflow upgraded it (use that release, or restore the backup of before), or "
            f"{store.version_table} is another program's"
        )


def ahead_words(tree: str, revision: str | None) -> str:
    """What is said of a database that a newer MLflow upgraded."""
    return (
        f"is at revision {named(tree, revision)}, newer than MLflow {mlflow_version()}: use that release, or restore "
        f"the backup of before its upgrade (playbooks/restore.yml)"
    )


def judge_together(stores: list[Store]) -> None:
    """What only several databases together show: users whom an upgrade would leave behind."""
    by_name = {store.name: store for store in stores}
    tracking, auth = by_name["tracking"], by_name.get("auth")
    if not auth or tracking.problem or auth.problem:
        return
    if auth.place == tracking.place:
        if auth.version_table != AUTH_VERSION_TABLE and tracking.revision:
            auth.state = "shared"
            auth.problem = (
                f"is the tracking database too, which MLflow {mlflow_version()} cannot share with its users (3.6 and "
                f"later can): give it another one"
            )
    elif tracking.users and auth.state == "empty":
        tracking.state = "shared"
        tracking.problem = (
            f"holds {tracking.users} of MLflow's users too, and {auth.label} is empty: an upgrade would leave them "
            f"behind. Name {tracking.parameters['dbname']} as the auth database as well (from 3.6 on they may share "
            f"it), or move the users' tables first (docs/upgrading.md)"
        )
