"""Filters of the role mlflow_backup: what cannot work, which objects are kept, and lines for people."""

from __future__ import annotations

import copy
import re
from typing import Any

DAY = 86400
LEAST = {
    "mlflow_backup_keep_days": 0,
    "mlflow_backup_keep_newest": 1,
    "mlflow_backup_restore_timeout": 1,
    "mlflow_backup_scratch_size": 1,
    "mlflow_backup_timeout": 1,
}
# What the API server or a controller writes by itself.
SERVER_METADATA = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields", "selfLink")
SERVER_ANNOTATIONS = ("deployment.kubernetes.io/revision", "kubectl.kubernetes.io/last-applied-configuration")
# How many replicas a Deployment had before it was stopped for an upgrade.
REPLICAS_BEFORE = "mlflow.ansible/replicas-before-stop"


# A field of a cron expression as Kubernetes reads it: a list of *, numbers, names and ranges, with steps or without.
CRON_ITEM = r"(?:\*|\?|[0-9]{1,2}|[A-Za-z]{3})(?:-(?:[0-9]{1,2}|[A-Za-z]{3}))?(?:/[1-9][0-9]?)?"
CRON_FIELD = re.compile(rf"{CRON_ITEM}(?:,{CRON_ITEM})*")
# What the numbers of each field may be.
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def is_schedule(text: str) -> bool:
    """Whether a text is five fields of cron."""
    fields = text.split(" ")
    return len(fields) == len(CRON_RANGES) and all(
        CRON_FIELD.fullmatch(field)
        and all(low <= int(number) <= high for number in re.findall(r"(?<![/0-9])[0-9]+", field))
        for field, (low, high) in zip(fields, CRON_RANGES, strict=True)
    )


def alert_days(schedule: str) -> int:
    """After how many days without a backup somebody should know: once a backup of the schedule was missed.

    Args:
        schedule: mlflow_backup_schedule; without one, backups are made before upgrades and by people.
    """
    if not is_schedule(schedule):
        return 7
    day, month, weekday = schedule.split(" ")[2:]
    if month not in ("*", "?"):
        return 400
    if day not in ("*", "?"):
        return 32
    return 2 if weekday in ("*", "?") else 8


def backup_problems(settings: dict[str, Any], *, artifacts_endpoint: str, artifacts_bucket: str) -> list[str]:
    """Say what is wrong with the settings of the backups.

    Args:
        settings: The values by the names of their variables.
        artifacts_endpoint, artifacts_bucket: Where the artifacts are.

    Returns:
        A sentence for each problem: the variable, what it is, and what is expected.
    """
    bucket = settings["mlflow_backup_bucket"]
    problems = [
        f"{name} is an empty text; expected a value"
        for name in ("mlflow_backup_endpoint", "mlflow_backup_bucket", "mlflow_backup_postgres_image")
        if not settings[name]
    ]
    problems += [
        f"{name} is {settings[name]}; expected a number from {least} on"
        for name, least in LEAST.items()
        if int(settings[name]) < least
    ]
    if int(settings["mlflow_backup_timeout"]) > DAY:
        problems.append(
            f"mlflow_backup_timeout is {settings['mlflow_backup_timeout']}; expected at most {DAY}: a backup that is "
            f"not complete after a day is taken for one that was cut off, and is deleted"
        )
    schedule = settings["mlflow_backup_schedule"]
    if schedule and not is_schedule(schedule):
        problems.append(
            f"mlflow_backup_schedule is {schedule!r}; expected five fields of cron with one space between them, "
            f"minute, hour, day, month and weekday, such as '30 2 * * *'"
        )
    if (settings["mlflow_backup_endpoint"], bucket) == (artifacts_endpoint, artifacts_bucket):
        problems.append(
            f"mlflow_backup_bucket is {bucket!r}, the bucket of the artifacts, in which the servers may delete; "
            f"expected another one"
        )
    return problems


def kept_objects(found: list[dict[str, Any]], *, names: list[str]) -> list[dict[str, Any]]:
    """The objects with these names (`<kind> <name>`), in that order, as they would be applied again.

    A Deployment that was stopped for an upgrade is kept with the replicas that it had.
    """
    by_name = {f"{item['kind']} {item['metadata']['name']}": item for item in found}
    return [applicable(by_name[name]) for name in names if name in by_name]


