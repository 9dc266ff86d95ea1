#!/usr/bin/env python3
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
"""Compare and upgrade the schemas of MLflow's databases; runs in the image of MLflow whose schema is wanted.

    schema.py check     are both databases at the revision that this image wants? (milliseconds; imports no MLflow)
    schema.py upgrade   bring them there, under a lock, if they are behind

Environment:
    MLFLOW_BACKEND_STORE_URI       postgresql+psycopg2://user@host:port/database of the tracking store
    MLFLOW_AUTH_DATABASE_URI       the same of the auth store; unset if there is none
    PGPASSWORD                     their password: it stands in no URI, so it shows in no argument and no log
    MLFLOW_SCHEMA_CONNECT_SECONDS  how long to try to reach a database (60)
    MLFLOW_SCHEMA_LOCK_SECONDS     how long to wait for another upgrade (600)
    MLFLOW_SCHEMA_TERMINATION_LOG  where the reason of a failure is kept (/dev/termination-log)

The last line on standard output is a JSON report. Exit codes: see Exit. The revisions of the image are read from its
files, the database's from its version table: MLflow itself only compares them for equality, migrates some old
databases by merely starting, and takes no lock.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

# One number for every environment is fine: an advisory lock belongs to one database. The bytes spell "mlflow".
LOCK_KEY = int.from_bytes(b"mlflow", "big")
CONNECT_TIMEOUT = 5
# MLflow before 3.6 kept no version of the auth tables; it stamps them with this revision before it upgrades them.
FIRST_AUTH_REVISION = "8606fa83a998"


EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*[a-z]\w*: ")


class Exit:
    """Exit codes: 10 may come right by itself, 11 wants an upgrade, the others want a person."""

    CURRENT = 0
    USAGE = 2
    RETRYABLE = 10
    BEHIND = 11
    REFUSED = 12
    ACCESS = 13
    UPGRADE_FAILED = 14


class SchemaError(Exception):
    """One sentence for the operator, and the exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(re.sub(r"\s+", " ", message).strip())
        self.code = code


@dataclass(frozen=True)
class Kind:
    """What distinguishes MLflow's two schemas: where the image keeps the revisions, how a database is recognised."""

    name: str
    variable: str
    versions: str
    version_table: str
    tables: frozenset[str]


TRACKING = Kind(
    "tracking", "MLFLOW_BACKEND_STORE_URI", "store/db_migrations/versions", "alembic_version",
    frozenset({"experiments", "runs"}),
)  # fmt: skip
AUTH = Kind(
    "auth", "MLFLOW_AUTH_DATABASE_URI", "server/auth/db/migrations/versions", "alembic_version_auth",
    frozenset({"users"}),
)  # fmt: skip


@dataclass(frozen=True)
class History:
    """The revisions that the image knows: each with the ones before it."""

    parents: dict[str, tuple[str, ...]]

    @property
    def head(self) -> str:
        """The one revision that nothing follows."""
        followed = {parent for parents in self.parents.values() for parent in parents}
        heads = sorted(set(self.parents) - followed)
        if len(heads) != 1:
            raise SchemaError(Exit.REFUSED, f"this image has {len(heads)} heads of its schema: {', '.join(heads)}")
        return heads[0]

    def pending(self, revision: str | None) -> list[str]:
        """The revisions that are still to be applied to a database at ``revision``, oldest first."""
        applied, stack = set(), [revision] if revision else []
        while stack:
            current = stack.pop()
            if current not in applied:
                applied.add(current)
                stack.extend(self.parents[current])
        ordered: list[str] = []

        def visit(current: str) -> None:
            # As deep as there are revisions; some dozens.
            if current in applied or current in ordered:
                return
            for parent in self.parents[current]:
                visit(parent)
            ordered.append(current)

        visit(self.head)
        return ordered


def revision_of(source: str) -> tuple[str, tuple[str, ...]] | None:
    """(revision, revisions before it) of a migration's source, or None when it is no migration."""
    found = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in ("revision", "down_revision") and node.value is not None:
                found[target.id] = ast.literal_eval(node.value)
    if "revision" not in found:
        return None
    down = found.get("down_revision")
    return found["revision"], (down,) if isinstance(down, str) else tuple(down or ())


