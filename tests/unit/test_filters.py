"""The filters: what they refuse, and how each value is escaped."""

from __future__ import annotations

import configparser
from fnmatch import fnmatchcase
from urllib.parse import unquote, urlsplit

import pytest
from ansible.module_utils.ansible_mlflow import schema as schema_module
from conftest import certificate, load_filter
from hypothesis import given
from hypothesis import strategies as st

environment = load_filter("mlflow_environment")
server = load_filter("mlflow_server")
schema = load_filter("mlflow_schema")
object_store = load_filter("mlflow_object_store")

GOOD = {
    "mlflow_environment_name": "dev",
    "mlflow_environment_names": ["dev", "stg", "prod"],
    "mlflow_environment_namespace": "mlflow-dev",
    "mlflow_environment_image": "ghcr.io/mlflow/mlflow:v3.17.2-full",
    "mlflow_environment_delivery": "push",
    "mlflow_environment_secrets_source": "inventory",
    "mlflow_environment_external_secrets_store": {},
    "mlflow_database_host": "dev-postgres.pgsql.svc.cluster.local",
    "mlflow_database_port": 5434,
    "mlflow_database_name": "mlflow",
    "mlflow_database_auth_name": "mlflow_auth",
    "mlflow_database_registry_name": "",
    "mlflow_database_username": "mlflow",
    "mlflow_database_migrator_username": "mlflow_migrator",
    "mlflow_database_schema": "",
    "mlflow_database_tls_mode": "prefer",
    "mlflow_database_ca_certificate": "",
    "mlflow_object_store_endpoint": "http://minio-dev.pgsql.svc.cluster.local:9000",
    "mlflow_object_store_bucket": "mlflow",
    "mlflow_object_store_expire_versions_after_days": 90,
    "mlflow_object_store_abort_uploads_after_days": 7,
    "mlflow_object_store_lock_days": 0,
    "mlflow_object_store_quota": "500Gi",
    "mlflow_server_admin_username": "admin",
    "mlflow_server_replicas": 1,
    "mlflow_server_max_replicas": 1,
    "mlflow_server_job_execution": False,
    "mlflow_server_extra_environment": {},
    "mlflow_server_target_cpu_percent": 70,
    "mlflow_server_priority_class": "",
    "mlflow_server_node_selector": {},
    "mlflow_server_tolerations": [],
    "mlflow_gc_older_than": "30d",
    "mlflow_gc_schedule": "30 3 * * 0",
    "mlflow_server_monitoring_backup_days": 7,
    "mlflow_server_monitoring_labels": {"release": "kube-prometheus-stack", "example.com/team": ""},
}
# A certificate and nothing else: what is in it does not matter here.
CERTIFICATE = certificate()


def test_good_settings_have_no_problem() -> None:
    assert environment.environment_problems(GOOD) == []


STORE = {"kind": "ClusterSecretStore", "name": "vault"}
BY_GIT = {"mlflow_environment_delivery": "gitops", "mlflow_environment_secrets_source": "vault"}


# docs/failures.md shows what is said of each: scripts/failures.py.
BAD_STORES = [
    (STORE, BY_GIT, ""),
    ({}, {}, ""),
    (STORE, BY_GIT | {"mlflow_environment_delivery": "push"}, "delivery is push"),
    (STORE, BY_GIT | {"mlflow_environment_secrets_source": "generated"}, "secrets_source is generated"),
    ({"name": "vault"}, BY_GIT, "expected kind, ClusterSecretStore or SecretStore, and name"),
    ({**STORE, "kind": "Secret"}, BY_GIT, "expected kind, ClusterSecretStore or SecretStore, and name"),
    ({**STORE, "name": "a vault"}, BY_GIT, "expected kind, ClusterSecretStore or SecretStore, and name"),
]


@pytest.mark.parametrize(("store", "settings", "expected"), BAD_STORES)
def test_a_store_of_external_secrets_goes_with_vault_and_argo_cd(store: dict, settings: dict, expected: str) -> None:
    told = environment.environment_problems(GOOD | settings | {"mlflow_environment_external_secrets_store": store})
    assert (expected in told[0] and len(told) == 1) if expected else told == []


