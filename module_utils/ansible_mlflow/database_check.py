"""Without an administrator: see that both roles can do their work, and else say what an administrator has to run."""

from __future__ import annotations

from . import artifact_roots, connections
from . import database_contents as contents
from .database import ConnectError, Outcome, Role, Server, Wanted, check_version, connect, first, quoted
from .errors import Error

SHOWN_PROBLEMS = 3
IS_MEMBER = """
    SELECT coalesce(bool_or(pg_has_role(migrator.oid, runtime.oid, 'USAGE')), false) AS forth,
           coalesce(bool_or(pg_has_role(runtime.oid, migrator.oid, 'MEMBER')), false) AS back
    FROM pg_roles AS migrator, pg_roles AS runtime WHERE migrator.rolname = %s AND runtime.rolname = %s"""


class Check:
    """What is wrong, and the statements of an administrator that would put it right.

    Passwords are left for the administrator to fill in.
    """

    def __init__(self, server: Server, wanted: Wanted):
        self.server, self.wanted = server, wanted
        self.outcome = Outcome()
        self.problems: list[str] = []
        # Statements for the server, in this order, and inside of single databases.
        self.roles: list[str] = []
        # Whether the migrator is a member of the runtime role, as it should be, and the other way round.
        self.is_member, self.is_reversed = False, False
        self.databases: dict[str, list[str]] = {}
        self.inside: dict[str, list[str]] = {}
        self.looked: set[str] = set()

    def apply(self) -> Outcome:
        """Log in as each role to each database, and look who may do what there.

        :raises Error: with the problems, and the statements as the return value ``sql``.
        """
        for role in (self.wanted.migrator, self.wanted.runtime):
            for name in self.wanted.databases:
                try:
                    with connect(self.server, role.username, role.password, name, role.secret) as connection:
                        self.outcome.server_version = check_version(connection, self.server)
                        connections.refuse(connection, self.server, self.wanted)
                        if name not in self.looked:
                            self._look(connection, name)
                            self.outcome.revisions[name] = contents.revisions(connection, self.wanted.schema)
                            self.outcome.artifact_roots.update(artifact_roots.read(connection))
                            self.looked.add(name)
                except ConnectError as error:
                    if error.state in ("28P01", "28000"):
                        self._note_role(role, error)
                        break
                    self._note_database(role, name, error)
        if self.problems:
            raise Error(self._message(), sql=self.script())
        return self.outcome

    def _note_role(self, role: Role, error: ConnectError) -> None:
        """A role cannot log in, at whatever database."""
        self.problems.append(str(error))
        self.roles += [
            "-- or ALTER ROLE, if it is there",
            f"CREATE ROLE {quoted(role.username)} LOGIN PASSWORD '<{role.secret}>'",
        ]

    def _note_database(self, role: Role, name: str, error: ConnectError) -> None:
        """A role cannot enter a database.

        :raises ConnectError: for a reason that no statement helps against.
        """
        if error.state not in ("3D000", "42501"):
            raise error
        if error.state == "42501":
            self.problems.append(str(error))
            grant = f"GRANT CONNECT ON DATABASE {quoted(name)} TO {quoted(role.username)}"
            self.databases.setdefault(name, []).append(grant)
        elif name not in self.databases:
            self.problems.append(str(error))
            self.databases[name] = self._creation(name)

    def _creation(self, name: str) -> list[str]:
        database, owner = quoted(name), quoted(self.wanted.migrator.username)
        return [
            f"CREATE DATABASE {database} OWNER {owner} ENCODING 'UTF8' TEMPLATE template0",
            f"REVOKE ALL ON DATABASE {database} FROM PUBLIC",
            f"GRANT CONNECT ON DATABASE {database} TO {quoted(self.wanted.runtime.username)}",
        ]

    def _look(self, connection, name: str) -> None:
        runtime, migrator = self.wanted.runtime.username, self.wanted.migrator.username
        member = first(connection, IS_MEMBER, [migrator, runtime])
        self.is_member, self.is_reversed = member["forth"], member["back"]
        # A role that is not there was told already.
        if not self.looked and not self.is_member and not self.roles:
            self.problems.append(f"role {migrator} is no member of role {runtime}, so it does not see its sessions")
        if not self.looked and self.is_reversed:
            self.problems.append(f"role {runtime} is a member of role {migrator}, so the server could migrate")
        facts = contents.read(connection, name, self.wanted)
        contents.refuse_occupied(name, facts.comment, self.wanted)
        changes = [change for change in contents.plan(facts, self.wanted) if change.problem]
        self.problems += [change.problem for change in changes]
        if changes:
            self.inside[name] = [statement for change in changes for statement in change.statements]
        elif facts.runtime_creates and not self.is_reversed:
            self.problems.append(contents.may_create(self.wanted, name))

    def _message(self) -> str:
        shown, more = self.problems[:SHOWN_PROBLEMS], len(self.problems) - SHOWN_PROBLEMS
        problems = "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
        return (
            f"{problems}; no administrator is given to put that right: let one run what stands below as sql, or give "
            f"mlflow_environment_secrets.database_admin_username and database_admin_password"
        )

    def script(self) -> str:
        """The statements, for psql."""
        runtime, migrator = quoted(self.wanted.runtime.username), quoted(self.wanted.migrator.username)
        lines = list(self.roles)
        if self.is_reversed:
            lines.append(f"REVOKE {migrator} FROM {runtime}")
        if not self.is_member:
            lines.append(f"GRANT {runtime} TO {migrator}")
        if self.databases or self.inside or set(self.wanted.databases) - self.looked:
            # To make something for a role, or give it away, one has to be a member of it.
            lines += ["-- unless you are a superuser", f"GRANT {migrator}, {runtime} TO CURRENT_USER"]
        for name in self.wanted.databases:
            if name not in self.looked and name not in self.databases:
                lines += [f"-- unless database {quoted(name)} is there", *self._creation(name)]
            lines += self.databases.get(name, [])
        for name, statements in self.inside.items():
            lines += [f"\\connect {quoted(name)}", "BEGIN", *statements, "COMMIT"]
        return "\n".join(line if line.startswith(("--", "\\")) else f"{line};" for line in lines)
