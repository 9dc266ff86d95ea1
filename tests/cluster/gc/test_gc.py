"""What users have deleted goes for good with its artifacts, and nothing else does."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import (
    ROOT,
    Cluster,
    Run,
    ansible_command,
    ansible_environment,
    folded,
    mlflow_client,
    play,
    site,
    wait_until,
)

ENVIRONMENT = os.environ.get("MLFLOW_TEST_ENVIRONMENT", "dev")
NAMESPACE = f"mlflow-{ENVIRONMENT}"
NAME = f"mlflow-gc-{ENVIRONMENT}"
# Everything that is deleted is old enough.
NOW = ("-e", "mlflow_gc_older_than=0s")
# Experiments of each kind of artifact root, runs, logged models, a trace and versions of registered models. Of what is
# deleted, a run and a logged model are needed by a version, and one deleted experiment has such a run in it.
MAKE = """
import os
os.environ |= {"MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false", "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false"}
client, made = mlflow.MlflowClient(), {}
mark = "gc-test " + os.urandom(4).hex()
direct = client.create_experiment(f"{mark} direct")
proxied = client.create_experiment(f"{mark} proxied", artifact_location=f"mlflow-artifacts:/{mark[-8:]}")
going = client.create_experiment(f"{mark} going")
staying = client.create_experiment(f"{mark} staying")

def run(name, experiment, *sizes, delete=True):
    made[name] = client.create_run(experiment).info.run_id
    client.log_metric(made[name], "loss", 0.5)
    client.log_param(made[name], "depth", 7)
    for number, size in enumerate(sizes):
        client.log_text(made[name], "x" * size, f"folder/{number}.txt")
    if delete:
        client.delete_run(made[name])

def model(name, experiment, size):
    made[name] = client.create_logged_model(experiment, name=name).model_id
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "weights.bin")
        path.write_bytes(b"w" * size)
        client.log_model_artifact(made[name], str(path))
    client.finalize_logged_model(made[name], "READY")

def version(of, source, run_id=None, model_id=None):
    client.create_registered_model(f"{mark} {of}")
    client.create_model_version(f"{mark} {of}", source, run_id=run_id, model_id=model_id)

run("direct", direct, 1000, 200)
run("proxied", proxied, 3000)
run("empty", direct)
run("needed", direct, 11, delete=False)
version("of a run", f"runs:/{made['needed']}/folder", made["needed"])
client.delete_run(made["needed"])
run("alive", direct, 13, delete=False)
model("model", direct, 500)
model("needed model", direct, 17)
version("of a model", f"models:/{made['needed model']}", model_id=made["needed model"])
# It is gone from the registry, so that it needs nothing.
version("gone", f"models:/{made['model']}", model_id=made["model"])
client.delete_model_version(f"{mark} gone", "1")
client.delete_logged_model(made["model"])
client.delete_logged_model(made["needed model"])
run("in the experiment", going, 70, delete=False)
model("model of the experiment", going, 80)
mlflow.set_experiment(experiment_id=going)
with mlflow.start_span("step"):
    pass
mlflow.flush_trace_async_logging()
client.delete_experiment(going)
run("inside", staying, 19, delete=False)
version("of an experiment", f"runs:/{made['inside']}/folder", made["inside"])
client.delete_experiment(staying)
answer = made | {"mark": mark, "going": going, "staying": staying, "all": list(made.values())}
"""
# Leaves nothing of it to be kept.
UNMAKE = """
client = mlflow.MlflowClient()
for model in client.search_registered_models("name LIKE 'gc-test %'"):
    client.delete_registered_model(model.name)
for experiment in client.search_experiments(filter_string="name LIKE 'gc-test %'"):
    client.delete_experiment(experiment.experiment_id)
answer = None
"""
MANY = """
client = mlflow.MlflowClient()
experiment = client.create_experiment("gc-test " + __import__("os").urandom(4).hex())
answer = [client.create_run(experiment).info.run_id for _ in range({count})]
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda run: client.log_text(run, "x", "a.txt"), answer))
    list(pool.map(client.delete_run, answer))