def read_history(kind: Kind) -> History:
    """The revisions of the installed MLflow, from its files."""
    try:
        folder = Path(metadata.distribution("mlflow").locate_file("mlflow")) / kind.versions
    except metadata.PackageNotFoundError:
        raise SchemaError(Exit.USAGE, "MLflow is not installed in this image") from None
    revisions = filter(None, (revision_of(path.read_text("utf-8")) for path in sorted(folder.glob("*.py"))))
    history = History(dict(revisions))
    if not history.parents:
        raise SchemaError(Exit.USAGE, f"this image has no {kind.name} migrations in {folder}: is MLflow complete?")
    return history


def mlflow_version() -> str:
    return metadata.version("mlflow")


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
        raise SchemaError(Exit.USAGE, f"{variable}: expected postgresql+psycopg2://user@host:port/database")
    parameters = dict(parse_qsl(parts.query))
    parameters |= {"host": parts.hostname, "port": port or 5432, "dbname": database}
    if parts.username:
        parameters["user"] = unquote(parts.username)
    if parts.password:
        parameters["password"] = unquote(parts.password)
    return parameters


@dataclass
class Store:
    """One database with one of MLflow's schemas, and what was found in it."""

    kind: Kind
    uri: str
    parameters: dict = field(repr=False)
    history: History = field(repr=False)
    state: str = "unknown"
    revision: str | None = None
    before: str | None = None
    pending: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def label(self) -> str:
        where = self.parameters
        return f"the {self.kind.name} database {where['dbname']} at {where['host']}:{where['port']}"

    def report(self) -> dict:
        return {
            "database": self.parameters["dbname"],
            "state": self.state,
            "before": self.before,
            "revision": self.revision,
            "head": self.history.head,
            "pending": self.pending,
            "known": sorted(self.history.parents),
        }


def read_stores() -> list[Store]:
    """The stores that the environment names."""
    stores = []
    for kind in (TRACKING, AUTH):
        uri = os.environ.get(kind.variable, "")
        if uri:
            stores.append(Store(kind, uri, parse_uri(uri, kind.variable), read_history(kind)))
        elif kind is TRACKING:
            raise SchemaError(Exit.USAGE, f"{kind.variable}: expected postgresql+psycopg2://user@host:port/database")
    return stores


# What a server says when trying again is useless: (its words, ours). A server with translated messages is retried.
TERMINAL = (
    ("password authentication failed", "the password is wrong, or the role does not exist"),
    ("no password supplied", "PGPASSWORD is not set"),
    ("no pg_hba.conf entry", "pg_hba.conf does not allow this role, database or address"),
    ("is not permitted to log in", "the role may not log in"),
    ("permission denied for database", "the role may not connect"),
    ('database ".*" does not exist', "it does not exist"),
    ('role ".*" does not exist', "the role does not exist"),
    ("invalid (connection|URI|sslmode)", "the parameters of its URI are wrong"),
)


def connect(store: Store, seconds: float):
    """A connection in autocommit mode; a server that cannot be reached is tried for so many seconds."""
    import psycopg2

    parameters = {"connect_timeout": CONNECT_TIMEOUT, **store.parameters}
    parameters["application_name"] = f"mlflow-schema {socket.gethostname()}"
    end = time.monotonic() + seconds
    while True:
        try:
            connection = psycopg2.connect(**parameters)
        except psycopg2.Error as error:
            text = re.sub(r"\s+", " ", str(error)).strip()
            for pattern, words in TERMINAL:
                if re.search(pattern, text):
                    raise SchemaError(Exit.ACCESS, f"{store.label} refuses: {words}") from None
            if time.monotonic() >= end:
                told = f"{store.label} cannot be reached ({seconds:.0f} s tried): {text[-300:]}"
                raise SchemaError(Exit.RETRYABLE, told) from None
            say(f"{store.label} cannot be reached yet; trying again")
            time.sleep(1)
        else:
            connection.autocommit = True
            return connection


def query(connection, statement: str, *values) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchall()


def inspect(store: Store, connection) -> None:
    """Find out in which state the database is."""
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
        for table in (TRACKING.version_table, AUTH.version_table)
        if table in tables
    }
    judge(store, tables, versions)


