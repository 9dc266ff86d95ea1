"""Tell Prometheus how an environment of MLflow is; runs in MLflow's image, with nothing more than it has.

    monitor.py server    beside each server: what MLflow has counted in all of its workers
    monitor.py checks    once for the environment: what its users would notice, tried anew at each scrape

Environment, besides what MLflow itself reads:
    MLFLOW_MONITOR_USERNAME, MLFLOW_MONITOR_PASSWORD   who may read it
    MLFLOW_MONITOR_COUNTERS                            server: the directory that MLflow counts in
    MLFLOW_MONITOR_SERVER                              checks: where MLflow answers
    MLFLOW_BACKUP_...                                  checks: as backup.py has them; unset if there are no backups
"""

from __future__ import annotations

import base64
import hmac
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timezone
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

PORT = 9464
# The program that knows databases and revisions, as the schema's own Jobs have it.
SCHEMA = "/opt/mlflow-schema"
# Of the whole answer, below Prometheus' own limit: what is not done by then has failed.
SECONDS = 12
STEP_SECONDS = 5
# A login that MLflow refuses was looked up, so it works; the new password is known here before MLflow has it.
ANSWERS = (200, 401, 404)
BACKUP = re.compile(r"([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{4}")
# PostgreSQL's words when nobody gets a connection any more.
FULL = re.compile(r"too many (clients|connections)|remaining connection slots")
CONNECTIONS = """
    SELECT 'server', count(*), current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0)
    FROM pg_stat_activity
    WHERE datid IS NOT NULL AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
    UNION ALL SELECT 'role', count(*), (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user)
    FROM pg_stat_activity WHERE usename = current_user
    UNION ALL SELECT 'database', count(*), (SELECT datconnlimit FROM pg_database WHERE datname = current_database())
    FROM pg_stat_activity WHERE datname = current_database()"""

Sample = tuple[str, dict[str, str], float]


def authorization(username: str, password: str) -> str:
    """The header that logs in."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def text_of(samples: list[Sample]) -> str:
    """Samples in Prometheus' text format; each metric is a gauge."""
    lines = []
    for name in dict.fromkeys(name for name, _, _ in samples):
        lines.append(f"# TYPE {name} gauge")
        for labels, value in ((labels, value) for other, labels, value in samples if other == name):
            inner = ",".join(f'{key}="{label}"' for key, label in labels.items())
            lines.append(f"{name}{{{inner}}} {value:.17g}")
    return "".join(f"{line}\n" for line in lines)


def counted() -> str:
    """What the workers of this pod's server have counted."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=os.environ["MLFLOW_MONITOR_COUNTERS"])
    return generate_latest(registry).decode()


def request() -> Iterator[Sample]:
    """A request with a login, which needs the server and its databases."""
    prefix = os.environ.get("MLFLOW_STATIC_PREFIX", "")
    url = f"{os.environ['MLFLOW_MONITOR_SERVER']}{prefix}/api/2.0/mlflow/experiments/get?experiment_id=0"
    login = authorization(os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"])
    try:
        with urlopen(Request(url, headers={"Authorization": login}), timeout=SECONDS - 1) as answer:  # noqa: S310
            status = answer.status
    except HTTPError as error:
        status = error.code
    if status not in ANSWERS:
        raise ValueError(f"MLflow answers {status}")
    yield from ()


def schema() -> Iterator[Sample]:
    """Whether each database is at the revision that this image wants."""
    import stores

    for store in read_stores():
        connection = stores.connect(store, 0)
        try:
            stores.query(connection, f"SET statement_timeout = '{STEP_SECONDS}s'")
            stores.inspect(store, connection)
        finally:
            connection.close()
        yield "mlflow_schema_current", {"store": store.name}, float(store.state == "current")


@cache
def read_stores() -> list:
    """The databases, with the revisions that this image knows, which are read once."""
    import stores

    return stores.read_stores()


def connections() -> Iterator[Sample]:
    """How many of PostgreSQL's connections are in use, of all that there are for whom MLflow is."""
    tracking = read_stores()[0]
    import psycopg2
    import stores

    parameters = {"connect_timeout": STEP_SECONDS, **tracking.parameters}
    try:
        connection = psycopg2.connect(**parameters)
    except psycopg2.OperationalError as error:
        if not FULL.search(str(error)):
            raise
        yield "mlflow_database_connections_used_ratio", {"of": "server"}, 1.0
        return
    try:
        stores.query(connection, f"SET statement_timeout = '{STEP_SECONDS}s'")
        for of, used, limit in stores.query(connection, CONNECTIONS):
            if limit >= 0:
                yield "mlflow_database_connections", {"of": of}, used
                yield "mlflow_database_connections_limit", {"of": of}, limit
                yield "mlflow_database_connections_used_ratio", {"of": of}, used / limit if limit else 1.0
    finally:
        connection.close()


