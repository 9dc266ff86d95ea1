#!/usr/bin/env python3
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
"""Keep the dumps of an environment's databases in a bucket; runs in MLflow's image, which has boto3.

    backup.py store        upload what dump.sh has dumped; the manifest comes last, so without one there is no backup
    backup.py list         the newest backups
    backup.py show ID      read a backup's manifest, and see that all of it is there and fits the environment
    backup.py fetch ID     download a backup for restore.sh, and refuse what is not as it was uploaded

Environment:
    MLFLOW_BACKUP_ENVIRONMENT        name of the environment; its backups stand below it in the bucket
    MLFLOW_BACKUP_ENDPOINT, MLFLOW_BACKUP_BUCKET, AWS_DEFAULT_REGION      where
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY                              who
    MLFLOW_BACKUP_IMAGE              store: the image that the databases are upgraded for
    MLFLOW_BACKUP_ARTIFACTS_...      store: ENDPOINT, BUCKET, REGION, ACCESS_KEY_ID, SECRET_ACCESS_KEY of the artifacts
    MLFLOW_BACKUP_SCRATCH_MIB        show: how large the dumps may be together
    MLFLOW_BACKUP_TARGETS            show, fetch: a line for each store of the environment, as in dump.list
    MLFLOW_BACKUP_WORK               the directory that the Job's containers share (/work)

The last line on standard output is a JSON report. Exit codes: see bucket.Exit.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import sys
import time
from pathlib import Path

from bucket import BackupError, Bucket, Exit, needed, say
from manifest import check_targets, manifest_problem, read_list, restore_list, summary, version_of

ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4}")
NEWEST = 10


def work() -> Path:
    """The directory that the Job's containers share."""
    return Path(os.environ.get("MLFLOW_BACKUP_WORK", "/work"))


def utc(form: str, moment: float | None = None) -> str:
    """A time in UTC."""
    return time.strftime(form, time.gmtime(moment))


def store(bucket: Bucket, environment: str, report: dict) -> None:
    """Upload the dumps, then the manifest."""
    path = work() / "dump.list"
    databases = read_list(path.read_text("utf-8"), 6) if path.is_file() else {}
    if not databases:
        say("nothing to store: no database was dumped")
        return
    begun = time.time()
    objects = json.loads(Path(__file__).with_name("objects.json").read_text("utf-8"))
    # Two Jobs may begin in the same second.
    backup_id = f"{utc('%Y%m%dT%H%M%SZ', begun)}-{secrets.token_hex(2)}"
    stores = {}
    for name, database in databases.items():
        dump = work() / "backup" / f"{name}.dump"
        if not dump.is_file():
            raise BackupError(Exit.USAGE, f"expected the dump of the {name} database in {dump}, found none")
        say(f"storing the {name} database: {dump.stat().st_size} bytes")
        stores[name] = {"database": database["database"], "revision": database["revision"]}
        stores[name].update(bucket.upload(dump, key_of(environment, backup_id, f"{name}.dump")))
    manifest = {
        "id": backup_id,
        "environment": environment,
        "time": utc("%Y-%m-%dT%H:%M:%SZ", begun),
        "mlflow_version_before": version_of(objects),
        "image_after": needed("MLFLOW_BACKUP_IMAGE"),
        "stores": stores,
        "object_store": artifacts_marker(),
        "objects": objects,
    }
    bucket.put_json(key_of(environment, backup_id, "manifest.json"), manifest)
    kept = {
        "id": backup_id,
        "bucket": bucket.name,
        "bytes": sum(entry["bytes"] for entry in stores.values()),
        "seconds": round(time.time() - begun, 1),
        "revisions": {name: entry["revision"] for name, entry in stores.items()},
    }
    (work() / "backup.json").write_text(json.dumps(kept), "utf-8")
    report.update(kept, changed=True)
    say(f"backup {backup_id} of {environment} is in bucket {bucket.name}: {kept['bytes']} bytes")


def key_of(environment: str, backup_id: str, name: str) -> str:
    """The name of an object of a backup."""
    return f"{environment}/{backup_id}/{name}"


def artifacts_marker() -> dict:
    """The moment, by the clock of the artifacts' server, to which its versions would have to be taken back."""
    prefix = "MLFLOW_BACKUP_ARTIFACTS_"
    values = [needed(prefix + name) for name in ("BUCKET", "ENDPOINT", "REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")]
    versioning, why, now = Bucket(*values).versioning()
    marker = {"endpoint": values[1], "bucket": values[0], "versioning": versioning, "time": now}
    return {**marker, "why": why} if why else marker


def show(bucket: Bucket, environment: str, report: dict, backup_id: str) -> None:
    """Report a manifest, and refuse a backup that could not be restored; nothing is touched."""
    report["manifest"] = restorable(bucket, environment, backup_id)