def unexpected_objects(objects: list[dict[str, Any]], *, names: list[str], namespace: str) -> list[str]:
    """The objects of a backup that are none of an environment's (`<kind> <name>`).

    They are applied with the operator's rights, so that whoever can write to the bucket must not add others.
    """
    found = []
    for item in objects:
        metadata = item.get("metadata") or {}
        name = f"{item.get('kind')} {metadata.get('name')}"
        api = {"ConfigMap": "v1", "Deployment": "apps/v1"}.get(item.get("kind"))
        if name not in names or metadata.get("namespace") != namespace or item.get("apiVersion") != api:
            found.append(name)
    return found


def applicable(item: dict[str, Any]) -> dict[str, Any]:
    """An object without what the cluster writes into it by itself."""
    item = copy.deepcopy({key: value for key, value in item.items() if key != "status"})
    metadata = item["metadata"] = {key: value for key, value in item["metadata"].items() if key not in SERVER_METADATA}
    annotations = metadata.pop("annotations", {})
    replicas = annotations.pop(REPLICAS_BEFORE, None)
    annotations = {key: value for key, value in annotations.items() if key not in SERVER_ANNOTATIONS}
    if annotations:
        metadata["annotations"] = annotations
    if item["kind"] == "Deployment" and not item["spec"].get("replicas", 1):
        item["spec"]["replicas"] = int(replicas or 1)
    return item


def targets(databases: dict[str, str], *, host: str, port: int, username: str) -> str:
    """The databases as the restore's programs read them: a line for each store, with tabs between its columns."""
    return "".join(f"{store}\t{host}\t{port}\t{name}\t{username}\n" for store, name in databases.items())


