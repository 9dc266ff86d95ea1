"""What the tests on the embedded cluster share: runs of Ansible, looks into the cluster, and a real client."""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible.module_utils
import minio
import psycopg
import pytest
import urllib3
from minio.deleteobjects import DeleteObject

ROOT = Path(__file__).parents[2]
KUBECONFIG = "/var/lib/ansible-mlflow/kubeconfig"
DATA_SET = Path("/var/lib/ansible-mlflow/data-set")
CLIENT = ROOT / ".cache/client/bin/python"
NODE_PORTS = {"dev": 30502, "stg": 30501, "prod": 30500}
MINIO_NODE_PORTS = {"dev": 30902, "stg": 30901, "prod": 30900}
DATABASE_PORTS = {"dev": 5434, "stg": 5433, "prod": 5432}

# Run where the question is: each address and port, one a word, that accepts a connection.
TRY = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def accepts(target):
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        return True
    except OSError:
        return False
with ThreadPoolExecutor() as pool:
    print(*[target for target, yes in zip(sys.argv[1:], pool.map(accepts, sys.argv[1:])) if yes])
"""

# The modules' own way into the cluster is the tests' way too.
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))


@dataclass
class Run:
    """A finished run of ansible-playbook."""

    status: int
    output: str
    seconds: float
    cpu_seconds: float

    @property
    def changed(self) -> int:
        """The sum of the recap's changed counts."""
        return sum(int(count) for count in re.findall(r"changed=(\d+)", self.output))


def ansible_command(playbook: str, *environments: str, args: tuple[str, ...] = ()) -> list[str]:
    """The command that runs a playbook for some environments on the embedded cluster."""
    inventories = [f"--inventory=inventories/{name}" for name in (*environments, "embedded")]
    return ["ansible-playbook", playbook, *inventories, *args]


def ansible_environment() -> dict[str, str]:
    """This process's own environment; but Molecule, which runs these tests, has settings of its own, and colours."""
    environment = {name: value for name, value in os.environ.items() if not re.match("ANSIBLE_|FORCE_COLOR", name)}
    return environment | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}


def play(playbook: str, *environments: str, args: tuple[str, ...] = (), timeout: int = 900) -> Run:
    """Run a playbook for some environments on the embedded cluster."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        ansible_command(playbook, *environments, args=args),
        cwd=ROOT,
        env=ansible_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(done.returncode, done.stdout, time.monotonic() - start, cpu)


class Running:
    """A run of a playbook that goes on while a test does something to it."""

    def __init__(self, playbook: str, *environments: str, args: tuple[str, ...] = (), log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ansible_command(playbook, *environments, args=args),
                env=ansible_environment() | {"PYTHONUNBUFFERED": "1"},
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 300) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def kill(self) -> None:
        """End it and all that it has started at once, as a machine that fails; Ansible's workers have own sessions."""
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # After the name, which may have spaces: the state, and the parent.
                parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        family = {self.process.pid}
        while more := {child for child, parent in parents.items() if parent in family} - family:
            family |= more
        for each in family:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self.process.wait(30)


def play_and_die(
    playbook: str, *environments: str, args: tuple[str, ...], task: str, log: Path, after: float = 0
) -> None:
    """Run a playbook and kill all of it some seconds after it has begun a task; with 'x 2', for the second time."""
    title, _, times = task.partition(" x ")
    run = Running(playbook, *environments, args=args, log=log)
    try:
        end = time.monotonic() + 400
        while run.output.count(f"{title}]") < int(times or 1):
            assert run.process.poll() is None, run.output
            assert time.monotonic() < end, run.output
            time.sleep(0.1)
        time.sleep(after)
    finally:
        run.kill()


def folded(output: str) -> str:
    """An output without the line breaks that Ansible puts into long texts."""
    return " ".join(output.split())


def site(*environments: str, args: tuple[str, ...] = (), timeout: int = 900) -> Run:
    """Run site.yml for some environments on the embedded cluster."""
    return play("site.yml", *environments, args=args, timeout=timeout)


