"""A second login for the servers, so that they lose none of their connections while their own password changes."""

from __future__ import annotations

from .database import (
    SECOND_LOGIN_MARK,
    ConnectError,
    Outcome,
    Role,
    Server,
    Wanted,
    connect,
    first,
    quoted,
    second_login,
)
from .database_roles import Administration
from .errors import Error

FOUND = """
    SELECT shobj_description(oid, 'pg_authid') AS comment FROM pg_roles WHERE rolname = %s"""


class SecondLogin(Administration):
    """A role with the rights of the servers' role, and with the password that this one is to have.

    :param admin: user name, password and the database to connect to.
    """

    def __init__(self, server: Server, admin: tuple[str, str, str], wanted: Wanted, check_mode: bool):
        super().__init__(server, admin, wanted, check_mode)
        runtime = wanted.runtime
        self.role = Role(runtime.option, runtime.secret, second_login(runtime.username), runtime.password)

    def ensure(self) -> tuple[Outcome, bool]:
        """Make the login, and try it; and whether it is needed: not where the servers' role has the password already.

        :raises Error: the servers' role is not there, or the login does not work, and is gone again.
        """
        with self._connect(self.admin[2]) as connection:
            self._look(connection)
            runtime = self.wanted.runtime
            present = self._read_role(connection, runtime)
            if present is None:
                raise Error(f"PostgreSQL {self.server.label} has no role {runtime.username}; run site.yml first")
            if self._password_is_right(runtime, present, self._read_owners(connection)):
                return self.outcome, False
            found = self._found(connection)
            name = self.role.username
            if not self.check_mode:
                verb = "ALTER" if found else "CREATE"
                self._execute(connection, f"{verb} ROLE {{}} LOGIN INHERIT PASSWORD {{secret}}", self.role)
                connection.execute(f"COMMENT ON ROLE {quoted(name)} IS '{SECOND_LOGIN_MARK}'")
                inherit = " WITH INHERIT TRUE" if self._version >= 160000 else ""
                connection.execute(f"GRANT {quoted(runtime.username)} TO {quoted(name)}{inherit}")
                self._try(connection)
            if not found:
                self.outcome.note(f"created role {name}, for the time being", f"role {name}", "absent", "can log in")
        return self.outcome, True

    def drop(self) -> Outcome:
        """Take the login away; nobody uses it any more."""
        with self._connect(self.admin[2]) as connection:
            self._look(connection)
            name = self.role.username
            if self._found(connection):
                self.outcome.note(f"dropped role {name}", f"role {name}", "can log in", "absent")
                self._run(connection, [f"DROP ROLE {quoted(name)}"])
        return self.outcome

    def _look(self, connection) -> None:
        self._version = connection.info.server_version
        self._superuser = connection.info.parameter_status("is_superuser") == "on"
        self._take_turn(connection)

    def _found(self, connection) -> bool:
        """Whether there is such a role.

        :raises Error: it is somebody else's.
        """
        name = self.role.username
        found = first(connection, FOUND, [name])
        if found and found["comment"] != SECOND_LOGIN_MARK:
            raise Error(
                f"PostgreSQL {self.server.label} has a role {name} that no rotation has made; expected none, as "
                f"the servers log in as this one while the password of {self.wanted.runtime.username} changes"
            )
        return found is not None

    def _try(self, connection) -> None:
        try:
            for database in self.wanted.databases:
                with connect(self.server, self.role.username, self.role.password, database) as opened:
                    opened.execute("SELECT 1")
        except ConnectError as error:
            connection.execute(f"DROP ROLE {quoted(self.role.username)}")
            raise Error(
                f"{error}: the servers could not log in as this role while the password of "
                f"{self.wanted.runtime.username} changes; expected what lets that role in, such as a line of "
                f"pg_hba.conf, to let this one in, too; nothing was changed"
            ) from None
