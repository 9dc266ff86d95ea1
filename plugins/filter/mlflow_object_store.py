"""Filters of the role mlflow_object_store."""

from __future__ import annotations

from typing import Any


def artifact_root_problem(roots: dict[str, int], bucket: str, accepted: list[str]) -> str:
    """Say which experiments have their artifacts elsewhere than new ones would; empty when none has.

    Args:
        roots: The number of experiments by the root below which MLflow put them.
        bucket: The bucket of the environment.
        accepted: Other roots, which were left behind or are served otherwise.
    """
    known = {f"s3://{bucket}", *(root.rstrip("/") for root in accepted)}
    # What the server hands on by itself (mlflow-artifacts:) is where the server says.
    others = {root: count for root, count in roots.items() if root.startswith("s3://") and root not in known}
    if not others:
        return ""
    places = ", ".join(f"{root} ({number})" for root, number in sorted(others.items()))
    return (
        f"mlflow_object_store_bucket is {bucket}, and the artifacts of {sum(others.values())} experiments in the "
        f"database are elsewhere: {places}. MLflow moves none, and its key can use one bucket only, so that it would "
        f"lose them; expected the bucket of the experiments, or these places in "
        f"mlflow_object_store_other_artifact_roots if that is what you want (docs/object-store.md)"
    )


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_object_store_artifact_root_problem": artifact_root_problem}
