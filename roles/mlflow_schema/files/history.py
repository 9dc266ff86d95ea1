"""The revisions that an image knows, read from its files, and the releases that they belong to.

Importing MLflow or Alembic would take seconds; parsing the files takes a tenth of one.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path

from problems import Exit, SchemaError

FOLDERS = {"tracking": "store/db_migrations/versions", "auth": "server/auth/db/migrations/versions"}


@dataclass(frozen=True)
class History:
    """The revisions of one schema, each with the ones before it, and the tables that each creates."""

    parents: dict[str, tuple[str, ...]]
    creates: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The one revision that nothing follows."""
        followed = {parent for parents in self.parents.values() for parent in parents}
        heads = sorted(set(self.parents) - followed)
        if len(heads) != 1:
            raise SchemaError(Exit.REFUSED, f"this image has {len(heads)} heads of its schema: {', '.join(heads)}")
        return heads[0]

    def pending(self, revision: str | None) -> list[str]:
        """The revisions that are still to be applied to a database at ``revision``, oldest first."""
        applied, stack = set(), [revision] if revision else []
        while stack:
            current = stack.pop()
            if current not in applied:
                applied.add(current)
                stack.extend(self.parents[current])
        ordered: list[str] = []

        def visit(current: str) -> None:
            # As deep as there are revisions; some dozens.
            if current in applied or current in ordered:
                return
            for parent in self.parents[current]:
                visit(parent)
            ordered.append(current)

        visit(self.head)
        return ordered


def mlflow_version() -> str:
    """The version of the installed MLflow."""
    return metadata.version("mlflow")


@cache
def package() -> Path:
    """Where the installed MLflow is."""
    try:
        return Path(str(metadata.distribution("mlflow").locate_file("mlflow")))
    except metadata.PackageNotFoundError:
        raise SchemaError(Exit.USAGE, "MLflow is not installed in this image") from None


@cache
def read_history(tree: str) -> History:
    """The revisions of a tree (``tracking`` or ``auth``) of the installed MLflow."""
    folder = package() / FOLDERS[tree]
    parents, creates = {}, {}
    for path in sorted(folder.glob("*.py")):
        found = revision_of(path.read_text("utf-8"))
        if found:
            parents[found[0]], creates[found[0]] = found[1], found[2]
    if not parents:
        raise SchemaError(Exit.USAGE, f"this image has no {tree} migrations in {folder}: is MLflow complete?")
    return History(parents, creates)


def revision_of(source: str) -> tuple[str, tuple[str, ...], tuple[str, ...]] | None:
    """(revision, revisions before it, tables that it creates and nobody drops) of a migration's source."""
    found: dict[str, object] = {}
    calls: dict[str, set[str]] = {"create_table": set(), "drop_table": set(), "rename_table": set()}
    tree = ast.parse(source)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in ("revision", "down_revision") and node.value is not None:
                found[target.id] = ast.literal_eval(node.value)
    upgrade = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"]
    for node in (inner for outer in upgrade for inner in ast.walk(outer)):
        name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if name in calls:
            calls[name] |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    if "revision" not in found:
        return None
    down = found.get("down_revision")
    before = (down,) if isinstance(down, str) else tuple(down or ())
    return str(found["revision"]), before, tuple(sorted(calls["create_table"] - calls["drop_table"]))


def auth_version_table() -> str:
    """The version table of the auth schema: its own since MLflow 3.6, before that Alembic's usual one."""
    environment = package() / "server/auth/db/migrations/env.py"
    own = environment.exists() and "alembic_version_auth" in environment.read_text("utf-8")
    return "alembic_version_auth" if own else "alembic_version"


@cache
def releases() -> dict[str, dict]:
    """The published releases, oldest first, with their heads: releases.json beside this file."""
    path = Path(__file__).parent / "releases.json"
    return json.loads(path.read_text("utf-8"))["releases"] if path.exists() else {}


def releases_of(tree: str, revision: str | None) -> list[str]:
    """The releases whose head a revision is, oldest first."""
    return [release for release, heads in releases().items() if revision and heads.get(tree) == revision]


def named(tree: str, revision: str | None) -> str:
    """A revision with the releases that it belongs to, for people."""
    if revision is None:
        return "empty"
    spans = ", ".join(spans_of(releases_of(tree, revision)))
    return f"{revision} (MLflow {spans})" if spans else revision


def spans_of(found: list[str]) -> list[str]:
    """Releases as spans without a gap: a patch release between two others may have another schema than both."""
    places = {release: place for place, release in enumerate(releases())}
    spans: list[list[str]] = []
    for release in found:
        if spans and places[release] == places[spans[-1][-1]] + 1:
            spans[-1].append(release)
        else:
            spans.append([release])
    return [span[0] if len(span) == 1 else f"{span[0]} to {span[-1]}" for span in spans]
