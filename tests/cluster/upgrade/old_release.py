"""The environment dev as a user of an old release of MLflow has it, and looks at what it holds.

Everything is the release's own: server, client, databases. Both databases belong to the role `mlflow`, as they did
before there was one that only upgrades them.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from conftest import CLIENT, DATABASE_PORTS, KUBECONFIG, Cluster, client_environment, request, site, wait_until

HERE = Path(__file__).parent
NAMESPACE = "mlflow-dev"
NAME = "mlflow-dev"
SELECTOR = "app.kubernetes.io/name=mlflow"
LABELS = {"app.kubernetes.io/name": "mlflow", "app.kubernetes.io/instance": "dev"}
PROGRAMS = ("fill.py", "read.py", "people.py")
EXPERIMENT_0 = "/api/2.0/mlflow/experiments/get?experiment_id=0"


def prepare() -> None:
    """Make the namespace, the Secrets and the bucket, which are the same for every release."""
    run = site("dev", args=("--tags", "mlflow_database,mlflow_object_store"))
    assert run.status == 0, run.output


def deploy(cluster: Cluster, release: str, *, auth_database: str = "mlflow_auth") -> None:
    """Start a release on empty databases and an empty bucket, and wait until it serves."""
    remove(cluster)
    create_databases(cluster)
    apply(manifests(release, auth_database))
    wait_until(lambda: serves(cluster), 180, f"MLflow {release} serves")


def remove(cluster: Cluster) -> None:
    """Remove the server with all its Jobs, the databases with their roles, and every artifact."""
    options = {"propagation_policy": "Background", "grace_period_seconds": 0}
    cluster.apps.delete_collection_namespaced_deployment(NAMESPACE, **options)
    cluster.batch.delete_collection_namespaced_job(NAMESPACE, **options)
    cluster.core.delete_collection_namespaced_pod(NAMESPACE, grace_period_seconds=0)
    wait_until(lambda: not cluster.core.list_namespaced_pod(NAMESPACE).items, 60, "the pods are gone")
    with cluster.database("dev", "postgres") as connection:
        for name in ("mlflow", "mlflow_auth"):
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS mlflow_migrator")
    store = cluster.object_store("dev")
    for item in store.list_objects("mlflow", recursive=True, include_version=True):
        store.remove_object("mlflow", item.object_name, item.version_id)


def create_databases(cluster: Cluster) -> None:
    with cluster.database("dev", "postgres") as connection:
        for name in ("mlflow", "mlflow_auth"):
            connection.execute(f"CREATE DATABASE {name} OWNER mlflow ENCODING 'UTF8' TEMPLATE template0")
            connection.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")


def apply(objects: list[dict]) -> None:
    """Apply objects as Ansible would, so that its next run takes their fields over."""
    from ansible.module_utils.ansible_mlflow.apply import apply_all
    from ansible.module_utils.ansible_mlflow.kubernetes import Cluster as Api

    apply_all(Api(KUBECONFIG, None), objects, check_mode=False)


def serves(cluster: Cluster) -> bool:
    """Whether the administrator gets an answer to what needs both databases."""
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    deployment = cluster.apps.read_namespaced_deployment(NAME, NAMESPACE)
    try:
        return bool(deployment.status.ready_replicas) and request("dev", EXPERIMENT_0, password=password).status == 200
    except OSError:
        return False


def image(cluster: Cluster) -> str:
    """The image that the Deployment wants."""
    return cluster.apps.read_namespaced_deployment(NAME, NAMESPACE).spec.template.spec.containers[0].image


def fill(cluster: Cluster) -> None:
    """Let the release's own client fill its own server."""
    inside(cluster, "fill.py")


def read_inside(cluster: Cluster) -> dict[str, Any]:
    """What the old release's own client reads: first the rights, since asking for them sets tags to what they are."""
    return json.loads(inside(cluster, "read.py", "rights", "data").splitlines()[-1])


