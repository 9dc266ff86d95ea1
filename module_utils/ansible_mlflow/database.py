"""The PostgreSQL side of an environment: its role, its databases and the rights on them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from .errors import Error, MissingLibraryError, one_line

CONNECT_TIMEOUT = 10
STATEMENT_TIMEOUT_MS = 30_000
OLDEST_VERSION = 150000
IDENTIFIER_BYTES = 63
# Object ids below this belong to the server itself: the bootstrap superuser and the predefined roles.
FIRST_NORMAL_OID = 16384
UNWANTED = {
    "rolsuper": "NOSUPERUSER",
    "rolcreatedb": "NOCREATEDB",
    "rolcreaterole": "NOCREATEROLE",
    "rolreplication": "NOREPLICATION",
    "rolbypassrls": "NOBYPASSRLS",
}
TABLE_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


class ConnectError(Error):
    """A connection was refused; ``state`` is the SQLSTATE or an empty text when the server was not reached."""

    def __init__(self, message: str, state: str):
        super().__init__(message)
        self.state = state


@dataclass(frozen=True)
class Server:
    """Where PostgreSQL is: its name, and the address to connect to (another one behind a tunnel)."""

    host: str
    port: int
    address: tuple[str, int]

    @property
    def label(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass
class Wanted:
    """What should be there: a role with a password, owning some databases."""

    username: str
    password: str
    databases: list[str]


@dataclass
class Outcome:
    """What was changed, or would be, and how it looked before and after."""

    changes: list[str] = field(default_factory=list)
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    server_version: str = ""


def check_identifier(name: str, option: str) -> None:
    """Refuse a name that PostgreSQL would refuse, cut or confuse.

    :raises Error: naming the option.
    """
    if not name or "\0" in name or len(name.encode()) > IDENTIFIER_BYTES:
        raise Error(f"{option}: expected 1 to {IDENTIFIER_BYTES} bytes, got {name!r}")
    if option == "username" and name.startswith("pg_"):
        raise Error(f"{option}: {name!r} begins with pg_, which PostgreSQL keeps for itself")


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


# libpq tells why a connection failed only in words: (what it says, SQLSTATE, what we say).
REFUSALS = (
    ("password authentication failed", "28P01", "the password is wrong, or the role does not exist"),
    ("no password supplied", "28P01", "it wants a password and none is given"),
    ("no pg_hba.conf entry", "28000", "its pg_hba.conf does not allow this user, database or address"),
    ("is not permitted to log in", "28000", "the role may not log in"),
    ("permission denied for database", "42501", "the role may not connect to the database"),
    ('database ".*" does not exist', "3D000", "the database does not exist"),
    ("not currently accepting connections", "55000", "the database does not accept connections"),
    ("too many clients|remaining connection slots|too many connections", "53300", "it has no free connections"),
    ("the database system is", "57P03", "it is starting up or shutting down"),
    ("Connection refused", "", "the connection was refused"),
    ("timeout expired", "", f"it did not answer within {CONNECT_TIMEOUT} s"),
    ("could not translate|not known|failed to resolve", "", "its name cannot be resolved here"),
    ("server closed the connection|reset by peer", "", "it closed the connection"),
)


def refusal(text: str) -> tuple[str, str]:
    """(SQLSTATE or empty, plain words) of a refused connection, from libpq's text."""
    for pattern, state, words in REFUSALS:
        if re.search(pattern, text):
            return state, words
    return "", one_line(text, 300)


@contextlib.contextmanager
def connect(server: Server, username: str, password: str, database: str):
    """A psycopg connection in autocommit mode; its host name stays the true one for TLS.

    :raises ConnectError: with the reason in plain words. :raises Error: a statement failed.
    """
    try:
        import psycopg
    except ImportError as error:
        raise MissingLibraryError("psycopg[binary]", str(error)) from None
    host, port = server.address
    where = {"host": server.host, "hostaddr": host} if server.address[0] != server.host else {"host": host}
    label = f"PostgreSQL {server.label}"
    try:
        connection = psycopg.connect(
            **where,
            port=port,
            user=username,
            password=password,
            dbname=database,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="ansible-mlflow",
            gssencmode="disable",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={STATEMENT_TIMEOUT_MS}",
            autocommit=True,
        )
    except psycopg.Error as error:
        state, words = refusal(str(error))
        raise ConnectError(f"{label}, database {database}, user {username}: {words}", state) from None
    try:
        with connection:
            yield connection
    except psycopg.Error as error:
        raise Error(f"{label}, database {database}, user {username}: {one_line(error, 400)}") from None


