"""One database: who owns it and what is in it, who may do what, and the statements that put that right."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .database import PUBLIC_SCHEMA, Wanted, first, quoted, rows
from .errors import Error

ROWS = "SELECT, INSERT, UPDATE, DELETE"
# The server looks at these and never writes them.
VERSION_TABLES = ("alembic_version", "alembic_version_auth")
# In the lists of rights, everybody has an empty name, which no role can have.
PUBLIC = ""
RIGHTS = """ARRAY(
    SELECT CASE grantee WHEN 0 THEN '' ELSE pg_get_userbyid(grantee) END || ' ' || privilege_type
    FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))))"""
DATABASE = f"""
    SELECT pg_get_userbyid(datdba) AS owner, {RIGHTS.format(acl="datacl", kind="d", owner="datdba")} AS rights,
           shobj_description(oid, 'pg_database') AS comment
    FROM pg_database WHERE datname = current_database()"""  # noqa: S608 - constants of this file only
SCHEMA = f"""
    SELECT pg_get_userbyid(nspowner) AS owner, {RIGHTS.format(acl="nspacl", kind="n", owner="nspowner")} AS rights
    FROM pg_namespace WHERE nspname = %(schema)s"""  # noqa: S608 - constants of this file only
COMMENTS = """
    SELECT datname, shobj_description(oid, 'pg_database') AS comment FROM pg_database WHERE datname = ANY(%s)"""
# The comment by which a database says whose it is; another comment is left alone, and says nothing.
MARK = re.compile(r"MLflow environment (\S+)")
# What should be the migrator's and is not: all that belongs to the runtime role, and what a superuser has put into the
# MLflow's schema or a schema of either role, as a dump that was restored does. Another role's objects are its own: the
# schema's plan refuses them. What is part of an extension, or a function of a type, is not given away apart from it,
# and a table's sequence follows the table.
OBJECTS = """
    WITH item AS (
        SELECT 'SCHEMA' AS kind, 'pg_namespace'::regclass AS class, oid, nspowner AS owner, oid AS schema,
               nspname AS bare, format('%%I', nspname) AS name
        FROM pg_namespace
        UNION ALL
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, 'pg_class'::regclass, oid, relowner,
               relnamespace, relname, format('%%s.%%I', relnamespace::regnamespace, relname)
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL
        SELECT 'ROUTINE', 'pg_proc'::regclass, oid, proowner, pronamespace, proname,
               format('%%s.%%I(%%s)', pronamespace::regnamespace, proname, pg_get_function_identity_arguments(oid))
        FROM pg_proc
        UNION ALL
        SELECT 'TYPE', 'pg_type'::regclass, oid, typowner, typnamespace, typname,
               format('%%s.%%I', typnamespace::regnamespace, typname)
        FROM pg_type AS type
        WHERE typtype <> 'm' AND NOT EXISTS (SELECT FROM pg_type AS element WHERE element.typarray = type.oid)
          AND (typrelid = 0 OR EXISTS (SELECT FROM pg_class WHERE pg_class.oid = typrelid AND relkind = 'c'))
    )
    SELECT kind, item.name, bare, pg_get_userbyid(owner) AS owner,
           EXISTS (SELECT FROM pg_depend WHERE kind = 'SEQUENCE' AND classid = item.class AND objid = item.oid
                   AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')) AS follows
    FROM item JOIN pg_namespace ON pg_namespace.oid = item.schema
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND pg_get_userbyid(owner) <> %(migrator)s
      AND (pg_get_userbyid(owner) = %(runtime)s
           OR kind <> 'SCHEMA' AND (SELECT rolsuper FROM pg_roles WHERE pg_roles.oid = owner)
           AND (nspname = %(schema)s OR pg_get_userbyid(nspowner) IN (%(runtime)s, %(migrator)s, 'pg_database_owner')))
      AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = item.class AND objid = item.oid
                      AND (deptype = 'e' OR deptype = 'i' AND kind = 'ROUTINE'))
    ORDER BY kind <> 'SCHEMA', item.name"""
# Whether the roles may create tables, for whatever reason: as members of another role, or as superusers.
CREATES = """
    SELECT coalesce(bool_or(rolname = %(runtime)s), false) AS runtime,
           coalesce(bool_or(rolname = %(migrator)s AND nspname = %(schema)s), false) AS migrator,
           coalesce(bool_or(nspname = 'public' AND has_schema_privilege('public', pg_namespace.oid, 'CREATE')), false)
               AS everybody
    FROM pg_roles, pg_namespace
    WHERE nspname IN ('public', %(schema)s) AND has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'CREATE')"""
# Another schema with MLflow's tables in it, where the wanted one has none.
ELSEWHERE = """
    SELECT DISTINCT nspname FROM pg_namespace JOIN pg_class AS version ON version.relnamespace = pg_namespace.oid
    WHERE version.relname = ANY(%(versions)s) AND nspname <> %(schema)s
      AND EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_namespace.oid AND relname IN ('experiments', 'users'))
      AND NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s))
                      AND relname = ANY(%(versions)s))
    ORDER BY 1"""

# What belongs to the migrator and the runtime role may not use, since somebody took a right away.
LACKING = """
    SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, relname AS bare,
           format('%%I.%%I', %(schema)s::text, relname) AS name
    FROM pg_class, pg_roles
    WHERE rolname = %(runtime)s AND relnamespace = to_regnamespace(quote_ident(%(schema)s))
      AND relkind IN ('r', 'p', 'S')
      AND pg_get_userbyid(relowner) = %(migrator)s
      AND NOT CASE
          WHEN relkind = 'S' THEN has_sequence_privilege(pg_roles.oid, pg_class.oid, 'USAGE')
          WHEN relname = ANY(%(versions)s) THEN has_table_privilege(pg_roles.oid, pg_class.oid, 'SELECT')
          ELSE has_table_privilege(pg_roles.oid, pg_class.oid, 'SELECT')
               AND has_table_privilege(pg_roles.oid, pg_class.oid, 'INSERT')
               AND has_table_privilege(pg_roles.oid, pg_class.oid, 'UPDATE')
               AND has_table_privilege(pg_roles.oid, pg_class.oid, 'DELETE') END
    ORDER BY relname"""
# Not everybody may read them: an administrator who is no superuser.
READABLE = """
    SELECT relname FROM pg_class
    WHERE relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND relname = ANY(%(versions)s)
      AND has_table_privilege(oid, 'SELECT')"""


@dataclass
class Facts:
    """What a database is like. Rights are texts such as ``mlflow CONNECT``.

    Attributes:
        schema_owner: The owner of MLflow's schema; None when there is no such schema.
        objects: What should belong to the migrator and does not.
        lacking: What belongs to the migrator and lacks the rights of the runtime role.
        runtime_creates, migrator_creates: Whether the role may create tables in that schema, or the former in public.
        everybody_creates: Whether everybody may create tables in the schema public.
        comment: The comment on the database.
    """

    name: str
    owner: str
    rights: set[str]
    schema_owner: str | None
    schema_rights: set[str]
    objects: list[dict] = field(default_factory=list)
    lacking: list[dict] = field(default_factory=list)
    runtime_creates: bool = False
    migrator_creates: bool = True
    everybody_creates: bool = False
    comment: str | None = None


@dataclass
class Change:
    """One thing to put right.

    Attributes:
        sentence: What is said when it was done.
        problem: What is said when nobody may do it; empty where MLflow works without it.
    """

    sentence: str
    key: str
    before: object
    after: object
    statements: list[str]
    problem: str = ""


def read(connection, name: str, wanted: Wanted) -> Facts:
    """Look at the database of a connection; any role may.

    :raises Error: MLflow's tables are in another schema.
    """
    names = {"runtime": wanted.runtime.username, "migrator": wanted.migrator.username, "schema": wanted.schema}
    names["versions"] = list(VERSION_TABLES)
    # So that PostgreSQL writes out the schema of every name.
    connection.execute("SET search_path = ''")
    refuse_elsewhere(name, wanted, [row["nspname"] for row in rows(connection, ELSEWHERE, names)])
    database, schema = first(connection, DATABASE), first(connection, SCHEMA, names)
    creates = first(connection, CREATES, names)
    return Facts(
        name,
        database["owner"],
        set(database["rights"]),
        schema and schema["owner"],
        set(schema["rights"]) if schema else set(),
        rows(connection, OBJECTS, names),
        rows(connection, LACKING, names),
        creates["runtime"],
        creates["migrator"],
        creates["everybody"],
        database["comment"],
    )


def mark_of(environment: str) -> str:
    """The comment by which a database says that it is an environment's."""
    return f"MLflow environment {environment}"


