"""Filters of the role mlflow_gitops: what Argo CD has to know besides the objects themselves."""

from __future__ import annotations

from typing import Any

ANNOTATION = "argocd.argoproj.io"


def in_waves(waves: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The objects with the wave that Argo CD applies each in. One that several waves name is in the first of them.

    Args:
        waves: Objects by the wave's number, in the order of the waves.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, objects in waves.items():
        for item in objects:
            key = (item["kind"], item["metadata"]["name"])
            if key not in found:
                found[key] = annotated(item, {"sync-wave": str(number)})
    return list(found.values())


def annotated(item: dict[str, Any], annotations: dict[str, str]) -> dict[str, Any]:
    """An object with more of Argo CD's annotations."""
    more = {f"{ANNOTATION}/{name}": value for name, value in annotations.items()}
    metadata = item["metadata"]
    return {**item, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **more}}}


def hook(job: dict[str, Any], *, first: dict[str, Any]) -> dict[str, Any]:
    """The pod of the schema's Job as Argo CD runs it, in every sync.

    A Pod and not the Job itself: of a Job that failed, Argo CD tells only that it did, and of a Pod what its container
    left as its last words. A Pod is not started again; the Application's own retry does that.

    Args:
        job: The Job that Ansible starts.
        first: A container that runs before the Job's own.
    """
    spec, template = job["spec"], job["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": job["metadata"]["name"],
            "namespace": job["metadata"]["namespace"],
            "labels": template["metadata"]["labels"],
        },
        "spec": {
            **template["spec"],
            "activeDeadlineSeconds": spec["activeDeadlineSeconds"],
            "initContainers": [first, *template["spec"]["initContainers"]],
        },
    }
    return annotated(pod, {"hook": "Sync", "hook-delete-policy": "BeforeHookCreation"})


def state(status: str) -> dict[str, Any]:
    """What `git status --porcelain=v2 --branch` says of a working tree.

    Args:
        status: Its output, restricted to the paths in question.

    Returns:
        `commit`, `branch`, `pushed` (whether the branch it follows has that commit, as far as this clone knows) and
        `uncommitted`, the paths that are not as committed.
    """
    lines = [line for line in status.splitlines() if line]
    header = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    # A line of another kind ends with the path, after a tab the path of before; 1 and 2 have 8 and 9 fields before it.
    fields = {"1": 8, "2": 9, "u": 10, "?": 1}
    paths = [line.split(" ", fields[line[0]])[-1].split("\t")[0] for line in lines if line[0] in fields]
    return {
        "commit": header.get("branch.oid", ""),
        "branch": header.get("branch.head", ""),
        "pushed": header.get("branch.ab", "").startswith("+0 "),
        "uncommitted": sorted(paths),
    }


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_gitops_annotated": annotated,
            "mlflow_gitops_hook": hook,
            "mlflow_gitops_in_waves": in_waves,
            "mlflow_gitops_state": state,
        }