"""


def collect(*args: str) -> Run:
    return play("playbooks/gc.yml", ENVIRONMENT, args=(*NOW, *args), timeout=180)


def summary(run: Run) -> str:
    """What it says of the whole."""
    found = re.search(r"((?:Would delete|Deleted) [^()]+) \(", folded(run.output))
    return found[1] if found else run.output


def rows(cluster: Cluster) -> dict[str, int]:
    """How many rows each table of the tracking database has."""
    return cluster.databases(ENVIRONMENT)["rows"]["mlflow"]["tables"]


def present(cluster: Cluster, ids: list[str]) -> set[str]:
    """Those runs and logged models that the database still has."""
    with cluster.database(ENVIRONMENT, "mlflow") as connection:
        found = connection.execute(
            "SELECT run_uuid FROM runs WHERE run_uuid = ANY(%s) UNION SELECT model_id FROM logged_models "
            "WHERE model_id = ANY(%s)",
            [ids, ids],
        ).fetchall()
    return {row[0] for row in found}


def objects(cluster: Cluster, identifier: str) -> list[str]:
    """The objects of a run or a logged model."""
    return [name for name in cluster.objects(ENVIRONMENT)["mlflow"] if f"/{identifier}/" in f"/{name}"]


def going(cluster: Cluster, made: dict[str, Any]) -> str:
    """How much there is of what is to be deleted; the trace's own file is one that the client makes or not."""
    going = {made[name] for name in ("direct", "proxied", "model")}
    found = [
        item.size
        for item in cluster.object_store(ENVIRONMENT).list_objects("mlflow", recursive=True)
        if going & set(item.object_name.split("/")) or item.object_name.startswith(f"{made['going']}/")
    ]
    return f"{len(found)} objects of {sum(found) / 1000:.3g} kB"


@pytest.fixture(scope="module")
def secrets(cluster: Cluster) -> dict[str, str]:
    return cluster.secrets(ENVIRONMENT)


@pytest.fixture(scope="module")
def made(cluster: Cluster, secrets: dict[str, str]) -> dict[str, Any]:
    """What a client has made and deleted, after what others have deleted is gone."""
    done = collect()
    assert done.status == 0, done.output
    return mlflow_client(ENVIRONMENT, secrets, MAKE)


