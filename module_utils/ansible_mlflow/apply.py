"""A list of objects applied in one go, with a diff that can be shown."""

from __future__ import annotations

from dataclasses import dataclass, field

from .autoscaling import give_up_replicas, least_replicas, to_apply
from .errors import Error
from .kubernetes import FIELD_MANAGER, ApiError, Cluster

# What the API server writes by itself, so that it says nothing about what a user changes.
SERVER_FIELDS = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "uid")


# The label that every object of this project has, with the field manager's name.
MANAGED_BY = "app.kubernetes.io/managed-by"


@dataclass
class Applied:
    """What applying did: sentences for people, and a diff for each object that changed."""

    changes: list[str] = field(default_factory=list)
    diffs: list[dict] = field(default_factory=list)


def apply_all(cluster: Cluster, objects: list[dict], check_mode: bool) -> Applied:
    """Apply objects in their order.

    In check mode the API server answers what would come out, and changes nothing. It cannot do so in a namespace that
    is not there yet: such an object is reported as one that would be created.

    A Deployment that an autoscaler among the objects scales keeps the replicas that it has.

    :raises Error: an object that the API server refuses, with its kind and name.
    """
    applied, paths, scaled = Applied(), Paths(cluster), least_replicas(objects)
    for manifest in objects:
        name = named(manifest)
        path = paths.of(manifest)
        try:
            before = cluster.get(path)
            if manifest["kind"] == "Deployment" and manifest["metadata"]["name"] in scaled:
                least = scaled[manifest["metadata"]["name"]]
                manifest = to_apply(cluster, path, manifest, before, least, check_mode)
            after = cluster.apply(path, manifest, dry_run=check_mode)
        except ApiError as error:
            if not (check_mode and error.status == 404):
                raise Error(f"{name}: {error}") from None
            before, after = None, manifest
        if before is not None and comparable(before) == comparable(after):
            continue
        applied.changes.append(f"{'created' if before is None else 'updated'} {name}")
        shown_before, shown_after = shown(before or {}, after)
        applied.diffs.append(
            {"before_header": name, "after_header": name, "before": shown_before, "after": shown_after},
        )
    return applied


def remove_all(cluster: Cluster, objects: list[dict], check_mode: bool) -> Applied:
    """Remove the objects that are there, each named by its apiVersion, kind and metadata.

    Without a name, all of the kind that have the labels are meant. One that this project has not made is left, whoever
    gave it its name, and of a kind that the cluster does not know there is none.

    :raises Error: an object that the API server does not let go, with its kind and name.
    """
    applied, paths = Applied(), Paths(cluster)
    for manifest in objects:
        if not paths.knows(manifest["apiVersion"], manifest["kind"]):
            continue
        try:
            for before in found(cluster, paths, manifest):
                name = named(before)
                if not check_mode:
                    cluster.delete(paths.of(before), before["metadata"]["uid"])
                applied.changes.append(f"removed {name}")
                shown_before, _ = shown(before, before)
                applied.diffs.append({"before_header": name, "after_header": name, "before": shown_before, "after": {}})
        except ApiError as error:
            raise Error(f"{named(manifest)}: {error}") from None
    return applied


def found(cluster: Cluster, paths: Paths, manifest: dict) -> list[dict]:
    """The objects of this project that a manifest names, or, without a name, that have its labels.

    A user who may not read a kind has made none of it.
    """
    try:
        if "name" in manifest["metadata"]:
            items = [cluster.get(paths.of(manifest))]
        else:
            labels = ",".join(f"{name}={value}" for name, value in sorted(manifest["metadata"]["labels"].items()))
            kind = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"]}
            items = [{**kind, **item} for item in cluster.items(paths.collection(manifest), labelSelector=labels)]
    except ApiError as error:
        if error.status != 403:
            raise
        return []
    return [item for item in items if item and (item["metadata"].get("labels") or {}).get(MANAGED_BY) == FIELD_MANAGER]


