"""The verification client, as far as it goes without a server, and what is told of its report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import load_file, load_filter

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "roles/mlflow_verification/files/verify_client.py"

SETTINGS = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "hunter2-hunter2",
    "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ACCESS_KEY_ID": "key-of-the-store",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-store",
}


client = load_file(PROGRAM)
filters = load_filter("mlflow_verification")


def run(folder: Path, *arguments: str, mlflow: str = "", given: str = "", **settings: str):
    """Run the program with a stand-in for the package mlflow, which the controller does not have."""
    (folder / "mlflow.py").write_text(mlflow)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **settings}
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], env=environment, input=given, capture_output=True, text=True, timeout=30
    )
    return done, json.loads(done.stdout.splitlines()[-1])


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    done, report = run(tmp_path, **SETTINGS | {"MLFLOW_TRACKING_PASSWORD": ""})
    assert done.returncode == 1
    assert report["failed"] == {"step": "start", "reason": "not set: MLFLOW_TRACKING_PASSWORD"}
    assert report["error"] == "start: not set: MLFLOW_TRACKING_PASSWORD"


def test_a_client_of_a_proxied_server_needs_no_settings_of_s3(tmp_path: Path) -> None:
    server = {name: value for name, value in SETTINGS.items() if name.startswith("MLFLOW_TRACKING")}
    mlflow = "import os; raise RuntimeError(os.environ.get('MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD', 'as it comes'))"
    _, report = run(tmp_path, mlflow=mlflow, **server, MLFLOW_VERIFICATION_ACCESS="proxied")
    assert report["failed"] == {"step": "load the MLflow client", "reason": "as it comes"}
    _, report = run(tmp_path, mlflow=mlflow, **server)
    assert report["failed"]["reason"] == "not set: MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"


def test_settings_come_from_standard_input_too(tmp_path: Path) -> None:
    mlflow = "import os; raise RuntimeError('user ' + os.environ['MLFLOW_TRACKING_USERNAME'])"
    _, report = run(tmp_path, "--environment-from-stdin", mlflow=mlflow, given=json.dumps(SETTINGS))
    assert report["failed"] == {"step": "load the MLflow client", "reason": "user admin"}


def test_no_secret_is_told_even_if_an_error_has_it(tmp_path: Path) -> None:
    names = [name for name in SETTINGS if name in client.SECRETS]
    mlflow = f"import os; raise RuntimeError(' '.join(os.environ[n] for n in {names}))"
    done, report = run(tmp_path, mlflow=mlflow, **SETTINGS)
    assert report["failed"]["reason"] == "*** *** ***"
    assert not any(SETTINGS[name] in done.stdout + done.stderr for name in names)


def test_a_server_that_is_down_is_told_at_once(tmp_path: Path) -> None:
    mlflow = "__version__ = '3'\ndef MlflowClient(): print('noise')"
    done, report = run(tmp_path, mlflow=mlflow, **SETTINGS)
    assert report["failed"] == {
        "step": "reach the server and the object store",
        "reason": "cannot connect to the server at 127.0.0.1:1: Connection refused",
    }
    assert [step["name"] for step in report["steps"]] == ["load the MLflow client"]
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.splitlines()[-1] == f"FAILED  {report['error']}"


def test_the_time_is_bounded(tmp_path: Path) -> None:
    # Such a loop is what an HTTP client does that tries again after an error.
    mlflow = "import time\nwhile True:\n  try: time.sleep(60)\n  except Exception: pass"
    started = time.monotonic()
    _, report = run(tmp_path, mlflow=mlflow, **SETTINGS, MLFLOW_VERIFICATION_TIMEOUT="1")
    assert report["failed"] == {"step": "load the MLflow client", "reason": "not done within 1 s"}
    assert time.monotonic() - started < 10


def test_being_stopped_is_told(tmp_path: Path) -> None:
    mlflow = f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})"
    _, report = run(tmp_path, mlflow=mlflow, **SETTINGS)
    assert report["failed"]["reason"] == "stopped from outside"


def test_what_was_made_is_deleted_in_reverse_and_in_spite_of_an_error() -> None:
    deleted = []

    def fail() -> None:
        raise OSError("no")

    made = client.Made()
    made.add("run", lambda: deleted.append("run"))
    made.add("artifact", fail)
    made.add("model", lambda: deleted.append("model"))
    assert made.delete_all() == ["artifact could not be deleted: no"]
    assert deleted == ["model", "run"]
    assert made.delete_all() == []


def test_a_reason_is_one_line_of_bounded_length() -> None:
    assert client.sentence(ValueError("first\n  second"), []) == "first second"
    assert client.sentence(ValueError(), []) == "ValueError"
    assert len(client.sentence(ValueError("x" * 9999), [])) < 500


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"stdout": 'noise\n{"error": "log in: refused"}', "stderr": "x"}, "log in: refused"),
        ({"stdout": "", "stderr": "Traceback\nModuleNotFoundError: boto3"}, "ModuleNotFoundError: boto3"),
        ({"stdout": "[1]", "stderr": "", "msg": "No such file"}, "No such file"),
        ({"msg": "No such file", "rc": 2}, "No such file"),
        ({}, "the client ended without a word"),
    ],
)
def test_a_failed_client_is_told(result: dict, expected: str) -> None:
    assert filters.verification_problem(result) == expected


def test_a_report_is_told_line_by_line() -> None:
    report = {"steps": [{"name": "log in", "seconds": 0.24}], "mlflow_version": "3.17.2", "server_version": "3.17.1"}
    lines = filters.verification_lines(filters.verification_report(f"noise\n{json.dumps(report)}"))
    assert lines == ["ok  log in (0.2 s)", "client 3.17.2, server 3.17.1"]
