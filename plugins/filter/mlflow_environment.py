"""Filters of the role mlflow_environment: what cannot work."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

# RFC 1123 label: what Kubernetes accepts as a namespace and as a part of an object's name.
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# A label's value, and its name, which may have a domain before it.
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?")
LABEL_NAME = re.compile(rf"([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{LABEL_VALUE.pattern}")
# RFC 1123 subdomain, or an IP address.
HOST = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
BUCKET = re.compile(r"(?!xn--)(?![0-9.]+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# How much a bucket may hold.
SIZE = re.compile(r"([0-9]{1,18}(Ki|Mi|Gi|Ti)?)?", re.ASCII)
# An image reference: [host[:port]/]path[:tag][@digest].
IMAGE = re.compile(r"[a-z0-9][a-z0-9._:/-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?")
USERNAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
# RFC 1123 subdomain, or none.
OBJECT_NAME = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?")
# What MLflow's gc takes, of whole numbers and parts: 30d, 1d12h, 0.5h.
AGE = re.compile(r"(?=.)([0-9]+(\.[0-9]+)?d)?([0-9]+(\.[0-9]+)?h)?([0-9]+(\.[0-9]+)?m)?([0-9]+(\.[0-9]+)?s)?")
# A part of one of a schedule's five fields, and what each field counts.
CRON_PART = re.compile(r"(?:\*|(?P<first>[0-9]{1,2})(?:-(?P<last>[0-9]{1,2}))?)(?:/(?P<step>[0-9]{1,2}))?")
CRON_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
SCHEDULE = "an empty text, or five numbers and stars as cron has them, such as 30 3 * * 0"
TOLERATION = {"key", "operator", "value", "effect", "tolerationSeconds"}

# What is given in days of a bucket.
BUCKET_DAYS = (
    "mlflow_object_store_expire_versions_after_days",
    "mlflow_object_store_abort_uploads_after_days",
    "mlflow_object_store_lock_days",
)
# What PostgreSQL has to take as a name.
DATABASE_NAMES = (
    "mlflow_database_name",
    "mlflow_database_auth_name",
    "mlflow_database_username",
    "mlflow_database_migrator_username",
)


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
        *((name, is_identifier, "1 to 63 bytes of printable text") for name in DATABASE_NAMES),
        (
            "mlflow_database_registry_name",
            lambda name: name == "" or is_identifier(name),
            "1 to 63 bytes of printable text, or an empty one: the registry is in the tracking database",
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
        (
            "mlflow_database_schema",
            lambda name: name == "" or (is_identifier(name) and not re.match(r"pg_|\$user$|information_schema$", name)),
            "1 to 63 bytes of printable text that does not begin with pg_, or an empty one: public",
        ),
        ("mlflow_object_store_endpoint", is_endpoint, "http(s)://host[:port] without a user, a path or a bucket"),
        (
            "mlflow_object_store_bucket",
            lambda name: BUCKET.fullmatch(name) and ".." not in name,
            "an S3 bucket name: 3 to 63 lower case letters, digits, dots and hyphens",
        ),
        *((name, in_range(0, 36500), "0 to 36500 days") for name in BUCKET_DAYS),
        (
            "mlflow_object_store_quota",
            lambda size: SIZE.fullmatch(str(size)),
            "bytes, a number with Ki, Mi, Gi or Ti, or an empty text",
        ),
        ("mlflow_server_monitoring_backup_days", in_range(1, 3650), "1 to 3650 days"),
        (
            "mlflow_server_monitoring_labels",
            lambda labels: all(is_label_of(str(name), value) for name, value in dict(labels).items()),
            "labels as Kubernetes has them: {name: text}",
        ),
        ("mlflow_server_admin_username", USERNAME.fullmatch, "letters, digits and _ . @ -"),
        ("mlflow_server_target_cpu_percent", in_range(1, 100), "1 to 100 per cent of mlflow_server_cpu_limit"),
        (
            "mlflow_server_priority_class",
            OBJECT_NAME.fullmatch,
            "the name of a PriorityClass, or an empty text: the cluster's default",
        ),
        (
            "mlflow_server_node_selector",
            lambda labels: all(isinstance(value, str) for value in labels.values()),
            "a text for each label",
        ),
        (
            "mlflow_server_tolerations",
            lambda tolerations: all(set(toleration) <= TOLERATION for toleration in tolerations),
            f"only {', '.join(sorted(TOLERATION))} in each",
        ),
        (
            "mlflow_gc_older_than",
            AGE.fullmatch,
            "days, hours, minutes and seconds, such as 30d or 1d12h",
        ),
        ("mlflow_gc_schedule", is_schedule, SCHEDULE),
    ]
    problems = {}
    for name, is_valid, expected in checks:
        value = settings[name]
        if value is None or not is_valid(value):
            # What has a user part may have a password in it.
            shown = "a value with a user part" if "@" in str(value) else repr(value)
            problems.setdefault(name, f"{name} is {shown}; expected {expected}")
    return (
        list(problems.values())
        + certificate_problems(settings["mlflow_database_tls_mode"], settings["mlflow_database_ca_certificate"] or "")
        + store_problems(
            settings["mlflow_environment_external_secrets_store"] or {},
            delivery=settings["mlflow_environment_delivery"],
            source=settings["mlflow_environment_secrets_source"],
        )
        + scaling_problems(
            int(settings["mlflow_server_replicas"]),
            int(settings["mlflow_server_max_replicas"]),
            job_execution=settings["mlflow_server_job_execution"],
            environment=settings["mlflow_server_extra_environment"] or {},
        )
    )


def scaling_problems(least: int, most: int, *, job_execution: Any, environment: dict[str, Any]) -> list[str]:
    """What keeps several replicas from working, or an autoscaler from starting them.

    Args:
        least, most: How many replicas there may be.
        job_execution: Whether MLflow runs its background jobs.
        environment: More of MLflow's own environment variables.
    """
    name = "mlflow_server_replicas" if most == least else "mlflow_server_max_replicas"
    if most < least:
        return [f"mlflow_server_max_replicas is {most}; expected at least mlflow_server_replicas, which is {least}"]
    if most < 2:
        return []
    problems = []
    if least < 1:
        problems.append(
            f"mlflow_server_replicas is {least} and mlflow_server_max_replicas is {most}; expected at least 1: an "
            "autoscaler starts nothing where there is nothing"
        )
    switch = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
    if str(environment.get(switch, job_execution)).lower() in ("true", "1", "yes", "on"):
        problems.append(
            f"mlflow_server_job_execution is true and {name} is {most}; expected one replica: each pod has a queue of "
            "its own, and starts again at its start what the others are working on"
        )
    problems += [
        f"mlflow_server_extra_environment sets {variable} to a file, which each pod has its own of, and {name} is "
        f"{most}; expected an address that all of them share, or one replica"
        for variable, value in environment.items()
        if str(value).lower().startswith(("sqlite:", "file:"))
    ]
    return problems


def store_problems(store: dict[str, Any], *, delivery: str, source: str) -> list[str]:
    """What is wrong with the store of External Secrets."""
    name, kinds = "mlflow_environment_external_secrets_store", ("ClusterSecretStore", "SecretStore")
    if not store:
        return []
    if set(store) != {"kind", "name"} or store["kind"] not in kinds or not LABEL.fullmatch(str(store["name"])):
        return [f"{name} is {store!r}; expected kind, {' or '.join(kinds)}, and name"]
    if (delivery, source) != ("gitops", "vault"):
        return [
            f"{name} is given, but mlflow_environment_delivery is {delivery} and mlflow_environment_secrets_source is "
            f"{source}; expected gitops and vault"
        ]
    return []


def certificate_problems(tls_mode: str, certificate: str) -> list[str]:
    """What is wrong with PostgreSQL's authority; the text itself is not repeated."""
    name, modes = "mlflow_database_ca_certificate", ("verify-ca", "verify-full")
    if not certificate:
        told = f"{name} is an empty text; expected the authority's certificate: mlflow_database_tls_mode is {tls_mode}"
        return [told] if tls_mode in modes else []
    if tls_mode not in modes:
        return [f"{name} is given, but mlflow_database_tls_mode is {tls_mode}; expected {' or '.join(modes)}"]
    if "PRIVATE KEY" in certificate:
        return [f"{name} has a private key in it; expected certificates only"]
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate)
    except (ssl.SSLError, TypeError, ValueError):
        return [f"{name} is no certificate; expected PEM text, -----BEGIN CERTIFICATE----- and so on"]
    return []


