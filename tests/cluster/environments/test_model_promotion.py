"""A model goes from dev to stg and to prod, with the same bytes, and once: also where a run was cut off."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    KUBECONFIG,
    MINIO_NODE_PORTS,
    NODE_PORTS,
    Cluster,
    Run,
    Running,
    folded,
    mlflow_client,
    play,
    wait_until,
)

# The modules that the promotion is made of find these only after conftest.
from ansible.module_utils.ansible_mlflow import model_promotion, object_store  # isort: skip
from ansible.module_utils.ansible_mlflow.access_server import Server  # isort: skip
from ansible.module_utils.ansible_mlflow.errors import Error  # isort: skip
from ansible.module_utils.ansible_mlflow.jobs import JobRun  # isort: skip
from ansible.module_utils.ansible_mlflow.kubernetes import Cluster as Api  # isort: skip
from ansible.module_utils.ansible_mlflow.model_version import Side  # isort: skip
from ansible.module_utils.ansible_mlflow.registry import Registry, pairs  # isort: skip

DEV, STG, PROD = os.environ.get("MLFLOW_TEST_ENVIRONMENTS", "dev stg prod").split()
# Of their own, so that the tests can be run again on the same environments.
CHURN, OLD, LARGE = (f"{name}-{os.getpid()}" for name in ("churn", "old", "large"))
GREETING = f"{CHURN}-greeting"

# A model whose prediction tells that its weights have the right bytes, in a run that has a bit of everything.
LOG = """
import gzip, hashlib, json, mlflow, pathlib, random
from mlflow.models import infer_signature
name, mib = {name!r}, {mib}
class Hasher(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.path = context.artifacts["weights"]
    def predict(self, context, model_input):
        import hashlib
        with open(self.path, "rb") as file:
            return [hashlib.file_digest(file, "sha256").hexdigest()]
weights = pathlib.Path("/tmp/weights.bin")
with weights.open("wb") as file:
    for number in range(mib):
        file.write(random.Random(number).randbytes(1024 * 1024))
packed = pathlib.Path("/tmp/rows.csv.gz")
packed.write_bytes(gzip.compress(b"a,b\\n1,2\\n" * 1000))
mlflow.set_experiment(name + " experiment")
import pandas
with mlflow.start_run(run_name="tune") as run:
    mlflow.log_params({{"depth": 3, "kind": "ü"}})
    for step in range(5):
        mlflow.log_metric("loss", 1 / (step + 1), step=step, timestamp=1700000000000 + step)
    mlflow.set_tag("team", "risk")
    mlflow.log_text("deep", "plots/deep/er/note.txt")
    mlflow.log_artifact(packed)
    data = mlflow.data.from_pandas(pandas.DataFrame({{"a": [1, 2]}}), name="rows")
    mlflow.log_input(data, context="training")
    info = mlflow.pyfunc.log_model(
        name="model", python_model=Hasher(), artifacts={{"weights": str(weights)}}, registered_model_name=name,
        signature=infer_signature(pandas.DataFrame({{"a": [1]}}), ["x"]), pip_requirements=[],
        tags={{"lineage": "kept"}}, params={{"trees": "7"}},
    )
    mlflow.log_metric("auc", 0.9, model_id=info.model_id, dataset=data)
client = mlflow.MlflowClient()
version = client.get_model_version(name, info.registered_model_version).version
client.update_model_version(name, version, description="the first")
client.set_model_version_tag(name, version, "reviewed", "yes")
client.set_registered_model_alias(name, "candidate", version)
client.update_registered_model(name, description="who leaves")
client.set_registered_model_tag(name, "owner", "risk")
mlflow.genai.register_prompt(name=name + "-greeting", template="Hello {{{{name}}}}", commit_message="polite")
print(json.dumps({{"version": version, "weights": hashlib.file_digest(weights.open("rb"), "sha256").hexdigest()}}))
"""
LOAD = """
import json, mlflow, pandas
model = mlflow.pyfunc.load_model("models:/{name}@{alias}")
[weights] = model.predict(pandas.DataFrame({{"a": [1]}}))
print(json.dumps({{"weights": weights, "signature": str(model.metadata.signature)}}))
"""


def in_cluster(environment: str, code: str, seconds: int = 300) -> dict[str, Any]:
    """Run code in the image of an environment's server, as a client of it; the JSON object that it prints."""
    store, key = ("MLFLOW_S3_ENDPOINT_URL", "AWS_DEFAULT_REGION"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    config = {"name": f"mlflow-config-{environment}"}
    secret = {"name": f"mlflow-secrets-{environment}"}
    values = {
        "MLFLOW_TRACKING_USERNAME": {"configMapKeyRef": {**config, "key": "MLFLOW_AUTH_ADMIN_USERNAME"}},
        "MLFLOW_TRACKING_PASSWORD": {"secretKeyRef": {**secret, "key": "MLFLOW_AUTH_ADMIN_PASSWORD"}},
        **{name: {"configMapKeyRef": {**config, "key": name}} for name in store},
        **{name: {"secretKeyRef": {**secret, "key": name}} for name in key},
    }
    uri = f"http://mlflow-{environment}.mlflow-{environment}.svc.cluster.local:5000"
    labels = {"app.kubernetes.io/name": "mlflow-verification", "app.kubernetes.io/instance": environment}
    container = {
        "name": "client",
        "image": "localhost/mlflow:3.17.2",
        "command": ["python", "-W", "ignore", "-c", code],
        "env": [
            {"name": "MLFLOW_TRACKING_URI", "value": uri},
            {"name": "HOME", "value": "/tmp"},
            {"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"},
            *({"name": name, "valueFrom": source} for name, source in values.items()),
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": f"mlflow-{environment}",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 1001, "runAsGroup": 1001, "fsGroup": 1001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }  # fmt: skip
    template = {"metadata": {"labels": labels}, "spec": spec}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "model-promotion-test", "labels": labels},
        "spec": {"backoffLimit": 0, "activeDeadlineSeconds": seconds, "template": template},
    }
    run = JobRun(Api(KUBECONFIG, None), f"mlflow-{environment}", job, seconds)
    report, log = run.run()
    run.delete()
    assert report, log
    return report


def side(cluster: Cluster, environment: str) -> Side:
    """An environment as the module sees it, through its NodePorts."""
    secrets, port = cluster.secrets(environment), NODE_PORTS[environment]
    server = Server("localhost", port, ("localhost", port))
    server.login = ("admin", secrets["MLFLOW_AUTH_ADMIN_PASSWORD"])
    endpoint = object_store.parse_endpoint(f"http://localhost:{MINIO_NODE_PORTS[environment]}")
    key = (secrets["AWS_ACCESS_KEY_ID"], secrets["AWS_SECRET_ACCESS_KEY"])
    store = object_store.Store(endpoint, ("localhost", endpoint.port), "us-east-1", *key)
    root = cluster.config(environment).get("MLFLOW_ARTIFACTS_DESTINATION") or "s3://mlflow/"
    return Side(environment, server.url, Registry(server, environment), store, root)


def promote(source: Side, target: Side, name: str, version: str = "1", alias: str = "", check: bool = False):
    """Promote without Ansible: what was changed, and the target's version."""
    wanted = model_promotion.Wanted(name, version, "", alias)
    return model_promotion.promote(source, target, wanted, check, print)


def run_promotion(source: str, target: str, name: str, *args: str, **settings: str) -> Run:
    """Run promote_model.yml."""
    values = {"from": source, "to": target, "model": name, **settings}
    variables = [part for key, value in values.items() for part in ("-e", f"mlflow_model_promotion_{key}={value}")]
    return play("playbooks/promote_model.yml", source, target, args=(*variables, *args))


def hashes(at: Side, name: str, version: str) -> dict[str, str]:
    """The SHA-256 of each file of a version, as MLflow says where it is."""
    registry = at.registry
    found = registry.version(name, version, "")
    [model_id] = re.findall(r"m-[0-9a-f]{32}", found["source"])
    files = at.place(registry.logged_model(model_id)["info"]["artifact_uri"]).files()
    return {name: file.digest() for name, file in files.items()}


def held(at: Side, name: str, version: str) -> dict[str, Any]:
    """What there is of a version, without what has to differ."""
    registry = at.registry
    found = registry.version(name, version, "")
    run = registry.run(found["run_id"])
    run_id, data = found["run_id"], run["data"]
    [model_id] = re.findall(r"m-[0-9a-f]{32}", found["source"])
    logged = registry.logged_model(model_id)
    ours = re.compile(r"promoted_from\.|mlflow\.modelVersions$")
    mine = lambda tags: {key: value for key, value in pairs(tags).items() if not ours.match(key)}  # noqa: E731
    return {
        "version": (found.get("description"), mine(found["tags"])),
        "run": {key: run["info"].get(key) for key in ("run_name", "start_time", "end_time", "status")},
        "params": pairs(data["params"]),
        "tags": mine(data["tags"]),
        "loss": [(entry["step"], entry["value"], entry["timestamp"]) for entry in registry.history(run_id, "loss")],
        "datasets": [entry["dataset"]["digest"] for entry in run["inputs"]["dataset_inputs"]],
        "is output": [entry["model_id"] == model_id for entry in run["outputs"]["model_outputs"]],
        "logged": (logged["info"]["name"], mine(logged["info"]["tags"]), logged["data"].get("params")),
        "measured": [
            (entry["key"], entry["value"], entry.get("dataset_digest")) for entry in logged["data"]["metrics"]
        ],
        "files": {name: file.digest() for name, file in at.place(run["info"]["artifact_uri"]).files().items()},
    }


@pytest.fixture(scope="module")
def sides(cluster: Cluster) -> list[Side]:
    """dev, stg and prod."""
    return [side(cluster, environment) for environment in (DEV, STG, PROD)]


@pytest.fixture(scope="module")
def logged(cluster: Cluster) -> dict[str, Any]:
    """A model of 40 MiB in dev: three parts."""
    return in_cluster(DEV, LOG.format(name=CHURN, mib=40))


def test_a_check_tells_what_a_run_would_make_and_makes_nothing(cluster: Cluster, logged: dict) -> None:
    before = (cluster.databases(STG), cluster.objects(STG))
    run = run_promotion(DEV, STG, CHURN, "--check", "--diff", version="1", alias="champion")
    assert (run.status, run.changed) == (0, 1), run.output
    for words in (
        f"made in {STG}: run tune, of run ",
        f"made in {STG}: registered model {CHURN}",
        "has the alias champion",
    ):
        assert words.replace("has the", "the") in folded(run.output), run.output
    assert re.search(rf"copied in {STG}: (\d+) files, (4\d{{7}}) bytes of \1 files, \2 bytes", folded(run.output)), (
        run.output
    )
    assert (cluster.databases(STG), cluster.objects(STG)) == before


def test_what_was_cut_off_is_completed_without_sending_it_again(
    sides: list[Side], logged: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev, stg, _ = sides
    send, sent = stg.store.write_part, []

    def cut(*args: Any) -> str:
        if len(sent) == 2:
            raise Error("the way there was cut")
        sent.append(args)
        return send(*args)

    monkeypatch.setattr(stg.store, "write_part", cut)
    monkeypatch.setattr(model_promotion.Copier.copy.__globals__["time"], "sleep", lambda seconds: None)
    with pytest.raises(Error, match="was cut"):
        promote(dev, stg, CHURN)
    monkeypatch.undo()
    assert stg.registry.model(CHURN) is None
    run = run_promotion(DEV, STG, CHURN, version_alias="candidate")
    assert (run.status, run.changed) == (0, 1), run.output
    assert "32 MiB of files in parts had been sent before" in run.output, run.output
    assert hashes(stg, CHURN, "1") == hashes(dev, CHURN, "1")
    assert held(stg, CHURN, "1") == held(dev, CHURN, "1")
    model = stg.registry.model(CHURN)
    assert (model["description"], pairs(model["tags"]), model.get("aliases") or []) == (
        "who leaves",
        {"owner": "risk"},
        [],
    )
    # One of each, though it was begun twice.
    assert len(stg.registry.versions({"name": CHURN})) == 1
    experiment = stg.registry.experiment_called(f"{CHURN} experiment")["experiment_id"]
    runs = stg.registry.server.ask("POST", "2.0/mlflow/runs/search", experiment_ids=[experiment])["runs"]
    models = stg.registry.server.ask("POST", "2.0/mlflow/logged-models/search", experiment_ids=[experiment])["models"]
    assert (len(runs), len(models)) == (1, 1)


def test_a_second_run_changes_nothing(cluster: Cluster, logged: dict) -> None:
    before = (cluster.databases(STG), cluster.objects(STG))
    run = run_promotion(DEV, STG, CHURN, version="1")
    assert (run.status, run.changed) == (0, 0), run.output
    assert "is what was wanted, with the same bytes" in folded(run.output)
    assert (cluster.databases(STG), cluster.objects(STG)) == before


def test_it_loads_in_prod_by_its_alias_and_says_where_it_came_from(sides: list[Side], logged: dict) -> None:
    dev, stg, prod = sides
    run = run_promotion(STG, PROD, CHURN, "--diff", "-vvv", version="1", alias="champion")
    assert (run.status, run.changed) == (0, 1), run.output
    assert f"gave version 1 of model {CHURN} in {PROD} the alias champion" in folded(run.output), run.output
    assert not [value for each in sides for value in (each.registry.server.login[1], each.store._secret_key)
                if value in run.output]  # fmt: skip
    loaded = in_cluster(PROD, LOAD.format(name=CHURN, alias="champion"))
    assert loaded["weights"] == logged["weights"]
    assert "'a': long" in loaded["signature"]
    assert hashes(prod, CHURN, "1") == hashes(dev, CHURN, "1")
    assert held(prod, CHURN, "1") == held(dev, CHURN, "1")
    tags = pairs(prod.registry.version(CHURN, "1", "")["tags"])
    assert tags[f"promoted_from.{DEV}.run_id"] == dev.registry.version(CHURN, "1", "")["run_id"]
    assert tags[f"promoted_from.{STG}.run_id"] == stg.registry.version(CHURN, "1", "")["run_id"]
    assert tags[f"promoted_from.{STG}.image"] == "localhost/mlflow:3.17.2"
    # Anybody can compute it, in the model's folder: find -type f | sort | xargs sha256sum | sha256sum
    lines = "".join(f"{digest}  ./{name}\n" for name, digest in sorted(hashes(dev, CHURN, "1").items()))
    assert tags[f"promoted_from.{STG}.sha256"] == hashlib.sha256(lines.encode()).hexdigest()


def test_a_model_of_a_run_s_artifacts_and_a_prompt_go_too_and_an_alias_moves(
    cluster: Cluster, sides: list[Side], logged: dict
) -> None:
    dev, stg, _ = sides
    # As MLflow 2 registers it: the model is among its run's artifacts.
    code = f"""
client = mlflow.MlflowClient()
client.create_registered_model({OLD!r})
for text in ("first", "second"):
    with mlflow.start_run() as run:
        mlflow.log_text(text, "model/data/weights.txt")
        mlflow.log_text("none", "other.json")
    client.create_model_version({OLD!r}, run.info.artifact_uri + "/model", run_id=run.info.run_id, await_creation_for=0)
answer = True
"""
    mlflow_client(DEV, cluster.secrets(DEV), code)
    for number in ("1", "2"):
        outcome, version = promote(dev, stg, OLD, number, alias="live")
        assert version["version"] == number
        assert promote(dev, stg, OLD, number)[0].changes == []
    assert (outcome.before["alias live"], outcome.after["alias live"]) == ("1", "2")
    run = stg.registry.run(version["run_id"])
    assert version["source"] == f"{run['info']['artifact_uri']}/model"
    assert sorted(stg.place(run["info"]["artifact_uri"]).files()) == ["model/data/weights.txt", "other.json"]
    assert promote(dev, stg, OLD, "1", alias="live")[0].changes == [
        f"gave version 1 of model {OLD} in {stg.environment} the alias live, which version 2 had"
    ]
    assert promote(dev, stg, GREETING)[0].changes[-1].startswith(f"made in {stg.environment}: version 1 of model")
    assert promote(dev, stg, GREETING)[0].changes == []
    assert pairs(stg.registry.version(GREETING, "1", "")["tags"])["mlflow.prompt.text"] == "Hello {{name}}"


def test_what_is_not_as_it_was_promoted_is_refused(
    sides: list[Side], logged: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev, stg, _ = sides
    version = stg.registry.version(OLD, "1", "")
    place = stg.place(version["source"])
    stg.store.write(place.bucket, f"{place.prefix}/data/weights.txt", b"other", {})
    with pytest.raises(
        Error, match=rf"version 1 of model {OLD} of .* was changed since; expected the same bytes in both"
    ):
        promote(dev, stg, OLD)
    stg.store.write(place.bucket, f"{place.prefix}/data/more.txt", b"more", {})
    with pytest.raises(Error, match=r"has other files: data/more\.txt; expected the same"):
        promote(dev, stg, OLD)
    stg.registry.server.ask("POST", "2.0/mlflow/runs/delete", run_id=version["run_id"])
    with pytest.raises(Error, match=rf"is of run {version['run_id']}, which is deleted; expected it restored"):
        promote(dev, stg, OLD)
    with pytest.raises(Error, match="has no such version; expected one of 2, 1"):
        promote(dev, stg, OLD, "7")
    with pytest.raises(Error, match=r"has no registered model of that name; expected one of .*-"):
        promote(dev, stg, "nobody")
    monkeypatch.setattr(stg.registry.server, "login", ("admin", "not-the-password"))
    with pytest.raises(Error, match=r"MLflow does not accept mlflow_environment_secrets.admin_password of"):
        promote(dev, stg, OLD)


def test_bad_input_is_refused_in_one_sentence_each() -> None:
    run = run_promotion(DEV, DEV, "", version="x", version_alias="latest")
    assert run.status == 2, run.output
    for words in (
        f"mlflow_model_promotion_from and mlflow_model_promotion_to are both {DEV}; expected two environments",
        "mlflow_model_promotion_model is empty; expected the name of a registered model",
        "mlflow_model_promotion_version and mlflow_model_promotion_version_alias are both given; expected one of them",
        "mlflow_model_promotion_version is 'x'; expected a number",
    ):
        assert words in folded(run.output), run.output


@pytest.mark.full
def test_300_mib_are_promoted_to_prod_and_a_run_that_is_killed_is_completed(
    cluster: Cluster, sides: list[Side], tmp_path: Path
) -> None:
    dev, stg, prod = sides
    weights = in_cluster(DEV, LOG.format(name=LARGE, mib=300))["weights"]
    settings = {"from": DEV, "to": STG, "model": LARGE, "version": "1"}
    variables = [part for key, value in settings.items() for part in ("-e", f"mlflow_model_promotion_{key}={value}")]
    run = Running("playbooks/promote_model.yml", DEV, STG, args=tuple(variables), log=tmp_path / "log")
    try:
        copied = re.compile(r"copied (\d+) of 30\d MiB")
        wait_until(lambda: copied.search(run.output) or run.process.poll() is not None, 300, "a part is copied")
        found = copied.search(run.output)
    finally:
        run.kill()
    print(f"killed at {found[1]} MiB")
    assert stg.registry.model(LARGE) is None
    for source, target in ((DEV, STG), (STG, PROD)):
        for changed in (1, 0):
            start = time.monotonic()
            run = run_promotion(source, target, LARGE, version="1", alias="champion")
            print(f"{source} to {target}: {time.monotonic() - start:.0f} s, changed={run.changed}")
            assert (run.status, run.changed) == (0, changed), run.output
            print("\n".join(line for line in run.output.splitlines() if line.startswith("  [mlflow-")))
    assert hashes(prod, LARGE, "1") == hashes(dev, LARGE, "1")
    assert in_cluster(PROD, LOAD.format(name=LARGE, alias="champion"))["weights"] == weights
