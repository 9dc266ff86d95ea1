#!/usr/bin/env python3
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0
"""Keep the dumps of an environment's databases, and copies of its artifacts, in a bucket; runs in MLflow's image.

    backup.py store         upload what dump.sh has dumped; the manifest comes last, so without one there is no backup
    backup.py list          the newest backups
    backup.py show ID       read a backup's manifest, and see that all of it is there and fits the environment
    backup.py fetch ID      download a backup for restore.sh, and refuse what is not as it was uploaded
    backup.py artifacts ID  bring back the artifacts of a backup that the environment's bucket has not, or has otherwise

Environment:
    MLFLOW_BACKUP_ENVIRONMENT        name of the environment; its backups stand below it in the bucket
    MLFLOW_BACKUP_ENDPOINT, MLFLOW_BACKUP_BUCKET, AWS_DEFAULT_REGION      where
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY                              who
    MLFLOW_BACKUP_ENCRYPTION_KEY     32 bytes in base64, if what is kept is encrypted
    MLFLOW_CRYPTO_KEK_PASSPHRASE     store, show: the passphrase of the AI gateway's secrets
    MLFLOW_BACKUP_IMAGE              store: the image that the databases are upgraded for, or that runs
    MLFLOW_BACKUP_ARTIFACTS_...      store, artifacts: ENDPOINT, BUCKET, REGION, ACCESS_KEY_ID, SECRET_ACCESS_KEY
    MLFLOW_BACKUP_COPY_ARTIFACTS     store: "true" to copy the artifacts
    MLFLOW_BACKUP_SCRATCH_MIB        show, fetch: how large the dumps may be together
    MLFLOW_BACKUP_TARGETS            show, fetch: a line for each store of the environment, as in dump.list
    MLFLOW_BACKUP_INTO               show, fetch: another environment, into which the backup is restored without users
    MLFLOW_BACKUP_WANTED             show, fetch: then, the revisions that its image wants, JSON by store
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

from artifacts import Copies, bring_back, copy_all, packed, packed_names, unpacked
from bucket import BackupError, Bucket, Exit, needed, say
from manifest import (
    check_revisions,
    check_targets,
    encrypted_secrets,
    manifest_problem,
    read_list,
    restore_list,
    rows_of,
    summary,
    version_of,
    without_users,
)
from sealed import cipher_for, cipher_from_environment, encrypted_size, is_passphrase, passphrase_fingerprint

ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{4}")
NEWEST = 10


def work() -> Path:
    """The directory that the Job's containers share."""
    return Path(os.environ.get("MLFLOW_BACKUP_WORK", "/work"))


def utc(form: str, moment: float | None = None) -> str:
    """A time in UTC."""
    return time.strftime(form, time.gmtime(moment))


def store(bucket: Bucket, environment: str, report: dict) -> None:
    """Upload the dumps and the artifacts, then the manifest."""
    path = work() / "dump.list"
    databases = read_list(path.read_text("utf-8"), 6) if path.is_file() else {}
    if not databases:
        say("nothing to store: no database was dumped")
        return
    begun = time.time()
    cipher = cipher_from_environment()
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
        stores[name].update(bucket.upload(dump, key_of(environment, backup_id, f"{name}.dump"), cipher))
        stores[name]["rows"] = rows_of(dump.with_suffix(".rows").read_text("utf-8"))
    manifest = {
        "id": backup_id,
        "environment": environment,
        "time": utc("%Y-%m-%dT%H:%M:%SZ", begun),
        "mlflow_version_before": version_of(objects),
        "image_after": needed("MLFLOW_BACKUP_IMAGE"),
        "stores": stores,
        "checked": (work() / "checked").is_file(),
        "kek": passphrase_fingerprint(needed("MLFLOW_CRYPTO_KEK_PASSPHRASE")),
        "object_store": artifacts_marker(),
        "objects": objects,
    }
    if cipher:
        manifest["encryption"] = {"key": cipher.fingerprint}
    if os.environ.get("MLFLOW_BACKUP_COPY_ARTIFACTS") == "true":
        manifest["artifacts"] = store_artifacts(bucket, environment, backup_id, cipher)
    bucket.put_json(key_of(environment, backup_id, "manifest.json"), manifest)
    kept = {
        "id": backup_id,
        "bucket": bucket.name,
        "bytes": sum(entry["bytes"] for entry in stores.values()),
        "seconds": round(time.time() - begun, 1),
        "revisions": {name: entry["revision"] for name, entry in stores.items()},
        "tables": sum(len(entry["rows"]) for entry in stores.values()),
        "rows": sum(sum(entry["rows"].values()) for entry in stores.values()),
        "checked": manifest["checked"],
        "encrypted": cipher is not None,
        "artifacts": {key: value for key, value in manifest.get("artifacts", {}).items() if key != "index"},
    }
    (work() / "backup.json").write_text(json.dumps(kept), "utf-8")
    report.update(kept, changed=True)
    say(f"backup {backup_id} of {environment} is in bucket {bucket.name}: {kept['bytes']} bytes of databases")


