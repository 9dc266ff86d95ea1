"""PostgreSQL as the modules see it: where it is, what is wanted of it, a connection, and words for a refused one."""

from __future__ import annotations

import contextlib
import re
import ssl
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import Error, MissingLibraryError, one_line

if TYPE_CHECKING:
    from .connections import Load

CONNECT_TIMEOUT = 10
STATEMENT_TIMEOUT_MS = 30_000
OLDEST_VERSION = 150000
IDENTIFIER_BYTES = 63
SECOND_LOGIN = "_rotation"
# The comment that says that a role is such a login, and nobody else's.
SECOND_LOGIN_MARK = "ansible-mlflow: a second login while a password changes"
PUBLIC_SCHEMA = "public"
TLS_MODES = ["disable", "prefer", "require", "verify-ca", "verify-full"]
TLS_ARGUMENTS = {
    "tls_mode": {"type": "str", "choices": TLS_MODES, "default": "prefer"},
    "ca_certificate": {"type": "str", "default": ""},
}


class ConnectError(Error):
    """A connection was refused; ``state`` is the SQLSTATE or an empty text when the server was not reached."""

    def __init__(self, message: str, state: str):
        super().__init__(message)
        self.state = state


@dataclass(frozen=True)
class Tls:
    """How a connection is protected: libpq's sslmode, and the certificates that the server's has to be signed by."""

    mode: str = "prefer"
    ca_certificate: str = ""

    def check(self) -> None:
        """Refuse certificates that are none, or would not be looked at.

        :raises Error: naming the option.
        """
        if self.mode not in ("verify-ca", "verify-full"):
            if self.ca_certificate:
                raise Error(
                    f"ca_certificate: tls_mode {self.mode} does not look at it; expected verify-ca or verify-full"
                )
            return
        if not self.ca_certificate:
            raise Error(f"ca_certificate: tls_mode {self.mode} needs the certificate of the authority, as PEM text")
        if "PRIVATE KEY" in self.ca_certificate:
            raise Error("ca_certificate: expected certificates only, got a private key among them")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=self.ca_certificate)
        except (ssl.SSLError, TypeError, ValueError) as error:
            raise Error(f"ca_certificate: expected certificates as PEM text, got another text ({error})") from None

    @contextlib.contextmanager
    def parameters(self):
        """The parameters of a connection; libpq reads the certificates from a file, while it connects."""
        if not self.ca_certificate:
            yield {"sslmode": self.mode}
            return
        with tempfile.NamedTemporaryFile("w", suffix=".crt") as file:
            file.write(self.ca_certificate)
            file.flush()
            yield {"sslmode": self.mode, "sslrootcert": file.name}


@dataclass(frozen=True)
class Server:
    """Where PostgreSQL is: its name, and the address to connect to (another one behind a tunnel)."""

    host: str
    port: int
    address: tuple[str, int]
    tls: Tls = Tls()
    # Where MLflow's tables are, in each database.
    schema: str = PUBLIC_SCHEMA

    @property
    def label(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Role:
    """A role that should be there: the option that names it, and the secret that is its password."""

    option: str
    secret: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Wanted:
    """What should be there: databases that the migrator owns and whose rows the runtime role may read and write."""

    runtime: Role
    migrator: Role
    databases: list[str]
    # What the servers will open; None where that is not known.
    load: Load | None = None
    # Where MLflow's tables are, in each of the databases.
    schema: str = PUBLIC_SCHEMA
    # Whose databases they are; empty where nobody is to be kept out.
    environment: str = ""

    @property
    def roles(self) -> tuple[Role, Role]:
        """Both roles."""
        return self.runtime, self.migrator

    def check(self) -> None:
        """Refuse names and passwords that cannot be.

        :raises Error: naming the option.
        """
        for role in self.roles:
            check_identifier(role.username, role.option)
            if not role.password:
                option = role.option.replace("username", "password")
                raise Error(f"{option}: expected the password of role {role.username}, got an empty text")
        if self.runtime.username == self.migrator.username:
            raise Error(
                f"migrator_username: {self.migrator.username} is the role of the server; expected another one, since "
                f"the server must not own the schema"
            )
        for name in self.databases:
            check_identifier(name, "databases")
        check_identifier(self.schema, "schema")
        if self.schema in ("$user", "information_schema"):
            raise Error(f"schema: {self.schema} means something of its own to PostgreSQL; expected another name")
        if self.load:
            self.load.check()


@dataclass
class Outcome:
    """What was changed, or would be, and how it looked before and after; what was found in the databases."""

    changes: list[str] = field(default_factory=list)
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)
    server_version: str = ""
    revisions: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    artifact_roots: Counter[str] = field(default_factory=Counter)

    def note(self, sentence: str, key: str, before, after) -> None:
        """Add a change."""
        self.changes.append(sentence)
        self.before[key], self.after[key] = before, after


def second_login(username: str) -> str:
    """What the role is called that servers log in as while the password of theirs changes."""
    return username.encode()[: IDENTIFIER_BYTES - len(SECOND_LOGIN)].decode(errors="ignore") + SECOND_LOGIN


def check_identifier(name: str, option: str) -> None:
    """Refuse a name that PostgreSQL would refuse, cut or confuse.

    :raises Error: naming the option.
    """
    if not name or "\0" in name or len(name.encode()) > IDENTIFIER_BYTES:
        raise Error(f"{option}: expected 1 to {IDENTIFIER_BYTES} bytes, got {name!r}")
    if option != "databases" and name.startswith("pg_"):
        raise Error(f"{option}: {name!r} begins with pg_, which PostgreSQL keeps for itself")


# libpq tells why a connection failed only in words: (what it says, SQLSTATE, what we say).
REFUSALS = (
    ("password authentication failed", "28P01", "the password is wrong, or the role does not exist"),
    ("no password supplied", "28P01", "it wants a password and none is given"),
    ("server does not support SSL", "", "it offers no TLS, which mlflow_database_tls_mode asks for"),
    (
        # The second is of an authority of the same name with another key, such as one that was made anew.
        "certificate verify failed|signature failure",
        "",
        "its certificate is not signed by mlflow_database_ca_certificate, or it is not valid now",
    ),
    (
        "does not match host name",
        "",
        "its certificate is for another name than mlflow_database_host",
    ),
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
def connect(server: Server, username: str, password: str, database: str, secret: str = ""):
    """A psycopg connection in autocommit mode; its host name stays the true one for TLS.

    :param secret: which of mlflow_environment_secrets the password is, to be told where it is wrong.
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
        with server.tls.parameters() as protection:
            connection = psycopg.connect(
                **where,
                **protection,
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
        if server.schema != PUBLIC_SCHEMA:
            # Not among the options above, in which a name would have to be escaped once more.
            connection.execute("SELECT set_config('search_path', %s, false)", [quoted(server.schema)])
    except psycopg.Error as error:
        state, words = refusal(str(error))
        if secret and state == "28P01":
            words += f" (mlflow_environment_secrets.{secret})"
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


def rows(connection, query: str, parameters=None) -> list[dict]:
    """What a query finds, each row as a dictionary."""
    cursor = connection.execute(query, parameters)
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def first(connection, query: str, parameters=None) -> dict | None:
    """The first row that a query finds, or None."""
    return next(iter(rows(connection, query, parameters)), None)


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
