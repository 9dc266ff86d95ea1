"""The filters: what they refuse, where secrets come from, and how each value is escaped."""

from __future__ import annotations

import configparser
import importlib.util
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

FILTERS = Path(__file__).parents[2] / "plugins" / "filter"


def load(name: str) -> ModuleType:
    """Import a filter file by its path: Ansible's own loader does the same, so it is in no package."""
    spec = importlib.util.spec_from_file_location(f"filter_{name}", FILTERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


environment = load("mlflow_environment")
server = load("mlflow_server")

GOOD = {
    "mlflow_environment_name": "dev",
    "mlflow_environment_names": ["dev", "stg", "prod"],
    "mlflow_environment_namespace": "mlflow-dev",
    "mlflow_environment_image": "ghcr.io/mlflow/mlflow:v3.17.2-full",
    "mlflow_environment_secrets": {},
    "mlflow_database_host": "dev-postgres.pgsql.svc.cluster.local",
    "mlflow_database_port": 5434,
    "mlflow_database_name": "mlflow",
    "mlflow_database_auth_name": "mlflow_auth",
    "mlflow_database_registry_name": "",
    "mlflow_database_username": "mlflow",
    "mlflow_database_migrator_username": "mlflow_migrator",
    "mlflow_object_store_endpoint": "http://minio-dev.pgsql.svc.cluster.local:9000",
    "mlflow_object_store_bucket": "mlflow",
    "mlflow_server_node_port": 30502,
    "mlflow_server_admin_username": "admin",
}


def test_good_settings_have_no_problem() -> None:
    assert environment.environment_problems(GOOD) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("mlflow_environment_name", "qa", "one of dev, stg, prod"),
        ("mlflow_environment_name", None, "one of dev, stg, prod"),
        ("mlflow_environment_namespace", "MLflow_dev", "lower case letters"),
        ("mlflow_environment_namespace", None, "lower case letters"),
        ("mlflow_environment_image", "mlflow latest", "an image reference"),
        ("mlflow_environment_image", "", "an image reference"),
        ("mlflow_database_host", "", "a host name"),
        ("mlflow_database_host", None, "a host name"),
        ("mlflow_database_host", "postgres; drop", "a host name"),
        ("mlflow_database_host", "user@postgres", "a host name"),
        ("mlflow_database_port", 0, "a port from 1 to 65535"),
        ("mlflow_database_port", None, "a port from 1 to 65535"),
        ("mlflow_database_port", 65536, "a port from 1 to 65535"),
        ("mlflow_database_name", "", "1 to 63 bytes"),
        ("mlflow_database_auth_name", None, "1 to 63 bytes"),
        ("mlflow_database_username", "ü" * 32, "1 to 63 bytes"),
        ("mlflow_database_migrator_username", "", "1 to 63 bytes"),
        ("mlflow_database_migrator_username", "mlflow", "another role than mlflow_database_username"),
        ("mlflow_database_registry_name", "x" * 64, "1 to 63 bytes, or an empty text"),
        ("mlflow_database_registry_name", None, "1 to 63 bytes, or an empty text"),
        ("mlflow_database_registry_name", "mlflow_auth", "another name than mlflow_database_auth_name"),
        ("mlflow_object_store_endpoint", "s3://mlflow", "http(s)://host[:port]"),
        ("mlflow_object_store_endpoint", "minio:9000", "http(s)://host[:port]"),
        ("mlflow_object_store_endpoint", "http://minio:9000/mlflow", "http(s)://host[:port]"),
        ("mlflow_object_store_endpoint", "http://minio:9000/", "http(s)://host[:port]"),
        ("mlflow_object_store_endpoint", "http://key:secret@minio:9000", "http(s)://host[:port]"),
        ("mlflow_object_store_endpoint", "http://minio:port", "http(s)://host[:port]"),
        ("mlflow_object_store_endpoint", "http://", "http(s)://host[:port]"),
        ("mlflow_object_store_bucket", "s3://mlflow", "an S3 bucket name"),
        ("mlflow_object_store_bucket", "ml", "an S3 bucket name"),
        ("mlflow_object_store_bucket", "ml..flow", "an S3 bucket name"),
        ("mlflow_object_store_bucket", "10.1.2.3", "an S3 bucket name"),
        ("mlflow_object_store_bucket", "xn--mlflow", "an S3 bucket name"),
        ("mlflow_server_node_port", 5000, "a port from 30000 to 32767"),
        ("mlflow_server_node_port", 32768, "a port from 30000 to 32767"),
        ("mlflow_server_admin_username", "", "letters, digits"),
        ("mlflow_server_admin_username", "ad min", "letters, digits"),
    ],
)
def test_a_bad_setting_is_refused_with_its_variable_and_what_is_expected(
    name: str, value: object, expected: str
) -> None:
    [problem] = environment.environment_problems(GOOD | {name: value})
    shown = "a value with a user part" if "@" in str(value) else repr(value)
    assert problem.startswith(f"{name} is {shown}; expected ")
    assert "secret@" not in problem
    assert expected in problem