def check_version(connection, server: Server) -> str:
    """The server's version as text.

    :raises Error: it is older than 15, whose rights on the schema public are others.
    """
    number = connection.info.server_version
    text = f"{number // 10000}.{number % 10000}"
    if number < OLDEST_VERSION:
        raise Error(f"PostgreSQL {server.label} is {text}; expected {OLDEST_VERSION // 10000} or newer")
    return text


class Administration:
    """Brings role, databases and rights into the wanted state with an administrator's connection.

    :param admin: user name, password and the database to connect to.
    :param check_mode: only tell what would be changed.
    """

    def __init__(self, server: Server, admin: tuple[str, str, str], wanted: Wanted, check_mode: bool):
        self.server, self.admin, self.wanted, self.check_mode = server, admin, wanted, check_mode
        self.outcome = Outcome()
        self._superuser = False

    def apply(self) -> Outcome:
        """Inspect role and databases, refuse what must be refused, then change what differs.

        :raises Error: see the messages; nothing was changed when a refusal is raised.
        """
        if self.wanted.username == self.admin[0]:
            raise Error(f"username: {self.wanted.username} is the administrator; MLflow needs a role of its own")
        with connect(self.server, *self.admin) as connection:
            self.outcome.server_version = check_version(connection, self.server)
            self._superuser = connection.info.parameter_status("is_superuser") == "on"
            role = self._read_role(connection)
            databases = self._read_databases(connection, role)
            self._refuse(role, databases)
            self._ensure_role(connection, role, databases)
            for name in self.wanted.databases:
                self._ensure_database(connection, name, databases.get(name))
        if role is not None:
            for name in databases:
                self._ensure_rights_inside(name, role["oid"])
        return self.outcome

    def _read_role(self, connection) -> dict | None:
        # Only a superuser may read verifiers; others see stars in pg_roles.
        table = "pg_authid" if self._superuser else "pg_roles"
        flags = ", ".join(UNWANTED)
        query = f"""
            SELECT oid, rolcanlogin, {flags}, rolpassword, coalesce(rolvaliduntil < now(), false) AS expired
            FROM {table} WHERE rolname = %s"""  # noqa: S608 - constants of this file only
        return _first(connection, query, [self.wanted.username])

    def _read_databases(self, connection, role: dict | None) -> dict[str, dict]:
        query = """
            SELECT datname, pg_get_userbyid(datdba) AS owner,
                   has_database_privilege('public'::name, oid, 'CONNECT') AS public_connect,
                   has_database_privilege(%(role)s::oid, oid, 'CONNECT')
                   AND has_database_privilege(%(role)s::oid, oid, 'CREATE')
                   AND has_database_privilege(%(role)s::oid, oid, 'TEMPORARY') AS own_rights
            FROM pg_database WHERE datname = ANY(%(names)s)"""
        rows = _rows(connection, query, {"role": role and role["oid"], "names": self.wanted.databases})
        return {row["datname"]: row for row in rows}

    def _refuse(self, role: dict | None, databases: dict[str, dict]) -> None:
        username = self.wanted.username
        if role and role["oid"] < FIRST_NORMAL_OID:
            raise Error(f"username: {username} is one of PostgreSQL's own roles; MLflow needs a role of its own")
        for name, row in databases.items():
            if row["owner"] != username:
                raise Error(
                    f"database {name} at {self.server.label} belongs to role {row['owner']}, not to {username}; it is "
                    f"left alone: choose another name, or give it away yourself with "
                    f"ALTER DATABASE {quoted(name)} OWNER TO {quoted(username)}"
                )

    def _ensure_role(self, connection, role: dict | None, databases: dict[str, dict]) -> None:
        username = self.wanted.username
        if role is None:
            self._note(f"created role {username}", "role", "absent", "can log in, no other right")
            self._execute(connection, "CREATE ROLE {} LOGIN PASSWORD {secret}", [username], self._verifier(connection))
            return
        wrong = [word for flag, word in UNWANTED.items() if role[flag]]
        if not role["rolcanlogin"]:
            wrong.append("LOGIN")
        if role["expired"]:
            wrong.append("VALID UNTIL 'infinity'")
        if wrong:
            self._note(f"altered role {username}: {' '.join(wrong)}", "role", "other attributes", " ".join(wrong))
            self._execute(connection, "ALTER ROLE {} " + " ".join(wrong), [username])
        if not self._password_is_right(role, databases):
            self._note(f"set the password of role {username}", "password", "another", "as given")
            self._execute(connection, "ALTER ROLE {} PASSWORD {secret}", [username], self._verifier(connection))

    def _password_is_right(self, role: dict, databases: dict[str, dict]) -> bool:
        if self._superuser:
            verifier = role["rolpassword"] or ""
            if not verifier.startswith("SCRAM-SHA-256$"):
                return False
            matches = scram_matches(verifier, self.wanted.password)
            if matches is not None:
                return matches
        database = next(iter(databases), self.admin[2])
        try:
            with connect(self.server, self.wanted.username, self.wanted.password, database):
                return True
        except ConnectError as error:
            if error.state in ("28P01", "28000"):
                return False
            # The password comes first: who is refused at the database has passed it.
            if error.state in ("42501", "3D000"):
                return True
            raise

    def _verifier(self, connection) -> str:
        # Computed here, so that the password reaches neither the server's log nor pg_stat_activity.
        encrypted = connection.pgconn.encrypt_password(
            self.wanted.password.encode(), self.wanted.username.encode(), b"scram-sha-256"
        )
        return encrypted.decode()

    def _ensure_database(self, connection, name: str, row: dict | None) -> None:
        username, key = self.wanted.username, f"database {name}"
        if row is None:
            self._note(f"created database {name}", key, "absent", f"owned by {username}, closed to others")
            if not self._superuser:
                # To give a database to a role one has to be a member of it.
                self._execute(connection, "GRANT {} TO CURRENT_USER", [username])
            # The server's default encoding may be SQL_ASCII, in which MLflow's texts would not be checked.
            statement = "CREATE DATABASE {} OWNER {} ENCODING 'UTF8' TEMPLATE template0"
            self._execute(connection, statement, [name, username])
            self._execute(connection, "REVOKE CONNECT ON DATABASE {} FROM PUBLIC", [name])
            return
        if row["public_connect"]:
            self._note(f"closed database {name} to other roles", f"{key}, CONNECT of PUBLIC", "granted", "revoked")
            self._execute(connection, "REVOKE CONNECT ON DATABASE {} FROM PUBLIC", [name])
            # Until now the role may have had its right to connect only as one of the public.
            self._execute(connection, "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", [name, username])
        elif row["own_rights"] is False:
            sentence = f"restored the owner's rights on database {name}"
            self._note(sentence, f"{key}, owner's rights", "revoked", "granted")
            self._execute(connection, "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", [name, username])

    def _ensure_rights_inside(self, name: str, role_oid: int) -> None:
        username, key = self.wanted.username, f"database {name}"
        with connect(self.server, self.admin[0], self.admin[1], name) as connection:
            schema = _first(
                connection,
                """SELECT pg_get_userbyid(nspowner) AS owner, has_schema_privilege(%(role)s::oid, oid, 'USAGE')
                          AND has_schema_privilege(%(role)s::oid, oid, 'CREATE') AS enough
                   FROM pg_namespace WHERE nspname = 'public'""",
                {"role": role_oid},
            )
            if schema is None:
                self._note(f"created schema public in database {name}", f"{key}, schema public", "absent", "present")
                self._execute(connection, "CREATE SCHEMA public AUTHORIZATION pg_database_owner")
            elif not schema["enough"]:
                sentence = f"restored the rights on schema public of database {name}"
                self._note(sentence, f"{key}, schema public", "rights revoked", "USAGE, CREATE")
                grantee = schema["owner"] if schema["owner"] == "pg_database_owner" else username
                self._execute(connection, "GRANT USAGE, CREATE ON SCHEMA public TO {}", [grantee])
            self._ensure_rights_on_tables(connection, name, role_oid)

    def _ensure_rights_on_tables(self, connection, name: str, role_oid: int) -> None:
        # The owner of a table can still be without the right to read it, if somebody revoked that.
        rights = " AND ".join(f"has_table_privilege(%(role)s::oid, oid, '{right}')" for right in TABLE_RIGHTS)
        query = f"""
            SELECT relname FROM pg_class
            WHERE relnamespace = to_regnamespace('public') AND relowner = %(role)s::oid
              AND ((relkind IN ('r', 'p', 'v', 'm') AND NOT ({rights}))
                   OR (relkind = 'S' AND NOT has_sequence_privilege(%(role)s::oid, oid, 'USAGE')))
            ORDER BY relname"""  # noqa: S608 - constants of this file only
        lacking = [row["relname"] for row in _rows(connection, query, {"role": role_oid})]
        if lacking:
            key = f"database {name}, tables without the owner's rights"
            self._note(f"restored the owner's rights on {len(lacking)} tables of database {name}", key, len(lacking), 0)
            places = ", ".join(["public.{}"] * len(lacking))
            self._execute(connection, f"GRANT ALL ON TABLE {places} TO {{}}", [*lacking, self.wanted.username])

    def _note(self, sentence: str, key: str, before, after) -> None:
        self.outcome.changes.append(sentence)
        self.outcome.before[key], self.outcome.after[key] = before, after

    def _execute(self, connection, statement: str, names: list[str] | None = None, secret: str = "") -> None:
        """Run a statement whose ``{}`` are names and whose ``{secret}`` is a literal, unless in check mode."""
        if self.check_mode:
            return
        from psycopg import sql

        identifiers = [sql.Identifier(name) for name in names or []]
        connection.execute(sql.SQL(statement).format(*identifiers, secret=sql.Literal(secret)))