def size(count: int) -> str:
    """A number of bytes for people."""
    power = min(max(count.bit_length() - 1, 0) // 10, 4)
    return f"{count / 1024**power:.1f} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}".replace(".0 bytes", " bytes")


def backup_lines(backups: list[dict[str, Any]]) -> list[str]:
    """A line for each backup of a list."""
    lines = []
    for backup in backups:
        if not backup["complete"]:
            lines.append(f"{backup['id']}  incomplete: its upload was cut off")
            continue
        revisions = ", ".join(f"{store} {revision}" for store, revision in sorted(backup["revisions"].items()))
        version, artifacts = backup.get("mlflow_version_before"), backup.get("artifacts")
        lines.append(
            f"{backup['id']}  {backup['time']}  {size(backup['bytes'])}  {revisions}"
            + (f"  {artifacts['objects']} artifacts, {size(artifacts['bytes'])}" if artifacts else "")
            + (f"  MLflow {version}" if version else "")
            + ("  encrypted" if backup.get("encrypted") else "")
            + ("" if backup.get("checked") else "  not checked")
        )
    return lines or ["none"]


def plan(manifest: dict[str, Any], *, databases: dict[str, str], into: str = "", artifacts: bool = True) -> list[str]:
    """What restoring a backup does, in lines.

    Args:
        manifest: The backup's manifest.
        databases: The names of the environment's databases, by store.
        into: The environment that another one's backup is restored into.
        artifacts: Whether the artifacts come back too.
    """
    lines = [
        f"backup {manifest['id']} of {manifest['environment']}, made {manifest['time']}, for {manifest['image_after']}"
    ]
    for store, name in databases.items():
        kept = manifest["stores"].get(store)
        if store == "auth" and into:
            lines.append(f"database {name}: the users of {into} and their permissions stay as they are")
        elif kept:
            was = "" if kept["database"] == name else f" (then {kept['database']})"
            lines.append(f"database {name}{was}: replaced by revision {kept['revision']}, {size(kept['bytes'])}")
        elif store == "auth":
            lines.append(f"database {name}: emptied, as it was then")
        else:
            lines.append(f"database {name}: stays as it is; the {store} had no database of its own then")
    lines.append(f"servers: those of {into} again" if into else f"servers: {served_by(manifest)}")
    marker, copied = manifest["object_store"], manifest.get("artifacts")
    if copied and artifacts:
        lines.append(
            f"artifacts: of {copied['objects']}, {size(copied['bytes'])}, those that the bucket does not have; others "
            f"in it stay"
        )
        return lines
    lines.append(
        f"bucket {marker['bucket']}: stays as it is; at the backup its server's time was {marker['time']}, and its "
        f"versioning {marker['versioning']}"
    )
    return lines


def backup_made(report: dict[str, Any], *, seconds: float) -> list[str]:
    """What a backup has, in lines; the first one says it all.

    Args:
        report: That of `backup.py store`.
        seconds: How long all of it took.
    """
    artifacts = report["artifacts"]
    line = (
        f"backup {report['id']}: {report['bytes']} bytes of databases, {report['tables']} tables, {report['rows']} rows"
    )
    if artifacts:
        line += (
            f", {artifacts['objects']} artifacts of {artifacts['bytes']} bytes ({artifacts['copied']} of "
            f"{artifacts['copied_bytes']} bytes copied)"
        )
    lines = [f"{line}, in {seconds:.0f} s"]
    lines.append("restored for a trial and counted" if report["checked"] else "not restored for a trial")
    if report["encrypted"]:
        lines.append("encrypted: without backup_encryption_key nobody can restore it; keep that elsewhere too")
    if artifacts.get("deleted"):
        lines.append(f"{artifacts['deleted']} artifacts were deleted meanwhile, and are not in it")
    if artifacts.get("missing"):
        places = artifacts["missing_first"]
        more = artifacts["missing"] - len(places)
        lines.append(
            f"MISSING: the databases name {artifacts['missing']} models whose artifacts are not in the bucket: "
            f"{', '.join(places)}{f' and {more} more' if more else ''}"
        )
    return lines


def pruned(result: dict[str, Any], *, check_mode: bool) -> list[str]:
    """What the module mlflow_prune_backups has deleted and kept, in lines."""
    verb = "would be deleted" if check_mode else "deleted"
    lines = [f"{verb}: {name}, {why}" for name, why in result["deleted"].items()]
    if result["artifacts_deleted"]:
        lines.append(f"{verb}: {result['artifacts_deleted']} copies of artifacts that no backup has any more")
    if lines:
        lines.append(f"{verb}: {size(result['bytes'])} in all")
    lines += [f"kept: {name}, {why}" for name, why in result["kept"].items()]
    return lines or ["there is no backup"]


def image_of(manifest: dict[str, Any]) -> str:
    """The image that the servers of a backup run, empty if it has none."""
    for item in manifest["objects"]:
        if item["kind"] == "Deployment":
            return item["spec"]["template"]["spec"]["containers"][0]["image"]
    return ""


def served_by(manifest: dict[str, Any]) -> str:
    """What serves after a restore."""
    image = image_of(manifest)
    return f"{image} again" if image else "none, as there were none then: stopped"


def restore_summary(
    manifest: dict[str, Any],
    *,
    image: str,
    stopped: float,
    finished: float,
    into: str = "",
    artifacts: dict[str, Any] | None = None,
) -> list[str]:
    """What was restored and what is left to do, in lines.

    Args:
        manifest: The backup's manifest.
        image: The image that the inventory names.
        stopped, finished: When the servers were stopped, and when they served again; 0 when none was started.
        into: The environment that another one's backup was restored into.
        artifacts: The report of `backup.py artifacts`; empty where it did nothing.
    """
    revisions = ", ".join(f"{store} {kept['revision']}" for store, kept in sorted(manifest["stores"].items()))
    lines = [f"restored backup {manifest['id']} of {manifest['time']}: {revisions}"]
    if artifacts and "artifacts" in artifacts:
        lines.append(
            f"artifacts: {artifacts['artifacts_restored']} of {artifacts['artifacts']} brought back, "
            f"{artifacts['artifacts_restored_bytes']} bytes; the others were there"
        )
    lines.append(f"servers: those of {into} again" if into else f"servers: {served_by(manifest)}")
    if finished:
        lines.append(f"without service: {finished - stopped:.0f} s")
    wanted = image_of(manifest) or "an image of the release of then"
    if wanted != image and not into:
        lines.append(
            f"set mlflow_environment_image to {wanted}: it is {image}, so the next site.yml would upgrade again"
        )
    return lines


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_backup_alert_days": alert_days,
            "mlflow_backup_made": backup_made,
            "mlflow_backup_problems": backup_problems,
            "mlflow_backup_pruned": pruned,
            "mlflow_backup_objects": kept_objects,
            "mlflow_backup_unexpected_objects": unexpected_objects,
            "mlflow_backup_targets": targets,
            "mlflow_backup_lines": backup_lines,
            "mlflow_backup_plan": plan,
            "mlflow_backup_summary": restore_summary,
        }
