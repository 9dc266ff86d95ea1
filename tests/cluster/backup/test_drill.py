"""The drill: an environment is destroyed with its data, and comes back equal from its backup."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import urllib3
from conftest import NODE_PORTS, ROOT, Cluster, folded, mlflow_client, play, request, site
from test_backup import contents as tables
from test_on_demand import ENVIRONMENT, artifacts

sys.path.append(str(ROOT / "plugins/filter"))

pytestmark = pytest.mark.full
USERS = {f"user-{number}-of-{os.getpid()}": f"password of user {number}" for number in range(5)}
FILL = """
import os
from concurrent.futures import ThreadPoolExecutor
from mlflow.entities import Metric, Param, RunTag
client = mlflow.MlflowClient()
experiment = client.create_experiment(f"drill {os.getpid()}")
def log(number):
    run = client.create_run(experiment, run_name=f"run {number}")
    metrics = [Metric(f"m{i % 4}", i / (number + 1), 1700000000000 + i, i) for i in range(20)]
    params = [Param(f"p{i}", f"value {i} of {number}") for i in range(10)]
    client.log_batch(run.info.run_id, metrics, params, [RunTag("number", str(number))])
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder, "model.bin").write_bytes(os.urandom(10 << 20 if number % 40 == 0 else 100000))
        pathlib.Path(folder, "notes.txt").write_text(f"run {number}")
        client.log_artifacts(run.info.run_id, folder, "model")
    client.set_terminated(run.info.run_id)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(log, range(RUNS)))
client.create_registered_model(f"drill {os.getpid()}")
answer = experiment
"""


def post(path: str, body: dict, password: str) -> None:
    answer = urllib3.request(
        "POST",
        f"http://localhost:{NODE_PORTS[ENVIRONMENT]}/api/{path}",
        json=body,
        headers=urllib3.make_headers(basic_auth=f"admin:{password}"),
        timeout=60,
    )
    assert answer.status == 200, answer.data


def secrets_file(cluster: Cluster, folder: Path) -> Path:
    """The environment's secrets, as its Ansible Vault file would have them."""
    from mlflow_secrets import RULES

    namespace = f"mlflow-{ENVIRONMENT}"
    kept = cluster.secrets(ENVIRONMENT) | cluster.secret(namespace, f"mlflow-maintenance-{ENVIRONMENT}")
    given = {name: kept[rule.key] for name, rule in RULES.items() if rule.key in kept}
    path = folder / "secrets.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"mlflow_environment_secrets": given}))
    return path


def test_everything_comes_back_from_a_backup(cluster: Cluster, tmp_path: Path) -> None:
    password = cluster.secrets(ENVIRONMENT)["MLFLOW_AUTH_ADMIN_PASSWORD"]
    runs = os.environ.get("MLFLOW_TEST_DRILL_RUNS", "200")
    begun = time.monotonic()
    experiment = mlflow_client(ENVIRONMENT, cluster.secrets(ENVIRONMENT), FILL.replace("RUNS", runs), timeout=900)
    for user, secret in USERS.items():
        post("2.0/mlflow/users/create", {"username": user, "password": secret}, password)
        granted = {"resource_type": "experiment", "resource_id": experiment, "permission": "EDIT"}
        post("3.0/mlflow/users/permissions/grant", {"username": user, **granted}, password)
    print(f"filled with {runs} runs: {time.monotonic() - begun:.0f} s")
    secrets = secrets_file(cluster, tmp_path)
    before, files = tables(cluster), artifacts(cluster)

    made = play("playbooks/backup.yml", ENVIRONMENT)
    assert made.status == 0, made.output
    line = folded(made.output).split("- 'backup ")[1].split("'")[0]
    backup = line.split(":")[0]
    print(f"backup.yml: {made.seconds:.0f} s; backup {line}")

    named = {"mlflow_destroy_confirm": ENVIRONMENT, "mlflow_destroy_data": ["databases", "bucket"]}
    gone = play("playbooks/destroy.yml", ENVIRONMENT, args=("-e", json.dumps(named)))
    assert gone.status == 0, gone.output
    print(f"destroy.yml: {gone.seconds:.0f} s")
    anew = site(ENVIRONMENT, args=("-e", f"@{secrets}"))
    assert anew.status == 0, anew.output
    print(f"site.yml: {anew.seconds:.0f} s")
    assert artifacts(cluster) == {}

    given = ("-e", f"mlflow_backup_id={backup}", "-e", f"mlflow_backup_confirm_overwrite={ENVIRONMENT}")
    restored = play("playbooks/restore.yml", ENVIRONMENT, args=(*given, "-e", f"@{secrets}"))
    assert restored.status == 0, restored.output
    print(f"restore.yml: {restored.seconds:.0f} s, {len(files)} artifacts")
    assert artifacts(cluster) == files
    assert tables(cluster) == before
    for user, secret in USERS.items():
        path = f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}"
        assert request(ENVIRONMENT, path, user=user, password=secret).status == 200
    again = site(ENVIRONMENT, args=("-e", f"@{secrets}"))
    assert (again.status, again.changed) == (0, 0), again.output