def refuse_occupied(name: str, comment: str | None, wanted: Wanted) -> None:
    """Refuse a database that another environment's run has marked: two would write into one another's data."""
    mark = MARK.fullmatch(comment or "")
    if mark and wanted.environment not in ("", mark[1]):
        raise Error(
            f"database {name} is that of environment {mark[1]}, and this is {wanted.environment}; nothing was changed: "
            f"correct mlflow_database_host or mlflow_database_name, or, if {mark[1]} is gone, run "
            f"COMMENT ON DATABASE {quoted(name)} IS NULL"
        )


def refuse_elsewhere(name: str, wanted: Wanted, schemas: list[str]) -> None:
    """Refuse to begin an empty schema beside one that is in use."""
    if schemas:
        setting = schemas[0] if schemas[0] != PUBLIC_SCHEMA else '""'
        raise Error(
            f"database {name} has MLflow's tables in schema {schemas[0]}, and none in {wanted.schema}; expected "
            f"mlflow_database_schema: {setting}, or that you move them first; nothing was changed in this database"
        )


def plan(facts: Facts, wanted: Wanted) -> list[Change]:
    """What to put right in a database, in this order."""
    moved = ownership(facts, wanted)
    changes = [moved] if moved else []
    changes += database_rights(facts, wanted, moved) + schema_rights(facts, wanted)
    return changes + row_rights(facts, wanted) + marks(facts, wanted)


