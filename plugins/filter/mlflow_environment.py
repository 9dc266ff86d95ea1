"""Filters of the role mlflow_environment: what cannot work, and where each secret comes from."""

from __future__ import annotations

import base64
import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# RFC 1123 label: what Kubernetes accepts as a namespace and as a part of an object's name.
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# RFC 1123 subdomain, or an IP address.
HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
BUCKET = re.compile(r"(?!xn--)(?![0-9.]+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# An image reference: [host[:port]/]path[:tag][@digest].
IMAGE = re.compile(r"[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?")
USERNAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")

# The Secrets of an environment. The server reads the first one whole, so what only upgrades and backups need is apart.
SERVER = "mlflow-secrets"
MAINTENANCE = "mlflow-maintenance"


@dataclass(frozen=True)
class SecretRule:
    """One secret of an environment.

    Attributes:
        key: Its key in a Secret of the cluster, the environment variable that reads it; empty for an administrator's
            credential, which never reaches the cluster.
        shortest, longest: Bounds of its length, in characters.
        why: Where the bound comes from.
        secret: Which Secret keeps it, `<secret>-<environment>`.
    """

    key: str
    shortest: int = 0
    longest: int = 1024
    why: str = ""
    secret: str = SERVER


RULES = {
    "admin_password": SecretRule("MLFLOW_AUTH_ADMIN_PASSWORD", 12, why="MLflow refuses a shorter one"),
    "database_password": SecretRule("PGPASSWORD", 12, why="a shorter one can be guessed"),
    "object_store_access_key": SecretRule("AWS_ACCESS_KEY_ID", 3, 128, why="S3 refuses others"),
    "object_store_secret_key": SecretRule("AWS_SECRET_ACCESS_KEY", 12, 128, why="a shorter one can be guessed"),
    "flask_secret_key": SecretRule("MLFLOW_FLASK_SERVER_SECRET_KEY", 16, why="it signs the forms of the web page"),
    "kek_passphrase": SecretRule("MLFLOW_CRYPTO_KEK_PASSPHRASE", 16, why="it encrypts the AI gateway's secrets"),
    "webhook_key": SecretRule("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", 44, 44, why="it is a Fernet key"),
    "database_migrator_password": SecretRule(
        "MIGRATOR_PGPASSWORD", 12, 1024, "a shorter one can be guessed", MAINTENANCE
    ),
    "backup_access_key": SecretRule("BACKUP_AWS_ACCESS_KEY_ID", 3, 128, "S3 refuses others", MAINTENANCE),
    "backup_secret_key": SecretRule(
        "BACKUP_AWS_SECRET_ACCESS_KEY", 12, 128, "a shorter one can be guessed", MAINTENANCE
    ),
    "database_admin_username": SecretRule(""),
    "database_admin_password": SecretRule(""),
    "object_store_admin_access_key": SecretRule(""),
    "object_store_admin_secret_key": SecretRule(""),
}
# Credentials of two parts: (first, second).
PAIRS = (
    ("database_admin_username", "database_admin_password"),
    ("object_store_admin_access_key", "object_store_admin_secret_key"),
    ("backup_access_key", "backup_secret_key"),
)
# What must not be one and the same: (first, second, why).
DISTINCT = (
    ("database_password", "database_migrator_password", "the server must not be able to change the schema"),
    ("object_store_access_key", "backup_access_key", "the server must not be able to delete backups"),
)
# Values that are published, so that they keep nobody out.
PUBLISHED = {"password1234", "changeme", "mlflow-default-kek-passphrase-for-development-only"}
# What PostgreSQL has to take as a name.
DATABASE_NAMES = (
    "mlflow_database_name",
    "mlflow_database_auth_name",
    "mlflow_database_username",
    "mlflow_database_migrator_username",
)
# What access keys are called when they are generated: they are names, not secrets.
ACCESS_KEYS = {"object_store_access_key": "mlflow", "backup_access_key": "mlflow-backup"}


def environment_problems(settings: dict[str, Any]) -> list[str]:
    """Say what is wrong with an environment's settings.

    Args:
        settings: The values by the names of their variables.

    Returns:
        A sentence for each problem: the variable, what it is, and what is expected. No secret is in it.
    """
    names = settings["mlflow_environment_names"] or []
    label = "lower case letters, digits and inner hyphens"
    checks = [
        (
            "mlflow_environment_name",
            lambda name: name in names,
            f"one of {', '.join(names)} (mlflow_environment_names lists them)",
        ),
        ("mlflow_environment_name", LABEL.fullmatch, label),
        ("mlflow_environment_namespace", LABEL.fullmatch, label),
        ("mlflow_environment_image", IMAGE.fullmatch, "an image reference"),
        ("mlflow_database_host", HOST.fullmatch, "a host name or an address"),
        ("mlflow_database_port", in_range(1, 65535), "a port from 1 to 65535"),
        *((name, is_identifier, "1 to 63 bytes") for name in DATABASE_NAMES),
        (
            "mlflow_database_registry_name",
            lambda name: name == "" or is_identifier(name),
            "1 to 63 bytes, or an empty text: the registry is in the tracking database",
        ),
        (
            "mlflow_database_registry_name",
            lambda name: name != settings["mlflow_database_auth_name"],
            "another name than mlflow_database_auth_name: these two cannot share a database",
        ),
        (
            "mlflow_database_migrator_username",
            lambda name: name != settings["mlflow_database_username"],
            "another role than mlflow_database_username: the server must not own the schema",
        ),
        ("mlflow_object_store_endpoint", is_endpoint, "http(s)://host[:port] without a user, a path or a bucket"),
        (
            "mlflow_object_store_bucket",
            lambda name: BUCKET.fullmatch(name) and ".." not in name,
            "an S3 bucket name: 3 to 63 lower case letters, digits, dots and hyphens",
        ),
        ("mlflow_server_node_port", in_range(30000, 32767), "a port from 30000 to 32767"),
        ("mlflow_server_admin_username", USERNAME.fullmatch, "letters, digits and _ . @ -"),
    ]
    problems = {}
    for name, is_valid, expected in checks:
        value = settings[name]
        if value is None or not is_valid(value):
            # What has a user part may have a password in it.
            shown = "a value with a user part" if "@" in str(value) else repr(value)
            problems.setdefault(name, f"{name} is {shown}; expected {expected}")
    problems = list(problems.values())
    unknown = sorted(set(settings["mlflow_environment_secrets"] or {}) - set(RULES))
    if unknown:
        problems.append(f"mlflow_environment_secrets has {', '.join(unknown)}; expected only {', '.join(RULES)}")
    return problems


def in_range(low: int, high: int) -> Callable[[int], bool]:
    """A check that a number is not below the one nor above the other."""
    return lambda number: low <= int(number) <= high


def is_identifier(name: str) -> bool:
    """Whether PostgreSQL takes a text as the name of a role or database, and does not cut it."""
    return 0 < len(str(name).encode()) <= 63


def argument_problems(results: list[dict[str, Any]]) -> list[str]:
    """The errors of several ansible.builtin.validate_argument_spec results, each told once."""
    passed = "The arg spec validation passed"
    errors = [result.get("argument_errors") or [result["msg"]] for result in results if result["msg"] != passed]
    return list(dict.fromkeys(error for group in errors for error in group))


def is_endpoint(url: str) -> bool:
    """Whether a text is http(s)://host[:port], as the S3 clients expect it, and nothing more."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(HOST.fullmatch(parts.netloc.removesuffix(f":{port}")))
        and port != 0
        and not any(character.isspace() for character in url)
        and url == f"{parts.scheme}://{parts.netloc}"
    )


def secret_values(
    given: dict[str, str],
    *,
    source: str,
    environment: str,
    kept: dict[str, str],
    database_admin: dict[str, str],
    object_store_admin: dict[str, str],
) -> dict[str, str]:
    """Take each secret from where it is kept.

    Args:
        given: The inventory's secrets, by name.
        source: `inventory`, or `generated`: what is not given is kept in the cluster, or made now.
        environment: The environment's name.
        kept: The data of the Secrets that the cluster has already, by key.
        database_admin, object_store_admin: The data of the administrators' Secrets.

    Returns:
        Every secret of RULES by name; an empty text where there is none.
    """
    values = dict.fromkeys(RULES, "")
    values["database_admin_username"] = database_admin.get("username", "")
    values["database_admin_password"] = database_admin.get("password", "")
    values["object_store_admin_access_key"] = object_store_admin.get("access_key", "")
    values["object_store_admin_secret_key"] = object_store_admin.get("secret_key", "")
    if source == "generated":
        for name, rule in RULES.items():
            if rule.key:
                values[name] = kept.get(rule.key) or generated(name, environment)
    values.update({name: value for name, value in given.items() if value})
    return values


def generated(name: str, environment: str) -> str:
    """A new value for a secret, from the operating system's random source."""
    if name in ACCESS_KEYS:
        return f"{ACCESS_KEYS[name]}-{environment}"
    if name == "webhook_key":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    # Letters and digits only: this is a password that people copy by hand.
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))


