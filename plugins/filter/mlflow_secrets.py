"""Filters of the role mlflow_environment: where each secret comes from, and which are refused.

An `origin` says in all of them where the environment's secrets are: a dictionary of `source`
(mlflow_environment_secrets_source), `environment`, `namespace` and `vault`, the secret in Vault with its engine.
"""

from __future__ import annotations

import base64
import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# The Secrets of an environment. The server reads the first one whole, so what only upgrades and backups need is apart;
# no pod reads the users' passwords.
SERVER = "mlflow-secrets"
MAINTENANCE = "mlflow-maintenance"
USERS = "mlflow-users"


@dataclass(frozen=True)
class SecretRule:
    """One secret of an environment.

    Attributes:
        key: Its key in a Secret of the cluster, the environment variable that reads it; empty for an administrator's
            credential, which never reaches the cluster.
        shortest, longest: Bounds of its length, in characters.
        why: Where the bound comes from.
        secret: Which Secret keeps it, `<secret>-<environment>`.
        optional: Whether it may be missing; then it is not generated.
    """

    key: str
    shortest: int = 0
    longest: int = 1024
    why: str = ""
    secret: str = SERVER
    optional: bool = False


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
    "backup_encryption_key": SecretRule(
        "BACKUP_ENCRYPTION_KEY", 44, 44, "it is 32 bytes in base64", MAINTENANCE, optional=True
    ),
    "database_admin_username": SecretRule(""),
    "database_admin_password": SecretRule(""),
    "object_store_admin_access_key": SecretRule(""),
    "object_store_admin_secret_key": SecretRule(""),
}
# A user's password, which MLflow refuses as it does the administrator's.
USER = SecretRule("", 12, why="MLflow refuses a shorter one")
# Base64's other alphabet.
URL_SAFE = str.maketrans("+/", "-_")
# What a key of a Secret cannot have.
NO_KEY = re.compile(r"[^-._A-Za-z0-9]")
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
# What access keys are called when they are generated: they are names, not secrets.
ACCESS_KEYS = {"object_store_access_key": "mlflow", "backup_access_key": "mlflow-backup"}
NAMES = {*ACCESS_KEYS, "database_admin_username", "object_store_admin_access_key"}

# Values that MLflow has published, so that they keep nobody out.
PUBLISHED = {"password1234", "mlflow-default-kek-passphrase-for-development-only"}
# Words of examples and of other servers' first passwords; digits and signs around them make them no better.
WORDS = {"admin", "adminadmin", "changeit", "example", "minio", "minioadmin", "mlflow", "mlflowadmin", "mypassword"}
WORDS |= {"mysecret", "passwd", "password", "passwort", "postgres", "postgresql", "secret", "secretkey", "test", "todo"}
# How texts begin that ask for a value in their place, without what is no letter.
BEGINNINGS = ("changeme", "changethis", "fixme", "placeholder", "replace", "yourpassword", "yoursecret", "yourkey")
# <password>, {{ password }}, ${PASSWORD}, and one character over and over.
FORMS = re.compile(r"<.*>|\{\{.*\}\}|\$\{.*\}|(.)\1*", re.DOTALL)

# What is worth nothing once generated, unless somebody tells it: (secret, administrator, who must know, variable).
TOLD = (
    ("database_password", "database_admin_username", "PostgreSQL", "mlflow_environment_database_admin_secret"),
    ("object_store_secret_key", "object_store_admin_access_key", "S3", "mlflow_environment_object_store_admin_secret"),
)

# What to do about a secret that is missing, by the source.
MISSING = {
    "inventory": "give it in the environment's Ansible Vault file (docs/secrets.md)",
    "vault": "write it there (docs/secrets.md)",
    "cluster": "add it where that Secret is made (docs/secrets.md)",
}