# docs/failures.md shows what is said of each: scripts/failures.py.
BAD_SETTINGS = [
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
    ("mlflow_database_registry_name", "x" * 64, "1 to 63 bytes of printable text, or an empty one"),
    ("mlflow_database_registry_name", None, "1 to 63 bytes of printable text, or an empty one"),
    ("mlflow_database_registry_name", "mlflow_auth", "another name than mlflow_database_auth_name"),
    ("mlflow_database_schema", "x" * 64, "1 to 63 bytes of printable text that does not begin with pg_"),
    ("mlflow_database_schema", "pg_mlflow", "1 to 63 bytes of printable text that does not begin with pg_"),
    ("mlflow_database_schema", "$user", "1 to 63 bytes of printable text that does not begin with pg_"),
    ("mlflow_database_schema", None, "1 to 63 bytes of printable text that does not begin with pg_"),
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
    ("mlflow_object_store_expire_versions_after_days", -1, "0 to 36500 days"),
    ("mlflow_object_store_abort_uploads_after_days", 36501, "0 to 36500 days"),
    ("mlflow_object_store_lock_days", None, "0 to 36500 days"),
    ("mlflow_object_store_quota", "500G", "a number with Ki, Mi, Gi or Ti"),
    ("mlflow_object_store_quota", -1, "a number with Ki, Mi, Gi or Ti"),
    ("mlflow_server_admin_username", "", "letters, digits"),
    ("mlflow_server_admin_username", "ad min", "letters, digits"),
    ("mlflow_server_target_cpu_percent", 0, "1 to 100 per cent"),
    ("mlflow_server_target_cpu_percent", 560, "1 to 100 per cent"),
    ("mlflow_server_priority_class", "Very_High", "the name of a PriorityClass"),
    ("mlflow_server_node_selector", {"gpu": True}, "a text for each label"),
    ("mlflow_server_tolerations", [{"key": "mlflow", "effects": "NoSchedule"}], "only effect, key, operator"),
    ("mlflow_server_monitoring_backup_days", 0, "1 to 3650 days"),
    ("mlflow_server_monitoring_backup_days", None, "1 to 3650 days"),
    ("mlflow_server_monitoring_labels", {"release": 1}, "labels as Kubernetes has them"),
    ("mlflow_server_monitoring_labels", {"re lease": "prometheus"}, "labels as Kubernetes has them"),
    ("mlflow_gc_older_than", "", "such as 30d or 1d12h"),
    ("mlflow_gc_older_than", "30 days", "such as 30d or 1d12h"),
    ("mlflow_gc_older_than", "12h1d", "such as 30d or 1d12h"),
    ("mlflow_gc_schedule", "@weekly", "as cron has them"),
    ("mlflow_gc_schedule", "30 24 * * 0", "as cron has them"),
    ("mlflow_gc_schedule", "*/0 3 * * 0", "as cron has them"),
    ("mlflow_gc_schedule", "30 3 * *", "as cron has them"),
]


@pytest.mark.parametrize("schedule", ["", "0 0 1 1 0", "*/15 0-6,22 * * 1-5", "5-55/10 3 31 12 6"])
def test_schedules_that_kubernetes_takes(schedule: str) -> None:
    assert environment.environment_problems(GOOD | {"mlflow_gc_schedule": schedule}) == []


@pytest.mark.parametrize("age", ["0s", "30d", "1.5h", "1d2h3m4s"])
def test_ages_that_mlflow_takes(age: str) -> None:
    assert environment.environment_problems(GOOD | {"mlflow_gc_older_than": age}) == []


TWO = {"mlflow_server_replicas": 2, "mlflow_server_max_replicas": 2}
UP_TO_TWO = TWO | {"mlflow_server_replicas": 1}
JOBS = {"mlflow_server_job_execution": True}


def extra(**variables: str) -> dict:
    return {"mlflow_server_extra_environment": variables}


