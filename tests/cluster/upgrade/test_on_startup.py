"""Where Ansible does not run, pods may upgrade by themselves: one does, and the others wait for it."""

from __future__ import annotations

import pytest
from conftest import Cluster, site
from old_objects import NAMESPACE
from old_release import image, restart
from reading import SELECTOR, differences, read_outside

pytestmark = pytest.mark.full

AS_PODS_START = ("--tags", "mlflow_server", "-e", "mlflow_schema_on_startup=upgrade")


def test_the_pods_upgrade_and_their_servers_have_no_means_to(cluster: Cluster) -> None:
    before = restart(cluster)
    given = site("dev", args=("--tags", "mlflow_database"))
    assert given.status == 0, given.output
    # Without a backup: its container would ask for what a run of the role mlflow_schema leaves.
    run = site("dev", args=(*AS_PODS_START, "-e", "mlflow_server_replicas=2", "-e", "mlflow_backup_required=false"))
    assert run.status == 0, run.output
    assert image(cluster) == "localhost/mlflow:3.17.2"

    pods = [
        pod
        for pod in cluster.core.list_namespaced_pod(NAMESPACE, label_selector=SELECTOR).items
        if not pod.metadata.deletion_timestamp
    ]
    logs = [
        cluster.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, container="schema").splitlines()
        for pod in pods
    ]
    assert sorted('"changed": true' in log[-1] for log in logs) == [False, True], logs
    for pod in pods:
        (server,) = pod.spec.containers
        sources = [variable.value_from for variable in server.env if variable.value_from]
        secrets = {source.secret_key_ref.name for source in sources if source.secret_key_ref}
        assert (secrets, server.env_from) == ({"mlflow-secrets-dev"}, None)
    assert differences(before, read_outside(cluster)) == []

    # Back to the default, in which a pod only looks.
    again = site("dev")
    assert again.status == 0, again.output
    assert differences(before, read_outside(cluster)) == []
