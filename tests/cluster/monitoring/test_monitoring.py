"""A real Prometheus sees what users would notice, and each alert fires for a real fault. In this order."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from alerts import rule_tests
from conftest import Cluster, Run, apply, mlflow_client, play, request, wait_until
from processes import built
from prometheus import MONITORING, Prometheus, hasty, promtool

ON = ("-e", "mlflow_server_monitoring=true", "-e", '{"mlflow_server_monitoring_labels": {"release": "ours"}}')
NO_EXPERIMENT = "/api/2.0/mlflow/experiments/get-by-name?experiment_name="
EXPERIMENT_0 = "/api/2.0/mlflow/experiments/get?experiment_id=0"
KINDS = {"ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}
BACKUPS = "mlflow-backups"
DAY = 86400


def deploy(*args: str) -> Run:
    """Run site.yml without the verification at its end."""
    return play("playbooks/deploy.yml", "dev", args=args)


def test_a_cluster_without_the_operators_kinds_is_refused_before_anything_changes(cluster: Cluster) -> None:
    forget_kinds(cluster)
    before = cluster.resource_versions("dev")
    run = deploy(*ON)
    assert run.status != 0
    for kind in KINDS:
        assert f"mlflow_server_monitoring needs {kind} ({MONITORING}/v1), which the cluster does not know" in run.output
    assert cluster.resource_versions("dev") == before


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> Iterator[None]:
    """The operator's kinds of objects, without the operator."""
    apply([yaml.safe_load(path.read_text()) for path in (built("prometheus") / "crds").glob("*.yaml")])
    wait_until(lambda: all(objects(cluster, kind) is not None for kind in KINDS), 60, "the cluster knows the kinds")
    yield
    forget_kinds(cluster)


def forget_kinds(cluster: Cluster) -> None:
    """Remove the kinds, and what there is of them."""
    from kubernetes import client

    for kind in KINDS.values():
        with suppress(client.ApiException):
            client.ApiextensionsV1Api(cluster.api).delete_custom_resource_definition(f"{kind}.{MONITORING}")
    wait_until(lambda: all(objects(cluster, kind) is None for kind in KINDS), 60, "the cluster has forgotten the kinds")


def objects(cluster: Cluster, kind: str) -> list[dict[str, Any]] | None:
    """All objects of a kind of the operator's in dev's namespace; None if the cluster does not know it."""
    from kubernetes import client

    try:
        found = client.CustomObjectsApi(cluster.api).list_namespaced_custom_object(
            MONITORING, "v1", "mlflow-dev", KINDS[kind]
        )
    except client.ApiException as error:
        if error.status != 404:
            raise
        return None
    return found["items"]


def names(cluster: Cluster) -> set[str]:
    """What monitoring has made, by kind and name."""
    ours = {f"{kind} {item['metadata']['name']}" for kind in KINDS for item in objects(cluster, kind) or []}
    return ours | {name for name in cluster.resource_versions("dev") if name in ALL}


ALL = {
    "ConfigMap mlflow-dashboard-dev",
    "ConfigMap mlflow-monitor-dev",
    "Deployment mlflow-monitor-dev",
    "PrometheusRule mlflow-dev",
    "Secret mlflow-monitoring-dev",
    "Service mlflow-metrics-dev",
    "ServiceMonitor mlflow-dev",
}


def test_a_dry_run_says_what_a_run_makes_and_makes_nothing(cluster: Cluster, kinds: None) -> None:
    before = cluster.resource_versions("dev")
    dry = deploy(*ON, "--check", "--diff")
    assert dry.status == 0, dry.output
    assert "mlflow-monitor-dev" in dry.output
    assert cluster.resource_versions("dev") == before
    made = deploy(*ON)
    assert (made.status, names(cluster)) == (0, ALL), made.output


@pytest.mark.full
def test_a_second_run_and_a_dry_run_change_nothing(cluster: Cluster, kinds: None) -> None:
    # The Deployments' status has to be as it will be.
    wait_until(lambda: len(cluster.servers("dev")) == 1, 60, "the pods of before are gone")
    again = deploy(*ON)
    assert (again.status, again.changed) == (0, 0), again.output
    dry = deploy(*ON, "--check", "--diff")
    assert (dry.status, dry.changed) == (0, 0), dry.output


@pytest.fixture(scope="module")
def rules(cluster: Cluster, kinds: None) -> dict[str, Any]:
    """The rules as the API server has them."""
    [found] = objects(cluster, "PrometheusRule")
    assert found["metadata"]["labels"]["release"] == "ours"
    return found["spec"]


@pytest.fixture(scope="module")
def prometheus(
    cluster: Cluster, rules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    [monitor] = objects(cluster, "ServiceMonitor")
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), monitor, hasty(rules), cluster)
    yield running
    running.end()


