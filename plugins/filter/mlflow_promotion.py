"""Filters of the role mlflow_promotion: what runs, and what stands in the way of writing it down."""

from __future__ import annotations

import re
from typing import Any

import yaml

FILE = "promoted.yml"


def problems(
    pods: list[dict[str, Any]], deployments: list[dict[str, Any]], *, drift: list[str], environment: str
) -> list[str]:
    """Say why what an environment runs cannot be promoted.

    Args:
        pods: The pods of its server.
        deployments: Its Deployment, in a list that is empty without it.
        drift: What site.yml would change of its objects.
        environment: Its name.
    """
    run = f"run site.yml -i inventories/{environment}, and then promote again"
    if not deployments:
        return [f"environment {environment} is not deployed; expected one that is: {run}"]
    found = [f"environment {environment} is not what its inventory says ({', '.join(drift)}); {run}"] if drift else []
    [spec], [status] = [item["spec"] for item in deployments], [item.get("status") or {} for item in deployments]
    wanted = spec.get("replicas", 1)
    if not wanted or status.get("updatedReplicas", 0) != wanted or status.get("readyReplicas", 0) != wanted:
        found.append(
            f"of {wanted} replicas of environment {environment}, {status.get('updatedReplicas', 0)} have its present "
            f"image and {status.get('readyReplicas', 0)} are ready; expected all of them"
        )
    elif len(digests(pods)) > 1:
        found.append(f"the pods of environment {environment} run several images: {', '.join(sorted(digests(pods)))}")
    return found


def digests(pods: list[dict[str, Any]]) -> set[str]:
    """The digests of the images that pods run, empty for what was imported on a node and never pulled."""
    statuses = [status for pod in pods if not pod["metadata"].get("deletionTimestamp") for status in servers(pod)]
    return {found[0] for status in statuses if (found := re.search(r"sha256:[0-9a-f]{64}$", image_id(status)))}


def servers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """The status of a pod's containers that are servers."""
    return [entry for entry in (pod.get("status") or {}).get("containerStatuses") or [] if entry["name"] == "mlflow"]


def image_id(status: dict[str, Any]) -> str:
    """NAME@sha256:DIGEST of a container's image; empty where the node knows no name for it."""
    text = status.get("imageID") or ""
    return text if "@" in text else ""


def pinned(image: str, pods: list[dict[str, Any]]) -> str:
    """An image's reference with the digest that the pods run, where there is one."""
    found = sorted(digests(pods))
    return f"{image}@{found[0]}" if found and "@" not in image else image


def conflicts(files: dict[str, str], names: list[str]) -> list[str]:
    """Which files of the target's inventory set a variable themselves that is to be promoted.

    Args:
        files: The texts of the files by their paths.
        names: The variables.
    """
    found = []
    for path, text in sorted(files.items()):
        if not path.endswith(f"/{FILE}"):
            own = sorted(set(yaml.safe_load(text) or {}) & set(names))
            found += [f"{path} sets {name} itself; expected it in {FILE} alone" for name in own]
    return found


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_promotion_conflicts": conflicts,
            "mlflow_promotion_image": pinned,
            "mlflow_promotion_problems": problems,
        }
