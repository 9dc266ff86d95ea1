"""What an old release of MLflow runs as: its Deployment, its Service, and what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import DATABASE_PORTS

HERE = Path(__file__).parent
NAMESPACE = "mlflow-dev"
NAME = "mlflow-dev"
LABELS = {"app.kubernetes.io/name": "mlflow", "app.kubernetes.io/instance": "dev"}
PROGRAMS = ("fill.py", "read.py", "rights.py", "people.py")


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
