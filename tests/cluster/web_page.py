"""MLflow's web page in a headless Chromium, as a person sees it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from conftest import ROOT

WORDS = "Grüße from the artifact"
# What a real client logs, for the page to show.
LOG = """
experiment = mlflow.set_experiment({experiment!r})
with mlflow.start_run(run_name={run!r}):
    mlflow.log_param("depth", 7)
    mlflow.log_metric("rmse", 0.4375)
    mlflow.log_text({words!r}, "notes.txt")
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
        [ROOT / ".cache/servers/bin/python", Path(__file__).parent / "browser/look.py"],
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