# docs/failures.md shows what is said of each: scripts/failures.py.
BAD_SCALING = [
    (JOBS, ""),
    (extra(MLFLOW_BACKEND_STORE_URI="sqlite:////tmp/mlflow.db"), ""),
    (TWO | extra(MLFLOW_LOGGING_LEVEL="DEBUG"), ""),
    (UP_TO_TWO, ""),
    ({"mlflow_server_replicas": 0, "mlflow_server_max_replicas": 0}, ""),
    (UP_TO_TWO | {"mlflow_server_replicas": 0}, "expected at least 1: an autoscaler starts nothing"),
    (TWO | {"mlflow_server_max_replicas": 1}, "expected at least mlflow_server_replicas, which is 2"),
    (TWO | JOBS, "mlflow_server_replicas is 2; expected one replica: each pod has a queue of its own"),
    (UP_TO_TWO | JOBS, "mlflow_server_max_replicas is 2; expected one replica: each pod has a queue of its own"),
    (TWO | extra(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="true"), "expected one replica: each pod has a queue of its own"),
    (TWO | JOBS | extra(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"), ""),
    (TWO | extra(MLFLOW_BACKEND_STORE_URI="SQLite:////tmp/mlflow.db"), "sets MLFLOW_BACKEND_STORE_URI to a file"),
    (UP_TO_TWO | extra(MLFLOW_ARTIFACTS_DESTINATION="file:///tmp"), "sets MLFLOW_ARTIFACTS_DESTINATION to a file"),
]


@pytest.mark.parametrize(("settings", "expected"), BAD_SCALING)
def test_replicas_that_could_not_work_together_are_refused(settings: dict, expected: str) -> None:
    told = environment.environment_problems(GOOD | settings)
    assert (expected in told[0] and len(told) == 1) if expected else told == []


@pytest.mark.parametrize(("name", "value", "expected"), BAD_SETTINGS)
def test_a_bad_setting_is_refused_with_its_variable_and_what_is_expected(
    name: str, value: object, expected: str
) -> None:
    [problem] = environment.environment_problems(GOOD | {name: value})
    shown = "a value with a user part" if "@" in str(value) else repr(value)
    assert problem.startswith(f"{name} is {shown}; expected ")
    assert "secret@" not in problem
    assert expected in problem


@pytest.mark.parametrize(
    ("tls_mode", "certificate", "problem"),
    [
        ("prefer", "", ""),
        ("require", "", ""),
        ("verify-ca", CERTIFICATE, ""),
        ("verify-full", CERTIFICATE * 2, ""),
        ("verify-full", "", "is an empty text; expected the authority's certificate"),
        ("verify-ca", "", "mlflow_database_tls_mode is verify-ca"),
        (
            "require",
            CERTIFICATE,
            "is given, but mlflow_database_tls_mode is require; expected verify-ca or verify-full",
        ),
        ("verify-full", "s3cret", "is no certificate; expected PEM text"),
        ("verify-full", CERTIFICATE.replace("M", "", 1), "is no certificate; expected PEM text"),
        ("verify-full", "ü", "is no certificate; expected PEM text"),
        ("verify-full", f"{CERTIFICATE}-----BEGIN PRIVATE KEY-----", "has a private key in it"),
    ],
)
def test_an_authority_that_would_not_be_used_is_refused(tls_mode: str, certificate: str, problem: str) -> None:
    settings = {"mlflow_database_tls_mode": tls_mode, "mlflow_database_ca_certificate": certificate}
    told = environment.environment_problems(GOOD | settings)
    assert [problem in sentence for sentence in told] == ([True] if problem else [])
    assert "s3cret" not in str(told)


def test_a_registry_may_have_a_database_of_its_own() -> None:
    assert environment.environment_problems(GOOD | {"mlflow_database_registry_name": "mlflow_registry"}) == []


def test_all_problems_are_told_at_once() -> None:
    wrong = {"mlflow_environment_image": "", "mlflow_database_port": 0}
    assert len(environment.environment_problems(GOOD | wrong)) == 2


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


def test_a_variable_comes_from_the_key_of_its_own_name() -> None:
    assert server.variables_from({"B": 1, "A": 2}, configMap="mlflow-config-dev") == [
        {"name": name, "valueFrom": {"configMapKeyRef": {"name": "mlflow-config-dev", "key": name}}} for name in "AB"
    ]
    [variable] = server.variables_from(["PGPASSWORD"], secret="mlflow-secrets-dev")
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "mlflow-secrets-dev", "key": "PGPASSWORD"}}


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
        ("proxy.example.com:8443", True),
        ("172.32.0.1", False),
        ("mlflow-stg:5000", False),
        ("evil.example.com", False),
        ("localhost.evil.com", False),
    ],
)
def test_allowed_hosts_are_the_ones_people_and_pods_call(host: str, allowed: bool) -> None:
    options = {"namespace": "mlflow-dev", "url": "https://mlflow.example.com:8443/ml"}
    patterns = server.allowed_hosts("mlflow-dev", **options, extra=["proxy.example.com"]).split(",")
    assert patterns == server.allowed_hosts("mlflow-dev", **options, extra="proxy.example.com").split(",")
    # As MLflow compares: exactly, or by fnmatch where the entry has an asterisk.
    assert any(fnmatchcase(host, pattern) if "*" in pattern else host == pattern for pattern in patterns) is allowed