def store_artifacts(bucket: Bucket, environment: str, backup_id: str, cipher) -> dict:
    """Copy the artifacts that are not copied yet; what the manifest says of them."""
    known = {entry["name"]: entry["sha256"] for entry in newest_index(bucket, environment)}
    files = (work() / "backup").glob("*.locations")
    locations = [line for path in files for line in path.read_text("utf-8").splitlines() if line]
    told, index = copy_all(artifacts_bucket(), Copies(bucket, environment, cipher), known, locations)
    path = work() / "artifacts.jsonl.gz"
    path.write_bytes(packed(index))
    told["index"] = bucket.upload(path, key_of(environment, backup_id, path.name), cipher)
    bucket.put(key_of(environment, backup_id, "artifacts.names.gz"), packed_names(index))
    return told


def newest_index(bucket: Bucket, environment: str) -> list[dict]:
    """The artifacts of the newest backup that has any and can be read: they need not be looked at again."""
    for backup_id in ids(bucket, environment)[: -NEWEST - 1 : -1]:
        manifest = bucket.get_json(key_of(environment, backup_id, "manifest.json"))
        if manifest and manifest.get("artifacts"):
            try:
                return read_index(bucket, environment, manifest)
            except BackupError as error:
                say(f"backup {backup_id} tells nothing of its artifacts: {error}")
    return []


def read_index(bucket: Bucket, environment: str, manifest: dict) -> list[dict]:
    """The artifacts of a backup."""
    path = work() / "index"
    key = key_of(environment, manifest["id"], "artifacts.jsonl.gz")
    bucket.download(key, path, manifest["artifacts"]["index"], cipher_for(manifest))
    return unpacked(path.read_bytes())


def artifacts(bucket: Bucket, environment: str, report: dict, backup_id: str) -> None:
    """Bring back the artifacts of a backup."""
    manifest = complete(bucket, environment, backup_id)
    if not manifest.get("artifacts"):
        say(f"backup {backup_id} has no artifacts: those in the bucket stay as they are")
        return
    index = read_index(bucket, environment, manifest)
    done = bring_back(Copies(bucket, environment, cipher_for(manifest)), artifacts_bucket(), index)
    report.update(done, changed=done["artifacts_restored"] > 0)