@contextmanager
def key_without_deletion(cluster: Cluster, secrets: dict[str, str]) -> Iterator[None]:
    """Meanwhile the servers' key may not delete objects."""
    from ansible.module_utils.ansible_mlflow.object_store_policy import policy_name
    from minio.credentials import StaticProvider
    from minio.minioadmin import MinioAdmin

    administrator = cluster.secret("pgsql", f"minio-{ENVIRONMENT}-admin")
    port = cluster.core.read_namespaced_service(f"minio-{ENVIRONMENT}-external", "pgsql").spec.ports[0].node_port
    login = StaticProvider(administrator["access_key"], administrator["secret_key"])
    admin = MinioAdmin(endpoint=f"localhost:{port}", credentials=login, secure=False)
    name = policy_name("mlflow", secrets["AWS_ACCESS_KEY_ID"])
    found = json.loads(admin.policy_info(name))
    before = found.get("Policy", found)
    less = copy.deepcopy(before)
    for statement in less["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != "s3:DeleteObject"]
    assert less != before
    admin.policy_add(name, policy=less)
    try:
        yield
    finally:
        admin.policy_add(name, policy=before)


def test_a_dry_run_counts_and_changes_nothing(cluster: Cluster, made: dict[str, Any]) -> None:
    before = (rows(cluster), cluster.objects(ENVIRONMENT))
    run = collect("-e", "mlflow_gc_dry_run=true")
    assert run.status == 0, run.output
    assert run.changed == 0
    what = "4 runs, 1 experiment, 2 logged models, 1 trace"
    assert summary(run) == f"Would delete {what}, {going(cluster, made)}"
    assert (rows(cluster), cluster.objects(ENVIRONMENT)) == before


def test_a_check_runs_no_job_and_says_how_to_count(cluster: Cluster, made: dict[str, Any]) -> None:
    before = (rows(cluster), cluster.resource_versions(ENVIRONMENT))
    run = collect("--check", "--diff")
    assert (run.status, run.changed) == (0, 0), run.output
    assert "-e mlflow_gc_dry_run=true counts what would be deleted" in folded(run.output)
    assert (rows(cluster), cluster.resource_versions(ENVIRONMENT)) == before


def test_what_the_object_store_keeps_is_told_and_stays_to_be_found(
    cluster: Cluster, secrets: dict[str, str], made: dict[str, Any]
) -> None:
    before = cluster.objects(ENVIRONMENT)
    with key_without_deletion(cluster, secrets):
        run = collect()
    assert run.status != 0
    words = folded(run.output)
    assert "not all could be deleted, and the next run will try it again" in words
    assert (
        f"run {made['direct']} stays, since the S3 server keeps 2 objects (1200 bytes) of it below s3://mlflow/"
        in words
    )
    assert "Traceback" not in words
    assert cluster.objects(ENVIRONMENT) == before
    # The one without an artifact could go.
    assert present(cluster, made["all"]) == set(made["all"]) - {made["empty"]}


def test_it_deletes_what_was_deleted_and_keeps_what_a_registered_model_needs(
    cluster: Cluster, secrets: dict[str, str], made: dict[str, Any]
) -> None:
    expected = going(cluster, made)
    run = collect()
    assert run.status == 0, run.output
    words = folded(run.output)
    assert summary(run) == f"Deleted 3 runs, 1 experiment, 2 logged models, 1 trace, {expected}"
    assert run.changed == 1
    for kept, of in (("needed", "a run"), ("inside", "an experiment")):
        assert f"Kept run {made[kept]}: version 1 of the registered model {made['mark']} of {of} points at it" in words
    assert f"Kept logged model {made['needed model']}: version 1 of the registered model" in words
    assert f"Kept experiment {made['staying']}: its run {made['inside']} is kept" in words

    stays = {made[name] for name in ("needed", "alive", "needed model", "inside")}
    assert present(cluster, made["all"]) == stays
    assert {identifier for identifier in made["all"] if objects(cluster, identifier)} == stays
    assert going(cluster, made) == "0 objects of 0 kB"
    answer = f"answer = mlflow.MlflowClient().get_run('{made['alive']}').data.metrics"
    assert mlflow_client(ENVIRONMENT, secrets, answer) == {"loss": 0.5}
    # What a version points at can be loaded.
    loaded = mlflow_client(
        ENVIRONMENT,
        secrets,
        f"path = mlflow.artifacts.download_artifacts('models:/{made['mark']} of a model/1')\n"
        "answer = [item.name for item in pathlib.Path(path).iterdir()]",
    )
    assert loaded == ["weights.bin"]


def test_a_second_run_has_nothing_to_do(cluster: Cluster, made: dict[str, Any]) -> None:
    before = (rows(cluster), cluster.objects(ENVIRONMENT))
    run = collect()
    assert (run.status, run.changed) == (0, 0), run.output
    assert summary(run) == "Deleted nothing"
    assert (rows(cluster), cluster.objects(ENVIRONMENT)) == before


def test_no_secret_is_in_the_job(cluster: Cluster, secrets: dict[str, str], made: dict[str, Any]) -> None:
    data = json.dumps(cluster.core.read_namespaced_config_map(NAME, NAMESPACE).data)
    assert [name for name, value in secrets.items() if name.isupper() and len(value) > 11 and value in data] == []


def test_the_next_run_completes_what_was_cut_off(cluster: Cluster, secrets: dict[str, str]) -> None:
    mlflow_client(ENVIRONMENT, secrets, UNMAKE)
    runs = mlflow_client(ENVIRONMENT, secrets, MANY.format(count=40))
    command = ansible_command("playbooks/gc.yml", ENVIRONMENT, args=NOW)
    first = subprocess.Popen(
        command, cwd=ROOT, env=ansible_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: len(present(cluster, runs)) < len(runs), 60, "it has begun")
    label = f"app.kubernetes.io/name=mlflow-gc,app.kubernetes.io/instance={ENVIRONMENT}"
    cluster.core.delete_collection_namespaced_pod(NAMESPACE, label_selector=label, grace_period_seconds=0)
    output = first.communicate(timeout=120)[0]
    left = present(cluster, runs)
    assert left, "it was done before it was killed"
    assert first.returncode != 0, output

    second = collect()
    assert second.status == 0, second.output
    assert present(cluster, runs) == set()
    assert [identifier for identifier in runs if objects(cluster, identifier)] == []
    assert "Kept" not in second.output


@pytest.mark.full
def test_a_schedule_does_the_same_and_goes_when_it_is_wanted_no_more(cluster: Cluster, secrets: dict[str, str]) -> None:
    wanted = ("--tags", "mlflow_gc", "-e", json.dumps({"mlflow_gc_schedule": "30 3 29 2 *"}))
    made = site(ENVIRONMENT, args=(*wanted, *NOW))
    assert made.status == 0, made.output
    assert site(ENVIRONMENT, args=(*wanted, *NOW)).changed == 0
    runs = mlflow_client(ENVIRONMENT, secrets, MANY.format(count=1))
    found = cluster.batch.read_namespaced_cron_job(NAME, NAMESPACE)
    assert (found.spec.concurrency_policy, found.spec.schedule) == ("Forbid", "30 3 29 2 *")
    template = cluster.api.sanitize_for_serialization(found.spec.job_template)
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": f"{NAME}-by-hand"}, "spec": template["spec"]}
    cluster.batch.create_namespaced_job(NAMESPACE, body)
    try:
        wait_until(
            lambda: cluster.batch.read_namespaced_job_status(f"{NAME}-by-hand", NAMESPACE).status.succeeded, 90, "done"
        )
        assert present(cluster, runs) == set()
    finally:
        cluster.batch.delete_namespaced_job(f"{NAME}-by-hand", NAMESPACE, propagation_policy="Background")
    assert site(ENVIRONMENT, args=("--tags", "mlflow_gc")).status == 0
    assert [job.metadata.name for job in cluster.batch.list_namespaced_cron_job(NAMESPACE).items] == []


@pytest.mark.full
def test_two_at_once_are_refused(cluster: Cluster, made: dict[str, Any]) -> None:
    lock = int.from_bytes(b"mlflowgc", "big", signed=True)
    with cluster.database(ENVIRONMENT, "mlflow") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [lock])
        run = collect()
    assert run.status != 0
    assert "another clean-up of this environment is under way" in folded(run.output)

    # Nothing that has failed is left.
    alone = collect()
    assert alone.status == 0, alone.output
