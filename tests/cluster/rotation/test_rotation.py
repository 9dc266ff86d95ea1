"""Every password and key changes while somebody logs, also where a run breaks off, and the former ones are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Cluster, folded, play
from rotating import (
    ENVIRONMENT,
    HOOK,
    HOOK_SECRET,
    REPLICAS,
    SECRET_NAME,
    SECRET_VALUE,
    all_secrets,
    clear,
    left_over,
    logs_in,
    plant,
    read_encrypted,
    rotate,
    rotate_and_die,
    somebody_logs,
)

ENCRYPTED = {"secrets": {SECRET_NAME: {"api_key": SECRET_VALUE}}, "hooks": {HOOK: HOOK_SECRET}}
WORKS = dict.fromkeys(("administrator", "PostgreSQL", "PostgreSQL's owner", "bucket", "backups"), True)
ADMINISTRATOR = "Ensure the administrator, the users, the roles and their permissions"
NOTHING_WORKS = dict.fromkeys(WORKS, False)


@pytest.fixture(scope="module", autouse=True)
def two_replicas() -> Iterator[None]:
    run = play("playbooks/deploy.yml", ENVIRONMENT, args=(*REPLICAS, "--tags", "mlflow_server"))
    assert run.status == 0, run.output
    yield
    run = play("playbooks/deploy.yml", ENVIRONMENT, args=("--tags", "mlflow_server"))
    assert run.status == 0, run.output


@pytest.fixture(autouse=True)
def planted(cluster: Cluster) -> Iterator[None]:
    """A user, and what is encrypted."""
    plant(cluster)
    yield
    clear(cluster)


def rotated(cluster: Cluster, former: dict[str, str]) -> None:
    """Everything has another value, the former ones are refused, and nothing is left over."""
    present = all_secrets(cluster)
    assert set(present) == set(former)
    assert [key for key in former if present[key] == former[key]] == []
    assert logs_in(cluster, present) == WORKS
    assert logs_in(cluster, former) == NOTHING_WORKS
    assert read_encrypted(cluster) == ENCRYPTED
    assert left_over(cluster) == []
    assert "://mlflow@" in cluster.config(ENVIRONMENT)["MLFLOW_BACKEND_STORE_URI"]


def test_everything_is_rotated_while_somebody_logs_also_by_a_run_that_broke_off(
    cluster: Cluster, tmp_path: Path
) -> None:
    former = all_secrets(cluster)
    with somebody_logs(cluster):
        # PostgreSQL, MinIO and perhaps MLflow know the new ones, and the servers have nothing yet.
        rotate_and_die(("all",), ADMINISTRATOR, tmp_path / "log", after=0.7)
        assert f"mlflow-rotation-{ENVIRONMENT}" in left_over(cluster)
        run = rotate("all", args=("-vvv", "--diff"))
    assert run.status == 0, run.output
    print(f"the second run took {run.seconds:.0f} s")
    for key, value in [*former.items(), *all_secrets(cluster).items()]:
        # Those are names.
        assert key.endswith("ACCESS_KEY_ID") or value not in run.output, key
    rotated(cluster, former)


def test_what_cannot_be_rotated_is_refused_before_anything_changes(cluster: Cluster) -> None:
    before = cluster.resource_versions(ENVIRONMENT)
    given = {"flask_secret_key": all_secrets(cluster)["MLFLOW_FLASK_SERVER_SECRET_KEY"]}
    run = rotate("flask_secret_key", args=("-e", json.dumps({"mlflow_environment_secrets": given})))
    assert run.status != 0
    assert "flask_secret_key is the one that the environment has already" in folded(run.output)
    assert cluster.resource_versions(ENVIRONMENT) == before


@pytest.mark.full
@pytest.mark.parametrize(
    "task",
    [
        "Let the servers log in to PostgreSQL by a second login, with the new password",
        "Ensure PostgreSQL's roles, databases and grants",
        "Ensure the bucket and its access key",
        "Run it",
        "Apply the namespace and the Secrets",
        "Apply the configuration, the Deployment and the Service",
        "Wait for the rollout",
        "Run it x 2",
        "Ensure PostgreSQL's roles, databases and grants x 2",
        "Wait for the rollout x 2",
        "Drop the second login",
        "Ensure the bucket and its access key x 2",
    ],
)
def test_a_run_that_broke_off_anywhere_is_finished_by_the_next(cluster: Cluster, tmp_path: Path, task: str) -> None:
    former = all_secrets(cluster)
    with somebody_logs(cluster):
        rotate_and_die(("all",), task, tmp_path / "log", after=0.7)
        # The second login alone is nothing that a deployment could disturb.
        is_kept = f"mlflow-rotation-{ENVIRONMENT}" in left_over(cluster)
        between = play("playbooks/deploy.yml", ENVIRONMENT, args=REPLICAS)
        run = rotate("all")
    assert ("has not been finished" in folded(between.output)) == is_kept, between.output
    assert (between.status != 0) == is_kept, between.output
    assert run.status == 0, run.output
    rotated(cluster, former)


@pytest.mark.full
def test_a_dry_run_changes_nothing_and_a_deployment_after_a_rotation_has_nothing_to_do(cluster: Cluster) -> None:
    before = cluster.everything(ENVIRONMENT)
    dry = rotate("all", args=("--check", "--diff"))
    assert dry.status == 0, dry.output
    assert dry.changed > 5
    assert cluster.everything(ENVIRONMENT) == before
    again = play("site.yml", ENVIRONMENT, args=REPLICAS)
    assert (again.status, again.changed) == (0, 0), again.output


@pytest.mark.full
def test_each_is_rotated_alone(cluster: Cluster) -> None:
    for name, keys in (
        ("database_password", {"PGPASSWORD"}),
        ("database_migrator_password", {"MIGRATOR_PGPASSWORD"}),
        ("object_store_secret_key", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
        ("backup_access_key", {"BACKUP_AWS_ACCESS_KEY_ID", "BACKUP_AWS_SECRET_ACCESS_KEY"}),
        ("admin_password", {"MLFLOW_AUTH_ADMIN_PASSWORD"}),
        ("flask_secret_key", {"MLFLOW_FLASK_SERVER_SECRET_KEY"}),
        ("webhook_key", {"MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"}),
        ("kek_passphrase", {"MLFLOW_CRYPTO_KEK_PASSPHRASE"}),
    ):
        former = all_secrets(cluster)
        with somebody_logs(cluster):
            run = rotate(name)
        assert run.status == 0, run.output
        present = all_secrets(cluster)
        assert {key for key in former if present[key] != former[key]} == keys
        assert logs_in(cluster, present) == WORKS
        assert read_encrypted(cluster) == ENCRYPTED
        assert left_over(cluster) == []


@pytest.mark.full
def test_what_is_given_anew_is_refused_to_a_deployment_and_taken_by_a_rotation(cluster: Cluster) -> None:
    former = all_secrets(cluster)
    given = {"database_password": "a-password-that-is-given", "kek_passphrase": "a-passphrase-that-is-given"}
    secrets = ("-e", json.dumps({"mlflow_environment_secrets": given}))
    refused = play("playbooks/deploy.yml", ENVIRONMENT, args=(*REPLICAS, *secrets))
    assert refused.status != 0
    words = folded(refused.output)
    assert "database_password is another than the one that the environment runs with" in words
    assert "kek_passphrase is another than the one that the environment runs with" in words
    assert all_secrets(cluster) == former
    with somebody_logs(cluster):
        run = rotate("database_password", "kek_passphrase", args=secrets)
    assert run.status == 0, run.output
    present = all_secrets(cluster)
    assert (present["PGPASSWORD"], present["MLFLOW_CRYPTO_KEK_PASSPHRASE"]) == tuple(given.values())
    assert logs_in(cluster, present) == WORKS
    assert read_encrypted(cluster) == ENCRYPTED
    again = rotate("database_password", args=secrets)
    assert again.status != 0
    assert "database_password is the one that the environment has already" in folded(again.output)
