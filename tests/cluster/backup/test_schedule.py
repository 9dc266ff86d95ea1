"""What the cluster backs up by itself, what it encrypts, and what is left when a backup is cut off."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import time
from typing import Any

import pytest
from conftest import ROOT, Cluster, ansible_command, ansible_environment, folded, mlflow_client, play, site, wait_until
from test_on_demand import BUCKET, ENVIRONMENT, LOG, NAMESPACE, kept, manifest

pytestmark = pytest.mark.full
KEYS = [base64.b64encode(os.urandom(32)).decode() for _ in range(2)]


def keyed(key: str, schedule: str = "30 2 * * *") -> tuple[str, ...]:
    settings = {"mlflow_environment_secrets": {"backup_encryption_key": key}, "mlflow_backup_schedule": schedule}
    return ("-e", json.dumps(settings))


def run_cron_job(cluster: Cluster, name: str) -> dict[str, Any]:
    """Run the CronJob's Job now; the report of its last container."""
    template = cluster.batch.read_namespaced_cron_job(f"mlflow-backup-{ENVIRONMENT}", NAMESPACE).spec.job_template
    body = {"metadata": {"name": name, "labels": template.metadata.labels}, "spec": template.spec}
    cluster.batch.create_namespaced_job(NAMESPACE, body)
    try:
        status = lambda: cluster.batch.read_namespaced_job_status(name, NAMESPACE).status  # noqa: E731
        wait_until(lambda: status().succeeded or status().failed, 300, f"{name} has ended")
        assert status().succeeded
        (pod,) = cluster.core.list_namespaced_pod(NAMESPACE, label_selector=f"job-name={name}").items
        log = cluster.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, container="store")
        return json.loads(log.splitlines()[-1])
    finally:
        cluster.batch.delete_namespaced_job(name, NAMESPACE, propagation_policy="Foreground")


def cron_jobs(cluster: Cluster) -> list[str]:
    return [item.metadata.name for item in cluster.batch.list_namespaced_cron_job(NAMESPACE).items]


def test_the_cluster_makes_encrypted_backups_that_only_the_key_opens(cluster: Cluster) -> None:
    mlflow_client(ENVIRONMENT, cluster.secrets(ENVIRONMENT), LOG)
    first = site(ENVIRONMENT, args=keyed(KEYS[0]))
    assert first.status == 0, first.output
    second = site(ENVIRONMENT, args=keyed(KEYS[0]))
    assert (second.status, second.changed) == (0, 0), second.output
    assert cron_jobs(cluster) == [f"mlflow-backup-{ENVIRONMENT}"]
    report = run_cron_job(cluster, "by-hand")
    assert (report["checked"], report["encrypted"]) == (True, True)
    assert report["artifacts"]["objects"] >= 3
    store = cluster.object_store(ENVIRONMENT)
    dump = store.get_object(BUCKET, f"{ENVIRONMENT}/{report['id']}/tracking.dump").read()
    assert dump.startswith(b"mlflow-backup-1\n")
    assert KEYS[0] not in json.dumps(manifest(cluster, report["id"]))

    given = ("-e", f"mlflow_backup_id={report['id']}", "-e", f"mlflow_backup_confirm_overwrite={ENVIRONMENT}")
    restored = play("playbooks/restore.yml", ENVIRONMENT, args=given)
    assert restored.status == 0, restored.output

    other = base64.b64encode(KEYS[1].encode()).decode()
    cluster.core.patch_namespaced_secret(
        f"mlflow-maintenance-{ENVIRONMENT}", NAMESPACE, {"data": {"BACKUP_ENCRYPTION_KEY": other}}
    )
    refused = play("playbooks/restore.yml", ENVIRONMENT, args=given)
    assert refused.status != 0
    assert "is encrypted with the key of fingerprint" in folded(refused.output)
    cluster.core.patch_namespaced_secret(
        f"mlflow-maintenance-{ENVIRONMENT}", NAMESPACE, {"data": {"BACKUP_ENCRYPTION_KEY": None}}
    )

    last = site(ENVIRONMENT)
    assert last.status == 0, last.output
    assert cron_jobs(cluster) == []


def test_a_backup_that_is_cut_off_is_none_and_the_next_one_is_whole(cluster: Cluster) -> None:
    store = cluster.object_store(ENVIRONMENT)
    for number in range(4):
        # So much that the copying goes on when the pod is killed.
        store.put_object("mlflow", f"large/{number}", io.BytesIO(os.urandom(100 << 20)), 100 << 20)
    before = set(kept(cluster))
    command = ansible_command("playbooks/backup.yml", ENVIRONMENT)
    process = subprocess.Popen(command, cwd=ROOT, env=ansible_environment(), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not set(kept(cluster)) - before:
        assert time.monotonic() < end, "no backup was begun"
        time.sleep(0.2)
    job = f"mlflow-backup-now-{ENVIRONMENT}"
    # The Job first, so that it begins no other pod.
    cluster.batch.delete_namespaced_job(job, NAMESPACE, propagation_policy="Background")
    cluster.core.delete_collection_namespaced_pod(NAMESPACE, label_selector=f"job-name={job}", grace_period_seconds=0)
    assert process.wait(300) != 0
    cut = {name.split("/")[1] for name in set(kept(cluster)) - before if "/artifacts/" not in name}
    assert not any(name.endswith("manifest.json") for name in set(kept(cluster)) - before)
    listed = play("playbooks/restore.yml", ENVIRONMENT)
    (backup,) = cut
    assert f"{backup} incomplete: its upload was cut off" in folded(listed.output)
    # As long as it may be in the making, no copy of an artifact is pruned.
    cluster.delete_versions(ENVIRONMENT, BUCKET, f"{ENVIRONMENT}/{backup}/")
    done = play("playbooks/backup.yml", ENVIRONMENT)
    assert done.status == 0, done.output
    assert "kept: " in done.output
    cluster.delete_versions(ENVIRONMENT, "mlflow", "large/")
