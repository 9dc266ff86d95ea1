"""An environment that is removed, as the last of the tests here: what was not named stays, and comes back."""

from __future__ import annotations

import json

from conftest import Cluster, folded, mlflow_client, play, site

ALL = ["databases", "bucket", "backups"]
RUN = """
with mlflow.start_run() as run:
    mlflow.log_metric("loss", 0.25)
    mlflow.log_text("kept", "note.txt")
answer = run.info.run_id
"""


def read(run_id: str) -> str:
    """Code that reads the run back."""
    return f"""
run = mlflow.get_run({run_id!r})
answer = [run.data.metrics["loss"], mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt")]
"""


def destroy(environment: str, *args: str, **variables: object):
    return play("playbooks/destroy.yml", environment, args=("-e", json.dumps(variables), *args))


def test_without_the_environments_name_nothing_is_removed(cluster: Cluster) -> None:
    before = cluster.everything("stg")
    for variables in ({}, {"mlflow_destroy_confirm": "prod", "mlflow_destroy_data": ["databases", "bucket"]}):
        run = destroy("stg", **variables)
        assert run.status == 2, run.output
        assert "-e mlflow_destroy_confirm=stg" in folded(run.output)
    run = destroy("stg", "--check", mlflow_destroy_confirm="stg", mlflow_destroy_data=ALL)
    assert (run.status, run.changed) == (0, 5), run.output
    assert cluster.everything("stg") == before


def test_what_is_not_named_stays_and_comes_back_with_the_next_run(cluster: Cluster) -> None:
    run_id = mlflow_client("stg", cluster.secrets("stg"), RUN)
    kept = {"databases": cluster.databases("stg"), "buckets": cluster.objects("stg"), "secrets": cluster.secrets("stg")}
    run = destroy("stg", mlflow_destroy_confirm="stg")
    assert (run.status, run.changed) == (0, 1), run.output
    left = {name.split()[0] for name in cluster.resource_versions("stg") if not name.endswith("kube-root-ca.crt")}
    assert left <= {"Secret", "Namespace", "ServiceAccount"}, left
    again = destroy("stg", mlflow_destroy_confirm="stg")
    assert (again.status, again.changed) == (0, 0), again.output
    now = {"databases": cluster.databases("stg"), "buckets": cluster.objects("stg"), "secrets": cluster.secrets("stg")}
    assert now == kept
    run = site("stg")
    assert run.status == 0, run.output
    assert mlflow_client("stg", cluster.secrets("stg"), read(run_id)) == [0.25, "kept"]


def test_what_is_named_is_destroyed_and_the_other_environments_go_on(cluster: Cluster) -> None:
    others = {name: cluster.everything(name) for name in ("dev", "prod")}
    run = destroy("stg", mlflow_destroy_confirm="stg", mlflow_destroy_data=ALL)
    assert run.status == 0, run.output
    roles, databases, _ = cluster.databases("stg").values()
    assert {name for name, *_ in roles} & {"mlflow", "mlflow_migrator"} == set()
    assert {name for name, *_ in databases} & {"mlflow", "mlflow_auth"} == set()
    assert cluster.objects("stg") == {}
    assert cluster.resource_versions("stg") == {}
    again = destroy("stg", mlflow_destroy_confirm="stg", mlflow_destroy_data=ALL)
    assert (again.status, again.changed) == (0, 0), again.output
    assert {name: cluster.everything(name) for name in others} == others
