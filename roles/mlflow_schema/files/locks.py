"""Who works on a database: one upgrade at a time, and who stands in its way."""

from __future__ import annotations

import threading
import time
from contextlib import closing

from problems import Exit, SchemaError, one_line, say
from stores import Store, connect, query

# One number for every environment is fine: an advisory lock belongs to one database. The bytes spell "mlflow".
LOCK_KEY = int.from_bytes(b"mlflow", "big")
# A transaction that is as old as this, with a lock on a table, is not one of a server's short ones.
LONG_TRANSACTION_SECONDS = 8


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


# A role sees of other roles' sessions only pid and user; of its own, and of those it is a member of, everything.
SESSION = (
    "a.pid, a.usename, coalesce(a.state, 'state not visible'), "
    "extract(epoch FROM now() - a.xact_start)::int, extract(epoch FROM now() - a.query_start)::int, "
    "left(a.query, 80)"
)


def session_words(row: tuple) -> str:
    """A session for people, from a row of SESSION."""
    pid, user, state, transaction, statement, text = row
    words = f"pid {pid}, user {user}, {state}"
    if transaction is not None:
        words += f", its transaction open for {transaction} s"
    if statement is not None:
        words += f", its query {statement} s old: {one_line(text)}"
    return words


def long_transactions(connection) -> list[str]:
    """The sessions that hold locks on tables of this database in a transaction that does not end.

    Looks twice, since the age of another role's transaction cannot be seen; an upgrade would wait for each.
    """
    holders = (
        "SELECT l.pid, l.virtualtransaction FROM pg_locks l WHERE l.locktype = 'relation' AND l.granted "
        "AND l.pid <> pg_backend_pid() AND l.relation >= 16384 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    seen = set(query(connection, holders))
    end = time.monotonic() + LONG_TRANSACTION_SECONDS
    while seen and time.monotonic() < end:
        time.sleep(0.5)
        seen &= set(query(connection, holders))
    if not seen:
        return []
    pids = sorted({pid for pid, _transaction in seen})
    # PostgreSQL's own workers have no user, and give way. This project's own sessions are waited for elsewhere.
    named = (
        f"SELECT {SESSION} FROM pg_stat_activity a WHERE a.pid = ANY(%s) AND a.usename IS NOT NULL "  # noqa: S608
        "AND NOT (a.usename = current_user AND coalesce(a.application_name, '') ~ '^(mlflow-|ansible-mlflow)')"
    )
    rows = query(connection, named, pids)
    return [session_words(row) for row in rows]


class Watch:
    """Looks at an upgrade from a session of its own: what it does, and who blocks it.

    :param application: the application_name of the upgrade's sessions.
    """

    def __init__(self, store: Store, application: str):
        self._store, self._application = store, application
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._pids: list[int] = []
        self.blockers: list[str] = []

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self._end.set()
        self._thread.join(5)

    def _run(self) -> None:
        import psycopg2

        try:
            with closing(connect(self._store, 0)) as connection:
                self._look_until_the_end(connection)
        except (psycopg2.Error, SchemaError):
            # The upgrade itself will tell that the server is away.
            return

    def _look_until_the_end(self, connection) -> None:
        started, said = time.monotonic(), time.monotonic()
        while not self._end.wait(1):
            rows = query(
                connection,
                f"SELECT DISTINCT {SESSION} FROM pg_stat_activity w "  # noqa: S608 - a constant
                "CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS b(pid) JOIN pg_stat_activity a ON a.pid = b.pid "
                "WHERE w.application_name = %s AND a.application_name IS DISTINCT FROM w.application_name",
                self._application,
            )
            if rows:
                self._tell(rows)
            if time.monotonic() - said >= 10:
                said = time.monotonic()
                doing = query(
                    connection,
                    "SELECT left(query, 100) FROM pg_stat_activity WHERE application_name = %s AND state = 'active'",
                    self._application,
                )
                if doing:
                    say(f"{said - started:.0f} s: {one_line(doing[0][0])}")

    def _tell(self, rows: list[tuple]) -> None:
        words = [session_words(row) for row in rows]
        if [row[0] for row in rows] != self._pids:
            say(f"waits for {'; '.join(words)}")
        self._pids = [row[0] for row in rows]
        self.blockers = words