def _rows(connection, query: str, parameters) -> list[dict]:
    cursor = connection.execute(query, parameters)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _first(connection, query: str, parameters) -> dict | None:
    return next(iter(_rows(connection, query, parameters)), None)


def quoted(name: str) -> str:
    """An SQL identifier, for messages."""
    return '"' + name.replace('"', '""') + '"'


def sql_for_administrator(wanted: Wanted, databases: list[str]) -> str:
    """The statements that a database administrator has to run; the password is left for them to fill in."""
    role = quoted(wanted.username)
    statements = [f"CREATE ROLE {role} LOGIN PASSWORD '<its password>'"]
    for name in databases:
        statements.append(f"CREATE DATABASE {quoted(name)} OWNER {role} ENCODING 'UTF8' TEMPLATE template0")
        statements.append(f"REVOKE CONNECT ON DATABASE {quoted(name)} FROM PUBLIC")
    return "; ".join(statements)


def check_as_role(server: Server, wanted: Wanted) -> Outcome:
    """Without an administrator: see that the role can log in and create tables in each database.

    :raises Error: with the SQL that a database administrator has to run.
    """
    outcome = Outcome()
    for name in wanted.databases:
        try:
            with connect(server, wanted.username, wanted.password, name) as connection:
                outcome.server_version = check_version(connection, server)
                row = _first(
                    connection,
                    """SELECT has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') AS enough
                       FROM pg_namespace WHERE nspname = current_schema() OR nspname = 'public'
                       ORDER BY nspname = current_schema() DESC LIMIT 1""",
                    None,
                )
        except ConnectError as error:
            if error.state in ("28P01", "28000"):
                create = sql_for_administrator(wanted, [])
                advice = f"; no administrator is given to set it, so let one run: {create}; or ALTER ROLE if it exists"
            elif error.state == "3D000":
                statements = sql_for_administrator(wanted, [name]).split("; ", 1)[1]
                advice = f"; no administrator is given to create it, so let one run: {statements}"
            elif error.state == "42501":
                grant = f"GRANT CONNECT ON DATABASE {quoted(name)} TO {quoted(wanted.username)}"
                advice = f"; let an administrator run: {grant}"
            else:
                advice = ""
            raise Error(f"{error}{advice}") from None
        if not row or not row["enough"]:
            raise Error(
                f"role {wanted.username} may not create tables in database {name} at {server.label}; let an "
                f"administrator run in that database: GRANT USAGE, CREATE ON SCHEMA public TO {quoted(wanted.username)}"
            )
    return outcome
