"""Backups while the servers go on, with the artifacts, and what of them is kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from typing import Any

import pytest
from conftest import Cluster, folded, mlflow_client, play, request, wait_until

ENVIRONMENT = os.environ.get("MLFLOW_TEST_ENVIRONMENT", "dev")
NAMESPACE = f"mlflow-{ENVIRONMENT}"
BUCKET = "mlflow-backups"
LOG = """
import os
mlflow.set_experiment("backup")
answer = []
for number in range(3):
    with mlflow.start_run() as run:
        mlflow.log_metric("loss", number)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "data.bin")
            # One comes in parts.
            path.write_bytes(os.urandom(10 << 20) if number == 0 else b"x" * number)
            mlflow.log_artifact(str(path))
        answer.append(run.info.run_id)
"""
LOSE = """
client = mlflow.MlflowClient()
client.rename_experiment(client.get_experiment_by_name("backup").experiment_id, "lost")
answer = client.create_experiment("later")
"""
READ = """
client = mlflow.MlflowClient()
experiments = {e.experiment_id: e.name for e in client.search_experiments()}
runs = client.search_runs(list(experiments), max_results=1000)
answer = {
    "experiments": experiments,
    "runs": {run.info.run_id: [run.data.metrics, run.data.params, run.data.tags] for run in runs},
}
"""


def artifacts(cluster: Cluster) -> dict[str, str]:
    """The hash of each artifact by its key."""
    store = cluster.object_store(ENVIRONMENT)
    bucket = cluster.config(ENVIRONMENT)["MLFLOW_ARTIFACTS_DESTINATION"].removeprefix("s3://").strip("/")
    return {
        item.object_name: hashlib.sha256(store.get_object(bucket, item.object_name).read()).hexdigest()
        for item in store.list_objects(bucket, recursive=True)
    }


def contents(cluster: Cluster) -> dict[str, Any]:
    """What a client sees, and the artifacts."""
    return mlflow_client(ENVIRONMENT, cluster.secrets(ENVIRONMENT), READ) | {"artifacts": artifacts(cluster)}


def kept(cluster: Cluster) -> list[str]:
    """The names of all that stands in the backups' bucket."""
    return [item.object_name for item in cluster.object_store(ENVIRONMENT).list_objects(BUCKET, recursive=True)]


def manifest(cluster: Cluster, backup: str) -> dict[str, Any]:
    name = f"{ENVIRONMENT}/{backup}/manifest.json"
    return json.loads(cluster.object_store(ENVIRONMENT).get_object(BUCKET, name).read())


@pytest.fixture(scope="module")
def made(cluster: Cluster) -> tuple[str, str, dict[str, Any]]:
    """The id of a backup, what its run said, and what there was then."""
    mlflow_client(ENVIRONMENT, cluster.secrets(ENVIRONMENT), LOG)
    before = contents(cluster)
    done = play("playbooks/backup.yml", ENVIRONMENT)
    assert done.status == 0, done.output
    print(f"backup.yml: {done.seconds:.0f} s")
    return re.search(r"backup (\S+): ", done.output)[1], folded(done.output), before


def test_a_backup_is_checked_and_says_what_it_has(cluster: Cluster, made: tuple) -> None:
    backup, output, before = made
    count = len(before["artifacts"])
    assert re.search(rf"backup {backup}: \d+ bytes of databases, \d+ tables, \d+ rows, {count} artifacts of", output)
    assert "restored for a trial and counted" in output
    found = manifest(cluster, backup)
    assert found["checked"] is True
    assert found["stores"]["tracking"]["rows"]["public.runs"] >= 3
    assert found["artifacts"]["objects"] == count
    assert cluster.secrets(ENVIRONMENT)["MLFLOW_CRYPTO_KEK_PASSPHRASE"] not in json.dumps(found)


def test_a_restore_brings_back_databases_and_artifacts(cluster: Cluster, made: tuple) -> None:
    backup, _, before = made
    mlflow_client(ENVIRONMENT, cluster.secrets(ENVIRONMENT), LOSE)
    store, bucket = cluster.object_store(ENVIRONMENT), "mlflow"
    for name in before["artifacts"]:
        store.remove_object(bucket, name)
    changed = next(iter(before["artifacts"]))
    store.put_object(bucket, changed, io.BytesIO(b"another one"), 11)
    given = ("-e", f"mlflow_backup_id={backup}", "-e", f"mlflow_backup_confirm_overwrite={ENVIRONMENT}")
    done = play("playbooks/restore.yml", ENVIRONMENT, args=given)
    assert done.status == 0, done.output
    print(f"restore.yml: {done.seconds:.0f} s")
    count = len(before["artifacts"])
    assert f"artifacts: {count} of {count} brought back" in folded(done.output)
    password = cluster.secrets(ENVIRONMENT)["MLFLOW_AUTH_ADMIN_PASSWORD"]
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    wait_until(lambda: request(ENVIRONMENT, path, password=password).status == 200, 60, "the servers answer")
    assert contents(cluster) == before


def test_what_was_cut_off_is_pruned_and_a_check_only_tells(cluster: Cluster, made: tuple) -> None:
    cut = f"{ENVIRONMENT}/20200102T000000Z-0000/tracking.dump"
    orphan = f"{ENVIRONMENT}/artifacts/{'0' * 64}"
    store = cluster.object_store(ENVIRONMENT)
    for name in (cut, orphan):
        store.put_object(BUCKET, name, io.BytesIO(b"half"), 4)
    before = kept(cluster)
    checked = play("playbooks/backup.yml", ENVIRONMENT, args=("--check",))
    assert checked.status == 0, checked.output
    assert "A check runs no Job: a run would dump mlflow and mlflow_auth and copy the artifacts" in folded(
        checked.output
    )
    assert "would be deleted: 20200102T000000Z-0000, incomplete: it was cut off" in folded(checked.output)
    assert kept(cluster) == before
    pruned = play("playbooks/backup.yml", ENVIRONMENT, args=("--tags", "mlflow_backup_prune"))
    assert pruned.status == 0, pruned.output
    assert f"kept: {made[0]}, 0 days old" in folded(pruned.output)
    assert "deleted: 1 copies of artifacts that no backup has any more" in folded(pruned.output)
    old = (f"{ENVIRONMENT}/2020", orphan)
    assert kept(cluster) == [name for name in before if not name.startswith(old)]


def test_what_cannot_work_is_refused(cluster: Cluster) -> None:
    done = play("playbooks/backup.yml", ENVIRONMENT, args=("-e", "mlflow_backup_schedule=@daily"))
    assert done.status != 0
    assert "mlflow_backup_schedule is '@daily'; expected five fields of cron" in folded(done.output)