def release_all(cluster: Cluster, objects: list[dict], check_mode: bool) -> list[str]:
    """Leave objects to another manager that applies them too; whatever only this one has set goes.

    A manager that applies an object without any field gives up those it has. See
    https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership

    :returns: a sentence for each object that was left. One that nobody else applies is not.
    :raises Error: an object that the API server refuses, with its kind and name.
    """
    changes, paths = [], Paths(cluster)
    for manifest in objects:
        name, path = named(manifest), paths.of(manifest)
        try:
            item = cluster.get(path)
            managers = appliers(item or {})
            if FIELD_MANAGER not in managers or len(managers) == 1:
                continue
            metadata = {key: manifest["metadata"][key] for key in ("name", "namespace") if key in manifest["metadata"]}
            bare = {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata}
            if manifest["kind"] == "Deployment" and not check_mode:
                give_up_replicas(cluster, path, item)
            cluster.apply(path, bare, dry_run=check_mode)
        except ApiError as error:
            raise Error(f"{name}: {error}") from None
        changes.append(f"left {name} to {', '.join(sorted(managers - {FIELD_MANAGER}))}")
    return changes


def appliers(item: dict) -> set[str]:
    """The managers that apply an object on the server's side."""
    entries = item.get("metadata", {}).get("managedFields") or []
    return {entry["manager"] for entry in entries if entry.get("operation") == "Apply" and not entry.get("subresource")}


class Paths:
    """Where the API has each kind of object, asked from the API server once for each group and version."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.resources: dict[str, dict[str, dict]] = {}

    def of(self, manifest: dict) -> str:
        """The path of the object that a manifest describes.

        :raises Error: the manifest is none, or the cluster does not know its kind.
        """
        try:
            name = manifest["metadata"]["name"]
            return f"{self.collection(manifest)}/{name}"
        except (KeyError, TypeError):
            raise Error("an object lacks apiVersion, kind or metadata.name") from None

    def collection(self, manifest: dict) -> str:
        """The path of all objects of the manifest's kind, in its namespace."""
        version, kind, metadata = manifest["apiVersion"], manifest["kind"], manifest["metadata"]
        name, namespace = metadata.get("name", ""), metadata.get("namespace")
        resource = self.knows(version, kind)
        if resource is None:
            raise Error(f"{kind} {name}: the cluster has no {kind} in {version}")
        if resource["namespaced"] and not namespace:
            raise Error(f"{kind} {name}: metadata.namespace is missing")
        root = api_root(version)
        prefix = f"{root}/namespaces/{namespace}" if resource["namespaced"] else root
        return f"{prefix}/{resource['name']}"

    def knows(self, version: str, kind: str) -> dict | None:
        """What the API says of a kind, or None where the cluster does not know it."""
        root = api_root(version)
        if root not in self.resources:
            found = (self.cluster.get(root) or {}).get("resources", [])
            self.resources[root] = {entry["kind"]: entry for entry in found if "/" not in entry["name"]}
        return self.resources[root].get(kind)


def api_root(version: str) -> str:
    """Where the API has the objects of an apiVersion."""
    return f"/apis/{version}" if "/" in version else f"/api/{version}"


def named(manifest: dict) -> str:
    """An object's kind and name, as people write them."""
    return f"{manifest.get('kind')} {(manifest.get('metadata') or {}).get('name')}"


def comparable(item: dict) -> dict:
    """An object without what the API server writes by itself."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in SERVER_FIELDS}
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def shown(before: dict, after: dict) -> tuple[dict, dict]:
    """Two states of an object as a diff may show them: of a Secret, which keys differ and no value."""
    before, after = comparable(before) if before else {}, comparable(after)
    if after.get("kind") != "Secret":
        return before, after
    old, new = before.get("data") or {}, after.get("data") or {}
    if before:
        before["data"] = dict.fromkeys(old, "hidden")
    after["data"] = {
        key: "hidden" if old.get(key, value) == value else "hidden, another one" for key, value in new.items()
    }
    return before, after
