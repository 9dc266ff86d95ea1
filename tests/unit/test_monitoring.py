"""The programs of monitoring: who may read, what hangs, and when a server is ready."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType

import pytest
import urllib3
from conftest import ROOT, load_file, load_filter

FILES = ROOT / "roles/mlflow_server/files"


@pytest.fixture(scope="module")
def monitor() -> ModuleType:
    return load_file(FILES / "monitor.py")


@pytest.fixture
def serve():
    """Answer requests until the test ends; the port."""
    servers = []

    def start(handler: type[BaseHTTPRequestHandler]) -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server.server_address[1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("user", "path", "status"),
    [
        ("prometheus:pä:ss", "/metrics", 200),
        ("prometheus:wrong", "/metrics", 401),
        ("admin:pä:ss", "/metrics", 401),
        (None, "/metrics", 401),
        (None, "/", 401),
        ("prometheus:pä:ss", "/", 404),
    ],
)
def test_only_who_logs_in_reads_the_numbers(monitor, serve, user: str | None, path: str, status: int) -> None:
    port = serve(monitor.handler(lambda: "up 1\n", monitor.authorization("prometheus", "pä:ss")))
    headers = {"Authorization": monitor.authorization(*user.split(":", 1))} if user else {}
    answer = urllib3.request("GET", f"http://127.0.0.1:{port}{path}", headers=headers, retries=False)
    assert answer.status == status
    assert (b"up 1" in answer.data) == (status == 200)


def fine() -> Iterator:
    yield "answer", {"of": "all"}, 42


def broken() -> Iterator:
    yield "half", {}, 1
    raise OSError("no\nroute")


def test_what_fails_is_told_and_the_rest_is_there(monitor, capsys) -> None:
    text = monitor.Checks({"fine": fine, "broken": broken}).text()
    assert 'mlflow_check_success{check="fine"} 1\n' in text
    assert 'answer{of="all"} 42\n' in text
    assert 'mlflow_check_success{check="broken"} 0\n' in text
    assert capsys.readouterr().err == "broken: OSError: no route\n"


def test_what_hangs_is_a_failure_and_is_not_begun_again(monitor) -> None:
    end, begun = threading.Event(), []

    def hangs() -> Iterator:
        begun.append(1)
        end.wait(10)
        yield from ()

    checks, start = monitor.Checks({"fine": fine, "hangs": hangs}, seconds=0.2), time.monotonic()
    for _ in range(2):
        assert 'mlflow_check_success{check="hangs"} 0' in checks.text()
    assert (len(begun), time.monotonic() - start < 5) == (1, True)
    end.set()
    time.sleep(0.1)
    assert 'mlflow_check_success{check="hangs"} 1' in checks.text()


def ready(port: int) -> subprocess.CompletedProcess[str]:
    """Ask as kubelet does."""
    login = {"MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": "p" * 80, "MLFLOW_PORT": str(port)}
    command = [sys.executable, "-I", "-S", FILES / "ready.py"]
    return subprocess.run(command, env=os.environ | login, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (401, 0), (404, 0), (403, 1), (500, 1), (503, 1)])
def test_a_server_is_ready_if_it_could_ask_its_databases(serve, status: int, code: int) -> None:
    seen = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    done = ready(serve(Answer))
    assert done.returncode == code, done.stderr
    assert (str(status) in done.stderr) == bool(code)
    [(path, login)] = seen
    assert path.startswith("/api/2.0/mlflow/experiments/get")
    assert "\n" not in login


def test_a_server_that_is_not_there_is_not_ready() -> None:
    done = ready(1)
    assert (done.returncode, "MLflow does not answer" in done.stderr) == (1, True)


def test_each_alert_has_its_part_of_the_page() -> None:
    alerts = re.findall(r'rule\("(\w+)"', (ROOT / "roles/mlflow_server/templates/monitoring/rules.yml.j2").read_text())
    page = (ROOT / "docs/monitoring.md").read_text()
    assert len(alerts) == 8
    assert [name for name in alerts if f"\n### {name}\n" not in page or f"\n| {name} |" not in page] == []


def test_panels_stand_two_beside_each_other() -> None:
    panels = [{"title": str(number), "queries": [{"legend": "{{a}}", "expression": "x{OURS}"}]} for number in range(3)]
    made = load_filter("mlflow_monitoring").dashboard_panels(panels, 'job="a"')
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in made]
    assert places == [(0, 0), (12, 0), (0, 8)]
    assert made[0]["targets"][0]["expr"] == 'x{job="a"}'
    assert made[0]["targets"][0]["legendFormat"] == "{{a}}"
