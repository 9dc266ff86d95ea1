"""Filters of the role mlflow_rotation: which secrets change, to what, and why some cannot."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

from ansible.errors import AnsibleFilterError

# What belongs together and changes together, by the names of mlflow_environment_secrets: the part that a rotation is
# called by first. Of two keys, the first one is a name, which S3 knows one secret for.
UNITS = (
    ("admin_password",),
    ("database_password",),
    ("database_migrator_password",),
    ("object_store_access_key", "object_store_secret_key"),
    ("backup_access_key", "backup_secret_key"),
    ("flask_secret_key",),
    ("webhook_key",),
    ("kek_passphrase",),
)
ROTATABLE = [name for unit in UNITS for name in unit]
ALL = "all"
# What only an administrator of PostgreSQL or MinIO can change, and how that one is called in the secrets. Keys that a
# person gives may have been made by somebody else.
ADMINISTRATORS = {
    "database_password": "database_admin_username",
    "database_migrator_password": "database_admin_username",
    "object_store_access_key": "object_store_admin_access_key",
    "backup_access_key": "object_store_admin_access_key",
}
# What a run of site.yml cannot change while servers run, or without losing what it has encrypted.
NEEDS_ROTATION = ("database_password", "object_store_secret_key", "webhook_key", "kek_passphrase")


def plan(
    source: dict[str, str],
    *,
    present: dict[str, str],
    asked: list[str],
    given: list[str],
    fresh: dict[str, str],
    environment: str,
    unfinished: dict[str, dict[str, str]],
) -> dict[str, Any]:
    """Say which secrets get which values, or why that cannot be.

    Args:
        source: The environment's secrets by name, as its source has them.
        present: Those that the cluster's Secrets have.
        asked: mlflow_rotation_secrets.
        given: The names that a person gives the values of.
        fresh: New values by name for the others.
        environment: The environment's name.
        unfinished: `new` and `former` of a rotation that broke off; empty without one.

    Returns:
        `new` and `former`, the values by name, and `problems`, a sentence for each, without a value.
    """
    if unfinished:
        changed = [name for name, value in unfinished["new"].items() if name in given and source[name] != value]
        problems = [
            f"{name} was changed again after its rotation had begun; expected the value that Secret "
            f"mlflow-rotation-{environment} has for it, until that rotation is finished"
            for name in changed
        ]
        return {**unfinished, "problems": problems}
    problems = asked_problems(asked)
    if problems:
        return {"new": {}, "former": {}, "problems": problems}
    new, differing = {}, []
    for unit in UNITS:
        is_given = any(name in given for name in unit)
        differs = any(source[name] != present[name] for name in unit)
        wanted = ALL in asked or any(name in asked for name in unit)
        if is_given and differs and not wanted:
            differing.append(unit[0])
        if not wanted or (ALL in asked and is_given and not differs):
            continue
        problem = unit_problem(unit, source, present, is_given=is_given, differs=differs)
        if problem and not (ALL in asked and not any(present[name] for name in unit)):
            problems.append(problem)
        elif not problem:
            new |= {name: source[name] if is_given else renamed(name, fresh[name]) for name in unit}
    problems += [
        f"{name} is another than the environment's present one, and mlflow_rotation_secrets does not name it; expected "
        f"it there, since all secrets are written together"
        for name in differing
    ]
    lacking: dict[str, list[str]] = {}
    for name in new:
        made_elsewhere = name in given and not name.startswith("database")
        if name in ADMINISTRATORS and not source[ADMINISTRATORS[name]] and not made_elsewhere:
            lacking.setdefault(ADMINISTRATORS[name], []).append(name)
    problems += [
        f"{', '.join(names)}: mlflow_environment_secrets has no {administrator}; expected the administrator, who alone "
        f"can change that"
        for administrator, names in lacking.items()
    ]
    if not new and not problems:
        problems.append(
            "mlflow_rotation_secrets is all, and every secret is the one that the environment has already; expected "
            "other values where its secrets come from (docs/rotation.md)"
        )
    return {"new": new, "former": {name: present[name] for name in new}, "problems": problems}


def asked_problems(asked: list[str]) -> list[str]:
    """Say what is wrong with mlflow_rotation_secrets."""
    known = f"{ALL}, or some of {', '.join(ROTATABLE)}"
    if not asked:
        return [f"mlflow_rotation_secrets is empty; expected {known}"]
    unknown = [str(name) for name in asked if name not in (ALL, *ROTATABLE)]
    return [f"mlflow_rotation_secrets has {', '.join(unknown)}; expected {known}"] if unknown else []


def unit_problem(
    unit: tuple[str, ...], source: dict[str, str], present: dict[str, str], *, is_given: bool, differs: bool
) -> str:
    """Why one cannot change; empty where it can."""
    if not all(present[name] for name in unit):
        return f"{unit[0]}: the environment's Secrets have none; expected one that is deployed"
    if is_given and not differs:
        return (
            f"{unit[0]} is the one that the environment has already; expected another one where its secrets come from "
            f"(docs/rotation.md)"
        )
    if is_given and len(unit) == 2 and source[unit[0]] == present[unit[0]]:
        return (
            f"{unit[1]} is another one, and {unit[0]} is the same; expected another {unit[0]} too, so that both keys "
            f"work while the servers change over"
        )
    return ""


def renamed(name: str, value: str) -> str:
    """A generated value. Those of access keys are names, of which the former one is still in use."""
    is_name = name in ("object_store_access_key", "backup_access_key")
    return f"{value}-{secrets.token_hex(4)}" if is_name else value


def unfinished(data: dict[str, str]) -> dict[str, dict[str, str]]:
    """The values of a rotation that broke off, from the texts of its Secret; empty without one."""
    try:
        return {part: dict(json.loads(data[part])) for part in ("new", "former")} if data else {}
    except (KeyError, TypeError, ValueError):
        raise AnsibleFilterError(
            "the Secret of an unfinished rotation has no new and former values as JSON; restore it, or delete it where "
            "the environment works"
        ) from None


def disturbing(source: dict[str, str], *, present: dict[str, str]) -> list[str]:
    """Say which changed secrets a deployment must not change, as requests would fail or what is encrypted be lost.

    Args:
        source: The environment's secrets by name, as its source has them.
        present: Those that the environment runs with.
    """
    found = [name for name in NEEDS_ROTATION if present[name] and source[name] != present[name]]
    # Another key beside the former one is none that the servers miss.
    if source["object_store_access_key"] != present["object_store_access_key"]:
        found = [name for name in found if name != "object_store_secret_key"]
    return [
        f"{name} is another than the one that the environment runs with; expected playbooks/rotate.yml to change it, "
        f"with mlflow_rotation_secrets [{name}], which {why(name)} (docs/rotation.md), or "
        f"mlflow_environment_secrets_at_once, where that does not matter"
        for name in found
    ]


def why(name: str) -> str:
    """What a rotation does for a secret that a deployment would not."""
    if name in ("webhook_key", "kek_passphrase"):
        return "encrypts anew what the present one has encrypted"
    return "keeps the present one valid until the servers have changed over"


def encoded(data: dict[str, str]) -> dict[str, str]:
    """The data of a Secret: base64 by key."""
    return {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}


def bare(manifest: dict[str, Any]) -> dict[str, Any]:
    """Which object a manifest describes, without what is in it."""
    return {key: value for key, value in manifest.items() if key in ("apiVersion", "kind", "metadata")}


def lines(report: dict[str, Any]) -> list[str]:
    """What the program that encrypts anew has done, a sentence each."""
    done = [f"{count} {what} encrypted anew" for what, count in report.get("encrypted", {}).items()]
    left = [
        f"left as they are, since neither the former key nor the new one opens them: {what} {', '.join(names)}"
        for what, names in report.get("unreadable", {}).items()
    ]
    return [*done, *left] or ["nothing was left to encrypt anew"]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_rotation_plan": plan,
            "mlflow_rotation_unfinished": unfinished,
            "mlflow_rotation_disturbing": disturbing,
            "mlflow_rotation_encoded": encoded,
            "mlflow_rotation_bare": bare,
            "mlflow_rotation_lines": lines,
        }
