"""A backup of a running environment: complete or none, safe from the servers, and restored exactly or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import minio
import pytest
from conftest import DATABASE_PORTS, Cluster, Run, apply, folded, play, request, s3, wait_until

# One that an upgrade makes; those on demand are in test_on_demand.py, which make test runs too.
pytestmark = pytest.mark.full
ENVIRONMENT = os.environ.get("MLFLOW_TEST_ENVIRONMENT", "dev")
NAMESPACE = f"mlflow-{ENVIRONMENT}"
BUCKET = "mlflow-backups"
STORES = {"tracking": ("mlflow", "alembic_version"), "auth": ("mlflow_auth", "alembic_version_auth")}
# Runs as the owner of the schema, as an upgrade does.
CHANGES = {
    "mlflow": """
        SET ROLE mlflow_migrator;
        ALTER TABLE runs RENAME COLUMN name TO title;
        CREATE TABLE later (
            id serial PRIMARY KEY,
            run varchar(32) REFERENCES runs (run_uuid),
            experiment int REFERENCES experiments (experiment_id)
        );
        INSERT INTO later (experiment) SELECT experiment_id FROM experiments;
        UPDATE experiments SET name = name || ' changed';
        ALTER TABLE tags DROP COLUMN value;
        UPDATE alembic_version SET version_num = 'later';
    """,
    "mlflow_auth": """
        SET ROLE mlflow_migrator;
        UPDATE users SET password_hash = 'lost';
        ALTER TABLE users ADD COLUMN later int;
    """,
}


COLUMNS = """
    SELECT c.oid::regclass::text, relkind::text, coalesce(relacl::text, ''), (
        SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attname)
        FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
    ) FROM pg_class c WHERE relkind IN ('r', 'S') AND relnamespace = 'public'::regnamespace
"""
ROWS = {
    "r": "SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t",
    "S": "SELECT last_value, is_called FROM {}",
}


def contents(cluster: Cluster) -> dict[str, Any]:
    """Every table and sequence of the environment's databases: columns, rights, and a digest of the rows."""
    found = {}
    for name, _version in STORES.values():
        with cluster.database(ENVIRONMENT, name) as connection:
            for table, kind, rights, columns in connection.execute(COLUMNS).fetchall():
                rows = connection.execute(ROWS[kind].format(table)).fetchone()
                # The order of the grants in it tells nothing.
                found[f"{name}.{table}"] = (columns, sorted(rights.strip("{}").split(",")), *rows)
    return found


def deployment(cluster: Cluster) -> Any:
    return cluster.apps.read_namespaced_deployment(f"mlflow-{ENVIRONMENT}", NAMESPACE)


def password(cluster: Cluster) -> str:
    return cluster.secrets(ENVIRONMENT)["MLFLOW_AUTH_ADMIN_PASSWORD"]


def experiments(cluster: Cluster) -> int:
    """The status of a request that needs both databases."""
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    return request(ENVIRONMENT, path, password=password(cluster)).status


def restore(backup_id: str, confirm: str = ENVIRONMENT, *args: str) -> Run:
    given = ("-e", f"mlflow_backup_id={backup_id}", "-e", f"mlflow_backup_confirm_overwrite={confirm}")
    return play("playbooks/restore.yml", ENVIRONMENT, args=(*given, *args))


def apply_config(data: dict[str, str]) -> None:
    """Give the servers' ConfigMap other data, as a later run of Ansible would."""
    metadata = {"name": f"mlflow-config-{ENVIRONMENT}", "namespace": NAMESPACE}
    apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}])


def put(store: minio.Minio, name: str, content: bytes) -> None:
    store.put_object(BUCKET, name, io.BytesIO(content), len(content))


def back_up(cluster: Cluster, **more: str) -> Run:
    """Make a backup of the environment as it is."""
    lines = []
    host, port = f"{ENVIRONMENT}-postgres.pgsql.svc.cluster.local", DATABASE_PORTS[ENVIRONMENT]
    for store, (name, version) in STORES.items():
        with cluster.database(ENVIRONMENT, name) as connection:
            revision = connection.execute(f"SELECT version_num FROM {version}").fetchone()[0]
        lines.append(f"{store}\t{host}\t{port}\t{name}\tmlflow_migrator\t{revision}\n")
    listed = json.dumps({"dump_list": "".join(lines), **more})
    return play("tests/cluster/backup/backup.yml", ENVIRONMENT, args=("-e", listed))


@pytest.fixture(scope="module")
def backup(cluster: Cluster) -> str:
    """The id of a backup of the environment as it is."""
    done = back_up(cluster)
    assert done.status == 0, done.output
    return re.search(r"backup_id=([\w-]+)", done.output)[1]