class Cluster:
    """Looks into the embedded cluster, and hands into it, past Ansible."""

    def __init__(self) -> None:
        from kubernetes import client, config

        self.api = config.new_client_from_config(KUBECONFIG)
        self.core = client.CoreV1Api(self.api)
        self.apps = client.AppsV1Api(self.api)
        self.batch = client.BatchV1Api(self.api)
        self.networking = client.NetworkingV1Api(self.api)

    def execute(self, namespace: str, pod: str, command: list[str], container: str = "") -> tuple[int, str, str]:
        """Run a command in a pod; its exit status, standard output and standard error."""
        from kubernetes.stream import stream

        session = stream(
            self.core.connect_get_namespaced_pod_exec,
            pod,
            namespace,
            command=command,
            stdout=True,
            stderr=True,
            _preload_content=False,
            **({"container": container} if container else {}),
        )
        session.run_forever(timeout=300)
        return session.returncode, session.read_stdout(), session.read_stderr()

    def servers(self, environment: str) -> list[Any]:
        """The pods of an environment's server, without those of before that are still answering their last requests."""
        label = "app.kubernetes.io/name=mlflow"
        pods = self.core.list_namespaced_pod(f"mlflow-{environment}", label_selector=label).items
        return [pod for pod in pods if not pod.metadata.deletion_timestamp and pod.status.phase == "Running"]

    def resource_versions(self, environment: str) -> dict[str, str]:
        """The resourceVersion of every object of an environment by kind and name; empty without its namespace.

        A pod that is going changes its Deployment's status once more when it is gone, so that is waited for.
        """
        namespace = f"mlflow-{environment}"
        pods = lambda: self.core.list_namespaced_pod(namespace).items  # noqa: E731
        wait_until(lambda: not any(pod.metadata.deletion_timestamp for pod in pods()), 90, "pods of before are gone")
        lists = {
            "ConfigMap": self.core.list_namespaced_config_map,
            "Secret": self.core.list_namespaced_secret,
            "Service": self.core.list_namespaced_service,
            "Pod": self.core.list_namespaced_pod,
            "Deployment": self.apps.list_namespaced_deployment,
            "ReplicaSet": self.apps.list_namespaced_replica_set,
            "Job": self.batch.list_namespaced_job,
            "ServiceAccount": self.core.list_namespaced_service_account,
            "NetworkPolicy": self.networking.list_namespaced_network_policy,
        }
        versions = {
            f"{kind} {item.metadata.name}": item.metadata.resource_version
            for kind, list_objects in lists.items()
            for item in list_objects(namespace).items
            # A client that verifies comes and goes; nothing of the environment is in it.
            if "verification" not in item.metadata.name or kind == "ConfigMap"
        }
        for item in self.core.list_namespace(field_selector=f"metadata.name={namespace}").items:
            versions[f"Namespace {namespace}"] = item.metadata.resource_version
        return versions

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """The decoded data of a Secret."""
        data = self.core.read_namespaced_secret(name, namespace).data
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def secrets(self, environment: str) -> dict[str, str]:
        """An environment's own Secret, decoded."""
        return self.secret(f"mlflow-{environment}", f"mlflow-secrets-{environment}")

    def config(self, environment: str) -> dict[str, str]:
        """An environment's own ConfigMap."""
        return self.core.read_namespaced_config_map(f"mlflow-config-{environment}", f"mlflow-{environment}").data

    @contextmanager
    def database(
        self, environment: str, name: str, login: tuple[str, str] | None = None
    ) -> Iterator[psycopg.Connection]:
        """A connection to one of an environment's databases, of PostgreSQL's administrator or of a role."""
        from ansible.module_utils.ansible_mlflow.kubernetes import Cluster as Api
        from ansible.module_utils.ansible_mlflow.tunnel import reach_service

        admin = self.secret("pgsql", f"{environment}-postgres-admin")
        host, port = f"{environment}-postgres.pgsql.svc.cluster.local", DATABASE_PORTS[environment]
        with (
            reach_service(host, port, "tunnel", Api(KUBECONFIG, None)) as (local_host, local_port),
            psycopg.connect(
                host=local_host,
                port=local_port,
                dbname=name,
                user=login[0] if login else admin["username"],
                password=login[1] if login else admin["password"],
                autocommit=True,
            ) as connection,
        ):
            yield connection

    def databases(self, environment: str) -> dict[str, Any]:
        """What PostgreSQL holds: databases with owners and grants, roles, and each table's number of rows."""
        with self.database(environment, "postgres") as connection:
            roles = connection.execute("SELECT rolname, rolpassword FROM pg_authid ORDER BY 1").fetchall()
            databases = connection.execute(
                "SELECT datname, pg_get_userbyid(datdba), datacl::text FROM pg_database ORDER BY 1"
            ).fetchall()
        rows = {}
        for name in {"mlflow", "mlflow_auth"} & {database[0] for database in databases}:
            with self.database(environment, name) as connection:
                tables = connection.execute("SELECT relname FROM pg_stat_user_tables ORDER BY 1").fetchall()
                counts = {
                    table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0] for (table,) in tables
                }
                grants = connection.execute("SELECT nspname, nspacl::text FROM pg_namespace ORDER BY 1").fetchall()
                rows[name] = {"tables": counts, "grants": grants}
        return {"roles": roles, "databases": databases, "rows": rows}

    def object_store(self, environment: str) -> minio.Minio:
        """MinIO's administrator, through its NodePort."""
        admin = self.secret("pgsql", f"minio-{environment}-admin")
        return s3(environment, admin["access_key"], admin["secret_key"])

    def delete_versions(self, environment: str, bucket: str, prefix: str = "") -> None:
        """Delete every version of a bucket's objects below a prefix, with the marks of those deleted before."""
        store = self.object_store(environment)
        versions = store.list_objects(bucket, prefix, recursive=True, include_version=True)
        wanted = [DeleteObject(item.object_name, item.version_id) for item in versions]
        assert list(store.remove_objects(bucket, wanted)) == []

    def objects(self, environment: str) -> dict[str, list[str]]:
        """The objects of every bucket, by bucket."""
        store = self.object_store(environment)
        return {
            bucket.name: sorted(
                f"{item.object_name} {item.etag}" for item in store.list_objects(bucket.name, recursive=True)
            )
            for bucket in store.list_buckets()
        }

    def everything(self, environment: str) -> dict[str, Any]:
        """All that a dry run must not touch."""
        return {
            "objects": self.resource_versions(environment),
            "databases": self.databases(environment),
            "buckets": self.objects(environment),
        }

    def kill(self, namespace: str, selector: str) -> None:
        """Delete pods without grace, and wait until others have taken their place and are ready."""
        old = {pod.metadata.uid for pod in self.core.list_namespaced_pod(namespace, label_selector=selector).items}
        assert old, f"no pod with {selector} in {namespace}"
        self.core.delete_collection_namespaced_pod(namespace, label_selector=selector, grace_period_seconds=0)
        wait_until(lambda: self._replaced(namespace, selector, old), 180, f"pods with {selector} come back")

    def _replaced(self, namespace: str, selector: str, old: set[str]) -> bool:
        pods = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        return bool(pods) and all(
            pod.metadata.uid not in old
            and any(state.type == "Ready" and state.status == "True" for state in pod.status.conditions or [])
            for pod in pods
        )