def secret_problems(values: dict[str, str], backup_required: bool = True) -> list[str]:
    """Say which secrets are missing or too weak, without showing any.

    Args:
        values: Every secret of RULES by name.
        backup_required: Whether the keys of the backups have to be there.
    """
    optional = () if backup_required else ("backup_access_key", "backup_secret_key")
    problems = [
        f"mlflow_environment_secrets.{name} {problem}"
        for name, rule in RULES.items()
        if rule.key and (values[name] or name not in optional) and (problem := secret_problem(name, rule, values[name]))
    ]
    problems += [
        f"mlflow_environment_secrets needs {first} and {second} together, or neither"
        for first, second in PAIRS
        # A required one that is missing was told already.
        if bool(values[first]) != bool(values[second]) and (not RULES[first].key or first in optional)
    ]
    problems += [
        f"mlflow_environment_secrets.{second} is the same as {first}; expected another one: {why}"
        for first, second, why in DISTINCT
        if values[first] and values[first] == values[second]
    ]
    return problems


def secret_problem(name: str, rule: SecretRule, value: str) -> str:
    """What is wrong with one secret and what is expected; empty when nothing is."""
    bounds = f"{rule.shortest} to {rule.longest}" if rule.longest < 1024 else f"at least {rule.shortest}"
    checks = [
        (lambda: isinstance(value, str), "is no text; expected one: put it in quotes"),
        (lambda: value, "is missing; give it in the environment's Ansible Vault file (docs/secrets.md)"),
        (
            lambda: rule.shortest <= len(value) <= rule.longest,
            f"has {len(str(value))} characters; expected {bounds}: {rule.why}",
        ),
        (lambda: value not in PUBLISHED, "is a value that is published; expected one of your own"),
        (lambda: not {"\n", "\0"} & set(value), "has a line break or a NUL in it; expected one line of text"),
        (
            lambda: name != "webhook_key" or is_fernet_key(value),
            "is not a Fernet key; expected 32 bytes in URL-safe base64",
        ),
    ]
    return next((sentence for is_fine, sentence in checks if not is_fine()), "")


def is_fernet_key(value: str) -> bool:
    """Whether a text is a key of cryptography.fernet: 32 bytes in URL-safe base64."""
    try:
        return len(base64.b64decode(value, altchars=b"-_", validate=True)) == 32
    except ValueError:
        return False


def secret_data(values: dict[str, str], secret: str = SERVER) -> dict[str, str]:
    """The data of the Secret `<secret>-<environment>`: base64 by key."""
    return {
        rule.key: base64.b64encode(values[name].encode()).decode()
        for name, rule in RULES.items()
        if rule.key and rule.secret == secret and values[name]
    }


def secret_of(found: dict[str, dict[str, str]], reference: dict[str, str]) -> dict[str, str]:
    """The data of the Secret that a reference (namespace and name) names, empty where the reference is empty."""
    return found[f"{reference['namespace']}/{reference['name']}"] if reference else {}


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_environment_problems": environment_problems,
            "mlflow_environment_argument_problems": argument_problems,
            "mlflow_environment_secret_values": secret_values,
            "mlflow_environment_secret_problems": secret_problems,
            "mlflow_environment_secret_data": secret_data,
            "mlflow_environment_secret": secret_of,
        }