@pytest.fixture
def untouched(cluster: Cluster) -> Iterator[None]:
    """Whatever happens in the test, every datum is as before, and the servers answer."""
    before = contents(cluster)
    yield
    assert contents(cluster) == before
    wait_until(lambda: deployment(cluster).status.ready_replicas, 120, "the servers are ready")
    wait_until(lambda: experiments(cluster) == 200, 60, "the servers answer")


@pytest.fixture
def still_served(cluster: Cluster, untouched: None) -> Iterator[None]:
    """Nobody even tried to stop the servers."""
    before = deployment(cluster).metadata.generation
    yield
    assert deployment(cluster).metadata.generation == before


def test_a_restore_brings_back_every_datum_and_the_servers(cluster: Cluster, backup: str) -> None:
    before, config = contents(cluster), cluster.config(ENVIRONMENT)
    for name, statements in CHANGES.items():
        with cluster.database(ENVIRONMENT, name) as connection:
            connection.execute(statements)
    apply_config(config | {"MLFLOW_LATER": "1"})
    cluster.apps.patch_namespaced_deployment_scale(f"mlflow-{ENVIRONMENT}", NAMESPACE, {"spec": {"replicas": 3}})
    assert contents(cluster) != before
    done = restore(backup)
    assert done.status == 0, done.output
    assert contents(cluster) == before
    assert cluster.config(ENVIRONMENT) == config
    assert deployment(cluster).spec.replicas == 1
    assert experiments(cluster) == 200


def test_a_second_restore_of_it_is_fine(cluster: Cluster, backup: str, untouched: None) -> None:
    assert restore(backup).status == 0


def test_without_a_confirmation_the_backups_are_listed(cluster: Cluster, backup: str, still_served: None) -> None:
    for done in (play("playbooks/restore.yml", ENVIRONMENT), restore(backup, "another")):
        assert done.status != 0
        assert f"-e mlflow_backup_id=ID -e mlflow_backup_confirm_overwrite={ENVIRONMENT}" in done.output
        assert re.search(rf"{backup}  \S+Z  [0-9.]+ [KM]iB  auth \w+, tracking \w+", done.output)


def test_a_dry_run_says_what_it_would_do(cluster: Cluster, backup: str, still_served: None) -> None:
    done = restore(backup, ENVIRONMENT, "--check")
    assert done.status == 0, done.output
    assert f"A check runs no Job: backup {backup} was not looked at" in folded(done.output)


@pytest.mark.parametrize("backup_id", ["latest", "20200101T000000Z-0000"])
def test_a_backup_that_is_not_there_is_refused(
    cluster: Cluster, backup: str, still_served: None, backup_id: str
) -> None:
    done = restore(backup_id)
    assert done.status != 0
    words = "expected an id like" if backup_id == "latest" else f"is not there; the newest complete ones: {backup}"
    assert words in folded(done.output)


def test_an_upload_that_was_cut_off_is_no_backup(cluster: Cluster, backup: str, still_served: None) -> None:
    put(cluster.object_store(ENVIRONMENT), f"{ENVIRONMENT}/20200102T000000Z-0000/tracking.dump", b"half")
    done = restore("20200102T000000Z-0000")
    assert done.status != 0
    assert "is incomplete: it has no manifest" in folded(done.output)


@contextmanager
def changed(cluster: Cluster, backup: str, **objects: bytes) -> Iterator[None]:
    """A backup of which somebody has changed objects, named without what follows the dot."""
    store = cluster.object_store(ENVIRONMENT)
    names = {entry: f"{ENVIRONMENT}/{backup}/{entry}.{'json' if entry == 'manifest' else 'dump'}" for entry in objects}
    good = {name: store.get_object(BUCKET, name).read() for name in names.values()}
    try:
        for entry, content in objects.items():
            put(store, names[entry], content)
        yield
    finally:
        for name, content in good.items():
            put(store, name, content)


def kept(cluster: Cluster, backup: str, name: str) -> bytes:
    return cluster.object_store(ENVIRONMENT).get_object(BUCKET, f"{ENVIRONMENT}/{backup}/{name}").read()


def test_a_dump_that_was_changed_is_not_restored(cluster: Cluster, backup: str, untouched: None) -> None:
    dump = kept(cluster, backup, "tracking.dump")
    with changed(cluster, backup, tracking=dump[:-1] + bytes([dump[-1] ^ 1])):
        done = restore(backup)
    assert done.status != 0
    assert "is not what was backed up" in folded(done.output)
    assert "nothing was restored, and the servers are started again" in folded(done.output)


