"""The bucket and its key: on the environment's MinIO, and on an S3 server without MinIO's administration."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import minio
import minio.credentials
import pytest
from ansible.module_utils.testing import patch_module_args
from conftest import MINIO_NODE_PORTS, ROOT, Cluster, folded, s3, site, wait_until
from minio.commonconfig import ENABLED, Filter
from minio.error import S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.versioningconfig import SUSPENDED, VersioningConfig
from processes import built, free_port

sys.path.insert(0, str(ROOT / "library"))

ENVIRONMENT = "dev"
OTHER = "not-for-mlflow"
BODY = b"somebody else's"


def ensure(endpoint: str, *, check_mode: bool = False, **options: Any) -> dict[str, Any]:
    """Run library/mlflow_bucket; its result."""
    arguments = {"endpoint": endpoint, "reach": "direct", "_ansible_check_mode": check_mode, **options}
    output = io.StringIO()
    with patch_module_args(arguments), contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        importlib.import_module("mlflow_bucket").main()
    return json.loads(output.getvalue())


def put(store: minio.Minio, bucket: str, name: str, body: bytes = BODY) -> None:
    """Write an object."""
    store.put_object(bucket, name, io.BytesIO(body), len(body))


def refusal(function: Any, *arguments: Any, **options: Any) -> str:
    """S3's code of the refusal; empty when there was none."""
    try:
        answer = function(*arguments, **options)
        # A listing asks when it is read.
        if isinstance(answer, Iterator):
            list(answer)
    except S3Error as error:
        return error.code
    return ""


def refusals(store: minio.Minio, bucket: str) -> dict[str, str]:
    """What a key is answered to everything that there is to do with a bucket."""
    return {
        "list": refusal(store.list_objects, bucket, recursive=True),
        "get": refusal(store.get_object, bucket, "there"),
        "put": refusal(put, store, bucket, "new"),
        "overwrite": refusal(put, store, bucket, "there"),
        "delete": refusal(store.remove_object, bucket, "there"),
        "versions": refusal(store.get_bucket_versioning, bucket),
    }


@pytest.fixture(scope="module")
def admin(cluster: Cluster) -> minio.Minio:
    """MinIO's administrator."""
    return cluster.object_store(ENVIRONMENT)


@pytest.fixture
def other_bucket(admin: minio.Minio) -> Iterator[str]:
    """A bucket of somebody else, with an object in it."""
    admin.make_bucket(OTHER)
    put(admin, OTHER, "there")
    yield OTHER
    assert admin.get_object(OTHER, "there").read() == BODY
    assert [item.object_name for item in admin.list_objects(OTHER)] == ["there"]
    admin.remove_object(OTHER, "there")
    admin.remove_bucket(OTHER)


def test_mlflows_key_reaches_its_bucket_and_nothing_else(
    cluster: Cluster, admin: minio.Minio, other_bucket: str
) -> None:
    secrets = cluster.secrets(ENVIRONMENT)
    store = s3(ENVIRONMENT, secrets["AWS_ACCESS_KEY_ID"], secrets["AWS_SECRET_ACCESS_KEY"])
    put(store, "mlflow", "there")
    assert set(refusals(store, "mlflow").values()) == {""}
    store.remove_object("mlflow", "new")
    for bucket in (other_bucket, "mlflow-backups", "no-such-bucket"):
        assert set(refusals(store, bucket).values()) == {"AccessDenied"}, bucket
    assert refusal(store.list_buckets) == "AccessDenied"
    for function, arguments in (
        (store.make_bucket, ["made-by-mlflow"]),
        (store.remove_bucket, ["mlflow"]),
        (store.set_bucket_versioning, ["mlflow", VersioningConfig(SUSPENDED)]),
        (store.delete_bucket_lifecycle, ["mlflow"]),
        (store.set_bucket_policy, ["mlflow", "{}"]),
        (store.get_bucket_policy, ["mlflow"]),
    ):
        assert refusal(function, *arguments) == "AccessDenied", function.__name__
    # It can delete an object, and no older version of one.
    [version] = [
        item.version_id
        for item in admin.list_objects("mlflow", prefix="there", include_version=True)
        if not item.is_delete_marker
    ][:1]
    assert refusal(store.remove_object, "mlflow", "there", version) == "AccessDenied"


def test_somebody_without_a_key_reaches_nothing(other_bucket: str) -> None:
    nobody = s3(ENVIRONMENT, "", "")
    for bucket in ("mlflow", "mlflow-backups", other_bucket, "no-such-bucket"):
        assert set(refusals(nobody, bucket).values()) == {"AccessDenied"}, bucket
    assert refusal(nobody.list_buckets) == "AccessDenied"