def given_problems(given: dict[str, Any], *, source: str, production: bool) -> list[str]:
    """Say what is wrong with the source, and what mlflow_environment_secrets has that it should not, without a value.

    Args:
        given: mlflow_environment_secrets.
        source: mlflow_environment_secrets_source.
        production: mlflow_environment_production.
    """
    problems = []
    if source == "generated" and production:
        problems.append(
            "mlflow_environment_secrets_source is 'generated' and mlflow_environment_production is true; expected "
            "inventory, vault or cluster: what is generated is in the cluster alone, and lost with it"
        )
    own = [name for name, rule in RULES.items() if rule.key] + ["user_passwords"]
    unknown = [name for name in given if name not in RULES and name not in own]
    if unknown:
        known = ", ".join([*RULES, "user_passwords"])
        problems.append(f"mlflow_environment_secrets has {', '.join(unknown)}; expected only {known}")
    elsewhere = [name for name in given if name in own and given[name]]
    if elsewhere and source in ("vault", "cluster"):
        problems.append(
            f"mlflow_environment_secrets has {', '.join(elsewhere)}, but mlflow_environment_secrets_source is "
            f"{source!r}; expected in it administrators' credentials alone"
        )
    if not isinstance(given.get("user_passwords") or {}, dict):
        problems.append("mlflow_environment_secrets.user_passwords is no dictionary; expected passwords by user name")
    return problems


def secret_values(
    given: dict[str, str],
    *,
    origin: dict[str, str],
    kept: dict[str, str],
    vault: dict[str, str],
    database_admin: dict[str, str],
    object_store_admin: dict[str, str],
) -> dict[str, str]:
    """Take each secret from where it is kept.

    Args:
        given: The inventory's secrets, by name.
        origin: See above.
        kept: The data of the Secrets that the cluster has already, by key.
        vault: The data of the secret in Vault, by name.
        database_admin, object_store_admin: The data of the administrators' Secrets.

    Returns:
        Every secret of RULES by name; an empty text where there is none.
    """
    values = dict.fromkeys(RULES, "")
    values["database_admin_username"] = database_admin.get("username", "")
    values["database_admin_password"] = database_admin.get("password", "")
    values["object_store_admin_access_key"] = object_store_admin.get("access_key", "")
    values["object_store_admin_secret_key"] = object_store_admin.get("secret_key", "")
    for name, rule in RULES.items():
        if rule.key and origin["source"] in ("generated", "cluster"):
            values[name] = kept.get(rule.key, "")
        if rule.key and not rule.optional and origin["source"] == "generated":
            values[name] = values[name] or generated(name, origin["environment"])
    for more in (vault, given):
        values.update({name: more[name] for name in RULES if more.get(name)})
    return values


def generated(name: str, environment: str) -> str:
    """A new value for a secret, from the operating system's random source."""
    if name in ACCESS_KEYS:
        return f"{ACCESS_KEYS[name]}-{environment}"
    if name == "webhook_key":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return random_password()


def random_password() -> str:
    """A new password of letters and digits only, for people copy it by hand."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(32))


def user_passwords(
    names: Iterable[str], *, origin: dict[str, str], given: dict[str, str], kept: dict[str, str], vault: dict[str, str]
) -> dict[str, str]:
    """Take the password of each user of MLflow from where it is kept.

    Args:
        names: The users' names.
        origin: See above.
        given: The inventory's passwords, by user name.
        kept: The data of the Secret `mlflow-users-<environment>`, by key.
        vault: The data of the users' secret in Vault, by user name.

    Returns:
        The password of each user by name; an empty text where there is none.
    """
    passwords = {}
    for name in names:
        found = given.get(name) or vault.get(name) or ""
        if origin["source"] in ("generated", "cluster"):
            found = found or kept.get(user_key(name), "")
        passwords[name] = found or (random_password() if origin["source"] == "generated" else "")
    return passwords


def user_key(name: str) -> str:
    """The key of a user's password in a Secret, where a key has letters, digits and - _ . only."""
    return NO_KEY.sub("_", name)


def place(name: str, origin: dict[str, str]) -> str:
    """Where people put a secret, in their words."""
    rule = RULES[name]
    if rule.key and origin["source"] == "cluster":
        return f"key {rule.key} of Secret {origin['namespace']}/{rule.secret}-{origin['environment']}"
    if rule.key and origin["source"] == "vault":
        return f"key {name} of Vault's secret {origin['vault']}"
    return f"mlflow_environment_secrets.{name}"


def user_place(name: str, origin: dict[str, str]) -> str:
    """Where people put a user's password, in their words."""
    if origin["source"] == "cluster":
        return f"key {user_key(name)} of Secret {origin['namespace']}/{USERS}-{origin['environment']}"
    if origin["source"] == "vault":
        return f"key {name} of Vault's secret {origin['vault']}/users"
    return f"mlflow_environment_secrets.user_passwords['{name}']"


