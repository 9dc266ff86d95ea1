"""A person's way through MLflow's web page: a headless Chromium logs in, and opens what a real client has logged."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import NODE_PORTS, ROOT, Cluster, mlflow_client

URL = f"http://localhost:{NODE_PORTS['dev']}"
PICTURE = ROOT / "docs/images/mlflow.png"
WORDS = "Grüße from the artifact"
LOG = """
experiment = mlflow.set_experiment({experiment!r})
with mlflow.start_run(run_name={run!r}):
    mlflow.log_param("depth", 7)
    mlflow.log_metric("rmse", 0.4375)
    mlflow.log_text({words!r}, "notes.txt")
answer = experiment.experiment_id
"""
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


def look(
    url: str, password: str, *, address: str = "127.0.0.1", arguments: tuple[str, ...] = (), **wanted: Any
) -> dict[str, Any]:
    """What the administrator sees of the page at a URL.

    Args:
        url: Where the page is: a NodePort, or whatever leads to it.
        password: The administrator's.
        address: Where the URL's host is.
        arguments: More of Chromium's own.
        wanted: What is opened: see look.py.
    """
    given = {"url": url, "username": "admin", "password": password, "address": address, "arguments": arguments}
    done = subprocess.run(
        [ROOT / ".cache/servers/bin/python", Path(__file__).with_name("look.py")],
        input=json.dumps(given | wanted),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_page(url: str, password: str, experiment: str, **way: Any) -> None:
    """The page at a URL shows an experiment that LOG has made, and needs nothing but the server for it."""
    names = {"experiment": experiment, "run": "a-run", "artifact": "notes.txt"}
    found = look(url, password, **names, texts={"experiment": "a-run", "run": "0.4375", "artifact": WORDS}, **way)
    assert found["status"] == 200
    pages = {name: text.splitlines() for name, text in found["pages"].items()}
    assert experiment in pages["experiment"]
    assert {"a-run", "depth", "7", "rmse", "0.4375", "Finished"} <= set(pages["run"])
    assert {"notes.txt", WORDS} <= set(pages["artifact"])

    asked = [request for request in found["requests"] if urlsplit(request["url"]).scheme not in ("data", "blob")]
    assert len(asked) > 20
    server = urlsplit(url)[:2]
    assert [request for request in asked if urlsplit(request["url"])[:2] != server] == []
    # The page itself ends requests for what it has left.
    assert [request for request in asked if request["status"] not in (200, 304, "net::ERR_ABORTED")] == []


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