def read_outside(cluster: Cluster, *parts: str) -> dict[str, Any]:
    """What the new client on this machine reads."""
    environment = client_environment("dev", cluster.secrets("dev"))
    # Without these, a new client would follow addresses of the object store that it cannot reach.
    environment |= {"MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false"}
    command = [CLIENT, str(HERE / "read.py"), *(parts or ("data", "rights"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def inside(cluster: Cluster, program: str, *arguments: str) -> str:
    """Run a program in the server's pod with the administrator's credentials; its standard output."""
    from kubernetes.stream import stream

    pods = cluster.core.list_namespaced_pod(NAMESPACE, label_selector=SELECTOR).items
    settings = {
        "MLFLOW_TRACKING_URI": "http://localhost:5000",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    command = f'{given} MLFLOW_TRACKING_PASSWORD="$MLFLOW_AUTH_ADMIN_PASSWORD" exec python /opt/test/{program} "$@"'
    session = stream(
        cluster.core.connect_get_namespaced_pod_exec,
        pods[0].metadata.name,
        NAMESPACE,
        container="mlflow",
        command=["sh", "-c", command, program, *arguments],
        stdout=True,
        stderr=True,
        _preload_content=False,
    )
    session.run_forever(timeout=300)
    errors = session.read_stderr()
    assert session.returncode == 0, f"{program} in the old image: {errors[-3000:]}"
    return session.read_stdout()


def manifests(release: str, auth_database: str) -> list[dict]:
    """The Deployment, its Service, and what it reads; by the names that the project gives them."""

    def uri(database: str) -> str:
        host = f"dev-postgres.pgsql.svc.cluster.local:{DATABASE_PORTS['dev']}"
        return f"postgresql+psycopg2://mlflow@{host}/{database}"

    settings = {
        "MLFLOW_BACKEND_STORE_URI": uri("mlflow"),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://mlflow/",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/",
        "MLFLOW_S3_ENDPOINT_URL": "http://minio-dev.pgsql.svc.cluster.local:9000",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": "/etc/mlflow/basic_auth.ini",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HOME": "/tmp",
    }
    ini = {
        "default_permission": "READ",
        "database_uri": uri(auth_database),
        "admin_username": "admin",
        # Old releases take the password from here alone; as in many an installation, from the variable beside it.
        "admin_password": "PASSWORD",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": "60",
    }
    text = "\n".join(["[mlflow]", *(f"{name} = {value}" for name, value in ini.items())])
    return [
        named("ConfigMap", "mlflow-config-dev", data=settings),
        named("ConfigMap", "mlflow-files-dev", data={"basic_auth.ini": text}),
        named(
            "ConfigMap",
            "mlflow-test-programs",
            labels={"app.kubernetes.io/name": "test"},
            data={name: (HERE / name).read_text("utf-8") for name in PROGRAMS},
        ),
        deployment(release),
        named(
            "Service",
            NAME,
            spec={
                "type": "NodePort",
                "selector": LABELS,
                "ports": [{"name": "http", "port": 5000, "targetPort": "http", "nodePort": 30502, "protocol": "TCP"}],
            },
        ),
    ]


def named(kind: str, name: str, labels: dict[str, str] = LABELS, **rest: Any) -> dict:
    version = "apps/v1" if kind == "Deployment" else "v1"
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def deployment(release: str) -> dict:
    """One worker is enough, and starts sooner on a machine of few cores."""
    start = (
        'sed "s/PASSWORD/$MLFLOW_AUTH_ADMIN_PASSWORD/" /etc/mlflow/basic_auth.ini > /tmp/basic_auth.ini; '
        "MLFLOW_AUTH_CONFIG_PATH=/tmp/basic_auth.ini exec "
        "mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 1"
    )
    container = {
        "name": "mlflow",
        "image": f"localhost/mlflow:{release}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", start],
        "envFrom": [
            {"configMapRef": {"name": "mlflow-config-dev"}},
            {"secretRef": {"name": "mlflow-secrets-dev"}},
        ],
        "ports": [{"name": "http", "containerPort": 5000, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2, "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "files", "mountPath": "/etc/mlflow", "readOnly": True},
            {"name": "programs", "mountPath": "/opt/test", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1001,
            "runAsGroup": 1001,
            "fsGroup": 1001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "files", "configMap": {"name": "mlflow-files-dev"}},
            {"name": "programs", "configMap": {"name": "mlflow-test-programs"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    template = {"metadata": {"labels": LABELS}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": LABELS}, "template": template}
    return named("Deployment", NAME, spec=spec)


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """Where two answers of read.py are not the same, a line for each place; what is new may only be empty."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in sorted({*before, *after}):
            here = f"{path}/{key}"
            if key not in before:
                lines += [f"{here} is new: {after[key]}"] if after[key] else []
            elif key not in after:
                lines.append(f"{here} is gone: {before[key]}")
            else:
                lines += differences(before[key], after[key], here)
        return lines
    return [] if before == after else [f"{path} was {before} and is {after}"]


def timed(what: str, function: Any, *arguments: Any) -> Any:
    """Call a function and say how long it took, for the report of the run."""
    start = time.monotonic()
    answer = function(*arguments)
    print(f"{what}: {time.monotonic() - start:.1f} s", flush=True)
    return answer


def releases() -> list[str]:
    """The releases to upgrade from."""
    return os.environ.get("MLFLOW_UPGRADE_FROM", "3.4.0").split()
