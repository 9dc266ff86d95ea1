"""A backup of dev is restored into stg, whose users and secrets stay."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Cluster, folded, mlflow_client, play, play_and_die, request

LOG = """
mlflow.set_experiment("for-another")
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.25)
    mlflow.log_text("logged in dev", "note.txt")
answer = run.info.run_id
"""
READ = """
client = mlflow.MlflowClient()
run = client.get_run(RUN)
answer = [run.data.metrics, mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt")]
"""


@pytest.fixture(scope="module")
def run_id(cluster: Cluster) -> str:
    return mlflow_client("dev", cluster.secrets("dev"), LOG)


@pytest.fixture(scope="module")
def backup(run_id: str) -> str:
    """The id of a backup of dev."""
    run = play("playbooks/backup.yml", "dev")
    assert run.status == 0, run.output
    [found] = set(re.findall(r"backup (\d{8}T\d{6}Z-[0-9a-f]+)", run.output))
    return found


def restoring(backup: str, **more: str) -> tuple[str, ...]:
    wanted = {"mlflow_backup_id": backup, "mlflow_backup_confirm_overwrite": "stg", "mlflow_backup_source": "dev"}
    return ("-e", json.dumps(wanted | more))


def seen(cluster: Cluster, run_id: str) -> Any:
    """What a client of stg sees of dev's run."""
    return mlflow_client("stg", cluster.secrets("stg"), f"RUN = {run_id!r}\n{READ}")


def users_of_stg(cluster: Cluster) -> Any:
    password = cluster.secrets("stg")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    answer = request("stg", "/api/2.0/mlflow/users/list", password=password)
    assert answer.status == 200, answer.data
    return json.loads(answer.data)


def test_without_the_other_inventory_it_is_refused_and_nothing_changes(cluster: Cluster) -> None:
    before = cluster.everything("stg")
    run = play("playbooks/restore.yml", "stg", args=restoring("20261127T000000Z-0000"))
    assert run.status != 0
    assert "expected -i inventories/dev beside the inventory of stg" in folded(run.output)
    assert cluster.everything("stg") == before


@pytest.mark.full
def test_a_restore_that_broke_off_is_completed_by_the_next_one(
    cluster: Cluster, run_id: str, backup: str, tmp_path: Path
) -> None:
    users = users_of_stg(cluster)
    args = restoring(backup)
    play_and_die("playbooks/restore.yml", "dev", "stg", args=args, task="Replace the databases", log=tmp_path / "log")
    run = play("playbooks/restore.yml", "dev", "stg", args=args)
    assert run.status == 0, run.output
    assert seen(cluster, run_id) == [{"loss": 0.25}, "logged in dev"]
    # stg's own login still works, and nobody of dev has come along.
    assert users_of_stg(cluster) == users
    names = [secret.metadata.name for secret in cluster.core.list_namespaced_secret("mlflow-stg").items]
    assert [name for name in names if "source" in name] == []
    # The way to dev's object store, which the run that broke off has opened, is closed by a deployment.
    deployed = play("site.yml", "stg")
    assert deployed.status == 0, deployed.output
    again = play("site.yml", "stg", args=("--check",))
    assert (again.status, again.changed) == (0, 0), again.output
