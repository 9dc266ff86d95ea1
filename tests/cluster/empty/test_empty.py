"""A dry run before the first deployment."""

from __future__ import annotations

from conftest import Cluster, site


def test_a_dry_run_of_an_empty_environment_tells_what_would_be_made_and_makes_nothing(cluster: Cluster) -> None:
    before = cluster.everything("dev")
    assert before["objects"] == {}, "the environment is not empty: this test runs before the first deployment"
    run = site("dev", args=("--check", "--diff"))
    assert run.status == 0, run.output
    assert run.changed > 0
    for made in (
        "Namespace mlflow-dev",
        "Secret mlflow-secrets-dev",
        "database mlflow",
        "bucket mlflow",
        "Deployment mlflow-dev",
    ):
        assert made in run.output
    assert cluster.everything("dev") == before
