"""With an administrator: bring roles, databases and the rights on them into the wanted state."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
import time

from . import artifact_roots, connections
from . import database_contents as contents
from .database import ConnectError, Outcome, Role, Server, Wanted, check_version, connect, first, quoted, rows
from .errors import Error

# Object ids below this belong to the server itself: the bootstrap superuser and the predefined roles.
FIRST_NORMAL_OID = 16384
UNWANTED = {
    "rolsuper": "NOSUPERUSER",
    "rolcreatedb": "NOCREATEDB",
    "rolcreaterole": "NOCREATEROLE",
    "rolreplication": "NOREPLICATION",
    "rolbypassrls": "NOBYPASSRLS",
}
# Direct memberships: of the migrator in the runtime role, and of the runtime role in whatever leads to the migrator or
# to a superuser. Before PostgreSQL 16 there is no inherit_option.
MEMBERSHIPS = """
    SELECT granted.rolname AS role, grantor.rolname AS grantor, member.rolname AS member,
           coalesce((to_jsonb(membership) ->> 'inherit_option')::boolean, true) AS inherits
    FROM pg_auth_members AS membership
    JOIN pg_roles AS granted ON granted.oid = membership.roleid
    JOIN pg_roles AS member ON member.oid = membership.member
    LEFT JOIN pg_roles AS grantor ON grantor.oid = membership.grantor
    WHERE (granted.rolname = %(runtime)s AND member.rolname = %(migrator)s)
       OR (member.rolname = %(runtime)s AND EXISTS (
              SELECT FROM pg_roles AS aim WHERE (aim.rolname = %(migrator)s OR aim.rolsuper)
                 AND pg_has_role(granted.oid, aim.oid, 'MEMBER')))
    ORDER BY 1, 2"""
# What the administrator may do with roles: act as they do, and hand them on.
POWERS = """
    SELECT rolname, pg_has_role(oid, 'USAGE') AS acts, pg_has_role(oid, 'MEMBER WITH ADMIN OPTION') AS administers
    FROM pg_roles WHERE rolname = ANY(%s) ORDER BY rolname"""
TURN = "SELECT pg_try_advisory_lock(hashtextextended('ansible-mlflow: roles and databases', 0)) AS taken"
TURN_SECONDS = 120
# Giving away an object needs a lock on it. Everybody who wants the object waits behind the one who waits for the lock,
# so it waits shortly, several times.
LOCK_TRIES = 4
LOCK_TIMEOUT = "5s"
LOCK_PAUSE_SECONDS = 2
HOLDERS = """
    SELECT pid, usename, state, extract(epoch FROM clock_timestamp() - min(xact_start))::int AS seconds
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE granted AND locktype = 'relation' AND relation >= 16384 AND pid <> pg_backend_pid()
      AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    GROUP BY 1, 2, 3 ORDER BY 4 DESC NULLS LAST LIMIT 3"""


def scram_matches(verifier: str, password: str) -> bool | None:
    """Whether a SCRAM-SHA-256 verifier of pg_authid belongs to the password.

    None when that cannot be told here: another kind of verifier, or a password whose characters PostgreSQL would
    normalise first.
    """
    match = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)", verifier or "")
    if not match or not password.isascii():
        return None
    rounds, salt, stored_key = int(match[1]), base64.b64decode(match[2]), base64.b64decode(match[3])
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), stored_key)


class Administration:
    """Brings roles, databases and rights into the wanted state with an administrator's connection.

    :param admin: user name, password and the database to connect to.
    :param check_mode: only tell what would be changed.
    """

    def __init__(self, server: Server, admin: tuple[str, str, str], wanted: Wanted, check_mode: bool):
        self.server, self.admin, self.wanted, self.check_mode = server, admin, wanted, check_mode
        self.outcome = Outcome()
        self._superuser, self._version = False, 0

    def apply(self) -> Outcome:
        """Inspect roles and databases, refuse what must be refused, then change what differs.

        :raises Error: see the messages; nothing was changed when a refusal is raised.
        """
        for role in self.wanted.roles:
            if role.username == self.admin[0]:
                raise Error(f"{role.option}: {role.username} is the administrator; MLflow needs a role of its own")
        with self._connect(self.admin[2]) as connection:
            self.outcome.server_version = check_version(connection, self.server)
            self._version = connection.info.server_version
            self._superuser = connection.info.parameter_status("is_superuser") == "on"
            self._take_turn(connection)
            roles = {role: self._read_role(connection, role) for role in self.wanted.roles}
            owners = self._read_owners(connection)
            self._refuse(roles, owners)
            for row in rows(connection, contents.COMMENTS, [self.wanted.databases]):
                contents.refuse_occupied(row["datname"], row["comment"], self.wanted)
            self._refuse_powerless(connection, roles)
            connections.refuse(connection, self.server, self.wanted)
            for role, found in roles.items():
                self._ensure_role(connection, role, found, owners)
            self._ensure_memberships(connection)
            for name in self.wanted.databases:
                if name not in owners:
                    self._create_database(connection, name)
                if name in owners or not self.check_mode:
                    self._ensure_contents(name, name not in owners)
        return self.outcome

    def _connect(self, database: str):
        return connect(self.server, self.admin[0], self.admin[1], database, "database_admin_password")

    def _take_turn(self, connection) -> None:
        """Wait until no other run changes roles and databases here; the end of the connection ends the turn."""
        end = time.monotonic() + TURN_SECONDS
        while not self.check_mode and not first(connection, TURN)["taken"]:
            if time.monotonic() > end:
                raise Error(
                    f"another run has been changing roles and databases at PostgreSQL {self.server.label} for "
                    f"{TURN_SECONDS} s; wait for its end and run again"
                )
            time.sleep(0.5)

    def _read_role(self, connection, role: Role) -> dict | None:
        # Only a superuser may read verifiers; others see stars in pg_roles.
        table = "pg_authid" if self._superuser else "pg_roles"
        flags = ", ".join(UNWANTED)
        query = f"""
            SELECT oid, rolcanlogin, rolinherit, {flags}, rolpassword, coalesce(rolvaliduntil < now(), false) AS expired
            FROM {table} WHERE rolname = %s"""  # noqa: S608 - constants of this file only
        return first(connection, query, [role.username])

    def _read_owners(self, connection) -> dict[str, str]:
        query = "SELECT datname, pg_get_userbyid(datdba) AS owner FROM pg_database WHERE datname = ANY(%s)"
        return {row["datname"]: row["owner"] for row in rows(connection, query, [self.wanted.databases])}

    def _refuse(self, roles: dict[Role, dict | None], owners: dict[str, str]) -> None:
        for role, found in roles.items():
            if found and found["oid"] < FIRST_NORMAL_OID:
                raise Error(
                    f"{role.option}: {role.username} is one of PostgreSQL's own roles; MLflow needs a role of its own"
                )
        migrator = self.wanted.migrator.username
        for name, owner in owners.items():
            if owner not in (migrator, self.wanted.runtime.username):
                raise Error(
                    f"database {name} at {self.server.label} belongs to role {owner}, not to {migrator}; it is "
                    f"left alone: choose another name, or give it away yourself with "
                    f"ALTER DATABASE {quoted(name)} OWNER TO {quoted(migrator)}"
                )

    def _refuse_powerless(self, connection, roles: dict[Role, dict | None]) -> None:
        """Refuse an administrator who could not give itself the roles: since PostgreSQL 16, CREATEROLE is not enough.

        Whoever makes a role may administer it; a role of somebody else's has to be granted.
        """
        powers = {row["rolname"]: row for row in rows(connection, POWERS, [[role.username for role in roles]])}
        lacking = [name for name, power in powers.items() if not power["acts"] and not power["administers"]]
        if self._version < 160000 or self._superuser or not lacking:
            return
        grants = "; ".join(f"GRANT {quoted(name)} TO {quoted(self.admin[0])} WITH ADMIN OPTION" for name in lacking)
        raise Error(
            f"PostgreSQL {self.server.label}: the administrator {self.admin[0]} may not administer role "
            f"{' and role '.join(lacking)}, which it did not make; expected that a superuser has run {grants}; "
            f"nothing was changed"
        )

    def _ensure_role(self, connection, role: Role, found: dict | None, owners: dict[str, str]) -> None:
        username = role.username
        if found is None:
            self.outcome.note(f"created role {username}", f"role {username}", "absent", "can log in, no other right")
            self._execute(connection, "CREATE ROLE {} LOGIN PASSWORD {secret}", role)
            return
        wrong = [word for flag, word in UNWANTED.items() if found[flag]]
        if not found["rolcanlogin"]:
            wrong.append("LOGIN")
        if role is self.wanted.migrator and not found["rolinherit"]:
            wrong.append("INHERIT")
        if found["expired"]:
            wrong.append("VALID UNTIL 'infinity'")
        if wrong:
            words = " ".join(wrong)
            self.outcome.note(f"altered role {username}: {words}", f"role {username}", "other attributes", words)
            self._execute(connection, f"ALTER ROLE {{}} {words}", role)
        if not self._password_is_right(role, found, owners):
            self.outcome.note(
                f"set the password of role {username}", f"password of role {username}", "another", "as given"
            )
            self._execute(connection, "ALTER ROLE {} PASSWORD {secret}", role)

    def _password_is_right(self, role: Role, found: dict, owners: dict[str, str]) -> bool:
        if self._superuser:
            verifier = found["rolpassword"] or ""
            if not verifier.startswith("SCRAM-SHA-256$"):
                return False
            matches = scram_matches(verifier, role.password)
            if matches is not None:
                return matches
        try:
            with connect(self.server, role.username, role.password, next(iter(owners), self.admin[2])):
                return True
        except ConnectError as error:
            if error.state in ("28P01", "28000"):
                return False
            # The password comes first: who is refused at the database has passed it.
            if error.state in ("42501", "3D000"):
                return True
            raise

    def _ensure_memberships(self, connection) -> None:
        """Make the migrator a member of the runtime role, and see that no way leads back.

        As a member it sees what the server's sessions do. A runtime role that could act as the migrator could migrate.
        """
        runtime, migrator = self.wanted.runtime.username, self.wanted.migrator.username
        is_member = False
        for found in rows(connection, MEMBERSHIPS, {"runtime": runtime, "migrator": migrator}):
            if found["member"] == migrator:
                is_member = is_member or found["inherits"]
                continue
            group = found["role"]
            self.outcome.note(
                f"took role {runtime} out of role {group}", f"{runtime}, member of {group}", "granted", "revoked"
            )
            statement = f"REVOKE {quoted(group)} FROM {quoted(runtime)}"
            # Since PostgreSQL 16 each grantor's grant is one of its own.
            if self._version >= 160000 and found["grantor"]:
                statement += f" GRANTED BY {quoted(found['grantor'])}"
            self._run(connection, [statement])
        if not is_member:
            self.outcome.note(
                f"let role {migrator} see the sessions of role {runtime}",
                f"{migrator}, member of {runtime}",
                "no",
                "yes",
            )
            inherit = " WITH INHERIT TRUE" if self._version >= 160000 else ""
            self._run(connection, [f"GRANT {quoted(runtime)} TO {quoted(migrator)}{inherit}"])
        if not self._superuser:
            # To give something to a role, or take it from one, one has to be a member of it.
            inherit = " WITH INHERIT TRUE, SET TRUE" if self._version >= 160000 else ""
            query = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND NOT pg_has_role(oid, 'USAGE')"
            for row in rows(connection, query, [[runtime, migrator]]):
                self._run(connection, [f"GRANT {quoted(row['rolname'])} TO CURRENT_USER{inherit}"])

    def _create_database(self, connection, name: str) -> None:
        owner = self.wanted.migrator.username
        self.outcome.note(f"created database {name}", f"database {name}", "absent", f"owned by {owner}")
        # The server's default encoding may be SQL_ASCII, in which MLflow's texts would not be checked.
        statement = f"CREATE DATABASE {quoted(name)} OWNER {quoted(owner)} ENCODING 'UTF8' TEMPLATE template0"
        self._run(connection, [statement])

    def _ensure_contents(self, name: str, is_new: bool) -> None:
        """Put right who owns a database and what is in it, and who may do what there, in one transaction.

        :param is_new: the database was made by this run, so that it is not told apart what belongs to making it.
        """
        import psycopg

        with self._enter(name) as connection:
            for attempt in range(1, LOCK_TRIES + 1):
                try:
                    with connection.transaction():
                        changes = self._put_right(connection, name)
                    self.outcome.revisions[name] = contents.revisions(connection, self.wanted.schema)
                    self.outcome.artifact_roots.update(artifact_roots.read(connection))
                    break
                except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                    if attempt == LOCK_TRIES:
                        raise Error(self._lock_problem(connection, name)) from None
                    time.sleep(LOCK_PAUSE_SECONDS)
        for change in changes if not is_new else []:
            self.outcome.note(change.sentence, change.key, change.before, change.after)

    @contextlib.contextmanager
    def _enter(self, name: str):
        """A connection to a database. One that is closed to the administrator opens when it becomes a member.

        In check mode it does not, so the migrator looks in its place.
        """
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(self._connect(name))
            except ConnectError as error:
                if not self.check_mode or error.state != "42501":
                    raise
                role = self.wanted.migrator
                connection = stack.enter_context(connect(self.server, role.username, role.password, name, role.secret))
            yield connection

    def _put_right(self, connection, name: str) -> list[contents.Change]:
        changes = contents.plan(contents.read(connection, name, self.wanted), self.wanted)
        if not changes or self.check_mode:
            return changes
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        if self._superuser:
            # Of two that wait for each other, this one gives up, and not a server in the middle of somebody's request.
            connection.execute("SET LOCAL deadlock_timeout = '100ms'")
        for change in changes:
            self._run(connection, change.statements)
        if contents.read(connection, name, self.wanted).runtime_creates:
            raise Error(f"{contents.may_create(self.wanted, name)}; nothing was changed in this database")
        return changes

    def _lock_problem(self, connection, name: str) -> str:
        holders = ", ".join(
            f"pid {row['pid']} (user {row['usename']}, {row['state']}, for {row['seconds']} s)"
            for row in rows(connection, HOLDERS)
        )
        return (
            f"database {name} at {self.server.label}: what is in it cannot be given to role "
            f"{self.wanted.migrator.username}, as it could not be locked in {LOCK_TRIES} tries of {LOCK_TIMEOUT}; in "
            f"use by {holders or 'short requests'}; end such a session with SELECT pg_terminate_backend(pid), or wait, "
            f"and run again; nothing was changed in it"
        )

    def _run(self, connection, statements: list[str]) -> None:
        """Run statements, unless in check mode."""
        for statement in statements if not self.check_mode else []:
            connection.execute(statement)

    def _execute(self, connection, statement: str, role: Role) -> None:
        """Run a statement whose ``{}`` is a role and whose ``{secret}`` its password's verifier, unless in check mode.

        The verifier is computed here, so that the password reaches neither the server's log nor pg_stat_activity.
        """
        if self.check_mode:
            return
        from psycopg import sql

        verifier = connection.pgconn.encrypt_password(
            role.password.encode(), role.username.encode(), b"scram-sha-256"
        ).decode()
        name, secret = sql.Identifier(role.username), sql.Literal(verifier)
        connection.execute(sql.SQL(statement).format(name, secret=secret))
