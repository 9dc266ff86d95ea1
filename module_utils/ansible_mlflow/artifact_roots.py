"""Where the experiments of a database keep their artifacts."""

from __future__ import annotations

from .database import rows

# MLflow's table in whatever schema it is; another application's table of that name has other columns.
TABLES = """
    SELECT format('%I.%I', nspname, relname) AS name
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relname = 'experiments' AND relkind IN ('r', 'p') AND nspname !~ '^pg_'
      AND CASE WHEN has_schema_privilege(relnamespace, 'USAGE') THEN has_table_privilege(pg_class.oid, 'SELECT') END
      AND 2 = (SELECT count(*) FROM pg_attribute WHERE attrelid = pg_class.oid AND NOT attisdropped
               AND attname IN ('experiment_id', 'artifact_location'))"""
# MLflow puts an experiment to whom nobody gave a place of its own at <root>/<id>, or <root>/workspaces/<name>/<id>.
ROOTS = r"""
    SELECT regexp_replace(artifact_location, '(/workspaces/[^/]+)?/+[0-9]+$', '') AS root, count(*) AS experiments
    FROM {table} WHERE artifact_location LIKE '%/' || experiment_id GROUP BY 1 ORDER BY 1"""


def read(connection) -> dict[str, int]:
    """The number of experiments, deleted ones too, by the root below which MLflow put them.

    What was created at a place of its own is left out, and so is what may not be read.
    """
    roots: dict[str, int] = {}
    for table in rows(connection, TABLES):
        for row in rows(connection, ROOTS.format(table=table["name"])):
            roots[row["root"]] = roots.get(row["root"], 0) + row["experiments"]
    return roots