def test_a_dump_that_ends_too_soon_changes_nothing(cluster: Cluster, backup: str, untouched: None) -> None:
    # It says in its manifest so, and its list of contents, which comes first, is whole: only the data end too soon.
    half = kept(cluster, backup, "tracking.dump")[:-100]
    manifest = json.loads(kept(cluster, backup, "manifest.json"))
    manifest["stores"]["tracking"] |= {"bytes": len(half), "sha256": hashlib.sha256(half).hexdigest()}
    with changed(cluster, backup, tracking=half, manifest=json.dumps(manifest).encode()):
        done = restore(backup)
    assert done.status != 0
    assert "was not restored, and is as it was: pg_restore: error: could not read" in folded(done.output)
    assert "nothing was restored, and the servers are started again" in folded(done.output)


def test_a_backup_says_to_which_moment_the_artifacts_can_be_brought_back(cluster: Cluster, backup: str) -> None:
    marker = json.loads(kept(cluster, backup, "manifest.json"))["object_store"]
    assert (marker["bucket"], marker["versioning"]) == ("mlflow", "Enabled")
    assert "why" not in marker
    assert marker["time"]


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (
            r"sed -i 's/^public.runs\t.*/public.runs\t999999/' /work/backup/tracking.rows",
            "is not what was dumped: restored, it has other rows: < public.runs 999999",
        ),
        (
            "head -c 10000 /work/backup/auth.dump > /tmp/x; cp /tmp/x /work/backup/auth.dump",
            "is not what was dumped: pg_",
        ),
        (r"sed -i 's/^\(tracking.*\t\).*/\1older/' /work/dump.list", "expected older"),
    ],
)
def test_a_dump_that_does_not_restore_is_no_backup(cluster: Cluster, tamper: str, words: str) -> None:
    before = len(list(cluster.object_store(ENVIRONMENT).list_objects(BUCKET, recursive=True)))
    done = back_up(cluster, tamper=tamper)
    assert done.status != 0
    assert words in folded(done.output)
    assert len(list(cluster.object_store(ENVIRONMENT).list_objects(BUCKET, recursive=True))) == before


def test_objects_of_others_are_not_applied(cluster: Cluster, backup: str, still_served: None) -> None:
    manifest = json.loads(kept(cluster, backup, "manifest.json"))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "kube-system"}}
    manifest["objects"].append(other)
    with changed(cluster, backup, manifest=json.dumps(manifest).encode()):
        done = restore(backup)
    assert done.status != 0
    assert "has ConfigMap x of another place or name" in folded(done.output)


def test_a_session_in_the_way_is_named_and_nothing_is_lost(cluster: Cluster, backup: str, untouched: None) -> None:
    with cluster.database(ENVIRONMENT, "mlflow") as connection, connection.transaction():
        pid = connection.execute("SELECT pg_backend_pid(), count(*) FROM runs").fetchone()[0]
        done = restore(backup)
    assert done.status != 0
    assert f"pid {pid}, user postgres" in folded(done.output)
    assert "nothing was restored, and the servers are started again" in folded(done.output)


def test_no_key_can_do_more_than_it_has_to(cluster: Cluster, backup: str) -> None:
    own = cluster.secret(NAMESPACE, f"mlflow-maintenance-{ENVIRONMENT}")
    backups = s3(ENVIRONMENT, own["BACKUP_AWS_ACCESS_KEY_ID"], own["BACKUP_AWS_SECRET_ACCESS_KEY"])
    name = f"{ENVIRONMENT}/{backup}/manifest.json"
    assert backups.stat_object(BUCKET, name).size > 0
    server = cluster.secrets(ENVIRONMENT)
    servers = s3(ENVIRONMENT, server["AWS_ACCESS_KEY_ID"], server["AWS_SECRET_ACCESS_KEY"])
    for refused in (
        lambda: backups.remove_object(BUCKET, name),
        lambda: list(backups.list_objects("mlflow")),
        lambda: servers.stat_object(BUCKET, name),
        lambda: list(servers.list_objects(BUCKET)),
    ):
        with pytest.raises(minio.error.S3Error) as caught:
            refused()
        assert caught.value.code == "AccessDenied"


def test_what_is_overwritten_in_the_bucket_is_kept(cluster: Cluster, backup: str) -> None:
    own = cluster.secret(NAMESPACE, f"mlflow-maintenance-{ENVIRONMENT}")
    backups = s3(ENVIRONMENT, own["BACKUP_AWS_ACCESS_KEY_ID"], own["BACKUP_AWS_SECRET_ACCESS_KEY"])
    name = f"{ENVIRONMENT}/20200103T000000Z-0000/tracking.dump"
    put(backups, name, b"first")
    put(backups, name, b"second")
    store = cluster.object_store(ENVIRONMENT)
    versions = list(store.list_objects(BUCKET, prefix=name, include_version=True))
    found = {store.get_object(BUCKET, name, version_id=version.version_id).read() for version in versions}
    assert found == {b"first", b"second"}
