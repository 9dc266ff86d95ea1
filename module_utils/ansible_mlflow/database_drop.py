"""An environment's databases and roles, taken away for good."""

from __future__ import annotations

from .database import SECOND_LOGIN_MARK, Outcome, Server, check_identifier, connect, quoted, rows, second_login
from .database_contents import COMMENTS, mark_of
from .errors import Error

# The roles, and the second logins that rotations of their passwords have left when they broke off.
ROLES = """
    SELECT rolname FROM pg_roles
    WHERE rolname = ANY(%s) OR rolname = ANY(%s) AND shobj_description(oid, 'pg_authid') = %s
    ORDER BY 1"""
# Roles that hold something in databases that are not dropped here.
HELD = """
    SELECT DISTINCT rolname AS role, coalesce(datname, 'no database of its own') AS place
    FROM pg_shdepend JOIN pg_roles ON refclassid = 'pg_authid'::regclass AND refobjid = pg_roles.oid
    LEFT JOIN pg_database ON pg_database.oid = dbid
    WHERE rolname = ANY(%s) AND (dbid <> 0 AND datname <> ALL(%s)
          OR dbid = 0 AND classid = 'pg_database'::regclass
             AND objid NOT IN (SELECT oid FROM pg_database WHERE datname = ANY(%s)))
    ORDER BY 1, 2"""


def drop(
    server: Server,
    admin: tuple[str, str, str],
    databases: list[str],
    roles: list[str],
    environment: str,
    check_mode: bool,
) -> Outcome:
    """Drop databases that are marked as the environment's, whoever is connected to them, and then its roles.

    :param admin: user name, password and the database to connect to.
    :raises Error: a database is not marked as this environment's, or a role holds something elsewhere; nothing was
        dropped then.
    """
    for name in databases:
        check_identifier(name, "databases")
    outcome = Outcome()
    with connect(server, *admin, "database_admin_password") as connection:
        comments = {row["datname"]: row["comment"] for row in rows(connection, COMMENTS, [databases])}
        for name, comment in comments.items():
            refuse_other(name, comment, environment)
        held = [f"{row['role']} in {row['place']}" for row in rows(connection, HELD, [roles, databases, databases])]
        if held:
            raise Error(
                f"roles hold something besides the databases that are to be dropped ({', '.join(held)}); give that to "
                f"another role (REASSIGN OWNED, DROP OWNED) or leave these roles out; nothing was dropped"
            )
        present = rows(connection, ROLES, [roles, [second_login(role) for role in roles], SECOND_LOGIN_MARK])
        for kind, names in (("DATABASE", sorted(comments)), ("ROLE", [row["rolname"] for row in present])):
            for name in names:
                outcome.note(f"dropped {kind.lower()} {name}", f"{kind.lower()} {name}", "present", "absent")
                if not check_mode:
                    force = " WITH (FORCE)" if kind == "DATABASE" else ""
                    connection.execute(f"DROP {kind} {quoted(name)}{force}")
    return outcome


def refuse_other(name: str, comment: str | None, environment: str) -> None:
    """Refuse a database that no run for this environment has marked as its own."""
    if comment != mark_of(environment):
        raise Error(
            f"database {name} is not marked as that of environment {environment} (its comment is {comment!r}); nothing "
            f"was dropped; if it is, run COMMENT ON DATABASE {quoted(name)} IS '{mark_of(environment)}'"
        )
