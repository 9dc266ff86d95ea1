"""Filters of the role mlflow_object_store."""

from __future__ import annotations

from collections import Counter
from typing import Any

# Where experiments are whose artifacts the server hands on to the place of its own settings.
PROXIED = "mlflow-artifacts:"


def artifact_root_problem(roots: dict[str, int], bucket: str, accepted: list[str], destination: str = "") -> str:
    """Say which experiments have their artifacts elsewhere than new ones would; empty when none has.

    Args:
        roots: The number of experiments by the root below which MLflow put them.
        bucket: The bucket of the environment.
        accepted: Other roots, which were left behind or are served otherwise.
        destination: Where the server has put what it hands on until now; empty if there was none.
    """
    known = {f"s3://{bucket}", *(root.rstrip("/") for root in accepted)}
    places: Counter[str] = Counter()
    for root, count in roots.items():
        places[destination.rstrip("/") if root == PROXIED and destination else root] += count
    others = {root: count for root, count in places.items() if root.startswith("s3://") and root not in known}
    if not others:
        return ""
    listed = ", ".join(f"{root} ({number})" for root, number in sorted(others.items()))
    return (
        f"mlflow_object_store_bucket is {bucket}, and the artifacts of {sum(others.values())} experiments in the "
        f"database are elsewhere: {listed}. MLflow moves none, and its key can use one bucket only, so that it would "
        f"lose them; expected the bucket of the experiments, or these places in "
        f"mlflow_object_store_other_artifact_roots if that is what you want (docs/object-store.md)"
    )


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_object_store_artifact_root_problem": artifact_root_problem}
