"""Fills an environment, and reads what it holds, with a real client: the old release's own, or the new one."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from conftest import CLIENT, Cluster, client_environment
from old_objects import HERE, NAMESPACE

SELECTOR = "app.kubernetes.io/name=mlflow"


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
    pods = [
        pod
        for pod in cluster.core.list_namespaced_pod(NAMESPACE, label_selector=SELECTOR).items
        if pod.status.phase == "Running" and not pod.metadata.deletion_timestamp
    ]
    settings = {
        "MLFLOW_TRACKING_URI": "http://localhost:5000",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
        "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    command = f'{given} MLFLOW_TRACKING_PASSWORD="$MLFLOW_AUTH_ADMIN_PASSWORD" exec python /opt/test/{program} "$@"'
    return execute(cluster, pods[0].metadata.name, NAMESPACE, ["sh", "-c", command, program, *arguments])


def execute(cluster: Cluster, pod: str, namespace: str, command: list[str]) -> str:
    """Run a command in a pod's container; its standard output."""
    status, output, errors = cluster.execute(namespace, pod, command)
    assert status == 0, f"in pod {pod}: {errors[-3000:]}"
    return output


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
