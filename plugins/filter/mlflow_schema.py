"""Filters of the role mlflow_schema: what a run knows already need not be asked again."""

from __future__ import annotations

from typing import Any

# Where a store's revision may stand, the most telling first: MLflow before 3.6 had one table for both.
VERSION_TABLES = {"auth": ("alembic_version_auth", "alembic_version")}


def is_current(
    databases: dict[str, str],
    *,
    revisions: dict[str, dict[str, list[str]]],
    record: dict[str, str],
    image: str,
    program: str,
) -> bool:
    """Whether every database is known to be at the revision that the image wants.

    Args:
        databases: The databases by store.
        revisions: What the version tables hold, by database and table, as the module mlflow_database returns it.
        record: What the module mlflow_schema wrote down: an image, its heads, and the program's digest.
        image: The image of this run.
        program: The digest of this run's program.
    """
    if (record.get("image"), record.get("program")) != (image, program):
        return False
    return all(
        record.get(store) and found(store, revisions.get(name) or {}) == [record[store]]
        for store, name in databases.items()
    )


def found(store: str, tables: dict[str, list[str]]) -> list[str]:
    """The revisions of a store, of the first of its version tables that is there."""
    names = VERSION_TABLES.get(store, ("alembic_version",))
    return next((tables[name] for name in names if name in tables), [])


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_schema_is_current": is_current}