def revisions(connection, schema: str) -> dict[str, list[str]]:
    """The revisions by version table, of those that are there and may be read."""
    tables = rows(connection, READABLE, {"versions": list(VERSION_TABLES), "schema": schema})
    return {
        table["relname"]: [
            row["version_num"]
            for row in rows(connection, f"SELECT version_num FROM {quoted(schema)}.{table['relname']} ORDER BY 1")  # noqa: S608
        ]
        for table in tables
    }


def ownership(facts: Facts, wanted: Wanted) -> Change | None:
    """Give the migrator what is not its own, and leave the runtime role the rights on it that a server needs."""
    runtime, migrator = wanted.runtime.username, wanted.migrator.username
    given = [item for item in facts.objects if not item["follows"]]
    adopted = facts.owner == runtime
    if not adopted and not facts.objects:
        return None
    statements = [f"ALTER DATABASE {quoted(facts.name)} OWNER TO {quoted(migrator)}"] if adopted else []
    statements += [f"ALTER {item['kind']} {item['name']} OWNER TO {quoted(migrator)}" for item in given]
    statements += [
        f"GRANT {right} ON {item['kind']} {item['name']} TO {quoted(runtime)}"
        for item in facts.objects
        if (right := right_on(item))
    ]
    objects = f"{len(given)} object{'' if len(given) == 1 else 's'}"
    owners = ", ".join(sorted({item["owner"] for item in given} | ({runtime} if adopted else set())))
    what = f"database {facts.name} with {objects}" if adopted else f"{objects} of database {facts.name}"
    return Change(
        f"gave {what} from {owners} to {migrator}",
        f"database {facts.name}, owner of it and of what is in it",
        owners,
        migrator,
        statements,
        f"{what} belong{'s' if adopted else ''} to {owners}; expected {migrator} as the owner",
    )