def is_schedule(text: Any) -> bool:
    """Whether a text is empty, or a schedule as cron has it, which Kubernetes takes."""
    fields = str(text).split(" ")
    return text == "" or (len(fields) == len(CRON_FIELDS) and all(map(is_cron_field, fields, CRON_FIELDS)))


def is_cron_field(field: str, bounds: tuple[int, int]) -> bool:
    """Whether a text is a field of a schedule, with numbers within bounds."""
    low, high = bounds
    for part in field.split(","):
        found = CRON_PART.fullmatch(part)
        if not found:
            return False
        first, last = int(found["first"] or low), int(found["last"] or found["first"] or high)
        if not low <= first <= last <= high or found["step"] == "0":
            return False
    return True


def in_range(low: int, high: int) -> Callable[[int], bool]:
    """A check that a number is not below the one nor above the other."""
    return lambda number: low <= int(number) <= high


def is_label_of(name: str, value: Any) -> bool:
    """Whether Kubernetes takes a name and a value as a label."""
    return bool(LABEL_NAME.fullmatch(name) and isinstance(value, str) and (value == "" or LABEL_VALUE.fullmatch(value)))


def is_identifier(name: str) -> bool:
    """Whether PostgreSQL takes a text as the name of a role or database, and does not cut it.

    PostgreSQL takes a tab or a line break too; but the programs of upgrades and backups pass names on in lines.
    """
    text = str(name)
    return text.isprintable() and 0 < len(text.encode()) <= 63


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


def kind_problems(wanted: list[dict[str, str]], absent: list[str]) -> list[str]:
    """Say which variables ask for kinds of objects that the cluster does not know.

    Args:
        wanted: Each `kind`, as `<apiVersion>/<kind>`, the `variable` that asks for it, and what is `expected` where
            that is more than the kind's definition.
        absent: Those that the cluster does not know.
    """
    return [
        f"{entry['variable']} needs {entry['kind'].rsplit('/', 1)[1]} ({entry['kind'].rsplit('/', 1)[0]}), which the "
        f"cluster does not know; expected {entry.get('expected', 'a cluster with its CustomResourceDefinition')}"
        for entry in wanted
        if entry["kind"] in absent
    ]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_environment_problems": environment_problems,
            "mlflow_environment_argument_problems": argument_problems,
            "mlflow_environment_kind_problems": kind_problems,
        }
