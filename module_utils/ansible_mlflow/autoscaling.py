"""A Deployment whose number of replicas is an autoscaler's, and no longer that of who applies it."""

from __future__ import annotations

from .kubernetes import FIELD_MANAGER, ApiError, Cluster

# How often to look again where an autoscaler writes at the same moment.
TRIES = 5
OF_REPLICAS = ("f:spec", "f:replicas")


def least_replicas(objects: list[dict]) -> dict[str, int]:
    """The least replicas of each Deployment that an autoscaler among some objects scales, by its name (pure)."""
    scalers = [item["spec"] for item in objects if item.get("kind") == "HorizontalPodAutoscaler"]
    return {spec["scaleTargetRef"]["name"]: spec["minReplicas"] for spec in scalers}


def to_apply(cluster: Cluster, path: str, manifest: dict, before: dict | None, least: int, check_mode: bool) -> dict:
    """The manifest of a Deployment without a number of replicas, so that the one that is there stays.

    Kubernetes takes 1 for a field that nobody has set any more. So what an earlier run has set is given up first. A
    Deployment with fewer than the least has been stopped, or is new: an autoscaler begins with none that has 0.

    :param before: the Deployment as it is; None where there is none.
    :raises ApiError: the API server refuses the change.
    """
    present = 0 if before is None else before["spec"].get("replicas", 1)
    if present < least:
        return with_replicas(manifest, least)
    if check_mode:
        # A dry run cannot give anything up; this is what comes out.
        return with_replicas(manifest, present)
    give_up_replicas(cluster, path, before)
    return manifest


def with_replicas(manifest: dict, number: int) -> dict:
    """A Deployment with that many replicas."""
    return {**manifest, "spec": {**manifest["spec"], "replicas": number}}


def give_up_replicas(cluster: Cluster, path: str, item: dict | None) -> None:
    """Leave an object's number of replicas as it is, but be no longer the one who has set it.

    :raises ApiError: the API server refuses the change.
    """
    for attempt in range(TRIES):
        places = [] if item is None else [number for number, entry in enumerate(managers(item)) if is_ours(entry)]
        if not places:
            return
        version = {"op": "replace", "path": "/metadata/resourceVersion", "value": item["metadata"]["resourceVersion"]}
        field = "/".join(OF_REPLICAS)
        patch = [{"op": "remove", "path": f"/metadata/managedFields/{places[0]}/fieldsV1/{field}"}, version]
        try:
            cluster.request("PATCH", path, patch, content_type="application/json-patch+json")
        except ApiError as error:
            if error.status != 409 or attempt == TRIES - 1:
                raise
        item = cluster.get(path)


def managers(item: dict) -> list[dict]:
    """Who has set which of an object's fields."""
    return item["metadata"].get("managedFields") or []


def is_ours(entry: dict) -> bool:
    """Whether an entry says that this project has applied the number of replicas."""
    outer, inner = OF_REPLICAS
    ours = (entry.get("manager"), entry.get("operation")) == (FIELD_MANAGER, "Apply")
    return ours and not entry.get("subresource") and inner in entry.get("fieldsV1", {}).get(outer, {})
