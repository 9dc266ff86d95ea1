#!/usr/bin/env python3
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
"""Compare and upgrade the schemas of MLflow's databases; runs in the image of MLflow whose schema is wanted.

    schema.py check     are all databases at the revision that this image wants? (milliseconds; imports no MLflow)
    schema.py plan      what would an upgrade do, and could it? Refuses what must not be tried, and changes nothing
    schema.py prepare   do what can be done before the upgrade, while servers work on
    schema.py upgrade   bring the databases there, under a lock, if they are behind

Environment:
    MLFLOW_BACKEND_STORE_URI       postgresql+psycopg2://user@host:port/database of the tracking store
    MLFLOW_REGISTRY_STORE_URI      the same of the model registry, if it has a database of its own
    MLFLOW_AUTH_DATABASE_URI       the same of the auth store; unset if there is none
    PGPASSWORD                     their password: it stands in no URI, so it shows in no argument and no log
    MLFLOW_SCHEMA_RUNTIME_ROLE     the role of the servers: it gets rights on the data, and none to migrate
    MLFLOW_SCHEMA_WORK             the directory that this Job's containers share; unset if there is none
    MLFLOW_SCHEMA_BACKUP           required (the default), or waived: upgrade without a backup
    MLFLOW_SCHEMA_CONNECT_SECONDS  how long to try to reach a database (60)
    MLFLOW_SCHEMA_LOCK_SECONDS     how long to wait for another upgrade (600)
    MLFLOW_SCHEMA_TABLE_LOCK_SECONDS  how long the upgrade may wait for a table that a session has locked (10)
    MLFLOW_SCHEMA_STATEMENT_SECONDS   how long one statement of the upgrade may take (3600)
    MLFLOW_SCHEMA_TERMINATION_LOG  where the reason of a failure is kept (/dev/termination-log)

The last line on standard output is a JSON report. Exit codes: see problems.Exit. MLflow itself compares revisions for
equality only, migrates some old databases by merely starting, and takes no lock.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import crossings
from history import mlflow_version, named
from locks import Watch, long_transactions, take_lock
from problems import Exit, SchemaError, keep_reason, one_line, say, seconds_of
from stores import AUTH_VERSION_TABLE, Store, connect, inspect, inspect_all, query, read_stores

EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*[a-z]\w*: ")
# The first release that takes its administrator's password from a Secret, and not from a file alone, and that can deny
# an access again.
OLDEST_SERVED = (3, 17)
# MLflow as `python -m` would run it, but with Alembic's line for each revision, which newer releases do not print.
LAUNCHER = (
    "import logging, runpy, sys; log = logging.getLogger('alembic.runtime.migration'); "
    "log.addHandler(logging.StreamHandler()); log.setLevel('INFO'); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
# What Alembic says at every start, and nobody wants to know.
NOISE = re.compile(r"Context impl |Will assume transactional DDL|alembic\.runtime\.migration")
# The frames of an exception, of which the last line says what an operator needs.
FRAMES = re.compile(r"Traceback \(most recent call last\)|\s|The above exception was|During handling of")
RUNNING = re.compile(r"Running upgrade (?P<before>\S*) -> (?P<after>[^,\s]+)(?:, (?P<what>.*))?")


def check(stores: list[Store], report: dict) -> None:
    """Raise unless all databases are current."""
    inspect_all(stores)
    remember(stores)
    behind = [
        f"{store.label} is {'empty' if store.state == 'empty' else f'at {named(store.tree, store.revision)}'}, "
        f"MLflow {mlflow_version()} wants {store.history.head} ({len(store.pending)} revisions later)"
        for store in stores
        if store.state != "current"
    ]
    if behind:
        raise SchemaError(Exit.BEHIND, "; ".join(behind) + ": run the upgrade first")
    report["changed"] = False


def plan(stores: list[Store], report: dict) -> None:
    """Say what an upgrade would do, refuse what it could not do, and ask for a backup of what it would change."""
    seconds = seconds_of("MLFLOW_SCHEMA_CONNECT_SECONDS", 60)
    with closing(connect(stores[0], seconds)) as lock:
        # An upgrade under way, of a run that was killed perhaps, would change under one's eyes what is looked at here.
        take_lock(stores[0], lock, seconds_of("MLFLOW_SCHEMA_LOCK_SECONDS", 600))
        look_ahead(stores, report, seconds)


def look_ahead(stores: list[Store], report: dict, seconds: float) -> None:
    """The work of :func:`plan`, while nobody upgrades."""
    inspect_all(stores)
    refuse_old_image()
    remember(stores)
    report["plan"], report["prepare"], todo = [], False, False
    for store in stores:
        with closing(connect(store, seconds)) as connection:
            unfinished = crossings.is_unfinished(store, connection)
            if store.state == "current" and not unfinished:
                continue
            todo = True
            report["prepare"] |= crossings.wants_prepopulation(store, connection)
            report["plan"] += [plan_words(store, unfinished), *crossings.notes(store, connection)]
            refuse_what_would_fail(store, connection)
    # Also where there is nothing to back up: a pod whose containers run again has the list of before.
    ask_for_backup(stores, wanted=todo and not waived())


def refuse_old_image() -> None:
    """Refuse a release whose server could not start with what it is given here."""
    version = mlflow_version()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_SERVED:
        raise SchemaError(
            Exit.REFUSED,
            f"MLflow {version} in the image takes its administrator's password from a file alone; expected an image "
            f"of MLflow {'.'.join(map(str, OLDEST_SERVED))} or later (mlflow_environment_image); nothing was changed",
        )


def plan_words(store: Store, unfinished: bool) -> str:
    """The upgrade of one store in a line."""
    if unfinished and store.state == "current":
        return f"{store.name} database {store.parameters['dbname']}: to be finished after an interrupted upgrade"
    before, after = named(store.tree, store.revision), named(store.tree, store.history.head)
    count = len(store.pending)
    return (
        f"{store.name} database {store.parameters['dbname']}: from {before} to {after}, "
        f"{count} revision{'' if count == 1 else 's'}"
    )


def refuse_what_would_fail(store: Store, connection) -> None:
    """Find out before anything is stopped what the upgrade would run into."""
    user = query(connection, "SELECT current_user")[0][0]
    statement = "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
    ((schema, may_create),) = query(connection, statement)
    if not schema or not may_create:
        raise SchemaError(
            Exit.ACCESS,
            f"{store.label}: role {user} may not create tables in schema {schema or 'public'}; let an administrator "
            f"run there: GRANT USAGE, CREATE ON SCHEMA {schema or 'public'} TO {user}; nothing was changed",
        )
    others = query(
        connection,
        "SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.relkind IN ('r', 'p') "
        "AND c.relnamespace = to_regnamespace(quote_ident(current_schema())) "
        "AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1",
    )
    if others:
        raise SchemaError(
            Exit.ACCESS,
            f"{store.label}: {len(others)} tables ({others[0][0]}, ...) belong to role {others[0][1]}, so {user} may "
            f"not change them; give them to {user} (with an administrator, the role mlflow_database does); nothing "
            f"was changed",
        )
    created = {table for revision in store.pending for table in store.history.creates.get(revision, ())}
    present = [table for table in sorted(created) if store.revision and crossings.there(connection, table)]
    if present:
        raise SchemaError(
            Exit.REFUSED,
            f"{store.label} is at {named(store.tree, store.revision)}, but has tables of later revisions already "
            f"({', '.join(present)}), left by an upgrade that was not finished or not MLflow's: restore a backup of "
            f"before it (docs/upgrading.md); nothing was changed",
        )
    sessions = long_transactions(connection) if store.revision else []
    if sessions:
        raise SchemaError(
            Exit.RETRYABLE,
            f"{store.label}: transactions that do not end hold locks which the upgrade would wait for: "
            f"{'; '.join(sessions)}; end them (SELECT pg_terminate_backend(pid)) or wait, and run again; nothing was "
            f"changed",
        )


def ask_for_backup(stores: list[Store], wanted: bool) -> None:
    """Tell the containers that follow in this pod which databases to dump: all that hold data, or none."""
    work = os.environ.get("MLFLOW_SCHEMA_WORK", "")
    if not work:
        return
    text = ""
    for store in stores:
        if wanted and store.revision:
            where = [str(store.parameters.get(key, "")) for key in ("host", "port", "dbname", "user")]
            text += "\t".join([store.name, *where, store.revision]) + "\n"
    Path(work, "dump.list").write_text(text, "utf-8")


def waived() -> bool:
    """Whether an upgrade may go without a backup."""
    text = os.environ.get("MLFLOW_SCHEMA_BACKUP", "required")
    if text not in ("required", "waived"):
        raise SchemaError(Exit.USAGE, f"MLFLOW_SCHEMA_BACKUP: expected required or waived, got {text!r}")
    return text == "waived"


def prepare(stores: list[Store], report: dict) -> None:
    """Do what can be done before the upgrade, while servers work on."""
    inspect_all(stores)
    remember(stores)
    for store in stores:
        report["changed"] |= prepopulate(store, again=True)


def prepopulate(store: Store, again: bool) -> bool:
    """Let MLflow fill its trace analytics in batches, which skips what it has done already; whether it did.

    :param again: also when it was begun before. The upgrade leaves it at that, and fills the rest itself.
    """
    with closing(connect(store, seconds_of("MLFLOW_SCHEMA_CONNECT_SECONDS", 60))) as connection:
        wanted = crossings.wants_prepopulation(store, connection)
        if not wanted or (crossings.is_prepopulated(connection) and not again):
            return False
    say(f"{store.label}: filling the trace analytics of MLflow 3.17 beforehand")
    run_mlflow(store, ["mlflow", "db", "prepopulate-trace-analytics", store.uri], "filling the trace analytics")
    return True


def upgrade(stores: list[Store], report: dict) -> None:
    """Bring all databases to the image's heads."""
    seconds = seconds_of("MLFLOW_SCHEMA_CONNECT_SECONDS", 60)
    with closing(connect(stores[0], seconds)) as connection:
        take_lock(stores[0], connection, seconds_of("MLFLOW_SCHEMA_LOCK_SECONDS", 600))
        # Whoever held the lock may have done the work.
        inspect_all(stores)
        remember(stores)
        todo = [store for store in stores if store.state != "current"]
        if todo:
            report["backup"] = backup_of(stores)
        for store in todo:
            report["changed"] = True
            apply(store, seconds)
        finish(stores, seconds)
        for store in stores:
            grant(store, seconds)