def secret_problems(values: dict[str, str], *, origin: dict[str, str], backup_required: bool = True) -> list[str]:
    """Say which secrets are missing or too weak, without showing any.

    Args:
        values: Every secret of RULES by name.
        origin: See above.
        backup_required: Whether the keys of the backups have to be there.
    """
    optional = [name for name, rule in RULES.items() if rule.optional]
    optional += [] if backup_required else ["backup_access_key", "backup_secret_key"]
    missing = MISSING.get(origin["source"], "")
    problems = [
        f"{place(name, origin)} {problem}"
        for name, rule in RULES.items()
        if rule.key
        and (values[name] or name not in optional)
        and (problem := secret_problem(name, rule, values[name], missing))
    ]
    problems += [
        f"{place(second if values[first] else first, origin)} is missing, and {first if values[first] else second} is "
        f"there; expected both or neither"
        for first, second in PAIRS
        # A required one that is missing was told already.
        if bool(values[first]) != bool(values[second]) and (not RULES[first].key or first in optional)
    ]
    problems += [
        f"{place(second, origin)} is the same as {first}; expected another one: {why}"
        for first, second, why in DISTINCT
        if values[first] and values[first] == values[second]
    ]
    return problems


def unknown_problems(values: dict[str, str], *, given: dict[str, str], kept: dict[str, str]) -> list[str]:
    """Say which secrets were generated just now, with nobody there to tell them to whom they are for.

    Args:
        values: Every secret of RULES by name.
        given: The inventory's secrets, by name.
        kept: The data of the Secrets that the cluster has already, by key.
    """
    return [
        f"{name} is generated, and {server} cannot know it; expected the administrator who tells it, by {variable} or "
        f"mlflow_environment_secrets.{administrator}"
        for name, administrator, server, variable in TOLD
        if not (values[administrator] or given.get(name) or kept.get(RULES[name].key))
    ]


def user_password_problems(passwords: dict[str, str], *, origin: dict[str, str]) -> list[str]:
    """Say which users' passwords are missing or too weak, without showing any.

    Args:
        passwords: The password of each user by name.
        origin: See above.
    """
    missing = MISSING.get(origin["source"], "")
    problems = [
        f"{user_place(name, origin)} {problem}"
        for name, password in passwords.items()
        if (problem := secret_problem("user", USER, password, missing))
    ]
    keys: dict[str, str] = {}
    for name in passwords:
        if keys.setdefault(user_key(name), name) != name:
            other = keys[user_key(name)]
            problems.append(f"the users {other} and {name} have the same key in a Secret; expected names that differ")
    return problems


def secret_problem(name: str, rule: SecretRule, value: Any, missing: str) -> str:
    """What is wrong with one secret and what is expected; empty when nothing is."""
    bounds = f"{rule.shortest} to {rule.longest}" if rule.longest < 1024 else f"at least {rule.shortest}"
    checks = [
        (lambda: isinstance(value, str), "is no text; expected one: put it in quotes"),
        (lambda: value, f"is missing; {missing}"),
        (
            lambda: rule.shortest <= len(value) <= rule.longest,
            f"has {len(str(value))} characters; expected {bounds}: {rule.why}",
        ),
        (lambda: value not in PUBLISHED, "is a value that is published; expected one of your own"),
        (lambda: not {"\n", "\r", "\0"} & set(value), "has a line break or a NUL in it; expected one line of text"),
        (lambda: is_encodable(value), "has half of a character in it; expected text that UTF-8 can say"),
        (
            lambda: name != "webhook_key" or is_fernet_key(value),
            "is not a Fernet key; expected 32 bytes in URL-safe base64",
        ),
        (
            lambda: name != "backup_encryption_key" or is_fernet_key(value.translate(URL_SAFE)),
            "is no key; expected 32 bytes in base64 (openssl rand -base64 32)",
        ),
    ]
    return next((sentence for is_fine, sentence in checks if not is_fine()), "")


