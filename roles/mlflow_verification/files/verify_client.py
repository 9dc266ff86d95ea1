#!/usr/bin/env python3
"""Use an MLflow server as its users do, and say whether everything they need works.

Settings come from the environment, under the names that every MLflow client reads:
MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION; and three of its own: MLFLOW_VERIFICATION_BUCKET (default "mlflow"),
MLFLOW_VERIFICATION_TIMEOUT (seconds, default 120) and MLFLOW_VERIFICATION_ACCESS: "direct" (the default), or "proxied"
for a client that has no settings of S3 and sees that it needs none. With --environment-from-stdin, a JSON object of
such variables is read from standard input first, so that a caller need not put a secret into an environment or an
argument.

Each step is one line on standard error as it happens. The last line on standard output is a JSON report:
{"ok", "steps": [{"name", "seconds"}], "failed": {"step", "reason"} or null, "error": both in one text or null,
"mlflow_version", "server_version"}.
The exit status is 0 when every step worked, else 1.

What it makes has names of its own, so that two verifications at once do not meet. It deletes all of it, also after a
failure. Only two experiments stay, used again by the next verification: MLflow never really deletes an experiment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

PREFIX = "ansible-mlflow-verification"
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")
NEEDED = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
NEEDED_FOR_S3 = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# Within the 30 seconds that Kubernetes gives a pod to stop.
CLEANUP_SECONDS = 15
CONNECT_SECONDS = 5
ARTIFACT = "artifact.bin"
# Longer than one packet and no text, so that a changed byte, encoding or line ending shows.
ARTIFACT_BYTES = 200_000

# Left unset, the client follows the server's offer of presigned URLs, which lead past the proxy to the object store's
# internal address. Set, the proxied steps really go through the server.
WITHOUT_PRESIGNED = {
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
}
CLIENT_SETTINGS = {
    # The client's defaults retry for minutes; a verification that fails is to fail soon.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "AWS_MAX_ATTEMPTS": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Failure(Exception):
    """What a step found wrong, in one sentence."""


class Interrupted(BaseException):
    """The time is over, or the pod is being stopped.

    Not an Exception: the HTTP clients below catch those, and would try again instead of ending.
    """


def say(line: str) -> None:
    """Write a line to standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def sentence(error: BaseException, secrets: list[str]) -> str:
    """Return one line on what went wrong, without any of the secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    for secret in secrets:
        text = text.replace(secret, "***")
    return text if len(text) <= 400 else text[:400] + "..."


class Steps:
    """Named steps: each is timed and reported as it ends, and the one under way is known when something fails."""

    def __init__(self) -> None:
        self.done: list[dict[str, object]] = []
        self.current = "start"

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.current, started = name, time.monotonic()
        yield
        seconds = round(time.monotonic() - started, 2)
        self.done.append({"name": name, "seconds": seconds})
        say(f"ok  {name} ({seconds:.1f} s)")


class Made:
    """What was made, with the way to delete it; the last made is deleted first."""

    def __init__(self) -> None:
        self._things: list[tuple[str, Callable[[], None]]] = []

    def add(self, what: str, delete: Callable[[], None]) -> None:
        self._things.append((what, delete))

    def delete_all(self) -> list[str]:
        """Delete everything, going on after an error; return what could not be deleted, and why."""
        problems = []
        while self._things:
            what, delete = self._things.pop()
            try:
                delete()
            except Exception as error:
                problems.append(f"{what} could not be deleted: {error}")
        return problems


class Verification:
    """One round trip of a client. Nothing is kept between two of them but the experiments."""

    def __init__(self, steps: Steps, made: Made) -> None:
        self.steps, self.made = steps, made
        self.uri = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
        self.user = os.environ["MLFLOW_TRACKING_USERNAME"]
        self.bucket = os.environ.get("MLFLOW_VERIFICATION_BUCKET", "mlflow")
        self.direct = _direct()
        self.id = uuid.uuid4().hex[:12]
        self.client = None
        self.client_version = self.server_version = None

    def run(self) -> None:
        with self.steps.step("load the MLflow client"):
            import mlflow

            self.client, self.client_version = mlflow.MlflowClient(), mlflow.__version__
        with self.steps.step("reach the server and the object store" if self.direct else "reach the server"):
            _connect(self.uri, "the server")
            if self.direct:
                _connect(os.environ["MLFLOW_S3_ENDPOINT_URL"], "the object store")
        with self.steps.step("log in"):
            self._log_in()
        with self.steps.step("refuse a wrong password"):
            self._refused((self.user, f"wrong-{self.id}"), "a wrong password")
        with self.steps.step("refuse a request without a password"):
            self._refused(None, "a request without a password")
        if self.direct:
            run = self._round_trip(f"s3://{self.bucket}/{PREFIX}", "directly in S3")
            self._round_trip(f"mlflow-artifacts:/{PREFIX}", "through the server")
        else:
            with self.steps.step("see that the server leads no client past it"):
                self._see_no_offer()
            run = self._round_trip(f"mlflow-artifacts:/{PREFIX}", "through the server")
        with self.steps.step("register a model version"):
            self._register(run)
        with self.steps.step("delete what was made"):
            if problems := self.made.delete_all():
                raise Failure("; ".join(problems))

    def _get(self, path: str, credentials: tuple[str, str] | None) -> tuple[int, str]:
        import requests

        # A function in place of None: with None, requests would take a password from ~/.netrc.
        auth = credentials or (lambda request: request)
        answer = requests.get(self.uri + path, auth=auth, timeout=20, allow_redirects=False)
        return answer.status_code, answer.text.strip()

    def _log_in(self) -> None:
        status, text = self._get("/version", (self.user, os.environ["MLFLOW_TRACKING_PASSWORD"]))
        if status == 401:
            raise Failure(f"the server does not accept this password for the user {self.user} (status 401)")
        if status != 200:
            raise Failure(f"the server answered {status}: {text[:200]}")
        self.server_version = text
        self.client.search_experiments(max_results=1)

    def _refused(self, credentials: tuple[str, str] | None, what: str) -> None:
        status, _ = self._get("/api/2.0/mlflow/experiments/search?max_results=1", credentials)
        if status != 401:
            raise Failure(f"the server answered {what} with {status} instead of 401")

    def _see_no_offer(self) -> None:
        """A client that is offered a presigned URL takes it, and hangs where it does not reach the object store."""
        status, text = self._get("/api/3.0/mlflow/server-info", None)
        offers = json.loads(text) if status == 200 else {}
        if any(offers.get(f"multipart_{way}_enabled") for way in ("uploads", "downloads")):
            raise Failure("the server offers clients presigned URLs, which lead to the object store")

    def _experiment(self, location: str) -> str:
        """Return the identifier of the experiment whose artifacts are under this location."""
        from mlflow.exceptions import MlflowException

        # An experiment cannot be moved, so its name carries its location.
        name = f"ansible-mlflow verification: {location}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # Another verification was faster.
            found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def _round_trip(self, location: str, way: str):
        """Log a parameter, a metric and an artifact, and read all three back; return the run."""
        content = os.urandom(ARTIFACT_BYTES)
        with (
            self.steps.step(f"log a parameter, a metric and an artifact {way}"),
            tempfile.TemporaryDirectory() as folder,
        ):
            run = self.client.create_run(self._experiment(location), run_name=f"{PREFIX}-{self.id}")
            run_id, uri = run.info.run_id, run.info.artifact_uri
            self.made.add(f"run {run_id}", lambda: self.client.delete_run(run_id))
            self.client.log_param(run_id, "verification", self.id)
            self.client.log_metric(run_id, "one_tenth", 0.1)
            self.made.add(f"the artifacts in {uri}", lambda: _delete_artifacts(uri))
            (file := Path(folder, ARTIFACT)).write_bytes(content)
            self.client.log_artifact(run_id, str(file))
            self.client.set_terminated(run_id)
        with self.steps.step(f"read back what was logged {way}"), tempfile.TemporaryDirectory() as folder:
            data = self.client.get_run(run_id).data
            if data.params != {"verification": self.id}:
                raise Failure(f"logged the parameter verification={self.id} and read back {data.params}")
            if data.metrics != {"one_tenth": 0.1}:
                raise Failure(f"logged the metric one_tenth=0.1 and read back {data.metrics}")
            read = Path(self.client.download_artifacts(run_id, ARTIFACT, folder)).read_bytes()
            if read != content:
                raise Failure(f"the artifact of {len(content)} bytes came back with {len(read)} bytes, or others")
        return run

    def _register(self, run) -> None:
        name = f"{PREFIX}-{self.id}"
        self.client.create_registered_model(name)
        # Deletes its versions too.
        self.made.add(f"registered model {name}", lambda: self.client.delete_registered_model(name))
        source = f"{run.info.artifact_uri}/{ARTIFACT}"
        made = self.client.create_model_version(name, source, run_id=run.info.run_id, await_creation_for=20)
        self.made.add(f"version {made.version} of {name}", lambda: self.client.delete_model_version(name, made.version))
        read = self.client.get_model_version(name, made.version)
        if (read.source, read.run_id, read.status) != (source, run.info.run_id, "READY"):
            raise Failure(f"the model version came back as {read.status}, from {read.source} of run {read.run_id}")


def _direct() -> bool:
    return os.environ.get("MLFLOW_VERIFICATION_ACCESS", "direct") == "direct"


def _connect(url: str, what: str) -> None:
    """Open and close a connection, for a plain word where the clients below would retry for a minute."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise Failure(f"cannot connect to {what} at {parts.hostname}:{port}: {error.strerror or error}") from error


