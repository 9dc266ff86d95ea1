"""Filters for what the Kubernetes modules answer."""

from __future__ import annotations

from typing import Any


def kubernetes_changes(result: dict[str, Any]) -> list[str]:
    """Say which objects a kubernetes.core.k8s task changed.

    Args:
        result: What the task registered, of one object or of a list of them.

    Returns:
        A sentence for each object that was created or updated, without its content.
    """
    answers = result.get("result", {}).get("results", [result])
    changed = [answer["result"] for answer in answers if answer.get("changed")]
    return [f"applied {name}" for name in kubernetes_names(changed)]


def kubernetes_names(manifests: list[dict[str, Any]]) -> list[str]:
    """The kind and name of each manifest, as people write them: `ConfigMap mlflow-config-dev`."""
    return [f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in manifests]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_kubernetes_changes": kubernetes_changes, "mlflow_kubernetes_names": kubernetes_names}