def restorable(bucket: Bucket, environment: str, backup_id: str) -> dict:
    """The manifest of a backup that is complete, and fits the environment and the volume."""
    manifest = complete(bucket, environment, backup_id)
    check_targets(manifest, targets())
    total = sum(entry["bytes"] for entry in manifest["stores"].values())
    limit = int(needed("MLFLOW_BACKUP_SCRATCH_MIB"))
    if total >= limit << 20:
        raise BackupError(
            Exit.REFUSED,
            f"the dumps of backup {backup_id} have {total} bytes, more than the {limit} MiB of "
            f"mlflow_backup_scratch_size; expected a larger size",
        )
    return manifest


def targets() -> dict[str, dict]:
    """The databases of the environment by store, as the inventory names them."""
    return read_list(needed("MLFLOW_BACKUP_TARGETS"), 5)


def complete(bucket: Bucket, environment: str, backup_id: str) -> dict:
    """The manifest of a backup of which nothing is missing."""
    manifest = bucket.get_json(key_of(environment, backup_id, "manifest.json"))
    if manifest is None:
        known = backup_id in bucket.folders(f"{environment}/")
        told = "is incomplete: it has no manifest, so its upload was cut off" if known else "is not there"
        raise BackupError(
            Exit.REFUSED,
            f"backup {backup_id} of {environment} in bucket {bucket.name} {told}; the newest complete ones: "
            f"{', '.join(entry['id'] for entry in newest(bucket, environment) if entry['complete']) or 'none'}",
        )
    problem = manifest_problem(manifest, environment, backup_id)
    if problem:
        raise BackupError(Exit.REFUSED, f"the manifest of backup {backup_id} in bucket {bucket.name} {problem}")
    for name, entry in manifest["stores"].items():
        key = key_of(environment, backup_id, f"{name}.dump")
        found = bucket.head(key)
        if found is None or found["ContentLength"] != entry["bytes"]:
            told = "is missing" if found is None else f"has {found['ContentLength']} bytes, expected {entry['bytes']}"
            raise BackupError(Exit.REFUSED, f"backup {backup_id} is incomplete: {key} in bucket {bucket.name} {told}")
    return manifest


def fetch(bucket: Bucket, environment: str, report: dict, backup_id: str) -> None:
    """Download a backup for restore.sh."""
    manifest = restorable(bucket, environment, backup_id)
    directory = work() / "backup"
    directory.mkdir(exist_ok=True)
    for name, entry in manifest["stores"].items():
        say(f"fetching the {name} database: {entry['bytes']} bytes")
        key = key_of(environment, backup_id, f"{name}.dump")
        bucket.download(key, directory / f"{name}.dump", entry["bytes"], entry["sha256"])
    (work() / "restore.list").write_text(restore_list(manifest, targets()), "utf-8")
    report["id"] = backup_id


def newest(bucket: Bucket, environment: str) -> list[dict]:
    """The newest backups, the incomplete ones too."""
    ids = [name for name in bucket.folders(f"{environment}/") if ID.fullmatch(name)]
    return [
        summary(name, bucket.get_json(key_of(environment, name, "manifest.json"))) for name in sorted(ids)[-NEWEST:]
    ][::-1]


def list_newest(bucket: Bucket, environment: str, report: dict) -> None:
    """Report the newest backups."""
    report["backups"] = newest(bucket, environment)


def own_bucket() -> Bucket:
    """The bucket of the backups."""
    names = ("MLFLOW_BACKUP_BUCKET", "MLFLOW_BACKUP_ENDPOINT", "AWS_DEFAULT_REGION")
    return Bucket(*map(needed, (*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))


def run(arguments: list[str], report: dict) -> None:
    """Run a command."""
    without_id, with_id = {"store": store, "list": list_newest}, {"show": show, "fetch": fetch}
    if len(arguments) == 1 and arguments[0] in without_id:
        without_id[arguments[0]](own_bucket(), needed("MLFLOW_BACKUP_ENVIRONMENT"), report)
    elif len(arguments) == 2 and arguments[0] in with_id:
        if not ID.fullmatch(arguments[1]):
            raise BackupError(
                Exit.USAGE, f"mlflow_backup_id: expected an id like 20261125T134500Z-3f2a, got {arguments[1]!r}"
            )
        with_id[arguments[0]](own_bucket(), needed("MLFLOW_BACKUP_ENVIRONMENT"), report, arguments[1])
    else:
        raise BackupError(Exit.USAGE, "usage: backup.py store|list|show ID|fetch ID")


def keep_reason(message: str) -> None:
    """Leave the reason where Kubernetes looks for it."""
    path = Path(os.environ.get("MLFLOW_BACKUP_TERMINATION_LOG", "/dev/termination-log"))
    try:
        if path.exists():
            path.write_text(message, "utf-8")
    except OSError:
        # It stands in the log as well.
        pass


def main(arguments: list[str]) -> int:
    """Run a command; the report is printed in any case."""
    report: dict = {"changed": False}
    try:
        run(arguments, report)
    except BackupError as error:
        report.update(exit_code=error.code, error=str(error))
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
        report.update(exit_code=Exit.REFUSED, error=words)
    if "error" in report:
        say(report["error"])
        keep_reason(report["error"])
    print(json.dumps(report), flush=True)
    return report.get("exit_code", 0)


if __name__ == "__main__":
    # The first process of a container gets no default action for this signal.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
