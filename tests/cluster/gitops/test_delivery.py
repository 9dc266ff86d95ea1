"""Two environments through a real Argo CD, as the people who run them see it. Each test goes on from the one before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minio
import pytest
import urllib3
from conftest import CLIENT, ROOT, Cluster, ansible_environment, folded, play, request, wait_until
from delivery import NEW, OLD, Delivery, secrets, user

# What the delivery has put on Python's path.
import old_release  # isort: skip
from reading import differences, fill, read_inside, read_outside  # isort: skip

ENVIRONMENTS = ("dev", "stg")


@pytest.fixture(scope="module")
def delivery(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivery]:
    running = Delivery(tmp_path_factory.mktemp("delivery"))
    yield running
    running.end()


@pytest.fixture(scope="module")
def before(delivery: Delivery, cluster: Cluster) -> dict[str, Any]:
    """dev as somebody has it who has run MLflow 3.16.0 without this project: what its own client reads."""
    delivery.prepare("dev")
    old_release.deploy(cluster, "3.16.0")
    fill(cluster)
    return read_inside(cluster)


def serves(environment: str) -> bool:
    """Whether the environment's administrator can log in."""
    password = secrets(environment)["admin_password"]
    try:
        return request(environment, "/api/2.0/mlflow/users/current", password=password).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def image(cluster: Cluster, environment: str) -> str:
    """The image that the environment's server should have."""
    namespace = f"mlflow-{environment}"
    [server] = cluster.apps.read_namespaced_deployment(namespace, namespace).spec.template.spec.containers
    return server.image


def test_the_first_run_makes_what_argo_cd_cannot_and_says_what_is_left_to_do(
    delivery: Delivery, cluster: Cluster, before: dict[str, Any]
) -> None:
    run = delivery.run("site.yml", *ENVIRONMENTS)
    assert run.status != 0
    for environment in ENVIRONMENTS:
        assert f"there is no Application mlflow-{environment} in namespace argocd" in run.output
    files = delivery.argo.git("ls-files").splitlines()
    assert len([file for file in files if file.startswith("environments/dev/")]) == 13
    everything = "".join((delivery.argo.tree / file).read_text() for file in files)
    for environment in ENVIRONMENTS:
        values = secrets(environment)
        hidden = {name: value for name, value in values.items() if not name.endswith("access_key")}
        assert [name for name, value in hidden.items() if value in everything + run.output] == []


def test_the_rendered_tree_alone_brings_both_environments_up(delivery: Delivery, cluster: Cluster) -> None:
    commit = delivery.argo.git("rev-parse", "HEAD")
    for environment in ENVIRONMENTS:
        delivery.argo.set_up(environment)
    for environment in ENVIRONMENTS:
        delivery.argo.wait_for(environment, commit)
        wait_until(lambda environment=environment: serves(environment), 60, f"{environment} serves")


def test_the_commit_has_upgraded_what_was_there_once_and_kept_its_data(
    delivery: Delivery, cluster: Cluster, before: dict[str, Any]
) -> None:
    assert image(cluster, "dev") == NEW
    log = cluster.core.read_namespaced_pod_log("mlflow-schema-dev", "mlflow-dev", container="schema")
    report = json.loads(log.splitlines()[-1])
    assert report["changed"] is True
    assert report["backup"]["id"]
    assert len(delivery.argo.application("dev")["status"]["history"]) == 1
    assert differences(before, read_outside(cluster)) == []


def test_a_run_verifies_what_argo_cd_has_brought_and_the_next_changes_nothing(delivery: Delivery) -> None:
    before = {environment: delivery.argo.operation(environment) for environment in ENVIRONMENTS}
    commit = delivery.argo.git("rev-parse", "HEAD")
    run = delivery.run("site.yml", *ENVIRONMENTS)
    assert run.status == 0, run.output
    again = delivery.run("site.yml", *ENVIRONMENTS, args=("--skip-tags", "mlflow_verification"))
    assert (again.status, again.changed) == (0, 0), again.output
    # No diff, no commit, no sync.
    assert delivery.argo.git("rev-parse", "HEAD") == commit
    assert {environment: delivery.argo.operation(environment) for environment in ENVIRONMENTS} == before


def test_what_argo_cd_has_applied_is_what_site_yml_would_apply(delivery: Delivery) -> None:
    more = {"mlflow_environment_delivery": "push", "mlflow_environment_external_secrets_store": {}}
    args = ("--check", "--diff", "--tags", "mlflow_server")
    run = delivery.run("playbooks/deploy.yml", *ENVIRONMENTS, args=args, **more)
    assert (run.status, run.changed) == (0, 0), run.output


def test_a_dry_run_shows_what_would_be_committed_and_leaves_the_repository_alone(delivery: Delivery) -> None:
    commit = delivery.argo.git("rev-parse", "HEAD")
    args = ("--check", "--diff", "--skip-tags", "mlflow_verification")
    run = delivery.run("site.yml", "stg", args=args, mlflow_server_auth_cache_seconds=61)
    assert run.status == 0, run.output
    assert "+    auth_cache_ttl_seconds = 61" in run.output, run.output
    assert (delivery.argo.git("rev-parse", "HEAD"), delivery.argo.git("status", "--porcelain")) == (commit, "")


