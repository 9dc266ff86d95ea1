"""What is wrong with an environment is in the table, as text, as JSON and as a page, and in the exit status."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from conftest import KUBECONFIG, ROOT, Cluster, Run, folded, play, wait_until
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

ENVIRONMENT = os.environ.get("MLFLOW_TEST_ENVIRONMENT", "dev")
NAMESPACE = f"mlflow-{ENVIRONMENT}"
SERVER = f"mlflow-{ENVIRONMENT}"
POD = {"restartPolicy": "Never", "containers": [{"name": "test", "image": "localhost/none"}]}
LABELS = {"app.kubernetes.io/instance": ENVIRONMENT, "app.kubernetes.io/managed-by": "ansible-mlflow"}
# Another one, which the API server of its kubeconfig does not answer for.
ABSENT = "stg" if ENVIRONMENT == "dev" else "dev"
BACKUPS = "mlflow-backups"


def status(*args: str, environments: tuple[str, ...] = (ENVIRONMENT,)) -> Run:
    return play("playbooks/status.yml", *environments, args=args, timeout=180)


@contextmanager
def backup(cluster: Cluster, moment: datetime) -> Iterator[str]:
    """A backup of that moment, as far as can be seen from outside, in the place of all that there are."""
    store = cluster.object_store(ENVIRONMENT)
    found = [item.object_name for item in store.list_objects(BACKUPS, f"{ENVIRONMENT}/", recursive=True)]
    manifests = {name: store.get_object(BACKUPS, name).read() for name in found if name.endswith("/manifest.json")}
    name = f"{ENVIRONMENT}/{moment:%Y%m%dT%H%M%SZ}-0000/manifest.json"
    for manifest in manifests:
        store.remove_object(BACKUPS, manifest)
    store.put_object(BACKUPS, name, io.BytesIO(b"{}"), 2)
    try:
        yield name.split("/")[1]
    finally:
        # What is left of one that was deleted is, for a day, one that may be in the making.
        cluster.delete_versions(ENVIRONMENT, BACKUPS, name)
        for manifest, content in manifests.items():
            store.put_object(BACKUPS, manifest, io.BytesIO(content), len(content))


@contextmanager
def later_revision(cluster: Cluster) -> Iterator[None]:
    """Meanwhile the tracking database is at the revision of a newer MLflow."""
    with cluster.database(ENVIRONMENT, "mlflow") as connection:
        before = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        try:
            yield
        finally:
            connection.execute("UPDATE alembic_version SET version_num = %s", [before])


@contextmanager
def no_bucket(cluster: Cluster) -> Iterator[None]:
    """Meanwhile there is no bucket; what was in it is put back, but for older versions."""
    store = cluster.object_store(ENVIRONMENT)
    names = [item.object_name for item in store.list_objects("mlflow", recursive=True)]
    contents = {name: store.get_object("mlflow", name).read() for name in names}
    lifecycle = store.get_bucket_lifecycle("mlflow")
    cluster.delete_versions(ENVIRONMENT, "mlflow")
    store.remove_bucket("mlflow")
    try:
        yield
    finally:
        store.make_bucket("mlflow")
        store.set_bucket_versioning("mlflow", VersioningConfig(ENABLED))
        if lifecycle:
            store.set_bucket_lifecycle("mlflow", lifecycle)
        for name, content in contents.items():
            store.put_object("mlflow", name, io.BytesIO(content), len(content))


@contextmanager
def pod_missing(cluster: Cluster) -> Iterator[None]:
    """Meanwhile a pod is gone, and the namespace has no room for another one."""
    pods = cluster.servers(ENVIRONMENT)
    quota = {"metadata": {"name": "test-no-more"}, "spec": {"hard": {"pods": "0"}}}
    cluster.core.create_namespaced_resource_quota(NAMESPACE, quota)
    try:
        cluster.core.delete_namespaced_pod(pods[0].metadata.name, NAMESPACE, grace_period_seconds=0)
        wait_until(lambda: (deployment(cluster).status.ready_replicas or 0) < len(pods), 60, "a pod is missing")
        yield
    finally:
        cluster.core.delete_namespaced_resource_quota("test-no-more", NAMESPACE)
        # Its controller tries again at once when it is told of something.
        for found in cluster.apps.list_namespaced_replica_set(NAMESPACE).items:
            body = {"metadata": {"annotations": {"test": "again"}}}
            cluster.apps.patch_namespaced_replica_set(found.metadata.name, NAMESPACE, body)
        wait_until(lambda: deployment(cluster).status.ready_replicas == len(pods), 180, "all pods are ready")


def deployment(cluster: Cluster) -> Any:
    return cluster.apps.read_namespaced_deployment(SERVER, NAMESPACE)


@contextmanager
def changed_by_hand(cluster: Cluster) -> Iterator[None]:
    """Meanwhile somebody has changed a setting."""
    name = f"mlflow-config-{ENVIRONMENT}"
    before = cluster.config(ENVIRONMENT)["MLFLOW_WORKERS"]
    cluster.core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"MLFLOW_WORKERS": "77"}})
    try:
        yield
    finally:
        cluster.core.patch_namespaced_config_map(name, NAMESPACE, {"data": {"MLFLOW_WORKERS": before}})


@contextmanager
def schedules_left(cluster: Cluster) -> Iterator[None]:
    """Meanwhile the CronJobs are there that this environment does not ask for."""
    spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": {"template": {"spec": POD}}}}
    names = [f"mlflow-{what}-{ENVIRONMENT}" for what in ("backup", "gc")]
    try:
        for name in names:
            body = {"metadata": {"name": name, "labels": LABELS}, "spec": spec}
            cluster.batch.create_namespaced_cron_job(NAMESPACE, body)
        yield
    finally:
        for name in names:
            cluster.batch.delete_namespaced_cron_job(name, NAMESPACE)


@contextmanager
def failed_job(cluster: Cluster) -> Iterator[None]:
    """Meanwhile there is a Job that has failed: before it had a pod, for there may be no room for one."""
    spec = {"backoffLimit": 0, "activeDeadlineSeconds": 1, "template": {"metadata": {"labels": LABELS}, "spec": POD}}
    body = {"metadata": {"name": "test-failed", "labels": LABELS}, "spec": spec}
    cluster.batch.create_namespaced_job(NAMESPACE, body)
    try:
        read = lambda: cluster.batch.read_namespaced_job_status("test-failed", NAMESPACE).status  # noqa: E731
        wait_until(lambda: any(found.type == "Failed" for found in read().conditions or []), 60, "it has failed")
        yield
    finally:
        cluster.batch.delete_namespaced_job("test-failed", NAMESPACE, propagation_policy="Background")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Opens a page in a window of some width."""

    def take(page: Path, width: int, scheme: str = "light") -> dict[str, Any]:
        folder = Path(os.environ.get("MLFLOW_TEST_PICTURES") or tmp_path_factory.mktemp("pictures"))
        given = {"page": str(page), "width": width, "scheme": scheme, "picture": f"{folder}/{width}-{scheme}.png"}
        done = subprocess.run(
            [ROOT / ".cache/servers/bin/python", Path(__file__).parent / "picture.py"],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return take


def test_an_environment_that_is_well_is_a_column_without_a_problem(cluster: Cluster) -> None:
    with backup(cluster, datetime.now(UTC)) as identifier:
        before = cluster.everything(ENVIRONMENT)
        run = status("--diff")
        assert cluster.everything(ENVIRONMENT) == before
    assert (run.status, run.changed) == (0, 0), run.output
    found = deployment(cluster)
    lines = {re.sub(" +", " ", line.strip()) for line in run.output.splitlines()}
    wanted = {
        "State well",
        f"Release {found.spec.template.spec.containers[0].image.rpartition('/')[2]}",
        f"Replicas {found.spec.replicas} of {found.spec.replicas} ready",
        "Certificate no TLS",
        "Drift none",
        "Unfinished none",
        "No problems",
        identifier,
    }
    assert wanted - lines == set()
    assert re.search(r"Last backup +\d min ago", run.output)
    assert re.search(r"Looked at +in \d+\.\d s", run.output)


def test_a_check_tells_the_same_and_every_fault_is_in_text_json_page_and_exit_status(
    cluster: Cluster, tmp_path: Path, picture: Any
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}],"
        " users: [{name: u, user: {token: t}}], contexts: [{name: c, context: {cluster: c, user: u}}]}"
    )
    page, data = tmp_path / "status.html", tmp_path / "status.json"
    # Of the environment that does not answer alone.
    unreachable = f"{{{{ '{kubeconfig}' if inventory_hostname == 'mlflow-{ABSENT}' else '{KUBECONFIG}' }}}}"
    given = {
        "mlflow_environment_kubeconfig": unreachable,
        "mlflow_status_html": str(page),
        "mlflow_status_json": str(data),
        "mlflow_status_backup_hours": 24,
    }
    with ExitStack() as faults:
        old = faults.enter_context(backup(cluster, datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)))
        # The last one ends first, and a pod starts only when nothing else is wrong.
        for fault in (pod_missing, later_revision, schedules_left, failed_job, changed_by_hand, no_bucket):
            faults.enter_context(fault(cluster))
        run = status("--check", "-e", json.dumps(given), environments=(ABSENT, ENVIRONMENT))
    assert run.status == 2
    assert run.changed == 0
    assert "Traceback" not in run.output
    found = {entry["environment"]: entry for entry in json.loads(data.read_text())["environments"]}
    assert list(found) == [ABSENT, ENVIRONMENT]
    assert not any(entry["ok"] for entry in found.values())
    problems = "\n".join(found[ENVIRONMENT]["problems"])
    shown = picture(page, 360)
    wanted = [
        r"Schema: the tracking database mlflow is ahead \(ffffffffffff; the image wants [0-9a-f]{12}\)",
        r"Replicas: \d of \d replicas are ready",
        r"Bucket: there is no bucket mlflow at http://",
        rf"Last backup: the newest backup, {old}, is \d+ days old; expected one of the last 24 h",
        rf"Drift: ConfigMap mlflow-config-{ENVIRONMENT} differs in data\.MLFLOW_WORKERS",
        rf"Drift: CronJob mlflow-backup-{ENVIRONMENT} is not wanted any more",
        rf"Drift: CronJob mlflow-gc-{ENVIRONMENT} is not wanted any more",
        r"Unfinished: Job test-failed failed \d+ min ago",
    ]
    for where in (problems, folded(run.output), shown["text"]):
        assert [words for words in wanted if not re.search(words, where)] == []
    assert "https://127.0.0.1:1" in found[ABSENT]["unreachable"]
    assert "https://127.0.0.1:1" in shown["text"]
    # What answers is told beside what does not.
    assert found[ENVIRONMENT]["parts"]["database"]["bytes"] > 0
    assert set(found[ENVIRONMENT]["parts"]) == {
        *("release", "schema", "replicas", "database", "bucket", "backup", "certificate", "drift", "unfinished"),
        "seconds",
    }
    secrets = cluster.secrets(ENVIRONMENT)
    told = run.output + data.read_text() + page.read_text()
    assert [name for name, value in secrets.items() if name != "AWS_ACCESS_KEY_ID" and value in told] == []

    for width, scheme in ((360, "light"), (1600, "light"), (360, "dark"), (1600, "dark")):
        shown = picture(page, width, scheme)
        assert shown["width"] <= width, f"it is wider than a window of {width} pixels"
        assert shown["requests"] == []
        assert [heading.split()[0] for heading in shown["headings"]] == [ABSENT, ENVIRONMENT]


def test_a_file_that_cannot_be_written_is_refused_at_once() -> None:
    run = status("-e", "mlflow_status_json=/nonexistent/status.json")
    assert run.status != 0
    assert "mlflow_status_json is '/nonexistent/status.json'; expected a file in a directory that is there" in folded(
        run.output
    )
    assert "mlflow_environment" not in run.output


@pytest.mark.full
def test_the_certificate_of_a_secret_is_told(cluster: Cluster) -> None:
    key, certificate = Authority().issue("mlflow.example.com")
    data = {"tls.key": key, "tls.crt": certificate}
    body = {"metadata": {"name": "test-tls"}, "type": "kubernetes.io/tls", "stringData": data}
    cluster.core.create_namespaced_secret(NAMESPACE, body)
    given = {
        "mlflow_server_exposure": "ingress",
        "mlflow_server_host": "mlflow.example.com",
        "mlflow_server_tls_secret": "test-tls",
    }
    try:
        run = status("-e", json.dumps(given))
    finally:
        cluster.core.delete_namespaced_secret("test-tls", NAMESPACE)
    assert run.status != 0
    assert "Certificate: the certificate ends in 0 days" in folded(run.output)
    assert f"Drift: Ingress {SERVER} is missing" in folded(run.output)