def judge(store: Store, tables: set[str], versions: dict[str, list[str]]) -> None:
    """Set a store's state from the tables of its database and the rows of its version tables (pure)."""
    kind, history = store.kind, store.history
    rows = versions.get(kind.version_table, [])
    present = kind.tables <= tables
    store.revision, store.pending, store.problem = ", ".join(sorted(rows)) or None, [], ""
    if len(rows) > 1:
        store.state = "several-heads"
        store.problem = (
            f"has {len(rows)} revisions at once ({store.revision}), left by an interrupted or foreign upgrade"
        )
    elif rows and not present:
        store.state = "foreign"
        store.problem = (
            f"is at revision {store.revision}, but lacks the tables of MLflow's {kind.name} store: "
            f"another program uses {kind.version_table} there"
        )
    elif rows and rows[0] not in history.parents:
        store.state = "ahead-or-foreign"
        store.problem = (
            f"is at revision {store.revision}, which MLflow {mlflow_version()} does not know: a newer MLflow upgraded "
            f"it (use that release, or restore the backup of before), or {kind.version_table} is another program's"
        )
    elif rows:
        store.pending = history.pending(rows[0])
        store.state = "behind" if store.pending else "current"
    elif kind is AUTH and present:
        # Before 3.6 the auth tables had no version table of their own, and no other revision than the first.
        store.revision = FIRST_AUTH_REVISION if FIRST_AUTH_REVISION in history.parents else None
        store.state, store.pending = "behind", history.pending(store.revision)
    elif kind is TRACKING and (present or foreign_tables(tables)):
        store.state = "unversioned" if present else "foreign"
        what = "MLflow's tables, but no revision" if present else "tables of another program"
        store.problem = (
            f"has {what} ({', '.join(sorted(foreign_tables(tables))[:5])}); MLflow needs a database of its own"
        )
    else:
        store.state, store.pending = "empty", history.pending(None)


def foreign_tables(tables: set[str]) -> set[str]:
    """The tables that tell that a tracking database is not empty; the auth store's may be there already."""
    auth = {"users", AUTH.version_table, TRACKING.version_table}
    if "users" in tables:
        auth |= {table for table in tables if table.endswith("_permissions") or table.startswith(("role", "user_"))}
    return tables - auth


def refuse(stores: list[Store]) -> None:
    """Stop where an upgrade would do harm."""
    problems = [f"{store.label} {store.problem}" for store in stores if store.problem]
    if problems:
        raise SchemaError(Exit.REFUSED, "; ".join(problems) + "; nothing was changed")


def inspect_all(stores: list[Store], seconds: float) -> None:
    for store in stores:
        with closing(connect(store, seconds)) as connection:
            inspect(store, connection)


def check(stores: list[Store]) -> bool:
    """Raise unless both databases are current."""
    inspect_all(stores, seconds_of("MLFLOW_SCHEMA_CONNECT_SECONDS", 60))
    for store in stores:
        store.before = store.revision
    refuse(stores)
    behind = [
        f"{store.label} is {store.state if store.state == 'empty' else f'at revision {store.revision}'}, "
        f"MLflow {mlflow_version()} wants {store.history.head} ({len(store.pending)} revisions later)"
        for store in stores
        if store.state != "current"
    ]
    if behind:
        raise SchemaError(Exit.BEHIND, "; ".join(behind) + ": run the upgrade first")
    return False


def upgrade(stores: list[Store]) -> bool:
    """Bring both databases to the image's heads; whether anything was changed."""
    seconds = seconds_of("MLFLOW_SCHEMA_CONNECT_SECONDS", 60)
    with closing(connect(stores[0], seconds)) as connection:
        take_lock(stores[0], connection, seconds_of("MLFLOW_SCHEMA_LOCK_SECONDS", 600))
        # Whoever held the lock may have done the work.
        inspect_all(stores, seconds)
        refuse(stores)
        for store in stores:
            store.before = store.revision
        todo = [store for store in stores if store.state != "current"]
        for store in todo:
            apply(store)
            with closing(connect(store, seconds)) as fresh:
                inspect(store, fresh)
            if store.state != "current":
                told = (
                    f"{store.label} is at {store.revision or 'no revision'} after the upgrade, not {store.history.head}"
                )
                raise SchemaError(Exit.UPGRADE_FAILED, told)
        return bool(todo)