def test_promtool_finds_the_rules_right_and_tells_each_alert_in_its_time(rules: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(json.dumps(rules))
    assert "8 rules found" in promtool(tmp_path, "check", "rules", "rules.yml")
    (tmp_path / "tests.yml").write_text(json.dumps(rule_tests(rules["groups"][0]["rules"], "rules.yml")))
    promtool(tmp_path, "test", "rules", "tests.yml")


def test_prometheus_reaches_each_pod_with_a_password_and_nobody_without(
    cluster: Cluster, prometheus: Prometheus
) -> None:
    pods = {
        pod.metadata.name: pod.status.pod_ip
        for pod in cluster.core.list_namespaced_pod("mlflow-dev", label_selector="mlflow.ansible/metrics=true").items
    }
    assert len(pods) == 2
    wait_until(lambda: prometheus.targets() == dict.fromkeys(pods, "up"), 60, "both targets are up")
    for address in pods.values():
        for headers in ({}, urllib3.make_headers(basic_auth="prometheus:wrong")):
            answer = urllib3.request("GET", f"http://{address}:9464/metrics", headers=headers, retries=False)
            assert (answer.status, b"mlflow" in answer.data) == (401, True)


def test_the_password_for_metrics_opens_nothing_in_mlflow(cluster: Cluster, kinds: None) -> None:
    login = cluster.secret("mlflow-dev", "mlflow-monitoring-dev")
    assert request("dev", EXPERIMENT_0, user=login["username"], password=login["password"]).status == 401


def test_what_users_do_is_counted_and_is_what_mlflow_says_itself(cluster: Cluster, prometheus: Prometheus) -> None:
    password, total = (
        cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"],
        "sum(mlflow_http_request_total{status='404'})",
    )
    wait_until(lambda: prometheus.value("sum(mlflow_http_request_total)") is not None, 60, "requests are counted")
    before = prometheus.value(total) or 0
    for _ in range(3):
        assert request("dev", f"{NO_EXPERIMENT}{uuid.uuid4()}", password=password).status == 404
    wait_until(
        lambda: prometheus.value(total) == before + 3, 60, "these requests are counted, whichever worker had them"
    )
    # A pod's own address as the Host header, as a Prometheus would call MLflow's own page.
    [pod] = cluster.servers("dev")
    login = urllib3.make_headers(basic_auth=f"admin:{password}")
    page = urllib3.request("GET", f"http://{pod.status.pod_ip}:5000/metrics", headers=login, retries=False)
    assert page.status == 200
    assert f'mlflow_http_request_total{{method="GET",status="404"}} {before + 3:.1f}' in page.data.decode()
    assert prometheus.value("count(mlflow_schema_current == 1)") == 2
    ratio = prometheus.value("mlflow_database_connections_used_ratio{of='server'}")
    assert 0 < ratio < 0.85


@contextmanager
def another_revision(cluster: Cluster) -> Iterator[None]:
    with cluster.database("dev", "mlflow") as connection:
        [(revision,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        try:
            yield
        finally:
            connection.execute("UPDATE alembic_version SET version_num = %s", [revision])


@contextmanager
def no_connection_left(cluster: Cluster) -> Iterator[None]:
    with cluster.database("dev", "postgres") as connection:
        connection.execute("ALTER ROLE mlflow CONNECTION LIMIT 1")
        try:
            yield
        finally:
            connection.execute("ALTER ROLE mlflow CONNECTION LIMIT -1")


@contextmanager
def blocked_bucket(cluster: Cluster) -> Iterator[None]:
    from minio import MinioAdmin
    from minio.credentials import StaticProvider

    admin = cluster.secret("pgsql", "minio-dev-admin")
    login = StaticProvider(admin["access_key"], admin["secret_key"])
    store = MinioAdmin(endpoint="localhost:30902", credentials=login, secure=False)
    key = cluster.secrets("dev")["AWS_ACCESS_KEY_ID"]
    store.user_disable(key)
    try:
        yield
    finally:
        store.user_enable(key)


@contextmanager
def slow_table(cluster: Cluster) -> Iterator[None]:
    """Requests wait for a lock for some seconds, and come through."""
    with cluster.database("dev", "mlflow") as connection:
        for _ in range(2):
            with connection.transaction():
                connection.execute("LOCK TABLE experiments IN ACCESS EXCLUSIVE MODE")
                time.sleep(5)
            time.sleep(0.5)
        yield


@contextmanager
def no_monitor(cluster: Cluster) -> Iterator[None]:
    scale = lambda replicas: cluster.apps.patch_namespaced_deployment_scale(  # noqa: E731
        "mlflow-monitor-dev", "mlflow-dev", {"spec": {"replicas": replicas}}
    )
    scale(0)
    try:
        yield
    finally:
        scale(1)


@pytest.mark.parametrize(
    ("alert", "fault"),
    [
        ("MlflowSchemaMismatch", another_revision),
        pytest.param("MlflowDatabaseConnections", no_connection_left, marks=pytest.mark.full),
        ("MlflowBucketUnreachable", blocked_bucket),
        pytest.param("MlflowSlow", slow_table, marks=pytest.mark.full),
        ("MlflowUnwatched", no_monitor),
    ],
)
def test_an_alert_fires_for_its_fault_and_no_longer(
    cluster: Cluster,
    prometheus: Prometheus,
    alert: str,
    fault: Callable[[Cluster], AbstractContextManager[None]],
) -> None:
    wait_until(lambda: alert not in prometheus.firing(), 60, f"{alert} does not fire")
    with fault(cluster):
        wait_until(lambda: alert in prometheus.firing(), 90, f"{alert} fires")
    wait_until(lambda: alert not in prometheus.firing(), 60, f"{alert} fires no longer")


def test_only_a_new_backup_that_is_complete_counts(cluster: Cluster, prometheus: Prometheus) -> None:
    store = cluster.object_store("dev")
    age = "time() - mlflow_backup_last_timestamp_seconds"

    def put(days: float, name: str) -> None:
        folder = time.strftime("dev/%Y%m%dT%H%M%SZ-00ff/", time.gmtime(time.time() - days * DAY))
        store.put_object(BACKUPS, folder + name, io.BytesIO(b"{}"), 2)

    with ExitStack() as cleaning:
        # Only an administrator can.
        cluster.delete_versions("dev", BACKUPS, "dev/")
        cleaning.callback(cluster.delete_versions, "dev", BACKUPS, "dev/")
        wait_until(lambda: prometheus.value("mlflow_backup_last_timestamp_seconds") == 0, 60, "there is no backup")
        wait_until(lambda: "MlflowBackupOld" in prometheus.firing(), 60, "none is told")
        put(8, "manifest.json")
        wait_until(lambda: 8 * DAY <= prometheus.value(age) < 9 * DAY, 60, "the old one is seen")
        put(1, "tracking.dump")
        time.sleep(4)
        assert prometheus.value(age) > 7 * DAY
        assert "MlflowBackupOld" in prometheus.firing()
        put(2, "manifest.json")
        wait_until(lambda: "MlflowBackupOld" not in prometheus.firing(), 60, "a new one is enough")


def test_a_database_that_is_gone_is_told_and_no_pod_is_restarted_for_it(
    cluster: Cluster, prometheus: Prometheus
) -> None:
    def ready() -> bool:
        [pod] = cluster.servers("dev")
        return all(state.status == "True" for state in pod.status.conditions if state.type == "Ready")

    def restarts() -> list[int]:
        return [state.restart_count for pod in cluster.servers("dev") for state in pod.status.container_statuses]

    def scale(replicas: int) -> None:
        cluster.apps.patch_namespaced_stateful_set_scale("dev-postgres", "pgsql", {"spec": {"replicas": replicas}})

    before, begun = restarts(), time.monotonic()
    assert ready()
    scale(0)
    try:
        wait_until(lambda: {"MlflowDown", "MlflowErrors"} <= prometheus.firing(), 60, "both alerts fire")
        # MLflow's own word for its health is no help.
        [pod] = cluster.servers("dev")
        health = urllib3.request("GET", f"http://{pod.status.pod_ip}:5000/health", retries=False)
        assert health.status == 200
        wait_until(lambda: not ready(), 90, "the pod is not ready")
        print(f"not ready after {time.monotonic() - begun:.0f} s")
    finally:
        scale(1)
    back = time.monotonic()
    wait_until(ready, 60, "the pod is ready again")
    print(f"ready again after {time.monotonic() - back:.0f} s")
    assert restarts() == before
    wait_until(lambda: not {"MlflowDown", "MlflowErrors"} & prometheus.firing(), 60, "neither alert fires")
    assert mlflow_client("dev", cluster.secrets("dev"), "answer = mlflow.get_experiment('0').experiment_id") == "0"


@pytest.mark.full
def test_a_dry_run_that_switches_it_off_leaves_it(cluster: Cluster, kinds: None) -> None:
    dry = deploy("--check")
    assert dry.status == 0, dry.output
    assert names(cluster) == ALL


def test_switched_off_nothing_of_it_is_left(cluster: Cluster, kinds: None) -> None:
    off = deploy()
    assert (off.status, names(cluster)) == (0, set()), off.output
    assert len(cluster.servers("dev")[-1].spec.containers) == 1
    wait_until(lambda: len(cluster.servers("dev")) == 1, 60, "the pods of before are gone")
    again = deploy()
    assert (again.status, again.changed) == (0, 0), again.output