def test_localhost_adds_no_name_of_its_own() -> None:
    hosts = server.allowed_hosts("mlflow-dev", namespace="mlflow-dev", url="http://localhost:30502", extra=[])
    assert hosts.split(",").count("localhost") == hosts.split(",").count("localhost:*") == 1


@pytest.mark.parametrize(
    ("workers", "jobs", "measured"), [(1, False, 367), (2, False, 571), (4, False, 927), (4, True, 2232)]
)
def test_a_pods_memory_holds_what_was_measured(workers: int, jobs: bool, measured: int) -> None:
    assert server.memory_megabytes(workers, job_execution=jobs) * 1.048 > measured * 1.2


RECORD = {"image": "i1", "program": "d1", "tracking": "t2", "auth": "a2"}
AT_HEAD = {"mlflow": {"alembic_version": ["t2"]}, "mlflow_auth": {"alembic_version_auth": ["a2"]}}


@pytest.mark.parametrize(
    ("record", "revisions", "is_current"),
    [
        (RECORD, AT_HEAD, True),
        # Before MLflow 3.6 the users' revision was in the usual table; the own one counts where there are both.
        (RECORD, AT_HEAD | {"mlflow_auth": {"alembic_version": ["a2"]}}, True),
        (RECORD, AT_HEAD | {"mlflow_auth": {"alembic_version": ["a2"], "alembic_version_auth": ["a1"]}}, False),
        (RECORD, AT_HEAD | {"mlflow": {"alembic_version": ["t2", "t1"]}}, False),
        (RECORD, AT_HEAD | {"mlflow": {"alembic_version": ["t1"]}}, False),
        (RECORD, {"mlflow": {"alembic_version": ["t2"]}}, False),
        (RECORD, {}, False),
        ({}, {}, False),
        ({}, AT_HEAD, False),
        (RECORD | {"image": "i0"}, AT_HEAD, False),
        (RECORD | {"program": "d0"}, AT_HEAD, False),
        (RECORD | {"auth": ""}, AT_HEAD | {"mlflow_auth": {}}, False),
    ],
)
def test_what_the_run_knows_already_is_not_asked_again(record, revisions, is_current):
    databases = {"tracking": "mlflow", "auth": "mlflow_auth"}
    assert schema.is_current(databases, revisions=revisions, record=record, image="i1", program="d1") == is_current


@pytest.mark.parametrize("store", ["tracking", "auth", "registry"])
def test_the_filter_and_the_module_look_at_the_same_tables(store):
    tables = schema_module.version_tables(store)
    assert [schema.found(store, {table: [index] for table in tables[index:]}) for index in range(len(tables))] == [
        [index] for index in range(len(tables))
    ]


def split_options(text: str) -> list[str]:
    """PGOPTIONS as PostgreSQL takes it apart: at white space that no backslash precedes."""
    words, escaped = [""], False
    for character in text:
        if not escaped and character in " \t\n\v\f\r":
            words.append("")
        elif not escaped and character == "\\":
            escaped = True
            continue
        else:
            words[-1] += character
        escaped = False
    return [word for word in words if word]


@given(st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=20))
def test_any_name_of_a_schema_arrives_as_one_identifier(name: str) -> None:
    found = server.database_environment(name, tls_mode="prefer", ca_file="/ca")
    [option] = split_options(found.pop("PGOPTIONS"))
    assert option == '-csearch_path="' + name.replace('"', '""') + '"'
    assert found == {}