def take_lock(store: Store, connection, seconds: float) -> None:
    """Take the advisory lock of all schema upgrades; it ends with the connection, however this program ends."""
    query(connection, "SELECT set_config('idle_session_timeout', '0', false)")
    end, told = time.monotonic() + seconds, None
    while not query(connection, "SELECT pg_try_advisory_lock(%s)", LOCK_KEY)[0][0]:
        pid, holder = lock_holder(connection)
        if time.monotonic() >= end:
            message = f"{store.label} is still being upgraded by {holder} after {seconds:.0f} s of waiting"
            raise SchemaError(Exit.RETRYABLE, message)
        if pid != told:
            say(f"waiting for {holder}, which upgrades {store.label}")
            told = pid
        time.sleep(1)


def lock_holder(connection) -> tuple[int, str]:
    """(pid, description) of the session that holds the lock."""
    rows = query(
        connection,
        "SELECT a.pid, a.usename, a.application_name, coalesce(host(a.client_addr), 'local'), "
        "extract(epoch FROM now() - a.backend_start)::int FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
        "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
        "AND (l.classid::bigint << 32) | l.objid::bigint = %s",
        LOCK_KEY,
    )
    if not rows:
        return 0, "another session"
    pid, user, application, address, age = rows[0]
    return pid, f"{application or 'a session'} (pid {pid}, user {user}, from {address}, for {age} s)"


def apply(store: Store) -> None:
    """Run MLflow's own upgrade; its output goes to standard error, where the log shows it before the report."""
    say(f"upgrading {store.label} from {store.revision or 'empty'} to {store.history.head}")
    if store.kind is TRACKING:
        command = [sys.executable, "-m", "mlflow", "db", "upgrade", store.uri]
    else:
        command = [sys.executable, "-m", "mlflow.server.auth", "db", "upgrade", "--url", store.uri]
    # The server's own settings must not reach this process: it would read its configuration, or talk to a server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    words = []
    with subprocess.Popen(  # noqa: S603 - the interpreter, with arguments of this file and the URI
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout:
                sys.stderr.write(line)
                words.append(line.strip())
        except BaseException:
            # This program is being ended; the database undoes what MLflow has not committed.
            process.kill()
            raise
    if process.returncode != 0:
        words = [line for line in words if line] or ["no output"]
        # After the exception SQLAlchemy shows the statement and a pointer to its documentation.
        said = next((line for line in reversed(words) if EXCEPTION.match(line)), words[-1])
        told = f"{store.label}: MLflow's upgrade failed with exit code {process.returncode}: {said[-400:]}"
        raise SchemaError(Exit.UPGRADE_FAILED, told)


def seconds_of(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        return float(text) if text else default
    except ValueError:
        raise SchemaError(Exit.USAGE, f"{variable}: expected a number of seconds, got {text!r}") from None


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def keep_reason(message: str) -> None:
    """Leave the reason where Kubernetes looks for it."""
    path = Path(os.environ.get("MLFLOW_SCHEMA_TERMINATION_LOG", "/dev/termination-log"))
    try:
        if path.exists():
            path.write_text(message[:4000], "utf-8")
    except OSError:
        # It stands in the log as well.
        pass


def main(arguments: list[str]) -> int:
    """Run a command; the report is printed in any case."""
    commands = {"check": check, "upgrade": upgrade}
    stores: list[Store] = []
    report: dict = {"changed": False}
    code = Exit.CURRENT
    try:
        if len(arguments) != 1 or arguments[0] not in commands:
            raise SchemaError(Exit.USAGE, f"usage: schema.py {'|'.join(commands)}")
        stores = read_stores()
        report["mlflow_version"] = mlflow_version()
        report["changed"] = commands[arguments[0]](stores)
    except SchemaError as error:
        code, report["error"] = error.code, str(error)
    except Exception as error:
        # A lost connection, a statement refused: the driver's own words, in one line.
        text = re.sub(r"\s+", " ", str(error)).strip()[-400:]
        lost = type(error).__name__ in ("OperationalError", "InterfaceError")
        code = Exit.RETRYABLE if lost else Exit.REFUSED
        report["error"] = f"{type(error).__name__}: {text}"
    report.update({store.kind.name: store.report() for store in stores})
    if code:
        report["exit_code"] = code
        say(report["error"])
        keep_reason(report["error"])
    print(json.dumps(report), flush=True)
    return code


if __name__ == "__main__":
    # The first process of a container gets no default action for this signal.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