def test_a_change_of_one_variable_is_one_commit_one_sync_and_no_failed_request(
    delivery: Delivery, cluster: Cluster
) -> None:
    syncs = len(delivery.argo.application("stg")["status"]["history"])
    rollouts = cluster.apps.read_namespaced_deployment("mlflow-stg", "mlflow-stg").metadata.generation
    with user("stg") as answers:
        commit = delivery.deliver("stg", mlflow_server_auth_cache_seconds=61)
        delivery.argo.wait_for("stg", commit)
        wait_until(lambda: len(cluster.core.list_namespaced_pod("mlflow-stg").items) >= 2, 60, "both pods are there")
    print(f"requests by answer during the rolling change: {answers}")
    assert set(answers) == {200}
    assert answers[200] > 20
    assert len(delivery.argo.application("stg")["status"]["history"]) == syncs + 1
    assert cluster.apps.read_namespaced_deployment("mlflow-stg", "mlflow-stg").metadata.generation == rollouts + 1


def change_by_hand(cluster: Cluster, environment: str, seconds: int) -> None:
    """What somebody does at three in the morning."""
    name = f"mlflow-{environment}"
    cluster.apps.patch_namespaced_deployment(name, name, {"spec": {"progressDeadlineSeconds": seconds}})


def deadline(cluster: Cluster, environment: str) -> int:
    name = f"mlflow-{environment}"
    return cluster.apps.read_namespaced_deployment(name, name).spec.progress_deadline_seconds


@pytest.mark.full
def test_a_change_by_hand_is_healed_in_dev_and_reported_elsewhere(delivery: Delivery, cluster: Cluster) -> None:
    for environment in ENVIRONMENTS:
        assert deadline(cluster, environment) == 300
        change_by_hand(cluster, environment, 299)
    wait_until(lambda: deadline(cluster, "dev") == 300, 60, "dev is healed")
    check_that_a_change_is_reported(delivery, cluster)


def check_that_a_change_is_reported(delivery: Delivery, cluster: Cluster) -> None:
    """A run tells of what somebody has changed in stg, and leaves it; then it is as it was."""

    def sync() -> str:
        return delivery.argo.application("stg")["status"]["sync"]["status"]

    wait_until(lambda: sync() == "OutOfSync", 60, "the change in stg is seen")
    run = delivery.run("site.yml", "stg")
    assert (run.status, run.changed) == (0, 0), run.output
    assert "Changed by somebody, and left to Argo CD" in run.output
    assert deadline(cluster, "stg") == 299
    change_by_hand(cluster, "stg", 300)
    wait_until(lambda: sync() == "Synced", 60, "stg is as it was")


@pytest.mark.full
def test_where_a_person_syncs_a_run_waits_for_that_and_reports_changes_by_hand(
    delivery: Delivery, cluster: Cluster
) -> None:
    delivery.deliver("stg", mlflow_gitops_automated={})
    delivery.argo.set_up("stg")
    policy = lambda: delivery.argo.application("stg")["spec"]["syncPolicy"]  # noqa: E731
    wait_until(lambda: "automated" not in policy(), 60, "a person syncs stg from now on")
    commit = delivery.deliver("stg", mlflow_server_auth_cache_seconds=62)
    run = delivery.run("site.yml", "stg")
    assert (run.status, "argocd app sync mlflow-stg" in folded(run.output)) == (2, True), run.output
    delivery.argo.sync("stg", commit)
    delivery.argo.wait_for("stg", commit)
    change_by_hand(cluster, "stg", 299)
    check_that_a_change_is_reported(delivery, cluster)