@pytest.mark.parametrize(
    ("tls_mode", "variables"),
    [
        ("prefer", {}),
        ("disable", {"PGSSLMODE": "disable"}),
        ("require", {"PGSSLMODE": "require"}),
        ("verify-ca", {"PGSSLMODE": "verify-ca", "PGSSLROOTCERT": "/ca"}),
        ("verify-full", {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/ca"}),
    ],
)
def test_libpq_is_told_what_is_not_its_default(tls_mode: str, variables: dict[str, str]) -> None:
    assert server.database_environment("", tls_mode=tls_mode, ca_file="/ca") == variables


@pytest.mark.parametrize(
    ("roots", "accepted"),
    [
        ({}, []),
        ({"s3://mlflow": 3}, []),
        # What the server hands on by itself, and what was on a server's own disk.
        ({"s3://mlflow": 3, "mlflow-artifacts:": 2, "/mlruns": 1}, []),
        ({"s3://mlflow": 3, "s3://old": 4, "s3://mlflow/here": 1}, ["s3://old", "s3://mlflow/here/"]),
    ],
)
def test_experiments_where_they_belong_are_no_problem(roots: dict[str, int], accepted: list[str]) -> None:
    assert object_store.artifact_root_problem(roots, "mlflow", accepted) == ""


def test_what_the_server_hands_on_is_where_it_put_it_until_now() -> None:
    roots = {"s3://old": 2, "mlflow-artifacts:": 5}
    assert object_store.artifact_root_problem({"mlflow-artifacts:": 5}, "mlflow", [], "s3://mlflow/") == ""
    assert "7 experiments in the database are elsewhere: s3://old (7)." in object_store.artifact_root_problem(
        roots, "mlflow", [], "s3://old/"
    )
    assert object_store.artifact_root_problem(roots, "mlflow", ["s3://old"], "s3://old/") == ""


@pytest.mark.parametrize(
    ("roots", "accepted", "words"),
    [
        ({"s3://old": 4}, [], "4 experiments in the database are elsewhere: s3://old (4)."),
        # Another one's name begins as this one's.
        (
            {"s3://mlflow-old": 1, "s3://mlflow": 9},
            [],
            "1 experiments in the database are elsewhere: s3://mlflow-old (1).",
        ),
        (
            {"s3://mlflow/prefix": 2, "s3://a": 5},
            [],
            "7 experiments in the database are elsewhere: s3://a (5), s3://mlflow/",
        ),
        (
            {"s3://old": 4, "s3://older": 1},
            ["s3://old"],
            "1 experiments in the database are elsewhere: s3://older (1).",
        ),
    ],
)
def test_experiments_elsewhere_are_counted(roots: dict[str, int], accepted: list[str], words: str) -> None:
    problem = object_store.artifact_root_problem(roots, "mlflow", accepted)
    assert problem.startswith("mlflow_object_store_bucket is mlflow, and the artifacts of ")
    assert words in problem
    assert "mlflow_object_store_other_artifact_roots" in problem


def test_a_kind_that_the_cluster_does_not_know_is_refused_with_the_variable_that_asks_for_it() -> None:
    wanted = [
        {"kind": "networking.k8s.io/v1/Ingress", "variable": "mlflow_server_exposure"},
        {"kind": "monitoring.coreos.com/v1/ServiceMonitor", "variable": "mlflow_server_monitoring"},
    ]
    [problem] = environment.kind_problems(wanted, ["monitoring.coreos.com/v1/ServiceMonitor"])
    assert problem.startswith("mlflow_server_monitoring needs ServiceMonitor (monitoring.coreos.com/v1)")
    assert environment.kind_problems(wanted, []) == []


def test_what_is_not_wanted_any_more_is_named_and_what_is_wanted_is_not() -> None:
    kinds = [
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress"},
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "mlflow-dashboard-dev"},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget"},
    ]
    wanted = [{"kind": "Ingress", "metadata": {"name": "mlflow-dev"}}]
    found = server.unwanted_objects(kinds, wanted, name="mlflow-dev", namespace="ns")
    assert [(item["kind"], item["metadata"]["name"]) for item in found] == [
        ("ConfigMap", "mlflow-dashboard-dev"),
        ("PodDisruptionBudget", "mlflow-dev"),
    ]
