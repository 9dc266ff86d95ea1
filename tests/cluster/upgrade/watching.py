"""What the tests of faults share: somebody who uses MLflow meanwhile, and a hand in the middle of an upgrade."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import urllib3
from conftest import Cluster, Run, Running, folded, request, site, wait_until
from old_objects import NAME, NAMESPACE, deployment
from old_release import DATABASES, EXPERIMENT_0, serves

UPGRADE_LABEL = "app.kubernetes.io/name=mlflow-schema"


class User(threading.Thread):
    """Logs in again and again, and keeps when it was not served."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(daemon=True)
        self.password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
        self.asked, self.failures = 0, []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.asked += 1
            try:
                status = request("dev", EXPERIMENT_0, password=self.password).status
            except urllib3.exceptions.HTTPError as error:
                status = str(error)
            if status != 200:
                self.failures.append((time.monotonic(), status))

    @property
    def seconds_without(self) -> float:
        """From the first failed request to the last."""
        return self.failures[-1][0] - self.failures[0][0] if self.failures else 0.0


@contextmanager
def user(cluster: Cluster) -> Iterator[User]:
    """Somebody who uses the environment meanwhile."""
    thread = User(cluster)
    thread.start()
    try:
        yield thread
    finally:
        thread.over.set()
        thread.join()


def state(cluster: Cluster) -> dict[str, Any]:
    """What an upgrade changes: the schema of each database, and the Deployment."""
    answer = {}
    for name in DATABASES:
        with cluster.database("dev", name) as connection:
            tables = connection.execute(
                "SELECT table_name, column_name, data_type FROM information_schema.columns "
                "WHERE table_schema = 'public' ORDER BY 1, 2"
            ).fetchall()
            versions = {
                table: connection.execute(f"SELECT version_num FROM {table} ORDER BY 1").fetchall()
                for table in sorted({row[0] for row in tables if row[0].startswith("alembic_version")})
            }
            answer[name] = {"tables": tables, "versions": versions}
    deployment = cluster.apps.read_namespaced_deployment(NAME, NAMESPACE)
    answer["deployment"] = [deployment.metadata.uid, deployment.metadata.generation, deployment.spec.replicas]
    return answer


def refused(cluster: Cluster, *words: str, args: tuple[str, ...] = ()) -> Run:
    """A run of site.yml that ends with a message, while nobody notices anything of it."""
    before = state(cluster)
    with user(cluster) as somebody:
        run = site("dev", args=args)
    print(f"refused after {run.seconds:.0f} s, {somebody.asked} requests were served meanwhile")
    assert run.status != 0, run.output
    assert "Traceback" not in run.output
    assert [word for word in words if word not in folded(run.output)] == [], run.output
    assert somebody.failures == []
    assert somebody.asked > 10
    assert state(cluster) == before
    assert serves(cluster)
    return run


def bare_server(cluster: Cluster, release: str) -> str:
    """Start a server of a release on the environment's databases with its own role; how it ended."""
    pod = deployment(release)["spec"]["template"]["spec"] | {"restartPolicy": "Never"}
    # None of the Service's labels: nobody may be sent to it.
    metadata = {"name": "bare-server", "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": "test"}}
    cluster.core.create_namespaced_pod(NAMESPACE, {"metadata": metadata, "spec": pod})
    try:
        ended = ("Succeeded", "Failed")
        wait_until(
            lambda: cluster.core.read_namespaced_pod("bare-server", NAMESPACE).status.phase in ended,
            180,
            "the server ends",
        )
        return cluster.core.read_namespaced_pod_log("bare-server", NAMESPACE)
    finally:
        cluster.core.delete_namespaced_pod("bare-server", NAMESPACE, grace_period_seconds=0)


@contextmanager
def held(cluster: Cluster, table: str, mode: str = "ROW EXCLUSIVE") -> Iterator[int]:
    """Hold a lock on a table of the tracking database, as long as the server lives; the session's pid."""
    with ExitStack() as stack:
        connection = stack.enter_context(cluster.database("dev", "mlflow"))
        connection.execute(f"BEGIN; LOCK TABLE {table} IN {mode} MODE")
        try:
            yield connection.info.backend_pid
        finally:
            # The test may have killed the server.
            with suppress(psycopg.OperationalError):
                stack.close()


def upgrade_pods(cluster: Cluster) -> list[Any]:
    """The pods of Jobs that upgrade."""
    pods = cluster.core.list_namespaced_pod(NAMESPACE, label_selector=UPGRADE_LABEL).items
    return [pod for pod in pods if "upgrade" in pod.spec.containers[0].command]


def has_planned(cluster: Cluster) -> bool:
    """Whether a Job that upgrades has begun its backup: it looks for locks before that, and not again."""
    for pod in upgrade_pods(cluster):
        first = (pod.status.init_container_statuses or [None])[0]
        if first and first.state.terminated:
            return True
    return False


def waits(cluster: Cluster) -> bool:
    """Whether an upgrade waits for a lock: it is in the middle then, and its transaction is open."""
    with cluster.database("dev", "mlflow") as connection:
        return bool(
            connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'mlflow-upgrade%' "
                "AND wait_event_type = 'Lock'"
            ).fetchall()
        )


@contextmanager
def in_the_middle(cluster: Cluster, log: Path) -> Iterator[Running]:
    """A run of site.yml whose upgrade stands still half way until the block ends, or for ten seconds."""
    run = Running("site.yml", "dev", log=log)
    try:
        wait_until(lambda: has_planned(cluster) or run.process.poll() is not None, 180, "the backup has begun")
        # A dump may go on beside this lock; the upgrade may not.
        with held(cluster, "trace_info"):
            wait_until(lambda: waits(cluster) or run.process.poll() is not None, 120, "the upgrade has begun")
            assert run.process.poll() is None, run.output
            yield run
    except BaseException:
        run.kill()
        raise
