"""A dry run before the first deployment."""

from __future__ import annotations

import json

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


def test_secrets_that_nobody_could_tell_to_postgresql_and_s3_are_refused_before_anything_changes(
    cluster: Cluster,
) -> None:
    before = cluster.everything("dev")
    nobody = {"mlflow_environment_database_admin_secret": {}, "mlflow_environment_object_store_admin_secret": {}}
    run = site("dev", args=("-e", json.dumps(nobody)))
    assert run.status == 2
    assert "database_password is generated, and PostgreSQL cannot know it; expected the administrator" in run.output
    assert "object_store_secret_key is generated, and S3 cannot know it; expected the administrator" in run.output
    assert cluster.everything("dev") == before
