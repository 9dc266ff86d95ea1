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


@dataclass(frozen=True)
class SecretRule:
    """One secret of an environment.

    Attributes:
        key: Its key in the Secret `mlflow-secrets-<environment>`, the environment variable that reads it; empty for
            an administrator's credential, which never reaches the cluster.
        shortest, longest: Bounds of its length, in characters.
        why: Where the bound comes from.
    """

    key: str
    shortest: int = 0
    longest: int = 1024
    why: str = ""


RULES = {
    "admin_password": SecretRule("MLFLOW_AUTH_ADMIN_PASSWORD", 12, why="MLflow refuses a shorter one"),
    "database_password": SecretRule("PGPASSWORD", 12, why="a shorter one can be guessed"),
    "object_store_access_key": SecretRule("AWS_ACCESS_KEY_ID", 3, 128, why="S3 refuses others"),
    "object_store_secret_key": SecretRule("AWS_SECRET_ACCESS_KEY", 12, 128, why="a shorter one can be guessed"),
    "flask_secret_key": SecretRule("MLFLOW_FLASK_SERVER_SECRET_KEY", 16, why="it signs the forms of the web page"),
    "kek_passphrase": SecretRule("MLFLOW_CRYPTO_KEK_PASSPHRASE", 16, why="it encrypts the AI gateway's secrets"),
    "webhook_key": SecretRule("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", 44, 44, why="it is a Fernet key"),
    "database_admin_username": SecretRule(""),
    "database_admin_password": SecretRule(""),
    "object_store_admin_access_key": SecretRule(""),
    "object_store_admin_secret_key": SecretRule(""),
}
# Values that are published, so that they keep nobody out.
PUBLISHED = {"password1234", "changeme", "mlflow-default-kek-passphrase-for-development-only"}


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
        kept: The data of the Secret that the cluster has already, by key.
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
    if name == "object_store_access_key":
        return f"mlflow-{environment}"
    if name == "webhook_key":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    # Letters and digits only: this is a password that people copy by hand.
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))


def secret_problems(values: dict[str, str]) -> list[str]:
    """Say which secrets are missing or too weak, without showing any."""
    problems = []
    for name, rule in RULES.items():
        where = f"mlflow_environment_secrets.{name}"
        value = values[name]
        if not rule.key:
            continue
        if not isinstance(value, str):
            problems.append(f"{where} is no text; expected one: put it in quotes")
        elif not value:
            problems.append(f"{where} is missing; give it in the environment's Ansible Vault file (docs/secrets.md)")
        elif not rule.shortest <= len(value) <= rule.longest:
            expected = f"{rule.shortest} to {rule.longest}" if rule.longest < 1024 else f"at least {rule.shortest}"
            problems.append(f"{where} has {len(value)} characters; expected {expected}: {rule.why}")
        elif value in PUBLISHED:
            problems.append(f"{where} is a value that is published; expected one of your own")
        elif "\n" in value or "\0" in value:
            problems.append(f"{where} has a line break or a NUL in it; expected one line of text")
        elif name == "webhook_key" and not is_fernet_key(value):
            problems.append(f"{where} is not a Fernet key; expected 32 bytes in URL-safe base64")
    for first, second in (
        ("database_admin_username", "database_admin_password"),
        ("object_store_admin_access_key", "object_store_admin_secret_key"),
    ):
        if bool(values[first]) != bool(values[second]):
            problems.append(f"mlflow_environment_secrets needs {first} and {second} together, or neither")
    return problems


def is_fernet_key(value: str) -> bool:
    """Whether a text is a key of cryptography.fernet: 32 bytes in URL-safe base64."""
    try:
        return len(base64.b64decode(value, altchars=b"-_", validate=True)) == 32
    except ValueError:
        return False


def secret_data(values: dict[str, str]) -> dict[str, str]:
    """The data of the Secret `mlflow-secrets-<environment>`: base64 by key."""
    return {rule.key: base64.b64encode(values[name].encode()).decode() for name, rule in RULES.items() if rule.key}


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
