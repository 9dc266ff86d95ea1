"""What may be promoted, and how it is written down."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import load_filter

promotion = load_filter("mlflow_promotion")
DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


def pod(image_id: str, name: str = "mlflow", **metadata: Any) -> dict:
    return {"metadata": metadata, "status": {"containerStatuses": [{"name": name, "imageID": image_id}]}}


def deployment(replicas: int = 2, updated: int = 2, ready: int = 2) -> dict:
    return {"spec": {"replicas": replicas}, "status": {"updatedReplicas": updated, "readyReplicas": ready}}


@pytest.mark.parametrize(
    ("pods", "deployments", "drift", "told"),
    [
        ([pod(f"ghcr.io/mlflow@{DIGEST}")] * 2, [deployment()], [], ""),
        # Imported on the node: it has no name there.
        ([pod(DIGEST), pod(OTHER)], [deployment()], [], ""),
        ([], [], [], "environment stg is not deployed"),
        ([], [deployment()], ["updated Deployment mlflow-stg"], "(updated Deployment mlflow-stg); run site.yml"),
        ([], [deployment(updated=1)], [], "of 2 replicas of environment stg, 1 have its present image and 2 are ready"),
        ([], [deployment(ready=0)], [], "2 have its present image and 0 are ready"),
        ([], [deployment(0, 0, 0)], [], "of 0 replicas"),
        ([pod(f"a@{DIGEST}"), pod(f"a@{OTHER}")], [deployment()], [], f"several images: {DIGEST}, {OTHER}"),
        ([pod(f"a@{DIGEST}"), pod(f"a@{OTHER}", deletionTimestamp="now")], [deployment()], [], ""),
    ],
)
def test_only_what_runs_as_its_inventory_says_is_promoted(
    pods: list[dict], deployments: list[dict], drift: list[str], told: str
) -> None:
    found = promotion.problems(pods, deployments, drift=drift, environment="stg")
    assert (told in found[0] and len(found) == 1) if told else found == []


@pytest.mark.parametrize(
    ("image", "pods", "pinned"),
    [
        ("ghcr.io/mlflow:v3", [pod(f"ghcr.io/mlflow@{DIGEST}")], f"ghcr.io/mlflow:v3@{DIGEST}"),
        (f"ghcr.io/mlflow@{DIGEST}", [pod(f"ghcr.io/mlflow@{DIGEST}")], f"ghcr.io/mlflow@{DIGEST}"),
        ("localhost/mlflow:3", [pod(DIGEST)], "localhost/mlflow:3"),
        ("localhost/mlflow:3", [pod(f"x@{DIGEST}", name="sidecar")], "localhost/mlflow:3"),
        ("localhost/mlflow:3", [], "localhost/mlflow:3"),
    ],
)
def test_an_image_is_promoted_with_the_digest_that_runs(image: str, pods: list[dict], pinned: str) -> None:
    assert promotion.pinned(image, pods) == pinned


def test_a_file_that_would_win_over_a_promoted_value_is_named() -> None:
    files = {
        "inventories/prod/group_vars/prod/server.yml": "---\nmlflow_server_pool_size: 5\nmlflow_server_node_port: 1\n",
        "inventories/prod/group_vars/prod/empty.yml": "---\n",
        "inventories/prod/group_vars/prod/promoted.yml": "mlflow_server_pool_size: 2\n",
    }
    [told] = promotion.conflicts(files, ["mlflow_server_pool_size", "mlflow_environment_image"])
    assert told.startswith("inventories/prod/group_vars/prod/server.yml sets mlflow_server_pool_size itself")
