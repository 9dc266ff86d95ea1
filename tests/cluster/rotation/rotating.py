"""What the tests of rotations share: a client at work, what is encrypted, and a run that is killed half way."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from conftest import (
    CLIENT,
    NODE_PORTS,
    Cluster,
    Run,
    client_environment,
    play,
    play_and_die,
    request,
    s3,
)
from minio.error import S3Error

ENVIRONMENT = os.environ.get("MLFLOW_TEST_ENVIRONMENT", "dev")
NAMESPACE = f"mlflow-{ENVIRONMENT}"
URL = f"http://localhost:{NODE_PORTS[ENVIRONMENT]}/api"
# More of them where a node is full of other environments.
REPLICAS = ("-e", "mlflow_server_replicas=2", *os.environ.get("MLFLOW_TEST_ARGUMENTS", "").split())
USER, USER_PASSWORD = "rotation-user", "the-password-of-an-ordinary-user"
SECRET_NAME, SECRET_VALUE = "rotation test", "sk-of-the-rotation-test"
HOOK, HOOK_SECRET = "rotation-test", "the secret of a webhook"

# In a server's pod, with its own settings: everything that is encrypted, as MLflow itself reads it.
READ = """
import json, os, sqlalchemy
from mlflow.store.model_registry.dbmodels.models import SqlWebhook
from mlflow.utils.crypto import KEKManager, _decrypt_secret
from sqlalchemy.orm import Session
engine = sqlalchemy.create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"])
with Session(engine) as session:
    rows = session.execute(sqlalchemy.text("SELECT secret_id, secret_name, encrypted_value, wrapped_dek FROM secrets"))
    secrets = {row[1]: _decrypt_secret(bytes(row[2]), bytes(row[3]), KEKManager(), row[0], row[1]) for row in rows}
    hooks = {hook.name: hook.secret for hook in session.query(SqlWebhook)}
print(json.dumps({"secrets": secrets, "hooks": hooks}))
"""


def names(*asked: str) -> tuple[str, ...]:
    """The arguments of a run that rotates these."""
    return (*REPLICAS, "-e", json.dumps({"mlflow_rotation_secrets": list(asked)}))


def rotate(*asked: str, args: tuple[str, ...] = ()) -> Run:
    """Run rotate.yml to its end."""
    return play("playbooks/rotate.yml", ENVIRONMENT, args=(*names(*asked), *args))


def rotate_and_die(asked: tuple[str, ...], task: str, log: Path, after: float = 0) -> None:
    """Run rotate.yml and kill all of it some seconds after it has begun a task; with 'x 2', for the second time."""
    play_and_die("playbooks/rotate.yml", ENVIRONMENT, args=names(*asked), task=task, log=log, after=after)


def api(cluster: Cluster, method: str, path: str, **values: Any) -> dict[str, Any]:
    """A request of the administrator's that has to succeed."""
    headers = urllib3.make_headers(basic_auth=f"admin:{cluster.secrets(ENVIRONMENT)['MLFLOW_AUTH_ADMIN_PASSWORD']}")
    content = {"fields": values} if method == "GET" else {"json": values}
    answer = urllib3.request(method, f"{URL}/{path}", headers=headers, timeout=20, retries=False, **content)
    assert answer.status == 200, answer.data
    return json.loads(answer.data or b"{}")


def plant(cluster: Cluster) -> None:
    """A user, a secret of the gateway and a webhook."""
    clear(cluster)
    api(cluster, "POST", "2.0/mlflow/users/create", username=USER, password=USER_PASSWORD)
    secret = {"secret_name": SECRET_NAME, "secret_value": {"api_key": SECRET_VALUE}, "provider": "openai"}
    api(cluster, "POST", "3.0/mlflow/gateway/secrets/create", **secret)
    events = [{"entity": "REGISTERED_MODEL", "action": "CREATED"}]
    # An address, as names cannot be looked up here; nothing is ever sent there.
    hook = {"name": HOOK, "url": "https://1.1.1.1/hook", "events": events, "secret": HOOK_SECRET}
    api(cluster, "POST", "2.0/mlflow/webhooks", **hook)


def clear(cluster: Cluster) -> None:
    """Remove what plant() has made."""
    if USER in [user["username"] for user in api(cluster, "GET", "2.0/mlflow/users/list")["users"]]:
        api(cluster, "DELETE", "2.0/mlflow/users/delete", username=USER)
    found = api(
        cluster, "POST", "2.0/mlflow/experiments/search", max_results=1000, filter="name LIKE 'rotation test %'"
    )
    for experiment in found.get("experiments", []):
        api(cluster, "POST", "2.0/mlflow/experiments/delete", experiment_id=experiment["experiment_id"])
    for secret in api(cluster, "GET", "3.0/mlflow/gateway/secrets/list").get("secrets", []):
        if secret["secret_name"] == SECRET_NAME:
            api(cluster, "DELETE", "3.0/mlflow/gateway/secrets/delete", secret_id=secret["secret_id"])
    for hook in api(cluster, "GET", "2.0/mlflow/webhooks").get("webhooks", []):
        if hook["name"] == HOOK:
            api(cluster, "DELETE", f"2.0/mlflow/webhooks/{hook['webhook_id']}")