def right_on(item: dict) -> str:
    """The runtime role's right on an object; empty when it needs none."""
    if item["kind"] == "TABLE":
        return "SELECT" if item["bare"] in VERSION_TABLES else ROWS
    return {"SCHEMA": "USAGE", "SEQUENCE": "USAGE, SELECT"}.get(item["kind"], "")


def passed_on(rights: set[str], old: str, new: str) -> set[str]:
    """The rights after an object has changed its owner: what the old one had, the new one has."""
    return {f"{new} {right.removeprefix(f'{old} ')}" if right.startswith(f"{old} ") else right for right in rights}


def database_rights(facts: Facts, wanted: Wanted, moved: Change | None) -> list[Change]:
    """Who may enter the database and make schemas in it: the owner; the runtime role may enter it."""
    runtime, migrator = wanted.runtime.username, wanted.migrator.username
    database, key = quoted(facts.name), f"database {facts.name}"
    adopted = facts.owner == runtime
    owner = migrator if adopted else facts.owner
    rights = passed_on(facts.rights, runtime, migrator) if adopted else facts.rights
    changes = []
    if {f"{PUBLIC} {right}" for right in ("CONNECT", "CREATE", "TEMPORARY")} & rights:
        sentence, statement = f"closed {key} to other roles", f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"
        changes.append(Change(sentence, f"{key}, rights of PUBLIC", "granted", "revoked", [statement]))
    if {f"{runtime} CREATE", f"{runtime} TEMPORARY"} & rights:
        statement = f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM {quoted(runtime)}"
        sentence = f"took from {runtime} the right to create in {key}"
        changes.append(Change(sentence, f"{key}, CREATE of {runtime}", "granted", "revoked", [statement]))
    if owner == migrator and not {f"{migrator} {right}" for right in ("CONNECT", "CREATE", "TEMPORARY")} <= rights:
        statement = f"GRANT ALL ON DATABASE {database} TO {quoted(migrator)}"
        sentence = f"restored the owner's rights on {key}"
        changes.append(Change(sentence, f"{key}, owner's rights", "revoked", "granted", [statement]))
    if f"{runtime} CONNECT" not in rights:
        statement = f"GRANT CONNECT ON DATABASE {database} TO {quoted(runtime)}"
        if adopted and moved:
            moved.statements.append(statement)
        else:
            sentence = f"let {runtime} connect to {key}"
            changes.append(Change(sentence, f"{key}, CONNECT of {runtime}", "revoked", "granted", [statement]))
    return changes


