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
    answers = result.get("results", [result])
    changed = [answer["result"] for answer in answers if answer.get("changed")]
    return [f"applied {made['kind']} {made['metadata']['name']}" for made in changed]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_kubernetes_changes": kubernetes_changes}