def remember(stores: list[Store]) -> None:
    """Keep the revisions of before, for the report."""
    for store in stores:
        store.before = store.revision


def backup_of(stores: list[Store]) -> dict:
    """The backup that this Job's containers made of exactly these revisions.

    :raises SchemaError: there is none, and it is not waived.
    """
    revisions = {store.name: store.revision for store in stores if store.revision}
    if not revisions:
        return {}
    if waived():
        say("upgrading without a backup, as told (mlflow_backup_required: false)")
        return {"waived": True}
    path = Path(os.environ.get("MLFLOW_SCHEMA_WORK", ""), "backup.json")
    if not path.is_file():
        raise SchemaError(
            Exit.REFUSED,
            "no backup was made in this Job, so nothing is upgraded; mlflow_backup_required: false goes without one",
        )
    backup = json.loads(path.read_text("utf-8"))
    if backup["revisions"] != revisions:
        raise SchemaError(
            Exit.RETRYABLE,
            f"backup {backup['id']} is of revisions {backup['revisions']}, but the databases are at {revisions} now: "
            f"run again",
        )
    return backup


def apply(store: Store, seconds: float) -> None:
    """Run MLflow's own upgrade of one store, with what has to come before it."""
    prepopulate(store, again=False)
    crossings.before_upgrade(store, seconds)
    say(f"upgrading {store.label} from {named(store.tree, store.revision)} to {named(store.tree, store.history.head)}")
    if store.tree == "tracking":
        command = ["mlflow", "db", "upgrade", store.uri]
    else:
        command = ["mlflow.server.auth", "db", "upgrade", "--url", store.uri]
    run_mlflow(store, command, "MLflow's upgrade")
    with closing(connect(store, seconds)) as fresh:
        inspect(store, fresh)
    if store.state != "current":
        told = f"{store.label} is at {store.revision or 'no revision'} after the upgrade, not {store.history.head}"
        raise SchemaError(Exit.UPGRADE_FAILED, told)