def is_encodable(value: str) -> bool:
    """Whether a text is one that UTF-8 can say: an escape in YAML or JSON can make half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_fernet_key(value: str) -> bool:
    """Whether a text is a key of cryptography.fernet: 32 bytes in URL-safe base64."""
    try:
        return len(base64.b64decode(value, altchars=b"-_", validate=True)) == 32
    except ValueError:
        return False


def production_problems(
    values: dict[str, str], *, passwords: dict[str, str], origin: dict[str, str], others: dict[str, Iterable[str]]
) -> list[str]:
    """Say which secrets may do for a trial, and not where real work depends on them, without showing any.

    Args:
        values: Every secret of RULES by name.
        passwords: The password of each user by name.
        origin: See above.
        others: Whatever secrets are known of other environments, by the environment's name.
    """
    mine = [(name, place(name, origin), value) for name, value in values.items()]
    mine += [("user", user_place(name, origin), value) for name, value in passwords.items()]
    mine = [entry for entry in mine if isinstance(entry[2], str)]
    problems = [
        f"{where} is a placeholder or a default that everybody knows; expected a value of your own"
        for name, where, value in mine
        if is_placeholder(value) and (name not in NAMES or value.casefold() in ("minioadmin", "changeme"))
    ]
    for environment, taken in others.items():
        taken = {value for value in taken if isinstance(value, str)}
        problems += [
            f"{where} is also a secret of environment {environment}; expected a value of this environment's own"
            for name, where, value in mine
            if value in taken and value and name not in NAMES and (name == "user" or RULES[name].key)
        ]
    return problems


def is_placeholder(value: str) -> bool:
    """Whether a text only stands where a secret should be, or is one that everybody tries first."""
    letters = re.sub("[^a-z]", "", value.casefold())
    return bool(value) and (letters in WORDS or letters.startswith(BEGINNINGS) or FORMS.fullmatch(value) is not None)


def others_in_run(hostvars: dict[str, dict[str, Any]], hosts: Iterable[str]) -> dict[str, list[str]]:
    """What the other environments of the same run have taken, for production_problems.

    Args:
        hostvars: Ansible's hostvars.
        hosts: The other hosts of the play.
    """
    found = {}
    for host in hosts:
        variables = hostvars[host]
        values = variables.get("__mlflow_environment_secret_values") or {}
        passwords = variables.get("__mlflow_environment_user_passwords") or {}
        found[variables["mlflow_environment_name"]] = [*values.values(), *passwords.values()]
    return found


def secret_data(values: dict[str, str], secret: str = SERVER) -> dict[str, str]:
    """The data of the Secret `<secret>-<environment>`: base64 by key."""
    return {
        rule.key: base64.b64encode(values[name].encode()).decode()
        for name, rule in RULES.items()
        if rule.key and rule.secret == secret and values[name]
    }


def present_values(kept: dict[str, str]) -> dict[str, str]:
    """Every secret by name that the cluster's Secrets have, from their data by key; empty where there is none."""
    return {name: kept.get(rule.key, "") for name, rule in RULES.items() if rule.key}


def secret_names(values: dict[str, str], secret: str = SERVER) -> dict[str, str]:
    """Which secret each key of the Secret `<secret>-<environment>` has: its name in RULES by key."""
    return {rule.key: name for name, rule in RULES.items() if rule.key and rule.secret == secret and values[name]}


def user_data(passwords: dict[str, str]) -> dict[str, str]:
    """The data of the Secret `mlflow-users-<environment>`: base64 by key."""
    return {user_key(name): base64.b64encode(password.encode()).decode() for name, password in passwords.items()}


def secret_of(found: dict[str, dict[str, str]], reference: dict[str, str]) -> dict[str, str]:
    """The data of the Secret that a reference (namespace and name) names, empty where the reference is empty."""
    return found[secret_label(reference)] if reference else {}


def secret_label(reference: dict[str, str]) -> str:
    """What mlflow_cluster_info calls the Secret that a reference names."""
    return f"{reference['namespace']}/{reference['name']}"


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_environment_given_problems": given_problems,
            "mlflow_environment_secret_values": secret_values,
            "mlflow_environment_secret_problems": secret_problems,
            "mlflow_environment_unknown_secret_problems": unknown_problems,
            "mlflow_environment_secret_data": secret_data,
            "mlflow_environment_secret_names": secret_names,
            "mlflow_environment_present_values": present_values,
            "mlflow_environment_secret": secret_of,
            "mlflow_environment_secret_label": secret_label,
            "mlflow_environment_user_passwords": user_passwords,
            "mlflow_environment_user_password_problems": user_password_problems,
            "mlflow_environment_user_data": user_data,
            "mlflow_environment_production_problems": production_problems,
            "mlflow_environment_others_in_run": others_in_run,
        }