def artifacts_bucket() -> Bucket:
    """The bucket of the artifacts, with the servers' key."""
    names = ("BUCKET", "ENDPOINT", "REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    return Bucket(*(needed(f"MLFLOW_BACKUP_ARTIFACTS_{name}") for name in names))


def key_of(environment: str, backup_id: str, name: str) -> str:
    """The name of an object of a backup."""
    return f"{environment}/{backup_id}/{name}"


def artifacts_marker() -> dict:
    """The moment, by the clock of the artifacts' server, to which its versions would have to be taken back."""
    bucket = artifacts_bucket()
    versioning, why, now = bucket.versioning()
    marker = {"endpoint": bucket.endpoint, "bucket": bucket.name, "versioning": versioning, "time": now}
    return {**marker, "why": why} if why else marker


def show(bucket: Bucket, environment: str, report: dict, backup_id: str) -> None:
    """Report a manifest, and refuse a backup that could not be restored; nothing is touched."""
    manifest, _ = restorable(bucket, environment, backup_id)
    report.update(manifest=manifest, warnings=check_passphrase(manifest))


def check_passphrase(manifest: dict) -> list[str]:
    """What to say of secrets that nobody could decrypt; refuse to bring them back where they came from."""
    kept, count = manifest.get("kek"), encrypted_secrets(manifest)
    if not kept or is_passphrase(needed("MLFLOW_CRYPTO_KEK_PASSPHRASE"), kept):
        return []
    told = "kek_passphrase is another one than when the backup was made"
    if not count:
        return [f"{told}; it has no secrets of the AI gateway, so nothing is lost by that"]
    if into():
        return [f"{told}: {count} secrets of the AI gateway cannot be decrypted, and must be entered anew"]
    raise BackupError(
        Exit.REFUSED,
        f"{told}, and nobody could decrypt its {count} secrets of the AI gateway; expected the passphrase of then in "
        f"mlflow_environment_secrets.kek_passphrase",
    )


def into() -> str:
    """The other environment that a backup is restored into, or an empty text."""
    return os.environ.get("MLFLOW_BACKUP_INTO", "")


def restorable(bucket: Bucket, environment: str, backup_id: str) -> tuple[dict, dict[str, dict]]:
    """The manifest of a backup that is complete and fits, and the databases that it is for; both as far as restored."""
    manifest, named = complete(bucket, environment, backup_id), targets()
    cipher_for(manifest)
    if into():
        manifest, named = without_users(manifest, named)
        check_revisions(manifest, json.loads(needed("MLFLOW_BACKUP_WANTED")))
    check_targets(manifest, named)
    total = sum(entry["bytes"] for entry in manifest["stores"].values())
    limit = int(needed("MLFLOW_BACKUP_SCRATCH_MIB"))
    if total >= limit << 20:
        raise BackupError(
            Exit.REFUSED,
            f"the dumps of backup {backup_id} have {total} bytes, more than the {limit} MiB of "
            f"mlflow_backup_scratch_size; expected a larger size",
        )
    return manifest, named


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
        found, size = bucket.head(key), kept_size(manifest, entry["bytes"])
        if found is None or found["ContentLength"] != size:
            told = "is missing" if found is None else f"has {found['ContentLength']} bytes, expected {size}"
            raise BackupError(Exit.REFUSED, f"backup {backup_id} is incomplete: {key} in bucket {bucket.name} {told}")
    return manifest


def kept_size(manifest: dict, size: int) -> int:
    """How large an object of this size is in the bucket."""
    return encrypted_size(size) if manifest.get("encryption") else size


def fetch(bucket: Bucket, environment: str, report: dict, backup_id: str) -> None:
    """Download a backup for restore.sh."""
    manifest, named = restorable(bucket, environment, backup_id)
    directory = work() / "backup"
    directory.mkdir(exist_ok=True)
    for name, entry in manifest["stores"].items():
        say(f"fetching the {name} database: {entry['bytes']} bytes")
        key = key_of(environment, backup_id, f"{name}.dump")
        bucket.download(key, directory / f"{name}.dump", entry, cipher_for(manifest))
    (work() / "restore.list").write_text(restore_list(manifest, named), "utf-8")
    then, now = manifest["object_store"]["bucket"], needed("MLFLOW_BACKUP_ARTIFACTS_BUCKET")
    if into() and then != now:
        (work() / "roots").write_text(f"s3://{then}/\ns3://{now}/\n", "utf-8")
    report["id"] = backup_id


def ids(bucket: Bucket, environment: str) -> list[str]:
    """The backups, the incomplete ones too, the newest one at the end."""
    return sorted(name for name in bucket.folders(f"{environment}/") if ID.fullmatch(name))


def newest(bucket: Bucket, environment: str) -> list[dict]:
    """The newest backups, the incomplete ones too."""
    found = ids(bucket, environment)[-NEWEST:]
    return [summary(name, bucket.get_json(key_of(environment, name, "manifest.json"))) for name in found][::-1]


def list_newest(bucket: Bucket, environment: str, report: dict) -> None:
    """Report the newest backups."""
    report["backups"] = newest(bucket, environment)


def own_bucket() -> Bucket:
    """The bucket of the backups."""
    names = ("MLFLOW_BACKUP_BUCKET", "MLFLOW_BACKUP_ENDPOINT", "AWS_DEFAULT_REGION")
    return Bucket(*map(needed, (*names, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))


def run(arguments: list[str], report: dict) -> None:
    """Run a command."""
    without_id = {"store": store, "list": list_newest}
    with_id = {"show": show, "fetch": fetch, "artifacts": artifacts}
    if len(arguments) == 1 and arguments[0] in without_id:
        without_id[arguments[0]](own_bucket(), needed("MLFLOW_BACKUP_ENVIRONMENT"), report)
    elif len(arguments) == 2 and arguments[0] in with_id:
        if not ID.fullmatch(arguments[1]):
            raise BackupError(
                Exit.USAGE, f"mlflow_backup_id: expected an id like 20261125T134500Z-3f2a, got {arguments[1]!r}"
            )
        with_id[arguments[0]](own_bucket(), needed("MLFLOW_BACKUP_ENVIRONMENT"), report, arguments[1])
    else:
        raise BackupError(Exit.USAGE, "usage: backup.py store|list|show ID|fetch ID|artifacts ID")


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
