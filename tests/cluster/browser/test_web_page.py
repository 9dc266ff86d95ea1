"""A person's way through MLflow's web page: a headless Chromium logs in, and opens what a real client has logged."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NODE_PORTS, ROOT, Cluster, mlflow_client
from web_page import LOG, WORDS, check_page, look

URL = f"http://localhost:{NODE_PORTS['dev']}"
PICTURE = ROOT / "docs/images/mlflow.png"
# Runs of a search for the best depth of a tree: a little noise, and the deepest one fits too much.
LOG_SEARCH = """
import random
chance = random.Random(7)
experiment = mlflow.set_experiment({experiment!r})
for depth, best in ((3, 0.61), (5, 0.44), (8, 0.36), (13, 0.41)):
    with mlflow.start_run(run_name=f"boosting-depth-{{depth}}") as run:
        mlflow.log_params({{"depth": depth, "learning_rate": 0.1}})
        metrics = [
            mlflow.entities.Metric(name, value + chance.uniform(-0.01, 0.01), 1800000000000 + step * 60000, step)
            for step in range(40)
            for name, value in (
                ("rmse", best + 0.9 * 0.88**step + (0.003 * step if depth == 13 else 0)),
                ("mae", best * 0.7 + 0.6 * 0.9**step),
                ("r2", 1 - best - 0.5 * 0.9**step),
            )
        ]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=metrics)
answer = experiment.experiment_id
"""


@pytest.fixture(scope="module")
def password(cluster: Cluster) -> str:
    return cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]


@pytest.fixture
def experiment(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of an experiment that the real client makes by a program, and deletes at the end."""
    name = f"House prices {uuid.uuid4().hex[:6]}" if request.param is LOG else "House prices"
    program = request.param.format(experiment=name, run="a-run", words=WORDS)
    identifier = mlflow_client("dev", cluster.secrets("dev"), program)
    yield name
    # By another name, so that a next one may have it.
    forget = "answer = client.rename_experiment({0!r}, {1!r}) or client.delete_experiment({0!r})"
    client = "client = mlflow.MlflowClient()\n"
    mlflow_client("dev", cluster.secrets("dev"), client + forget.format(identifier, f"{name} {uuid.uuid4()}"))


@pytest.mark.parametrize("experiment", [LOG], indirect=True)
def test_an_experiment_a_run_and_an_artifact_are_seen_at_the_node_port(password: str, experiment: str) -> None:
    check_page(URL, password, experiment)


def test_a_wrong_password_is_not_let_in() -> None:
    found = look(URL, "not-the-password")
    assert found["status"] == 401
    assert set(found["pages"]) == {"login"}
    assert "Experiments" not in found["pages"]["login"]
    assert {request["status"] for request in found["requests"]} <= {401, "net::ERR_INVALID_AUTH_CREDENTIALS"}


@pytest.mark.parametrize("experiment", [LOG_SEARCH], indirect=True)
def test_charts_compare_runs(password: str, experiment: str, tmp_path: Path) -> None:
    """Also takes the README's picture, with MLFLOW_UPDATE_EXAMPLES."""
    picture = PICTURE if os.environ.get("MLFLOW_UPDATE_EXAMPLES") == "true" else tmp_path / "charts.png"
    texts = {"experiment": "boosting-depth-13", "charts": "rmse"}
    found = look(URL, password, experiment=experiment, charts=str(picture), texts=texts)
    lines = set(found["pages"]["charts"].splitlines())
    assert {"rmse", "mae", "r2"} <= lines
    assert {f"boosting-depth-{depth}" for depth in (3, 5, 8, 13)} <= lines
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert PICTURE.stat().st_size < 300_000
