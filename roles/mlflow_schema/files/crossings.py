"""What MLflow's revisions do that an operator has to know, or that MLflow leaves undone.

Each entry was found by reading MLflow's migrations, and its tests cross it with the real releases.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from urllib.parse import quote

from problems import say
from stores import AUTH_VERSION_TABLE, FIRST_AUTH_REVISION, Store, connect, query

TRACE_ANALYTICS = "75868b020152"
# The one revision at which MLflow lets its trace analytics be filled beforehand.
BEFORE_TRACE_ANALYTICS = "b7e2c1a4d9f3"
CANCEL_JOBS = "dc11669786a5"
PERMISSIONS_TO_ROLES = "e5f6a7b8c9d0"
PROMOTE_PROMPTS = "f1a2b3c4d5e6"
# Pending and running, in the table jobs.
UNFINISHED_JOBS = (0, 1)


@dataclass(frozen=True)
class Heavy:
    """A revision whose time grows with the data, and the tables that it reads or locks."""

    tables: tuple[str, ...]
    why: str


HEAVY = {
    "5b0e9adcef9c": Heavy(("trace_tags", "trace_request_metadata"), "builds foreign keys of the traces anew"),
    "1b5f0d9ad7c1": Heavy(
        ("experiments", "registered_models", "model_versions", "trace_info", "runs"),
        "adds workspaces, and builds keys and foreign keys of twelve tables anew",
    ),
    "a5b4c3d2e1f0": Heavy(("metrics",), "builds an index on the metrics"),
    "c1d2e3f4a5b6": Heavy(("spans",), "builds an index on the spans"),
    "6f8d9c3b2a1e": Heavy(("trace_info",), "builds a foreign key of the traces anew"),
    "1971f2d9a75b": Heavy(("trace_info",), "builds an index on the traces"),
    TRACE_ANALYTICS: Heavy(
        ("trace_info", "spans", "assessments"),
        "fills the trace analytics row by row, and builds nine indexes",
    ),
}


def notes(store: Store, connection) -> list[str]:
    """What the pending revisions of a store will do, for the plan: what is heavy, and what is lost or changed.

    :raises SchemaError: a pending revision would take something away that this MLflow cannot express.
    """
    lines = []
    for revision in store.pending if store.revision else []:
        heavy = HEAVY.get(revision)
        if heavy:
            sizes = [f"{table} ({size_words(connection, table)})" for table in heavy.tables if there(connection, table)]
            if sizes:
                lines.append(f"heavy {revision}: {heavy.why}: {', '.join(sizes)}")
    if CANCEL_JOBS in store.pending and there(connection, "jobs"):
        jobs = query(connection, "SELECT count(*) FROM jobs WHERE status IN %s", UNFINISHED_JOBS)[0][0]
        if jobs:
            lines.append(f"note {CANCEL_JOBS}: cancels {jobs} jobs of MLflow that are pending or running")
    if store.name == "auth" and PERMISSIONS_TO_ROLES in store.pending and store.revision:
        users = denied_users(connection)
        if users:
            lines.append(denial_words(users))
    return lines


def there(connection, table: str) -> bool:
    """Whether a table exists on the search path."""
    return query(connection, "SELECT to_regclass(%s) IS NOT NULL", f'"{table}"')[0][0]


def size_words(connection, table: str) -> str:
    """The size of a table and its number of rows as the planner estimates it."""
    statement = (
        "SELECT pg_size_pretty(pg_total_relation_size(c.oid)), greatest(c.reltuples, 0)::bigint "
        "FROM pg_class c WHERE c.oid = to_regclass(%s)"
    )
    size, rows = query(connection, statement, f'"{table}"')[0]
    return f"{size}, about {rows} rows" if rows else size


# The tables of explicit permissions before 3.13: (table, resource type, columns that name the resource, workspace).
LEGACY_PERMISSIONS = (
    ("experiment_permissions", "experiment", ("experiment_id",), False),
    ("registered_model_permissions", "registered_model", ("name",), True),
    ("scorer_permissions", "scorer", ("experiment_id", "scorer_name"), False),
    ("gateway_secret_permissions", "gateway_secret", ("secret_id",), False),
    ("gateway_endpoint_permissions", "gateway_endpoint", ("endpoint_id",), False),
    ("gateway_model_definition_permissions", "gateway_model_definition", ("model_definition_id",), False),
)


def denied_users(connection) -> list[str]:
    """The users who are explicitly denied something, by MLflow's tables of before 3.13."""
    found: set[str] = set()
    for table, *_rest in LEGACY_PERMISSIONS:
        if there(connection, table):
            statement = (
                f"SELECT DISTINCT u.username FROM {table} p JOIN users u ON u.id = p.user_id "  # noqa: S608 - constants
                "WHERE p.permission = 'NO_PERMISSIONS'"
            )
            found |= {row[0] for row in query(connection, statement)}
    return sorted(found)


def denial_words(users: list[str]) -> str:
    """What becomes of explicit denials."""
    shown = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
    return (
        f"note {PERMISSIONS_TO_ROLES}: MLflow drops the explicit denials of {len(users)} "
        f"user{'' if len(users) == 1 else 's'} ({shown}); they are kept, as DENY grants"
    )