@contextmanager
def somebody_logs(cluster: Cluster) -> Iterator[None]:
    """An ordinary user's client logs twice a second, and nothing of it may fail."""
    environment = client_environment(ENVIRONMENT, cluster.secrets(ENVIRONMENT))
    environment |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": USER_PASSWORD}
    environment |= {"MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false", "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
    environment = {key: value for key, value in environment.items() if not key.startswith("AWS_")}
    program = Path(__file__).parent / "user.py"
    user = subprocess.Popen(
        [CLIENT, program, f"rotation test {time.time()}"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert user.stdout.readline() == "began\n"
        yield
        output, _ = user.communicate(timeout=60)
    finally:
        user.kill()
        user.wait()
    report = json.loads(output.splitlines()[-1])
    print(f"logged {report['logged']} times meanwhile")
    assert report["failed"] == [], report["failed"][0]
    assert report["kept"] == report["logged"] > 20


def read_encrypted(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """What is encrypted, as each of the servers reads it."""
    answers = [
        cluster.execute(NAMESPACE, pod.metadata.name, ["python", "-c", READ], "mlflow")
        for pod in cluster.servers(ENVIRONMENT)
    ]
    found = [json.loads(output.splitlines()[-1]) for _, output, _ in answers]
    assert found
    assert found == [found[0]] * len(found)
    # Others may have some, too.
    return {
        "secrets": {name: value for name, value in found[0]["secrets"].items() if name == SECRET_NAME},
        "hooks": {name: value for name, value in found[0]["hooks"].items() if name == HOOK},
    }


def all_secrets(cluster: Cluster) -> dict[str, str]:
    """The texts of both Secrets by key."""
    return cluster.secrets(ENVIRONMENT) | cluster.secret(NAMESPACE, f"mlflow-maintenance-{ENVIRONMENT}")


def logs_in(cluster: Cluster, secrets: dict[str, str]) -> dict[str, bool]:
    """Which of these work: each at its own place."""
    return {
        "administrator": request(
            ENVIRONMENT, "/api/2.0/mlflow/users/current", password=secrets["MLFLOW_AUTH_ADMIN_PASSWORD"]
        ).status
        == 200,
        "PostgreSQL": connects(cluster, "mlflow", secrets["PGPASSWORD"]),
        "PostgreSQL's owner": connects(cluster, "mlflow_migrator", secrets["MIGRATOR_PGPASSWORD"]),
        "bucket": lists("mlflow", secrets["AWS_ACCESS_KEY_ID"], secrets["AWS_SECRET_ACCESS_KEY"]),
        "backups": lists(
            "mlflow-backups", secrets["BACKUP_AWS_ACCESS_KEY_ID"], secrets["BACKUP_AWS_SECRET_ACCESS_KEY"]
        ),
    }


def connects(cluster: Cluster, username: str, password: str) -> bool:
    """Whether a password opens the database, from where the servers are: the image trusts its own address."""
    [pod, *_] = cluster.servers(ENVIRONMENT)
    config = cluster.config(ENVIRONMENT)["MLFLOW_BACKEND_STORE_URI"]
    uri = config.replace("+psycopg2", "").replace("://mlflow@", f"://{username}@")
    program = f"import psycopg2; psycopg2.connect({uri!r}, password={password!r}); print('connected')"
    _, answer, errors = cluster.execute(NAMESPACE, pod.metadata.name, ["python", "-c", program], "mlflow")
    output = answer + errors
    assert "connected" in output or "password authentication failed" in output, output
    return "connected" in output


def lists(bucket: str, access_key: str, secret_key: str) -> bool:
    """Whether a key may list a bucket below a prefix, as MLflow does."""
    try:
        list(s3(ENVIRONMENT, access_key, secret_key).list_objects(bucket, prefix="none/"))
    except S3Error as error:
        if error.code not in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
            raise
        return False
    return True


def left_over(cluster: Cluster) -> list[str]:
    """What a rotation makes for the time being."""
    found = [secret.metadata.name for secret in cluster.core.list_namespaced_secret(NAMESPACE).items]
    with cluster.database(ENVIRONMENT, "postgres") as connection:
        roles = [row[0] for row in connection.execute("SELECT rolname FROM pg_roles").fetchall()]
    return [name for name in found + roles if "rotation" in name]
