"""What a backup's manifest and the lists of databases say; nothing here asks a server."""

from __future__ import annotations

import re

from bucket import BackupError, Exit

IMAGE_VERSION = re.compile(r":v?([0-9]+\.[0-9]+\.[0-9]+(?:rc[0-9]+)?)")
REVISION = re.compile(r"[0-9A-Za-z_]+")
STORES = ("tracking", "registry", "auth")
# What restore.sh reads where a store was empty.
EMPTY = "-"


def read_list(text: str, columns: int) -> dict[str, dict]:
    """The lines of dump.list, by store: host, port, database, user and, if it is there, revision."""
    names, found = ("host", "port", "database", "user", "revision"), {}
    for line in filter(None, text.split("\n")):
        store, *values = line.split("\t")
        if len(values) != columns - 1 or not all(values):
            raise BackupError(Exit.USAGE, f"expected {columns} columns with tabs between them, got {line!r}")
        found[store] = dict(zip(names, values))  # noqa: B905 - Python 3.9 has no strict
    return found


def version_of(objects: list[dict]) -> str | None:
    """The release of MLflow that a Deployment runs, by the tag of its image; None if that says none."""
    for item in objects:
        if item.get("kind") == "Deployment":
            found = IMAGE_VERSION.search(item["spec"]["template"]["spec"]["containers"][0]["image"])
            return found[1] if found else None
    return None


def manifest_problem(manifest: dict, environment: str, backup_id: str) -> str:
    """What is wrong with a manifest, or an empty text."""
    for name, value in (("environment", environment), ("id", backup_id)):
        if manifest.get(name) != value:
            return f"is of {name} {manifest.get(name)!r}; expected {value!r}"
    stores = manifest.get("stores")
    if not isinstance(stores, dict) or "tracking" not in stores or not set(stores) <= set(STORES):
        return f"is not of the stores {', '.join(STORES)}"
    for name, entry in stores.items():
        kinds = {"database": str, "revision": str, "bytes": int, "sha256": str}
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in kinds.items()):
            return f"lacks database, revision, bytes or sha256 of the {name} store"
        if not REVISION.fullmatch(entry["revision"]):
            return f"has {entry['revision']!r} as the revision of the {name} store"
    if not isinstance(manifest.get("objects"), list):
        return "has no list of objects in it"
    return ""


def rows_of(text: str) -> dict[str, int]:
    """The number of rows of each table, from what dump.sh has counted."""
    lines = (line.rsplit("\t", 1) for line in text.splitlines() if line)
    return {table: int(count) for table, count in lines}


def encrypted_secrets(manifest: dict) -> int:
    """How many secrets of the AI gateway a backup has, which only the passphrase of then decrypts."""
    rows = (manifest["stores"]["tracking"].get("rows") or {}).items()
    return sum(count for table, count in rows if table.rsplit(".", 1)[-1] == "secrets")


def without_users(manifest: dict, named: dict[str, dict]) -> tuple[dict, dict[str, dict]]:
    """A backup and the databases of another environment, without the users of either.

    :raises BackupError: they cannot be told apart.
    """
    for what, stores in (("the backup", manifest["stores"]), ("the inventory", named)):
        shared = [name for name in stores if name != "auth" and "auth" in stores
                  and stores[name]["database"] == stores["auth"]["database"]]  # fmt: skip
        if shared:
            raise BackupError(
                Exit.REFUSED,
                f"in {what} the users are in the database of the {shared[0]} store, so that they would be replaced "
                f"too; expected a database of their own (mlflow_database_auth_name)",
            )
    stores = {name: entry for name, entry in manifest["stores"].items() if name != "auth"}
    return {**manifest, "stores": stores}, {name: entry for name, entry in named.items() if name != "auth"}


def check_revisions(manifest: dict, present: dict[str, str]) -> None:
    """Refuse a backup of another release than the environment's, whose own servers go on with its databases.

    :param present: the revision that the environment's image wants, by store.
    """
    for name, entry in manifest["stores"].items():
        wanted = present.get(name) or present.get("tracking")
        if entry["revision"] != wanted:
            raise BackupError(
                Exit.REFUSED,
                f"the {name} database of the backup is at revision {entry['revision']}, and the servers here want "
                f"{wanted or 'one that is not known'}; expected the release of MLflow that the backup is of "
                f"({manifest.get('mlflow_version_before') or 'unknown'}): bring the environment to it with site.yml",
            )


def check_targets(manifest: dict, named: dict[str, dict]) -> None:
    """Refuse a backup that does not fit the databases that the inventory names."""
    missing = sorted(set(manifest["stores"]) - set(named))
    if missing:
        raise BackupError(
            Exit.REFUSED,
            f"the backup has a database of the {missing[0]} store, but the inventory names none; expected "
            f"mlflow_database_{missing[0]}_name: {manifest['stores'][missing[0]]['database']}",
        )
    names = list(manifest["stores"])
    for first, second in ((a, b) for a in names for b in names if a < b):
        before = manifest["stores"][first]["database"] == manifest["stores"][second]["database"]
        now = named[first]["database"] == named[second]["database"]
        if before != now:
            told = ("one database", "two") if before else ("two databases", "one")
            raise BackupError(
                Exit.REFUSED,
                f"in the backup the {first} and the {second} store are in {told[0]}, in the inventory in {told[1]}; "
                f"expected the names of then",
            )


def restore_list(manifest: dict, named: dict[str, dict]) -> str:
    """What restore.sh has to do, a line for each database: two stores may share one, whose dump has both."""
    lines, places = [], set()
    for name, target in named.items():
        place = tuple(target[key] for key in ("host", "port", "database"))
        entry = manifest["stores"].get(name)
        # Users who are not in the backup had an empty database. A registry that is not was in the tracking database:
        # what is in its own is not of this backup.
        if place not in places and (entry or name == "auth"):
            places.add(place)
            lines.append("\t".join([name, *place, target["user"], entry["revision"] if entry else EMPTY]))
    return "".join(f"{line}\n" for line in lines)


def summary(backup_id: str, manifest: dict | None) -> dict:
    """What a list says of a backup."""
    if not manifest:
        return {"id": backup_id, "complete": False}
    stores = manifest.get("stores", {})
    return {
        "id": backup_id,
        "complete": True,
        "checked": manifest.get("checked", False),
        "encrypted": bool(manifest.get("encryption")),
        "time": manifest.get("time"),
        "mlflow_version_before": manifest.get("mlflow_version_before"),
        "revisions": {name: entry.get("revision") for name, entry in stores.items()},
        "bytes": sum(entry.get("bytes", 0) for entry in stores.values()),
        "artifacts": {key: manifest["artifacts"].get(key) for key in ("objects", "bytes")}
        if manifest.get("artifacts")
        else None,
    }