def apply(objects: list[dict]) -> None:
    """Apply objects as Ansible would, so that its next run takes their fields over."""
    from ansible.module_utils.ansible_mlflow.apply import apply_all
    from ansible.module_utils.ansible_mlflow.kubernetes import Cluster as Api

    apply_all(Api(KUBECONFIG, None), objects, check_mode=False)


def s3(environment: str, access_key: str, secret_key: str) -> minio.Minio:
    """A client of an environment's MinIO, through its NodePort, that does not retry."""
    return minio.Minio(
        endpoint=f"localhost:{MINIO_NODE_PORTS[environment]}",
        access_key=access_key,
        secret_key=secret_key,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(timeout=10, retries=False),
    )


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Ask a condition every half second until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.5)


def request(
    environment: str, path: str, *, user: str = "admin", password: str | None = None
) -> urllib3.BaseHTTPResponse:
    """One request to an environment's MLflow through its NodePort, without retries."""
    headers = urllib3.make_headers(basic_auth=f"{user}:{password}") if password is not None else {}
    return urllib3.request(
        "GET", f"http://localhost:{NODE_PORTS[environment]}{path}", headers=headers, timeout=20, retries=False
    )


def client_environment(environment: str, secrets: dict[str, str]) -> dict[str, str]:
    """The settings of a client on this machine, with the administrator's credentials."""
    return {
        "PATH": os.environ["PATH"],
        "MLFLOW_TRACKING_URI": f"http://localhost:{NODE_PORTS[environment]}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": secrets["MLFLOW_AUTH_ADMIN_PASSWORD"],
        "MLFLOW_S3_ENDPOINT_URL": f"http://localhost:{MINIO_NODE_PORTS[environment]}",
        "AWS_ACCESS_KEY_ID": secrets["AWS_ACCESS_KEY_ID"],
        "AWS_SECRET_ACCESS_KEY": secrets["AWS_SECRET_ACCESS_KEY"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }


def mlflow_client(environment: str, secrets: dict[str, str], code: str, timeout: int = 120) -> Any:
    """Run code in a real MLflow client on this machine; it leaves its answer in `answer`."""
    program = f"import json, mlflow, pathlib, tempfile\n{code}\nprint(json.dumps(answer))"
    done = subprocess.run(
        [CLIENT, "-c", program],
        env=client_environment(environment, secrets),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of what `make test-full` runs, and no other."""
    config.addinivalue_line("markers", "full: only in make test-full (MLFLOW_TEST_FULL)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `make test-full` runs."""
    if os.environ.get("MLFLOW_TEST_FULL") != "true":
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The embedded cluster, on the tests' own data: some of them delete what they find."""
    data = DATA_SET.read_text().strip()
    if data != "test":
        pytest.exit(f"the embedded cluster runs on the data set {data}: make cluster DATA=test", returncode=2)
    return Cluster()