@cache
def s3(endpoint: str, region: str, access_key: str, secret_key: str):
    """A client of an S3 server that gives up soon."""
    from boto3.session import Session
    from botocore.config import Config

    options = {"s3": {"addressing_style": "path"}, "connect_timeout": STEP_SECONDS, "read_timeout": STEP_SECONDS}
    # A session of its own: the one that boto3 shares is not for several threads.
    return Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}, **options),
    )


def bucket() -> Iterator[Sample]:
    """Whether the bucket of the artifacts can be read with the servers' key."""
    names = ("MLFLOW_S3_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    client = s3(*(os.environ[name] for name in names))
    client.list_objects_v2(Bucket=urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"]).netloc, MaxKeys=1)
    yield from ()


def backups() -> Iterator[Sample]:
    """When the newest complete backup was made; 0 if there is none."""
    names = ("ENDPOINT", "REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
    client = s3(*(os.environ[f"MLFLOW_BACKUP_{name}"] for name in names))
    where, folder = os.environ["MLFLOW_BACKUP_BUCKET"], os.environ["MLFLOW_BACKUP_ENVIRONMENT"] + "/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=where, Prefix=folder, Delimiter="/")
    found = (entry["Prefix"][len(folder) : -1] for page in pages for entry in page.get("CommonPrefixes", []))
    moment = 0.0
    for name in sorted(filter(BACKUP.fullmatch, found), reverse=True):
        # The manifest comes last: without it, the upload was cut off.
        manifest = client.list_objects_v2(Bucket=where, Prefix=f"{folder}{name}/manifest.json", MaxKeys=1)
        if manifest["KeyCount"]:
            begun = datetime.strptime(BACKUP.fullmatch(name)[1], "%Y%m%dT%H%M%SZ")
            moment = begun.replace(tzinfo=timezone.utc).timestamp()  # noqa: UP017 - images with Python 3.10
            break
    yield "mlflow_backup_last_timestamp_seconds", {}, moment


def checks() -> dict[str, Callable[[], Iterator[Sample]]]:
    """What is tried, by name."""
    found = {"request": request, "schema": schema, "connections": connections, "bucket": bucket}
    return found | ({"backups": backups} if os.environ.get("MLFLOW_BACKUP_BUCKET") else {})


class Checks:
    """The checks, tried at the same time; one that still hangs is not begun again."""

    def __init__(self, todo: dict[str, Callable[[], Iterator[Sample]]], seconds: float = SECONDS) -> None:
        self._todo, self._seconds = todo, seconds
        self._pool = ThreadPoolExecutor(max_workers=len(todo))
        self._running: dict[str, Future] = {}
        self._lock = threading.Lock()

    def text(self) -> str:
        """What they find, within the time that there is."""
        with self._lock:
            for name, check in self._todo.items():
                if name not in self._running or self._running[name].done():
                    self._running[name] = self._pool.submit(timed, name, check)
            running = dict(self._running)
            done, _ = wait(running.values(), self._seconds)
        samples: list[Sample] = []
        for name, future in running.items():
            late = [("mlflow_check_success", {"check": name}, 0.0)]
            samples += future.result() if future in done else late
        return text_of(samples)


def timed(name: str, check: Callable[[], Iterator[Sample]]) -> list[Sample]:
    """The samples of a check, whether it succeeded, and how long it took; the reason of a failure is in the log."""
    begun, found, success = time.monotonic(), [], 1.0
    try:
        for sample in check():
            found.append(sample)
    except Exception as error:
        success = 0.0
        print(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}", file=sys.stderr, flush=True)
    labels = {"check": name}
    return [
        ("mlflow_check_success", labels, success),
        ("mlflow_check_seconds", labels, time.monotonic() - begun),
        *found,
    ]


def handler(text: Callable[[], str], wanted: str) -> type[BaseHTTPRequestHandler]:
    """What answers /metrics to who logs in, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            if not hmac.compare_digest(self.headers.get("Authorization", "").encode(), wanted.encode()):
                self.answer(401, "log in as the Secret mlflow-monitoring-... says\n")
            elif self.path != "/metrics":
                self.answer(404, "there is only /metrics\n")
            else:
                self.answer(200, text())

        def answer(self, status: int, body: str) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="metrics"')
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing of each scrape."""

    return Handler


def main(mode: str) -> None:
    """Serve until the pod ends."""
    # The first process of a container gets no default action for this signal.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.path.append(SCHEMA)
    text = counted if mode == "server" else Checks(checks()).text
    wanted = authorization(os.environ["MLFLOW_MONITOR_USERNAME"], os.environ["MLFLOW_MONITOR_PASSWORD"])
    ThreadingHTTPServer(("", PORT), handler(text, wanted)).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
