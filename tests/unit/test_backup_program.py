"""The programs of the backup as far as they go without a server, and the filters of its role."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_file, load_filter
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
FILES = ROOT / "roles/mlflow_backup/files"


bucket = load_file(FILES / "bucket.py")
sealed = load_file(FILES / "sealed.py")
artifacts = load_file(FILES / "artifacts.py")
manifests = load_file(FILES / "manifest.py")
backup = load_file(FILES / "backup.py")
filters = load_filter("mlflow_backup")

ID = "20261125T134500Z-3f2a"
FIELD = st.text(st.characters(exclude_characters="\t\n", codec="utf-8"), min_size=1)


def dump(database: str = "mlflow", **more) -> dict:
    return {"database": database, "revision": "b7e2c1a4d9f3", "bytes": 7, "sha256": "00", **more}


def manifest(**more) -> dict:
    stores = {"tracking": dump(), "auth": dump("mlflow_auth", revision="f1a2b3c4d5e6")}
    marker = {"endpoint": "http://minio:9000", "bucket": "mlflow", "versioning": "Off", "time": "2026-11-25T13:45:00Z"}
    return {
        "id": ID,
        "environment": "dev",
        "time": "2026-11-25T13:45:00Z",
        "mlflow_version_before": "3.16.0",
        "image_after": "mlflow:3.17.2",
        "stores": stores,
        "object_store": marker,
        "objects": [deployment()],
        **more,
    }


def deployment(image: str = "ghcr.io/mlflow/mlflow:v3.16.0-full", replicas: int = 2, **metadata) -> dict:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "mlflow-dev", "namespace": "mlflow-dev", **metadata},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"name": "mlflow", "image": image}]}}},
    }


def targets(tracking: str = "mlflow", auth: str = "mlflow_auth", registry: str = "") -> dict[str, dict]:
    names = {"tracking": tracking, "registry": registry, "auth": auth}
    text = filters.targets({k: v for k, v in names.items() if v}, host="db", port=5432, username="migrator")
    return manifests.read_list(text, 5)


# -- the lists of databases -------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from(["tracking", "auth", "registry"]), FIELD), FIELD, st.integers(1, 65535), FIELD)
def test_what_the_role_writes_is_what_the_program_reads(databases, host, port, username):
    text = filters.targets(databases, host=host, port=port, username=username)
    assert manifests.read_list(text, 5) == {
        store: {"host": host, "port": str(port), "database": name, "user": username}
        for store, name in databases.items()
    }


@pytest.mark.parametrize("line", ["tracking", "tracking\tdb\t5432\tmlflow", "tracking\tdb\t\tmlflow\tu", "a b c d e"])
def test_a_line_with_other_columns_is_refused(line):
    with pytest.raises(bucket.BackupError, match="expected 5 columns"):
        manifests.read_list(line, 5)


@pytest.mark.parametrize(
    ("stores", "named", "lines"),
    [
        ({}, {}, ["tracking mlflow b7e2c1a4d9f3", "auth mlflow_auth f1a2b3c4d5e6"]),
        # Restored under another name than it had.
        ({}, {"tracking": "other"}, ["tracking other b7e2c1a4d9f3", "auth mlflow_auth f1a2b3c4d5e6"]),
        # The users' database was empty: it becomes empty again.
        ({"auth": None}, {}, ["tracking mlflow b7e2c1a4d9f3", "auth mlflow_auth -"]),
        # A registry's database of later is left alone.
        ({}, {"registry": "reg"}, ["tracking mlflow b7e2c1a4d9f3", "auth mlflow_auth f1a2b3c4d5e6"]),
        # Two stores in one database are restored once, and a store that was empty does not empty the other.
        ({"auth": dump()}, {"auth": "mlflow"}, ["tracking mlflow b7e2c1a4d9f3"]),
        ({"auth": None}, {"auth": "mlflow"}, ["tracking mlflow b7e2c1a4d9f3"]),
    ],
)
def test_what_is_restored_where(stores, named, lines):
    kept = {name: entry for name, entry in {**manifest()["stores"], **stores}.items() if entry}
    found = manifests.restore_list({"stores": kept}, targets(**named)).splitlines()
    assert [f"{store} {name} {revision}" for store, _, _, name, _, revision in (x.split("\t") for x in found)] == lines


# -- the manifest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"environment": "prod"}, "is of environment 'prod'; expected 'dev'"),
        ({"id": "20250101T000000Z"}, "is of id '20250101T000000Z'"),
        ({"stores": {}}, "is not of the stores tracking, registry, auth"),
        ({"stores": []}, "is not of the stores tracking, registry, auth"),
        ({"stores": {"tracking": dump(), "../x": dump()}}, "is not of the stores tracking, registry, auth"),
        ({"stores": {"tracking": {"database": "mlflow"}}}, "lacks database, revision, bytes or sha256 of the tracking"),
        ({"stores": {"tracking": dump(bytes="7")}}, "lacks database, revision, bytes or sha256 of the tracking"),
        ({"stores": {"tracking": dump(revision="x\tdb\t1")}}, r"has 'x\tdb\t1' as the revision"),
        ({"objects": None}, "has no list of objects"),
    ],
)
def test_a_manifest_that_is_not_this_backups_is_refused(change, words):
    problem = manifests.manifest_problem(manifest(**change), "dev", ID)
    assert words in problem
    assert bool(problem) == bool(change)


@pytest.mark.parametrize(
    ("stores", "named", "words"),
    [
        ({}, {}, ""),
        ({}, {"tracking": "a", "auth": "b"}, ""),
        ({}, {"registry": "reg"}, ""),
        ({"registry": dump("reg")}, {}, "the inventory names none; expected mlflow_database_registry_name: reg"),
        ({"registry": dump("reg")}, {"registry": "new"}, ""),
        ({"auth": dump()}, {}, "are in one database, in the inventory in two"),
        ({}, {"auth": "mlflow"}, "are in two databases, in the inventory in one"),
        ({"auth": dump()}, {"tracking": "x", "auth": "x"}, ""),
    ],
)
def test_a_backup_of_other_databases_is_refused(stores, named, words):
    known = manifest(stores={**manifest()["stores"], **stores})
    if not words:
        manifests.check_targets(known, targets(**named))
    else:
        with pytest.raises(bucket.BackupError, match=words) as caught:
            manifests.check_targets(known, targets(**named))
        assert caught.value.code == bucket.Exit.REFUSED


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("ghcr.io/mlflow/mlflow:v3.16.0-full", "3.16.0"),
        ("localhost/mlflow:3.17.2", "3.17.2"),
        ("registry:5000/mlflow:3.18.0rc1", "3.18.0rc1"),
        ("registry:5000/mlflow", None),
        ("mlflow@sha256:0123", None),
    ],
)
def test_the_release_of_before_is_read_from_the_image(image, version):
    assert manifests.version_of([{"kind": "ConfigMap"}, deployment(image)]) == version


def test_without_a_deployment_the_release_of_before_is_unknown():
    assert manifests.version_of([]) is None


def test_a_backup_without_a_manifest_is_listed_as_incomplete():
    assert manifests.summary(ID, None) == {"id": ID, "complete": False}
    listed = manifests.summary(ID, manifest())
    assert (listed["complete"], listed["bytes"]) == (True, 14)
    lines = filters.backup_lines([listed, manifests.summary(ID, None)])
    assert "14 bytes" in lines[0]
    assert "auth f1a2b3c4d5e6, tracking b7e2c1a4d9f3" in lines[0]
    assert "3.16.0" in lines[0]
    assert "incomplete" in lines[1]
    assert filters.backup_lines([]) == ["none"]


# -- the program ------------------------------------------------------------------------------------------------------


def run(*arguments: str, **environment: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, FILES / "backup.py", *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("arguments", [(), ("store", ID), ("show",), ("fetch",), ("restore", ID), ("list", "x")])
def test_other_arguments_are_refused(arguments):
    code, report = run(*arguments)
    assert code == report["exit_code"] == bucket.Exit.USAGE
    assert report["error"].startswith("usage: ")
    assert report["changed"] is False


@pytest.mark.parametrize(
    "backup_id", ["", "latest", "../20261125T134500Z-3f2a", "20261125T134500Z", f"{ID}\n", f"{ID}/x"]
)
def test_what_is_no_id_is_refused(backup_id):
    code, report = run("show", backup_id)
    assert code == bucket.Exit.USAGE
    assert "mlflow_backup_id: expected an id like 20261125T134500Z-3f2a" in report["error"]


def test_what_is_missing_in_the_environment_is_named():
    assert "MLFLOW_BACKUP_BUCKET: expected a value" in run("list")[1]["error"]


class Answer(Exception):
    """What boto3 raises for an answer of the server: it has a response."""

    def __init__(self, code: str, status: int = 400):
        super().__init__(code)
        self.response = {"Error": {"Code": code, "Message": "said"}, "ResponseMetadata": {"HTTPStatusCode": status}}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Answer("AccessDenied", 403), bucket.Exit.ACCESS, "access key key-1 may not do that in bucket backups"),
        (Answer("InvalidAccessKeyId", 403), bucket.Exit.ACCESS, "there is no access key key-1"),
        (Answer("SignatureDoesNotMatch", 403), bucket.Exit.ACCESS, "the secret key of access key key-1 is wrong"),
        (Answer("NoSuchBucket", 404), bucket.Exit.REFUSED, "there is no bucket backups"),
        (Answer("RequestTimeTooSkewed", 403), bucket.Exit.RETRYABLE, "clocks"),
        (Answer("SlowDown", 503), bucket.Exit.RETRYABLE, "said (SlowDown)"),
        (Answer("TooManyRequests", 429), bucket.Exit.RETRYABLE, "said (TooManyRequests)"),
        (Answer("SomethingNew", 400), bucket.Exit.REFUSED, "said (SomethingNew)"),
        (ConnectionError("no route"), bucket.Exit.RETRYABLE, "ConnectionError: no route"),
    ],
)
def test_errors_of_the_server_are_told_apart(error, code, words):
    explained = bucket.explained(error, "listing at http://minio:9000", "backups", "key-1")
    assert explained.code == code
    assert words in str(explained)
    assert str(explained).startswith("listing at http://minio:9000 failed: ")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"date": "Wed, 25 Nov 2026 13:45:07 GMT"}, "2026-11-25T13:45:07Z"),
        ({"date": "yesterday"}, None),
        ({}, None),
    ],
)
def test_the_servers_clock_is_read_from_its_answer(headers, expected):
    assert bucket.server_time(headers) == expected


# -- the role's filters -----------------------------------------------------------------------------------------------

NAMES = ["ConfigMap mlflow-config-dev", "Deployment mlflow-dev"]


def test_objects_are_kept_as_they_can_be_applied_again():
    live = deployment(
        uid="1",
        resourceVersion="2",
        generation=3,
        creationTimestamp="x",
        managedFields=[],
        labels={"a": "b"},
        annotations={"deployment.kubernetes.io/revision": "4", "kept": "yes"},
    )
    live["status"] = {"replicas": 2}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mlflow-config-dev"}, "data": {"A": "1"}}
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mlflow-schema-dev"}}
    kept = filters.kept_objects([live, other, config], names=NAMES)
    assert kept == [config, deployment(labels={"a": "b"}, annotations={"kept": "yes"})]
    assert live["status"] == {"replicas": 2}
    assert filters.kept_objects([], names=NAMES) == []


@pytest.mark.parametrize(("annotation", "replicas"), [("3", 3), (None, 1)])
def test_stopped_servers_are_kept_with_the_replicas_they_had(annotation, replicas):
    annotations = {filters.REPLICAS_BEFORE: annotation} if annotation else {}
    live = deployment(replicas=0, annotations=annotations)
    (kept,) = filters.kept_objects([live], names=NAMES)
    assert kept == deployment(replicas=replicas)
    assert live == deployment(replicas=0, annotations={filters.REPLICAS_BEFORE: annotation} if annotation else {})


def test_running_servers_are_kept_with_the_replicas_they_have():
    (kept,) = filters.kept_objects([deployment(annotations={filters.REPLICAS_BEFORE: "7"})], names=NAMES)
    assert kept == deployment(replicas=2)


@pytest.mark.parametrize(
    ("item", "names"),
    [
        (deployment(), []),
        (deployment(namespace="kube-system"), ["Deployment mlflow-dev"]),
        (deployment(name="other"), ["Deployment other"]),
        ({**deployment(), "kind": "DaemonSet"}, ["DaemonSet mlflow-dev"]),
        ({**deployment(), "apiVersion": "evil/v1"}, ["Deployment mlflow-dev"]),
        ({"kind": "ClusterRoleBinding", "metadata": {"name": "x"}}, ["ClusterRoleBinding x"]),
    ],
)
def test_objects_that_are_not_the_environments_are_found(item, names):
    assert filters.unexpected_objects([item], names=NAMES, namespace="mlflow-dev") == names


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"mlflow_backup_bucket": "mlflow"}, "mlflow_backup_bucket is 'mlflow', the bucket of the artifacts"),
        ({"mlflow_backup_bucket": "mlflow", "mlflow_backup_endpoint": "http://other"}, None),
        ({"mlflow_backup_bucket": ""}, "mlflow_backup_bucket is an empty text"),
        ({"mlflow_backup_scratch_size": 0}, "mlflow_backup_scratch_size is 0; expected a number from 1 on"),
        ({"mlflow_backup_restore_timeout": -1}, "mlflow_backup_restore_timeout is -1"),
        ({"mlflow_backup_keep_days": 0}, None),
        ({"mlflow_backup_keep_days": -1}, "mlflow_backup_keep_days is -1; expected a number from 0 on"),
        ({"mlflow_backup_keep_newest": 0}, "mlflow_backup_keep_newest is 0; expected a number from 1 on"),
        ({"mlflow_backup_timeout": 86401}, "mlflow_backup_timeout is 86401; expected at most 86400"),
        ({"mlflow_backup_schedule": "30 2 * * *"}, None),
        ({"mlflow_backup_schedule": "@daily"}, "mlflow_backup_schedule is '@daily'; expected five fields of cron"),
    ],
)
def test_settings_that_cannot_work_are_named(change, words):
    settings = {
        "mlflow_backup_keep_days": 30,
        "mlflow_backup_keep_newest": 5,
        "mlflow_backup_schedule": "",
        "mlflow_backup_timeout": 3600,
        "mlflow_backup_endpoint": "http://minio",
        "mlflow_backup_bucket": "mlflow-backups",
        "mlflow_backup_postgres_image": "postgres:17",
        "mlflow_backup_scratch_size": 10,
        "mlflow_backup_restore_timeout": 10,
    }
    problems = filters.backup_problems(
        {**settings, **change}, artifacts_endpoint="http://minio", artifacts_bucket="mlflow"
    )
    assert [words in problem for problem in problems] == ([True] if words else [])


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes_are_for_people(count, words):
    assert filters.size(count) == words


def test_a_plan_says_what_becomes_of_each_database_and_of_the_servers():
    text = "\n".join(filters.plan(manifest(), databases={"tracking": "new", "registry": "reg", "auth": "mlflow_auth"}))
    assert "database new (then mlflow): replaced by revision b7e2c1a4d9f3" in text
    assert "database reg: stays as it is" in text
    assert "database mlflow_auth: replaced by revision f1a2b3c4d5e6" in text
    assert "servers: ghcr.io/mlflow/mlflow:v3.16.0-full again" in text
    less = manifest(stores={"tracking": dump()}, objects=[])
    text = "\n".join(filters.plan(less, databases={"tracking": "mlflow", "auth": "mlflow_auth"}))
    assert "database mlflow_auth: emptied" in text
    assert "servers: none" in text


@pytest.mark.parametrize(
    ("image", "reminder"), [("mlflow:3.17.2", True), ("ghcr.io/mlflow/mlflow:v3.16.0-full", False)]
)
def test_a_summary_reminds_of_the_inventorys_image(image, reminder):
    text = "\n".join(filters.restore_summary(manifest(), image=image, stopped=100.0, finished=107.6))
    assert ("set mlflow_environment_image to ghcr.io/mlflow/mlflow:v3.16.0-full" in text) is reminder
    assert "without service: 8 s" in text


def test_a_summary_without_servers_says_so():
    text = "\n".join(filters.restore_summary(manifest(objects=[]), image="mlflow:3.17.2", stopped=100.0, finished=0))
    assert "servers: none" in text
    assert "without service" not in text
