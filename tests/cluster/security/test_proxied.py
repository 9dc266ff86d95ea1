"""A client that reaches nothing but the server: with mlflow_server_artifact_access=proxied, that is enough."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from conftest import CLIENT, Cluster, client_environment, request, site, wait_until

KILOBYTE, LARGE = 1000, 600 * 2**20
S3 = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")

# Writes an artifact in an experiment that is made as the server makes it, reads it back, and removes it.
ROUND_TRIP = """
import filecmp, os, pathlib, sys, tempfile, mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
client, size = mlflow.MlflowClient(), int(sys.argv[1])
experiment = client.create_experiment(f"through the server {size} {os.getpid()}")
assert client.get_experiment(experiment).artifact_location.startswith("mlflow-artifacts:/")
run = client.create_run(experiment).info
with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, "artifact.bin")
    with file.open("wb") as stream:
        stream.write(os.urandom(1000))
        stream.truncate(size)
    client.log_artifact(run.run_id, str(file))
    back = client.download_artifacts(run.run_id, file.name, tempfile.mkdtemp(dir=folder))
    assert filecmp.cmp(file, back, shallow=False)
get_artifact_repository(run.artifact_uri).delete_artifacts()
client.delete_experiment(experiment)
"""


def offers() -> set[bool]:
    """What the server tells its clients of ways past it."""
    info = request("dev", "/api/3.0/mlflow/server-info").json()
    return {info["multipart_uploads_enabled"], info["multipart_downloads_enabled"]}


def run(*args: str) -> None:
    """Run what the server and a client's round trip need of site.yml."""
    done = site("dev", args=("--tags", "mlflow_server,mlflow_verification", *args))
    assert done.status == 0, done.output


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[dict[str, str]]:
    """The settings of a client that has no key to the object store, while the server is one for such clients."""
    assert offers() == {True}
    run("--extra-vars=mlflow_server_artifact_access=proxied")
    settings = client_environment("dev", cluster.secrets("dev"))
    yield {name: value for name, value in settings.items() if name not in S3}
    run("--skip-tags=mlflow_verification")
    wait_until(lambda: offers() == {True}, 60, "the pods of before are asked no more")


@pytest.mark.parametrize("size", [KILOBYTE, pytest.param(LARGE, marks=pytest.mark.full)])
def test_an_artifact_goes_through_the_server_both_ways(client: dict[str, str], size: int) -> None:
    wait_until(lambda: offers() == {False}, 60, "the pods of before are asked no more")
    program = [CLIENT, "-c", ROUND_TRIP, str(size)]
    done = subprocess.run(program, env=client, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