@pytest.mark.full
def test_what_runs_is_promoted_to_another_environment_and_rendered_for_it(delivery: Delivery, tmp_path: Path) -> None:
    inventories = Path(shutil.copytree(ROOT / "inventories", tmp_path / "inventories", symlinks=True))
    own = {"mlflow_server_replicas": 2, "mlflow_gitops_automated": {}}
    (inventories / "stg/group_vars/stg/more.yml").write_text(json.dumps(own))
    settings = delivery.settings | {"mlflow_promotion_from": "dev", "mlflow_promotion_to": "stg"}
    names = [f"--inventory={inventories / name}" for name in ("dev", "stg", "embedded")]
    done = subprocess.run(
        ["ansible-playbook", "playbooks/promote.yml", *names, "-e", json.dumps(settings)],
        cwd=ROOT,
        env=ansible_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "auth_cache_seconds: 60" in (inventories / "stg/group_vars/stg/promoted.yml").read_text()
    changes = delivery.argo.git("show", "--format=", "--unified=0", "--", "environments/stg").splitlines()
    assert [line.split()[-1] for line in changes if "auth_cache_ttl_seconds" in line] == ["62", "60"], changes


@pytest.mark.full
def test_a_commit_back_fails_the_sync_with_the_program_s_words_and_the_pods_serve_on(
    delivery: Delivery, cluster: Cluster
) -> None:
    with user("dev") as answers:
        commit = delivery.deliver("dev", mlflow_environment_image=OLD)
        operation = delivery.argo.wait_for_failure("dev", commit)
        run = delivery.run("site.yml", "dev", args=("--tags", "mlflow_gitops"))
    told = [item["message"] for item in operation["syncResult"]["resources"] if item["kind"] == "Pod"]
    assert "newer than MLflow 3.16.0" in told[0], told
    assert run.status != 0
    assert told[0][:60] in folded(run.output)
    assert set(answers) == {200}, answers
    assert image(cluster, "dev") == NEW
    delivery.argo.wait_for("dev", delivery.deliver("dev", mlflow_environment_image=NEW))


def test_an_environment_that_goes_from_git_stays_in_the_cluster(delivery: Delivery, cluster: Cluster) -> None:
    def objects() -> set[str]:
        return {name for name in cluster.resource_versions("stg") if not name.startswith(("Pod ", "ReplicaSet "))}

    before = objects()
    shutil.rmtree(delivery.argo.tree / "environments/stg")
    delivery.argo.commit("Remove stg")
    delivery.argo.refresh_set("stg")

    def lost() -> list[dict[str, Any]]:
        found = delivery.argo.application("stg")["status"].get("conditions", [])
        return [condition for condition in found if condition["type"] == "ComparisonError"]

    wait_until(lost, 60, "the Application has no folder any more")
    assert objects() == before
    assert serves("stg")


def let_look(admin: dict[str, str], access_key: str, secret_key: str) -> None:
    """A user of dev's MinIO who may see which buckets there are, and nothing more."""
    credentials = minio.credentials.StaticProvider(admin["access_key"], admin["secret_key"])
    store = minio.MinioAdmin(endpoint="localhost:30902", credentials=credentials, secure=False)
    statement = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": ["arn:aws:s3:::*"]}
    store.user_add(access_key=access_key, secret_key=secret_key)
    store.policy_add(policy_name="looking", policy={"Version": "2012-10-17", "Statement": [statement]})
    store.policy_set(policy_name="looking", user=access_key)


@pytest.mark.parametrize(
    ("key", "bucket", "status", "told"),
    [
        ("own", "mlflow", 0, "bucket mlflow is there"),
        ("own", "another", 1, "access key mlflow-dev may not see bucket another"),
        (
            "looking",
            "another",
            1,
            "there is no bucket another at http://localhost:30902, and access key looking may not",
        ),
        ("admin", "another", 0, "made bucket another"),
    ],
)
def test_a_missing_bucket_is_made_where_the_key_may(
    delivery: Delivery, cluster: Cluster, key: str, bucket: str, status: int, told: str
) -> None:
    kept, admin = cluster.secrets("dev"), cluster.secret("pgsql", "minio-dev-admin")
    keys = {
        "own": (kept["AWS_ACCESS_KEY_ID"], kept["AWS_SECRET_ACCESS_KEY"]),
        "admin": (admin["access_key"], admin["secret_key"]),
        "looking": ("looking", "may-look-and-not-make-1"),
    }
    if key == "looking":
        let_look(admin, *keys[key])
    done = subprocess.run(
        [CLIENT, ROOT / "roles/mlflow_gitops/files/ensure_bucket.py"],
        env={
            "MLFLOW_BUCKET": bucket,
            "MLFLOW_S3_ENDPOINT_URL": "http://localhost:30902",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": keys[key][0],
            "AWS_SECRET_ACCESS_KEY": keys[key][1],
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, told in done.stdout + done.stderr) == (status, True), done


def test_the_example_is_what_is_rendered(delivery: Delivery, tmp_path: Path) -> None:
    example = ROOT / "examples/gitops"
    settings = {
        "mlflow_environment_secrets_source": "inventory",
        "mlflow_environment_secrets": secrets("dev"),
        "mlflow_environment_database_admin_secret": {},
        "mlflow_environment_object_store_admin_secret": {},
        "mlflow_environment_image": "ghcr.io/mlflow/mlflow:v3.17.2-full",
        "mlflow_backup_postgres_image": "docker.io/library/postgres:17.6",
        "mlflow_gitops_repository": str(tmp_path),
        "mlflow_gitops_repository_url": "https://git.example.com/platform/deployments.git",
    }
    run = play("playbooks/render.yml", "dev", args=("-e", json.dumps(settings)))
    assert run.status == 0, run.output
    if os.environ.get("MLFLOW_UPDATE_EXAMPLES") == "true":
        shutil.rmtree(example, ignore_errors=True)
        shutil.copytree(tmp_path, example)

    def files(root: Path) -> dict[str, str]:
        return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.yaml")}

    stale = {name for name, text in files(tmp_path).items() ^ files(example).items()}
    assert stale == set(), "MLFLOW_UPDATE_EXAMPLES=true writes them anew: docs/testing.md"