def test_a_registry_may_have_a_database_of_its_own() -> None:
    assert environment.environment_problems(GOOD | {"mlflow_database_registry_name": "mlflow_registry"}) == []


def test_all_problems_are_told_at_once() -> None:
    assert len(environment.environment_problems(GOOD | {"mlflow_server_node_port": 1, "mlflow_database_port": 0})) == 2


def test_a_name_that_is_no_label_is_refused_even_where_it_is_listed() -> None:
    names = {"mlflow_environment_name": "my_env", "mlflow_environment_names": ["my_env"]}
    [problem] = environment.environment_problems(GOOD | names)
    assert "lower case letters" in problem


def test_arguments_problems_are_told_once() -> None:
    results = [
        {"msg": "The arg spec validation passed"},
        {"msg": "failed", "argument_errors": ["a", "b"]},
        {"msg": "failed", "argument_errors": ["b"]},
        {"msg": "no such variable"},
    ]
    assert environment.argument_problems(results) == ["a", "b", "no such variable"]


def test_an_unknown_secret_is_named_and_its_value_is_not() -> None:
    [problem] = environment.environment_problems(GOOD | {"mlflow_environment_secrets": {"admin_pasword": "hunter2"}})
    assert "admin_pasword" in problem
    assert "hunter2" not in problem


def values(
    given: dict[str, str], source: str = "generated", kept: dict[str, str] | None = None, **admins: dict
) -> dict:
    admins = {"database_admin": {}, "object_store_admin": {}} | admins
    return environment.secret_values(given, source=source, environment="dev", kept=kept or {}, **admins)


def test_generated_secrets_are_acceptable() -> None:
    assert environment.secret_problems(values({})) == []


def test_generated_secrets_differ_from_each_other_and_from_run_to_run() -> None:
    first, second = values({}), values({})
    made = [value for name, value in first.items() if value] + [
        value for name, value in second.items() if value and name not in environment.ACCESS_KEYS
    ]
    assert len(set(made)) == len(made)
    assert (first["object_store_access_key"], first["backup_access_key"]) == ("mlflow-dev", "mlflow-backup-dev")
    assert first["admin_password"] != second["admin_password"]


def test_what_the_cluster_keeps_is_not_generated_again() -> None:
    kept = {"PGPASSWORD": "kept-database-password"}
    assert values({}, kept=kept)["database_password"] == "kept-database-password"


def test_what_is_given_beats_what_is_kept() -> None:
    kept = {"PGPASSWORD": "kept-database-password"}
    assert values({"database_password": "given"}, kept=kept)["database_password"] == "given"


def test_the_inventory_source_takes_nothing_from_the_cluster() -> None:
    assert values({}, source="inventory", kept={"PGPASSWORD": "kept"})["database_password"] == ""


def test_administrators_come_from_their_secrets() -> None:
    taken = values(
        {},
        database_admin={"username": "postgres", "password": "p"},
        object_store_admin={"access_key": "a", "secret_key": "s"},
    )
    assert taken["database_admin_username"] == "postgres"
    assert taken["object_store_admin_secret_key"] == "s"