def _delete_artifacts(uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(uri)
    repository.delete_artifacts()
    # An object store may refuse to delete an object without any error that the client would raise.
    if left := [file.path for file in repository.list_artifacts()]:
        raise Failure(f"still there after deletion: {', '.join(left)}")


def _told(failed: dict[str, str]) -> str:
    return f"{failed['step']}: {failed['reason']}"


def _interrupt_after(seconds: float) -> None:
    """Raise Interrupted when the time is over, or on SIGTERM (a pod is being stopped)."""
    reasons: list[str] = []

    def interrupt(number: int, _frame: object) -> None:
        reasons.append(f"not done within {seconds} s" if number == signal.SIGALRM else "stopped from outside")
        # Again every second: what the first one interrupts may wait for its threads before it lets go.
        signal.setitimer(signal.ITIMER_REAL, 1)
        raise Interrupted(reasons[0])

    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> int:
    if "--environment-from-stdin" in sys.argv[1:]:
        os.environ.update(json.load(sys.stdin))
    secrets = [value for name in SECRETS if (value := os.environ.get(name))]
    os.environ.update(CLIENT_SETTINGS | (WITHOUT_PRESIGNED if _direct() else {}))
    # Whatever the client's libraries print, standard output is for the report.
    output, sys.stdout = sys.stdout, sys.stderr

    timeout = int(os.environ.get("MLFLOW_VERIFICATION_TIMEOUT", "120"))
    _interrupt_after(timeout)

    steps, made, failed, verification = Steps(), Made(), None, None
    try:
        needed = NEEDED + (NEEDED_FOR_S3 if _direct() else ())
        if missing := [name for name in needed if not os.environ.get(name)]:
            raise Failure(f"not set: {', '.join(missing)}")
        verification = Verification(steps, made)
        verification.run()
    except (Exception, Interrupted) as error:
        failed = {"step": steps.current, "reason": sentence(error, secrets)}
        say(f"FAILED  {_told(failed)}")
        with contextlib.suppress(Interrupted):
            _interrupt_after(CLEANUP_SECONDS)
            for problem in made.delete_all():
                say(f"cleaning up: {sentence(Failure(problem), secrets)}")
    signal.setitimer(signal.ITIMER_REAL, 0)
    report = {
        "ok": failed is None,
        "steps": steps.done,
        "failed": failed,
        "error": failed and _told(failed),
        "mlflow_version": verification and verification.client_version,
        "server_version": verification and verification.server_version,
    }
    print(json.dumps(report), file=output, flush=True)
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    code = main()
    # Without waiting for the threads of an upload that hangs.
    os._exit(code)