def before_upgrade(store: Store, seconds: float) -> None:
    """What has to be done before MLflow's own upgrade of a store."""
    if store.name != "auth" or not store.revision:
        return
    with closing(connect(store, seconds)) as connection:
        if store.unstamped and store.version_table == AUTH_VERSION_TABLE:
            # What later releases of MLflow do by themselves, and 3.6.0 forgot, so that it fails.
            say(f"{store.label}: writing its revision {FIRST_AUTH_REVISION} into {AUTH_VERSION_TABLE}")
            query(
                connection,
                "CREATE TABLE alembic_version_auth "
                "(version_num varchar(32) NOT NULL CONSTRAINT alembic_version_auth_pkc PRIMARY KEY); "
                "INSERT INTO alembic_version_auth VALUES (%s)",
                FIRST_AUTH_REVISION,
            )
        if {PERMISSIONS_TO_ROLES, PROMOTE_PROMPTS} & set(store.pending):
            query(connection, f"COMMENT ON TABLE users IS '{UNFINISHED}'")


# Stands at the table of users until what MLflow leaves undone is done, however often the upgrade is interrupted.
UNFINISHED = "ansible-mlflow: denials and grants on prompts are still to be carried over"


def is_unfinished(store: Store, connection) -> bool:
    """Whether an upgrade was interrupted before what MLflow leaves undone was done."""
    if store.name != "auth" or store.state == "empty":
        return False
    comment = query(connection, "SELECT obj_description(to_regclass('users'), 'pg_class')")[0][0]
    return comment == UNFINISHED


def after_upgrade(auth: Store, registry: Store, seconds: float) -> None:
    """Carry over what MLflow's auth migrations leave behind, in one transaction.

    Explicit denials become DENY grants. Grants on prompts, which MLflow tells from models only where the registry is
    in the same database, become grants on prompts.
    """
    with closing(connect(auth, seconds)) as connection:
        if not is_unfinished(auth, connection):
            return
        with closing(connect(registry, seconds)) as other:
            prompts = query(
                other,
                "SELECT workspace, name FROM registered_model_tags "
                "WHERE key = 'mlflow.prompt.is_prompt' AND lower(value) = 'true'",
            )
        connection.autocommit = False
        with connection:
            denials = keep_denials(connection)
            grants = promote_prompts(connection, prompts)
            query(connection, "COMMENT ON TABLE users IS NULL")
    say(f"{auth.label}: kept {denials} denials, and turned {grants} grants on models into grants on prompts")


def keep_denials(connection) -> int:
    """Write each explicit denial of before as a DENY grant; how many there were."""
    count = 0
    for table, kind, columns, has_workspace in LEGACY_PERMISSIONS:
        if not there(connection, table):
            continue
        workspace = "workspace" if has_workspace else "'default'"
        rows = query(
            connection,
            f"SELECT user_id, {workspace}, {', '.join(columns)} FROM {table} "  # noqa: S608 - constants
            "WHERE permission = 'NO_PERMISSIONS'",
        )
        for user, where, first, *rest in rows:
            # A scorer is named by its experiment and its own name, which may have a slash in it.
            pattern = "/".join([str(first), *(quote(str(part), safe="") for part in rest)])
            role = role_of(connection, user, where)
            query(
                connection,
                "INSERT INTO role_permissions (role_id, resource_type, resource_pattern, permission) "
                "SELECT %s, %s, %s, 'DENY' WHERE NOT EXISTS (SELECT FROM role_permissions "
                "WHERE role_id = %s AND resource_type = %s AND resource_pattern = %s)",
                *(role, kind, pattern) * 2,
            )
            count += 1
    return count


def role_of(connection, user: int, workspace: str) -> int:
    """The role in which MLflow keeps a user's own grants, made where it is missing."""
    name = f"__user_{user}__"
    found = query(connection, "SELECT id FROM roles WHERE workspace = %s AND name = %s", workspace, name)
    if not found:
        statement = "INSERT INTO roles (name, workspace) VALUES (%s, %s) RETURNING id"
        found = query(connection, statement, name, workspace)
    role = found[0][0]
    query(
        connection,
        "INSERT INTO user_role_assignments (user_id, role_id) SELECT %s, %s WHERE NOT EXISTS "
        "(SELECT FROM user_role_assignments WHERE user_id = %s AND role_id = %s)",
        *(user, role) * 2,
    )
    return role


def promote_prompts(connection, prompts: list[tuple]) -> int:
    """Turn grants on models that are prompts into grants on prompts; how many there were."""
    count = 0
    for workspace, name in prompts:
        rows = query(
            connection,
            "UPDATE role_permissions p SET resource_type = 'prompt' FROM roles r WHERE r.id = p.role_id "
            "AND r.workspace = %s AND p.resource_pattern = %s AND p.resource_type = 'registered_model' RETURNING p.id",
            workspace,
            name,
        )
        count += len(rows)
    return count


def wants_prepopulation(store: Store, connection) -> bool:
    """Whether MLflow can fill its trace analytics before the upgrade, while servers work on, and has something to fill.

    It works in batches that it commits, may be interrupted and run again, and leaves little to the revision itself.
    """
    return (
        store.tree == "tracking"
        and store.revision == BEFORE_TRACE_ANALYTICS
        and TRACE_ANALYTICS in store.pending
        and query(connection, "SELECT EXISTS (SELECT FROM trace_info)")[0][0]
    )


def is_prepopulated(connection) -> bool:
    """Whether the columns are there that filling the trace analytics adds first."""
    statement = (
        "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('trace_info') AND attname = 'trace_name')"
    )
    return query(connection, statement)[0][0]