def schema_rights(facts: Facts, wanted: Wanted) -> list[Change]:
    """Who may do what in MLflow's schema: the migrator may create, the runtime role may use what is there.

    :raises Error: the schema is another role's.
    """
    runtime, migrator = wanted.runtime.username, wanted.migrator.username
    where, key = f"schema {wanted.schema} of database {facts.name}", f"database {facts.name}, schema {wanted.schema}"
    is_public = wanted.schema == PUBLIC_SCHEMA
    schema = wanted.schema if is_public else quoted(wanted.schema)
    owner, rights, changes = facts.schema_owner, facts.schema_rights, []
    if not is_public and owner not in (None, runtime, migrator, "pg_database_owner"):
        raise Error(
            f"{where} belongs to role {owner}, not to {migrator}; it is left alone: choose another name, or give it "
            f"away yourself with ALTER SCHEMA {schema} OWNER TO {quoted(migrator)}"
        )
    if owner is None:
        owner = "pg_database_owner" if is_public else migrator
        rights = {f"{owner} USAGE", f"{owner} CREATE"}
        statement = f"CREATE SCHEMA {schema} AUTHORIZATION {owner if is_public else quoted(owner)}"
        changes.append(Change(f"created {where}", key, "absent", "present", [statement], f"there is no {where}"))
    elif owner == runtime:
        # It is among the objects that are given to the migrator.
        owner, rights = migrator, passed_on(rights, runtime, migrator) | {f"{runtime} USAGE"}
    for grantee, grantee_sql in ((PUBLIC, "PUBLIC"), (runtime, quoted(runtime))):
        if f"{grantee} CREATE" in rights:
            name = grantee or "everybody"
            changes.append(
                Change(
                    f"took from {name} the right to create in {where}",
                    f"{key}, CREATE of {grantee or 'PUBLIC'}",
                    "granted",
                    "revoked",
                    [f"REVOKE CREATE ON SCHEMA {schema} FROM {grantee_sql}"],
                    f"{name} may create in {where}",
                )
            )
    if not is_public and facts.everybody_creates:
        elsewhere = f"schema public of database {facts.name}"
        changes.append(
            Change(
                f"took from everybody the right to create in {elsewhere}",
                f"database {facts.name}, schema public, CREATE of PUBLIC",
                "granted",
                "revoked",
                ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"],
                f"everybody may create in {elsewhere}",
            )
        )
    database_owner = migrator if facts.owner == runtime else facts.owner
    grantee = "pg_database_owner" if owner == "pg_database_owner" and database_owner == migrator else migrator
    if not {f"{grantee} USAGE", f"{grantee} CREATE"} <= rights:
        needed = not facts.migrator_creates or f"{PUBLIC} CREATE" in rights
        changes.append(
            Change(
                f"restored the rights on {where}",
                key,
                "rights revoked",
                "USAGE, CREATE",
                [f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {quoted(grantee)}"],
                f"{migrator} may not create in {where}" if needed else "",
            )
        )
    if not {f"{PUBLIC} USAGE", f"{runtime} USAGE"} & rights:
        changes.append(
            Change(
                f"let {runtime} use {where}",
                f"{key}, USAGE of {runtime}",
                "revoked",
                "granted",
                [f"GRANT USAGE ON SCHEMA {schema} TO {quoted(runtime)}"],
                f"{runtime} may not use {where}",
            )
        )
    return changes


def row_rights(facts: Facts, wanted: Wanted) -> list[Change]:
    """What the schema's upgrade has granted to the runtime role, and somebody took away since."""
    if not facts.lacking:
        return []
    runtime, count = wanted.runtime.username, len(facts.lacking)
    what = f"{count} object{'' if count == 1 else 's'} of database {facts.name}"
    return [
        Change(
            f"restored the rights of {runtime} on {what}",
            f"database {facts.name}, objects that {runtime} may not use",
            count,
            0,
            [f"GRANT {right_on(item)} ON {item['kind']} {item['name']} TO {quoted(runtime)}" for item in facts.lacking],
        )
    ]


def marks(facts: Facts, wanted: Wanted) -> list[Change]:
    """Say in the database whose it is, unless it has a comment of somebody else's."""
    if not wanted.environment or facts.comment:
        return []
    comment = mark_of(wanted.environment)
    text = comment.replace("'", "''")
    statement = f"COMMENT ON DATABASE {quoted(facts.name)} IS '{text}'"
    key = f"database {facts.name}, comment"
    return [Change(f"marked database {facts.name} as that of {wanted.environment}", key, "none", comment, [statement])]


def may_create(wanted: Wanted, name: str) -> str:
    """What is said when no right of its own lets the runtime role create tables."""
    runtime = wanted.runtime.username
    return (
        f"role {runtime} may create tables in database {name}, as a superuser or as a member of another role; take it "
        f"out of that role, since the server must not change the schema"
    )