def settings(admin: minio.Minio) -> dict[str, Any]:
    """What is set on MLflow's bucket."""
    lifecycle = admin.get_bucket_lifecycle("mlflow")
    return {
        "versioning": admin.get_bucket_versioning("mlflow").status,
        "rules": sorted(str(rule) for rule in (lifecycle.rules if lifecycle else [])),
    }


def test_the_buckets_settings_are_restored_and_the_rules_of_others_kept(admin: minio.Minio) -> None:
    theirs = Rule(ENABLED, rule_filter=Filter(prefix="tmp/"), rule_id="theirs", expiration=Expiration(days=3))
    right, lifecycle = settings(admin), admin.get_bucket_lifecycle("mlflow")
    assert right["versioning"] == "Enabled"
    assert "noncurrent_days=90" in right["rules"][0]
    only = ("--tags", "mlflow_object_store")
    try:
        admin.set_bucket_versioning("mlflow", VersioningConfig(SUSPENDED))
        admin.set_bucket_lifecycle("mlflow", LifecycleConfig([theirs]))
        damaged = settings(admin)
        dry = site(ENVIRONMENT, args=(*only, "--check", "--diff"))
        assert (dry.status, dry.changed) == (0, 1), dry.output
        assert settings(admin) == damaged
        for words in ("versioning: enabled", "lifecycle rule ansible-mlflow-expire-versions"):
            assert words in dry.output
        done = site(ENVIRONMENT, args=only)
        assert (done.status, done.changed) == (0, 1), done.output
        assert "could not be done" not in done.output
        assert settings(admin) == {**right, "rules": sorted([*right["rules"], *damaged["rules"]])}
        again = site(ENVIRONMENT, args=only)
        assert (again.status, again.changed) == (0, 0), again.output
    finally:
        admin.set_bucket_versioning("mlflow", VersioningConfig(ENABLED))
        admin.set_bucket_lifecycle("mlflow", lifecycle)


def test_a_changed_secret_is_applied_and_the_old_one_is_refused_at_once(cluster: Cluster, admin: minio.Minio) -> None:
    credentials = cluster.secret("pgsql", f"minio-{ENVIRONMENT}-admin")
    endpoint = f"http://localhost:{MINIO_NODE_PORTS[ENVIRONMENT]}"
    options = {
        "bucket": "rotated",
        "access_key": "rotated",
        "admin_access_key": credentials["access_key"],
        "admin_secret_key": credentials["secret_key"],
    }
    secrets = ["p%41&x/y@z#1", "a$(PGHOST)b \"c' |d=\\", "x" * 64]
    try:
        for old, new in zip([None, *secrets], secrets, strict=False):
            would = ensure(endpoint, check_mode=True, secret_key=new, **options)
            done = ensure(endpoint, secret_key=new, **options)
            again = ensure(endpoint, secret_key=new, **options)
            assert would["changes"] == done["changes"]
            assert (again["changed"], again["changes"]) == (False, [])
            assert json.dumps(new)[1:-1] not in json.dumps([would, done])
            assert refusal(s3(ENVIRONMENT, "rotated", new).list_objects, "rotated", recursive=True) == ""
            if old:
                assert done["changes"] == ["set the secret key of access key rotated"]
                assert (
                    refusal(s3(ENVIRONMENT, "rotated", old).list_objects, "rotated", recursive=True)
                    == "SignatureDoesNotMatch"
                )
    finally:
        administration = minio.MinioAdmin(
            endpoint=f"localhost:{MINIO_NODE_PORTS[ENVIRONMENT]}",
            credentials=minio.credentials.StaticProvider(credentials["access_key"], credentials["secret_key"]),
            secure=False,
        )
        administration.user_remove("rotated")
        administration.policy_remove("rotated-rotated")
        admin.remove_bucket("rotated")


def test_another_bucket_than_the_experiments_is_refused_with_their_number(cluster: Cluster, admin: minio.Minio) -> None:
    with cluster.database(ENVIRONMENT, "mlflow") as connection:
        [count] = connection.execute(
            "SELECT count(*) FROM experiments "
            "WHERE artifact_location IN ('s3://mlflow/' || experiment_id, 'mlflow-artifacts:/' || experiment_id)"
        ).fetchone()
        connection.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, workspace) "
            "VALUES (987654, 'somewhere of its own', 's3://elsewhere/of/mine', 'active', 'default') "
            "ON CONFLICT DO NOTHING"
        )
    assert count > 0
    only = ("--tags", "mlflow_database,mlflow_object_store")
    other = ("-e", "mlflow_object_store_bucket=another", *only)
    try:
        refused = site(ENVIRONMENT, args=other)
        assert refused.status != 0
        words = f"the artifacts of {count} experiments in the database are elsewhere: s3://mlflow ({count})"
        assert words in folded(refused.output)
        assert refused.changed == 0
        assert not admin.bucket_exists("another")
    finally:
        with cluster.database(ENVIRONMENT, "mlflow") as connection:
            connection.execute("DELETE FROM experiments WHERE experiment_id = 987654")