def test_each_secret_is_in_the_clusters_secret_of_those_who_read_it_and_administrators_in_none() -> None:
    taken = values({"database_admin_username": "postgres", "database_admin_password": "top"})
    assert set(environment.secret_data(taken)) == {
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "PGPASSWORD",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_CRYPTO_KEK_PASSPHRASE",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    }
    assert set(environment.secret_data(taken, secret="mlflow-maintenance")) == {
        "MIGRATOR_PGPASSWORD",
        "BACKUP_AWS_ACCESS_KEY_ID",
        "BACKUP_AWS_SECRET_ACCESS_KEY",
    }


BEFORE_UPGRADES = ("database_migrator_password", "backup_access_key", "backup_secret_key")


def test_an_inventory_of_before_there_were_upgrades_is_told_each_secret_that_it_lacks() -> None:
    problems = environment.secret_problems(values({}) | dict.fromkeys(BEFORE_UPGRADES, ""))
    assert [problem.split(" is missing; ")[0] for problem in problems] == [
        f"mlflow_environment_secrets.{name}" for name in BEFORE_UPGRADES
    ]


def test_without_backups_their_keys_may_be_left_out_but_are_no_less_strict_when_given() -> None:
    taken = values({}) | {"backup_access_key": "", "backup_secret_key": ""}
    assert environment.secret_problems(taken, backup_required=False) == []
    assert set(environment.secret_data(taken, secret="mlflow-maintenance")) == {"MIGRATOR_PGPASSWORD"}
    [problem] = environment.secret_problems(taken | {"backup_secret_key": "a-long-secret-key"}, backup_required=False)
    assert "together" in problem
    weak = taken | {"backup_access_key": "backup", "backup_secret_key": "short"}
    [problem] = environment.secret_problems(weak, backup_required=False)
    assert "backup_secret_key has 5 characters" in problem
    [problem] = environment.secret_problems(taken | {"database_migrator_password": ""}, backup_required=False)
    assert "database_migrator_password is missing" in problem


@pytest.mark.parametrize(
    ("first", "second"),
    [("database_password", "database_migrator_password"), ("object_store_access_key", "backup_access_key")],
)
def test_what_the_server_has_is_no_key_to_what_it_must_not_do(first: str, second: str) -> None:
    [problem] = environment.secret_problems(values({}) | {first: "one-and-the-same", second: "one-and-the-same"})
    assert f"{second} is the same as {first}" in problem
    assert "one-and-the-same" not in problem


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("admin_password", "", "is missing"),
        ("admin_password", 123456789012, "is no text"),
        ("admin_password", "eleven-char", "has 11 characters; expected at least 12"),
        ("admin_password", "password1234", "published"),
        ("admin_password", "two lines\nof password", "line break"),
        ("database_password", "tiny!", "has 5 characters"),
        ("database_migrator_password", "tiny!", "has 5 characters; expected at least 12"),
        ("backup_access_key", "ab", "has 2 characters; expected 3 to 128"),
        ("backup_secret_key", "", "is missing"),
        ("backup_secret_key", "tiny!", "has 5 characters; expected 12 to 128"),
        ("object_store_access_key", "ab", "has 2 characters; expected 3 to 128"),
        ("flask_secret_key", "short", "has 5 characters"),
        ("kek_passphrase", "mlflow-default-kek-passphrase-for-development-only", "published"),
        ("webhook_key", "x" * 44, "not a Fernet key"),
        ("webhook_key", "short", "expected 44 to 44"),
        ("database_admin_password", "alone", "together"),
        ("object_store_admin_access_key", "alone", "together"),
    ],
)
def test_a_weak_secret_is_refused_without_showing_it(name: str, value: str, expected: str) -> None:
    [problem] = environment.secret_problems(values({}) | {name: value})
    assert name in problem
    assert expected in problem
    assert not value or str(value) not in problem.replace(name, "")


@given(username=st.text(min_size=1), database=st.text(min_size=1))
def test_a_database_uri_gives_back_what_it_was_made_of(username: str, database: str) -> None:
    uri = urlsplit(server.database_uri(database, host="postgres", port=5432, username=username))
    assert unquote(uri.username) == username
    assert unquote(uri.path.removeprefix("/")) == database
    assert (uri.hostname, uri.port, uri.password) == ("postgres", 5432, None)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"]), min_size=1))
def test_the_ini_gives_back_every_value(value: str) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(server.basic_auth_ini({"database_uri": value}))
    assert parser["mlflow"]["database_uri"] == value


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:30502", True),
        ("127.0.0.1:30502", True),
        ("[::1]:30502", True),
        ("mlflow-dev:5000", True),
        ("mlflow-dev.mlflow-dev.svc.cluster.local:5000", True),
        ("10.251.0.7:5000", True),
        ("172.16.0.1:5000", True),
        ("172.31.0.1", True),
        ("mlflow.example.com", True),
        ("mlflow.example.com:443", True),
        ("172.32.0.1", False),
        ("mlflow-stg:5000", False),
        ("evil.example.com", False),
        ("localhost.evil.com", False),
    ],
)
def test_allowed_hosts_are_the_ones_people_and_pods_call(host: str, allowed: bool) -> None:
    patterns = server.allowed_hosts("mlflow-dev", namespace="mlflow-dev", extra=["mlflow.example.com"]).split(",")
    assert patterns == server.allowed_hosts("mlflow-dev", namespace="mlflow-dev", extra="mlflow.example.com").split(",")
    # As MLflow compares: exactly, or by fnmatch where the entry has an asterisk.
    assert any(fnmatchcase(host, pattern) if "*" in pattern else host == pattern for pattern in patterns) is allowed


@pytest.mark.parametrize(
    ("workers", "jobs", "measured"), [(1, False, 367), (2, False, 571), (4, False, 927), (4, True, 2232)]
)
def test_a_pods_memory_holds_what_was_measured(workers: int, jobs: bool, measured: int) -> None:
    assert server.memory_megabytes(workers, job_execution=jobs) * 1.048 > measured * 1.2
