"""Which backups of an environment are kept, and the end of the others. What is in them: roles/mlflow_backup/files."""

from __future__ import annotations

import calendar
import gzip
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from .errors import Error, one_line
from .object_store import Refusal, Store

ID = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{4}")
DAY = 86400
# Seconds after which a backup without a manifest is no longer in the making: longer than any Job may take.
CUT_OFF = DAY
SHOWN = 3


@dataclass
class Backup:
    """A backup as the bucket has it.

    Attributes:
        moment: When it was begun, in seconds since 1970.
        objects: Every version of its objects.
        complete: Whether it has its manifest.
    """

    name: str
    moment: float
    objects: list[Any] = field(default_factory=list)
    complete: bool = False


@dataclass
class Pruned:
    """What was deleted and kept, and why; and of the copies of artifacts, how many, and the bytes of all."""

    deleted: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    artifacts: int = 0
    size: int = 0


def begun(name: str) -> float:
    """When a backup of that name was begun, in seconds since 1970."""
    return calendar.timegm(time.strptime(ID.fullmatch(name)[1], "%Y%m%dT%H%M%SZ"))


def decide(backups: list[Backup], keep_days: int, keep_newest: int, now: float) -> Pruned:
    """Which backups go and which stay."""
    found = Pruned()
    newest = sorted((backup.name for backup in backups if backup.complete), reverse=True)[:keep_newest]
    for backup in sorted(backups, key=lambda backup: backup.name):
        age = now - backup.moment
        days = f"{age / DAY:.0f} days old"
        if not backup.complete:
            if age > CUT_OFF:
                found.deleted[backup.name] = "incomplete: it was cut off"
            else:
                found.kept[backup.name] = "incomplete: it may be in the making"
        elif age <= keep_days * DAY:
            found.kept[backup.name] = days
        elif backup.name in newest:
            found.kept[backup.name] = f"{days}, and one of the newest {keep_newest}"
        else:
            found.deleted[backup.name] = days
    return found


def prune(admin: Store, bucket: str, environment: str, limits: tuple[int, int, float], check_mode: bool) -> Pruned:
    """Delete what is not kept.

    :param limits: days, number of the newest, and the present time.
    :raises Error: the server refuses, or a kept backup cannot be read.
    """
    try:
        return _prune(admin, bucket, environment, limits, check_mode)
    except Refusal as refusal:
        raise admin.explained(refusal, bucket) from None


def _prune(admin: Store, bucket: str, environment: str, limits: tuple[int, int, float], check_mode: bool) -> Pruned:
    if admin.look(bucket) == "absent":
        return Pruned()
    backups, copies = read(admin, bucket, environment)
    found = decide(list(backups.values()), *limits)
    doomed = [item for name in found.deleted for item in backups[name].objects]
    # One that is in the making counts on copies that are there, and does not say yet on which.
    if all(backups[name].complete for name in found.kept):
        used = set()
        for name in found.kept:
            used |= names_of(admin, bucket, f"{environment}/{name}/", backups[name])
        orphans = {key: items for key, items in copies.items() if key not in used}
        found.artifacts = len(orphans)
        doomed += [item for items in orphans.values() for item in items]
    found.size = sum(item.size or 0 for item in doomed)
    if not check_mode and doomed:
        # The manifests first: what is left of a backup then is one that was cut off.
        doomed.sort(key=lambda item: not item.object_name.endswith("/manifest.json"))
        refused = admin.delete_versions(bucket, doomed)
        if refused:
            raise Error(
                f"{admin.endpoint.url}, bucket {bucket}: the server keeps {len(refused)} of {len(doomed)} versions of "
                f"objects that were to be deleted ({', '.join(refused[:SHOWN])})"
            )
    return found


def read(admin: Store, bucket: str, environment: str) -> tuple[dict[str, Backup], dict[str, list[Any]]]:
    """The backups by name, and every version of each copy of an artifact by its name."""
    backups: dict[str, Backup] = {}
    copies: dict[str, list[Any]] = {}
    for item in admin.versions(bucket, f"{environment}/"):
        folder, _, rest = item.object_name[len(environment) + 1 :].partition("/")
        if ID.fullmatch(folder):
            backup = backups.setdefault(folder, Backup(folder, begun(folder)))
            backup.objects.append(item)
            if rest == "manifest.json" and item.is_latest == "true" and not item.is_delete_marker:
                backup.complete = True
        elif folder == "artifacts":
            copies.setdefault(rest.removesuffix(".sha256"), []).append(item)
    return backups, copies


def names_of(admin: Store, bucket: str, prefix: str, backup: Backup) -> set[str]:
    """The names of the copies that a backup has.

    :raises Error: it has artifacts, and not their names: then nobody knows what may be deleted.
    """
    manifest = json.loads(admin.read(bucket, prefix + "manifest.json"))
    if not manifest.get("artifacts"):
        return set()
    try:
        return set(gzip.decompress(admin.read(bucket, prefix + "artifacts.names.gz")).decode().split())
    except (Refusal, OSError, EOFError, ValueError) as error:
        raise Error(
            f"backup {backup.name} in bucket {bucket} has artifacts, but {prefix}artifacts.names.gz cannot be read "
            f"({one_line(error, 200)}); no copy of an artifact is deleted before that backup is"
        ) from None