# -- An S3 server without MinIO's administration -----------------------------------------------------------------------

ROOT_KEY = {"ROOT_ACCESS_KEY_ID": "root", "ROOT_SECRET_ACCESS_KEY": "root-secret"}


@pytest.fixture(scope="module")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A versitygw with the keys mlflow and other; its endpoint."""
    program = built("versitygw") / "versitygw"
    folders = {name: tmp_path_factory.mktemp(name) for name in ("data", "metadata", "versions", "users")}
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    storage = ["--sidecar", folders["metadata"], "--versioning-dir", folders["versions"], folders["data"]]
    with subprocess.Popen(
        [program, "--quiet", "--port", f"127.0.0.1:{port}", "--iam-dir", folders["users"], "posix", *storage],
        env={"PATH": os.environ["PATH"], **ROOT_KEY},
        stdout=subprocess.DEVNULL,
    ) as server:
        try:
            wait_until(lambda: answers(port), 60, "versitygw answers")
            for user in ("mlflow", "other"):
                subprocess.run(
                    [program, "admin", "create-user", "-a", user, "-s", f"secret-of-{user}", "-r", "userplus"],
                    env={
                        "ADMIN_ACCESS_KEY_ID": ROOT_KEY["ROOT_ACCESS_KEY_ID"],
                        "ADMIN_SECRET_ACCESS_KEY": ROOT_KEY["ROOT_SECRET_ACCESS_KEY"],
                        "ADMIN_ENDPOINT_URL": endpoint,
                    },
                    stdout=subprocess.DEVNULL,
                    timeout=30,
                    check=True,
                )
            yield endpoint
        finally:
            server.kill()


def answers(port: int) -> bool:
    """Whether something listens at a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


WANTED = {"bucket": "mlflow", "versioning": True, "abort_uploads_after_days": 7, "expire_versions_after_days": 90}


def test_any_s3_server_will_do_and_what_it_cannot_do_is_said(versitygw: str) -> None:
    options = {**WANTED, "quota": "1Gi", "access_key": "mlflow", "secret_key": "secret-of-mlflow"}
    made = ensure(versitygw, **options)
    assert made["changes"] == [
        "created bucket mlflow",
        "let bucket mlflow keep what is overwritten as older versions",
    ]
    again = ensure(versitygw, **options)
    assert (again["changed"], again["changes"]) == (False, [])
    for result in (made, again):
        assert result["not_done"] == [
            "the lifecycle rules: the server cannot (NotImplemented)",
            "the quota: it needs the key of MinIO's administrator",
        ]
        assert "could not be done: the lifecycle rules" in json.dumps(result["warnings"])
    store = minio.Minio(
        endpoint=versitygw.removeprefix("http://"), access_key="mlflow", secret_key="secret-of-mlflow", secure=False
    )
    put(store, "mlflow", "there")
    assert store.get_object("mlflow", "there").read() == BODY


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"access_key": "other", "secret_key": "secret-of-other"},
            "access key other may not use bucket mlflow. It may",
        ),
        ({"access_key": "nobody"}, "there is no access key nobody"),
        ({"secret_key": "another-secret"}, "the secret key of access key mlflow is wrong"),
        (
            {"region": "eu-west-1"},
            "region: eu-west-1 is not the region of bucket mlflow or of this server; expected us-",
        ),
        ({"lock_days": 3}, "bucket mlflow exists without object lock"),
        ({"admin_access_key": "root", "admin_secret_key": "root-secret"}, "has no MinIO administration"),
    ],
    ids=str,
)
def test_what_it_refuses_is_told_in_one_line_and_makes_no_bucket(
    versitygw: str, options: dict[str, Any], words: str
) -> None:
    owner = {"access_key": "mlflow", "secret_key": "secret-of-mlflow"}
    ensure(versitygw, bucket="mlflow", **owner)
    result = ensure(versitygw, **WANTED, **(owner | options))
    assert result["failed"]
    assert words in result["msg"]
    assert "\n" not in result["msg"]