def run_mlflow(store: Store, arguments: list[str], what: str) -> None:
    """Run a module of MLflow; its output goes to standard error, where the log shows it before the report."""
    application = f"mlflow-upgrade {socket.gethostname()}"
    table = seconds_of("MLFLOW_SCHEMA_TABLE_LOCK_SECONDS", 10)
    statement = seconds_of("MLFLOW_SCHEMA_STATEMENT_SECONDS", 3600)
    # The server's own settings must not reach this process: it would read its configuration, or talk to a server.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    limits = f"-c lock_timeout={table * 1000:.0f} -c statement_timeout={statement * 1000:.0f}"
    environment |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PGAPPNAME": application,
        # The search path is there already, where MLflow has a schema of its own.
        "PGOPTIONS": f"{os.environ.get('PGOPTIONS', '')} {limits}".strip(),
    }
    words, done = [], []
    with (
        Watch(store, application) as watch,
        subprocess.Popen(  # noqa: S603 - the interpreter, with arguments of this file and the URI
            [sys.executable, "-W", "ignore", "-c", LAUNCHER, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                words.append(line.strip())
                step = RUNNING.search(line)
                if not step:
                    sys.stderr.write("" if NOISE.search(line) or FRAMES.match(line) else line)
                elif step["after"] not in done and store.revision:
                    done.append(step["after"])
                    say(f"revision {len(done)} of {len(store.pending)}: {step['after']}, {step['what'] or ''}".strip())
        except BaseException:
            # This program is being ended; the database undoes what MLflow has not committed.
            process.kill()
            raise
    if process.returncode != 0:
        raise failure(store, what, process.returncode, words, watch.blockers)


def failure(store: Store, what: str, status: int, words: list[str], blockers: list[str]) -> SchemaError:
    """Why a command of MLflow failed, and whether it may come right by itself."""
    words = [line for line in words if line] or ["no output"]
    # After the exception SQLAlchemy shows the statement and a pointer to its documentation.
    said = next((line for line in reversed(words) if EXCEPTION.match(line)), words[-1])
    whole = " ".join(words)
    if "lock timeout" in whole:
        told = f": blocked by {'; '.join(blockers)}" if blockers else ""
        return SchemaError(
            Exit.RETRYABLE,
            f"{store.label}: {what} waited too long for a table that another session has locked{told}; it was undone: "
            f"end that session, and run again",
        )
    lost = re.search(r"server closed the connection|could not connect|Connection refused|terminating connection", whole)
    if lost:
        return SchemaError(
            Exit.RETRYABLE,
            f"{store.label}: the server went away during {what} ({lost[0]}); what was not committed is undone: run "
            f"again when it is back",
        )
    return SchemaError(
        Exit.UPGRADE_FAILED, f"{store.label}: {what} failed with exit code {status}: {one_line(said, 400)}"
    )


def finish(stores: list[Store], seconds: float) -> None:
    """Carry over what MLflow's migrations leave behind."""
    by_name = {store.name: store for store in stores}
    if "auth" in by_name:
        crossings.after_upgrade(by_name["auth"], by_name.get("registry", by_name["tracking"]), seconds)


def grant(store: Store, seconds: float) -> None:
    """Give the servers' role rights on the data, and on the version tables to read only: it can never migrate."""
    role = os.environ.get("MLFLOW_SCHEMA_RUNTIME_ROLE", "")
    if not role:
        return
    from psycopg2 import sql

    versions = ("alembic_version", AUTH_VERSION_TABLE)
    statements = [
        "GRANT USAGE ON SCHEMA {schema} TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    ]
    with closing(connect(store, seconds)) as connection:
        statements += [
            f"REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {table} FROM {{role}}"
            for table in versions
            if crossings.there(connection, table)
        ]
        schema = query(connection, "SELECT current_schema()")[0][0]
        # In one transaction, so that a serving role never is without them.
        names = {"schema": sql.Identifier(schema), "role": sql.Identifier(role)}
        query(connection, sql.SQL("; ".join(statements)).format(**names))


def main(arguments: list[str]) -> int:
    """Run a command; the report is printed in any case."""
    commands = {"check": check, "plan": plan, "prepare": prepare, "upgrade": upgrade}
    stores: list[Store] = []
    report: dict = {"changed": False}
    code = Exit.CURRENT
    try:
        if len(arguments) != 1 or arguments[0] not in commands:
            raise SchemaError(Exit.USAGE, f"usage: schema.py {'|'.join(commands)}")
        stores = read_stores()
        report["mlflow_version"] = mlflow_version()
        commands[arguments[0]](stores, report)
    except SchemaError as error:
        code, report["error"] = error.code, str(error)
    except Exception as error:
        # A lost connection, a statement refused: the driver's own words, in one line.
        lost = type(error).__name__ in ("OperationalError", "InterfaceError", "AdminShutdown")
        code = Exit.RETRYABLE if lost else Exit.REFUSED
        report["error"] = f"{type(error).__name__}: {one_line(error, 400)}"
    report.update({store.name: store.report() for store in stores})
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
