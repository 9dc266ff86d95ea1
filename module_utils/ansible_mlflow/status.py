"""How an environment is: each part read by itself, so that one that does not answer hides none of the others."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from . import object_store
from .apply import apply_all, remove_all
from .backups import ID as BACKUP_ID
from .backups import begun
from .database import PUBLIC_SCHEMA, Server, Tls, connect, first
from .errors import Error, MissingLibraryError, one_line
from .jobs import job_state
from .kubernetes import Cluster
from .pods import diagnose, seconds_since
from .rollout import condition, selector_of
from .schema import Releases, Session, Stores
from .tunnel import reach_service

PARTS_AT_ONCE = 6
# A bucket of millions of objects is not counted to its end.
COUNT_SECONDS = 20
CERTIFICATE_SECONDS = 5
# Of the connections that PostgreSQL has for everybody.
CONNECTIONS_USED = 0.9
SHOWN_DIFFERENCES = 3
# Sessions of PostgreSQL's own processes have no database.
CONNECTIONS = """
    SELECT count(*) AS used, current_setting('max_connections')::int
        - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true)::int, 0) AS maximum
    FROM pg_stat_activity
    WHERE datid IS NOT NULL AND usename IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'"""


@dataclass(frozen=True)
class Bucket:
    """A bucket, and the key that it is looked at with."""

    endpoint: str
    region: str
    name: str
    access_key: str
    secret_key: str = field(repr=False)
    reach: str = "auto"


@dataclass(frozen=True)
class Environment:
    """What there is to look at.

    Attributes:
        name, namespace: The environment's, and the namespace that it is in.
        record: The ConfigMap that says which revisions which image wants.
        releases: Path of the table of MLflow's releases.
        stores: The databases, and the role that looks at them.
        reach: How PostgreSQL is reached.
        artifacts: The bucket of the artifacts.
        backups: The bucket of the backups; None where there are none.
        url: Where people reach the server.
        tls_secret: The Secret with its certificate; empty where that is not in the cluster.
        objects, unwanted: What should be there, and what should not.
    """

    name: str
    namespace: str
    record: str
    releases: str
    stores: Stores
    reach: str
    artifacts: Bucket
    backups: Bucket | None
    url: str
    tls_secret: str
    objects: list[dict]
    unwanted: list[dict]


@dataclass(frozen=True)
class Limits:
    """From when on something is a problem: a backup's age in hours (0: never), a certificate's last days."""

    backup_hours: int
    certificate_days: int


class Found(dict):
    """What was found of a part, with its problems."""

    def __init__(self, *problems: str, **values):
        super().__init__(**values, problems=[problem for problem in problems if problem])


def look(cluster: Cluster, environment: Environment, limits: Limits) -> dict:
    """Look at every part of an environment, several at the same time.

    :returns: the parts by name, each with its values and ``problems``, and ``seconds``.
    :raises Error: the cluster does not answer.
    """
    started = time.monotonic()
    # Whoever cannot be asked at all is one reason, not one for each part.
    deployment = cluster.get(f"/apis/apps/v1/namespaces/{environment.namespace}/deployments/mlflow-{environment.name}")
    with Ways(cluster) as ways:
        endpoint = object_store.parse_endpoint(environment.artifacts.endpoint)
        to_database = ways.to(environment.stores.host, environment.stores.port, environment.reach)
        to_artifacts = ways.to(endpoint.host, endpoint.port, environment.artifacts.reach)
        to_backups = to_artifacts
        if environment.backups and environment.backups.endpoint != environment.artifacts.endpoint:
            endpoint = object_store.parse_endpoint(environment.backups.endpoint)
            to_backups = ways.to(endpoint.host, endpoint.port, environment.backups.reach)
        parts: dict[str, Callable[[], Found]] = {
            "release": lambda: release(deployment),
            "schema": lambda: schema(cluster, environment, deployment, to_database),
            "replicas": lambda: replicas(cluster, environment, deployment),
            "database": lambda: database(environment, to_database),
            "bucket": lambda: bucket(environment.artifacts, to_artifacts),
            "backup": lambda: backup(environment, to_backups, limits),
            "certificate": lambda: certificate(cluster, environment, limits),
            "drift": lambda: drift(cluster, environment),
            "unfinished": lambda: unfinished(cluster, environment),
        }
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            found = dict(zip(parts, pool.map(attempt, parts.values()), strict=True))
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def attempt(part: Callable[[], Found]) -> Found:
    """A part, or why it could not be looked at."""
    try:
        return part()
    except MissingLibraryError:
        raise
    except Error as error:
        return Found(str(error))


class Ways:
    """Tunnels, opened one after the other and closed in the end; what cannot be reached is told by who asks for it."""

    def __init__(self, cluster: Cluster):
        self._cluster, self._stack = cluster, contextlib.ExitStack()

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *_exc) -> None:
        self._stack.close()

    def to(self, host: str, port: int, reach: str) -> Callable[[], tuple[str, int]]:
        """The address of a host's port, or the reason why there is none, as a function."""
        try:
            address = self._stack.enter_context(reach_service(host, port, reach, self._cluster))
        except Error as error:
            problem = error

            def refuse() -> tuple[str, int]:
                raise problem

            return refuse
        return lambda: address


def image_of(deployment: dict) -> str:
    """The image of a Deployment's server."""
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return next((entry["image"] for entry in containers if entry["name"] == "mlflow"), containers[0]["image"])


def release(deployment: dict | None) -> Found:
    """Which image the servers run."""
    if deployment is None:
        return Found("it is not deployed: there is no Deployment")
    return Found(image=image_of(deployment))


def schema(cluster: Cluster, environment: Environment, deployment: dict | None, way) -> Found:
    """The revision of each database, and where that is of what the servers' image wants."""
    stores = environment.stores
    found = session(environment, way).revisions()
    heads = wanted_heads(cluster, environment, image_of(deployment)) if deployment else {}
    table, problems, revisions = Releases(environment.releases), [], {}
    for store, name in stores.names.items():
        state = judge_revision(table, store, found[store], heads.get(store, ""))
        revisions[store] = {"revision": found[store], "head": heads.get(store), "state": state}
        if state not in ("current", "unknown"):
            head = f"; the image wants {heads[store]}" if state != "empty" else ""
            problems.append(f"the {store} database {name} is {state} ({found[store] or 'no revision'}{head})")
    return Found(*problems, revisions=revisions)


def session(environment: Environment, way) -> Session:
    stores = environment.stores
    return Session(Server(stores.host, stores.port, way(), stores.tls, stores.schema), stores)


def wanted_heads(cluster: Cluster, environment: Environment, image: str) -> dict[str, str]:
    """The heads of an image: what an earlier run has written down, else what is known of the release."""
    path = f"/api/v1/namespaces/{environment.namespace}/configmaps/{environment.record}"
    data = (cluster.get(path) or {}).get("data") or {}
    if data.get("image") == image:
        return {store: data[store] for store in environment.stores.names if data.get(store)}
    return Releases(environment.releases).heads(image)


def judge_revision(table: Releases, store: str, revision: str | None, head: str) -> str:
    """``current``, ``behind``, ``ahead``, ``empty``, or ``unknown`` where nobody knows what the image wants."""
    if revision is None:
        return "empty"
    if not head:
        return "unknown"
    if revision == head:
        return "current"
    try:
        # One that no release known here has is a newer one's, or another program's.
        return "ahead" if table.between(store, revision, head) is None else "behind"
    except ValueError:
        return "ahead"


def replicas(cluster: Cluster, environment: Environment, deployment: dict | None) -> Found:
    """How many servers are ready of those that there should be, and why not all."""
    if deployment is None:
        return Found(ready=0, wanted=0)
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    ready, updated, all_of_them = (status.get(f"{name}eplicas", 0) for name in ("readyR", "updatedR", "r"))
    problems = []
    if wanted == 0:
        problems.append("the servers are stopped: the Deployment has no replicas")
    if ready < wanted:
        problems.append(f"{ready} of {wanted} replicas are ready")
    # While new ones are not ready, old ones serve.
    if all_of_them and updated < max(wanted, all_of_them):
        problems.append(f"a rollout is not complete: {updated} of {all_of_them} pods have the new version")
    if problems and wanted:
        problems[-1] += reason(cluster, environment, deployment)
    return Found(*problems, ready=ready, wanted=wanted)


def reason(cluster: Cluster, environment: Environment, deployment: dict) -> str:
    """Why replicas are not ready, as far as their pods or their ReplicaSet say so."""
    pods = cluster.items(f"/api/v1/namespaces/{environment.namespace}/pods", labelSelector=selector_of(deployment))
    failures = [failure.told() for failure in map(diagnose, pods) if failure]
    refused = condition(deployment, "ReplicaFailure")
    failures += [refused.get("message", "")] if refused else []
    return f": {one_line(failures[0], 300)}" if failures else ""


def database(environment: Environment, way) -> Found:
    """How large the databases are, and how many connections are in use of all that PostgreSQL has."""
    stores = environment.stores
    server, size, used = Server(stores.host, stores.port, way(), stores.tls, stores.schema), 0, {}
    for name in dict.fromkeys(stores.names.values()):
        with connect(server, stores.username, stores.password, name) as connection:
            size += first(connection, "SELECT pg_database_size(current_database()) AS size")["size"]
            used = used or first(connection, CONNECTIONS)
    full = used["used"] >= CONNECTIONS_USED * used["maximum"]
    problem = f"{used['used']} of PostgreSQL's {used['maximum']} connections are in use" if full else ""
    return Found(problem, bytes=size, connections=used["used"], limit=used["maximum"])


def opened(bucket: Bucket, way) -> object_store.Store:
    """A bucket's server, as its key sees it."""
    endpoint = object_store.parse_endpoint(bucket.endpoint)
    return object_store.Store(endpoint, way(), bucket.region, bucket.access_key, bucket.secret_key)


def refuse_absent(store: object_store.Store, bucket: str) -> None:
    """See that a bucket is there, and may be looked at.

    :raises Error: it is not.
    """
    found = store.look(bucket)
    if found == "absent":
        raise Error(f"there is no bucket {bucket} at {store.endpoint.url}")
    if found != "present":
        raise store.explained(object_store.Refusal(found, ""), bucket)


def bucket(artifacts: Bucket, way) -> Found:
    """How much is in the bucket; ``complete`` tells whether it was counted to its end."""
    store = opened(artifacts, way)
    refuse_absent(store, artifacts.name)
    objects, size, complete = store.count(artifacts.name, COUNT_SECONDS)
    return Found(objects=objects, bytes=size, complete=complete)


def backup(environment: Environment, way, limits: Limits) -> Found:
    """The newest complete backup."""
    if environment.backups is None:
        return Found(wanted=False)
    place = environment.backups
    store = opened(place, way)
    refuse_absent(store, place.name)
    newest = next(complete_backups(store, place.name, environment.name), None)
    if newest is None:
        return Found("there is no backup" if limits.backup_hours else "", wanted=True)
    hours = round((time.time() - begun(newest)) / 3600, 1)
    old = 0 < limits.backup_hours < hours
    problem = (
        f"the newest backup, {newest}, is {age(hours * 3600)} old; expected one of the last {limits.backup_hours} h"
    )
    return Found(problem if old else "", wanted=True, id=newest, hours=hours)


def complete_backups(store: object_store.Store, bucket: str, environment: str) -> Iterator[str]:
    """The ids of the backups that were made to their end, the newest first."""
    folder = f"{environment}/"
    ids = [name[len(folder) :].rstrip("/") for name in store.names(bucket, folder)]
    for found in sorted(filter(BACKUP_ID.fullmatch, ids), reverse=True):
        # The manifest comes last: without it, the upload was cut off.
        manifest = f"{folder}{found}/manifest.json"
        if manifest in store.names(bucket, manifest):
            yield found


def certificate(cluster: Cluster, environment: Environment, limits: Limits) -> Found:
    """Until when the certificate is good that people's browsers see."""
    if environment.tls_secret:
        path = f"/api/v1/namespaces/{environment.namespace}/secrets/{environment.tls_secret}"
        data = (cluster.get(path) or {}).get("data") or {}
        if not data.get("tls.crt"):
            raise Error(f"there is no certificate in Secret {environment.tls_secret}")
        pem = base64.b64decode(data["tls.crt"]).decode("utf-8", "replace")
    elif urlsplit(environment.url).scheme == "https":
        pem = shown_certificate(environment.url)
    else:
        return Found()
    end = end_of(pem)
    days = int((end - datetime.now(UTC)).total_seconds() // 86400)
    text = "ended" if days < 0 else f"ends in {days} days"
    problem = f"the certificate {text}, on {end:%Y-%m-%d}" if days < limits.certificate_days else ""
    return Found(problem, days=days, until=end.isoformat(timespec="seconds"))


def shown_certificate(url: str) -> str:
    """The certificate that a server shows, as PEM text; whoever has signed it."""
    parts = urlsplit(url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        address = (parts.hostname, parts.port or 443)
        with (
            socket.create_connection(address, CERTIFICATE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as connection,
        ):
            return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True))
    except OSError as error:
        raise Error(f"{url} shows no certificate: {one_line(error, 200)}") from None


def end_of(pem: str) -> datetime:
    """When the first certificate of a text ends."""
    try:
        from cryptography import x509
    except ImportError as error:
        raise MissingLibraryError("cryptography", str(error)) from None
    try:
        return x509.load_pem_x509_certificates(pem.encode())[0].not_valid_after_utc
    except ValueError:
        raise Error("the certificate cannot be read: expected PEM text") from None


def drift(cluster: Cluster, environment: Environment) -> Found:
    """What a run of site.yml would change of the server's objects; the API server answers that, and changes nothing."""
    applied = apply_all(cluster, environment.objects, check_mode=True)
    removed = remove_all(cluster, environment.unwanted, check_mode=True)
    differences = []
    for change, diff in zip(applied.changes, applied.diffs, strict=True):
        verb, name = change.split(" ", 1)
        differences.append(f"{name} is missing" if verb == "created" else f"{name} differs{where(diff)}")
    differences += [f"{change.split(' ', 1)[1]} is not wanted any more" for change in removed.changes]
    return Found(*differences, objects=len(differences))


def where(diff: dict) -> str:
    """Which fields differ, without what they hold."""
    paths = list(differing(diff["before"], diff["after"]))
    more = f" and {len(paths) - SHOWN_DIFFERENCES} more" if len(paths) > SHOWN_DIFFERENCES else ""
    return f" in {', '.join(paths[:SHOWN_DIFFERENCES])}{more}" if paths else ""


def differing(before, after, path: str = "") -> Iterator[str]:
    """The paths of the fields in which two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differing(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differing(old, new, f"{path}[{index}]")
    elif before != after:
        yield path


def unfinished(cluster: Cluster, environment: Environment) -> Found:
    """Jobs that have failed, and nobody has run again."""
    path = f"/apis/batch/v1/namespaces/{environment.namespace}/jobs"
    jobs = cluster.items(path, labelSelector=f"app.kubernetes.io/instance={environment.name}")
    failed = [job for job in latest(jobs) if job_state(job) == "failed"]
    now = datetime.now(UTC)
    told = [f"Job {job['metadata']['name']} failed {age(seconds_since(failed_at(job), now))} ago" for job in failed]
    return Found(*told, jobs=len(told))


def failed_at(job: dict) -> str | None:
    """When a Job has failed."""
    conditions = job["status"]["conditions"]
    return next((entry.get("lastTransitionTime") for entry in conditions if entry["type"] == "Failed"), None)


def latest(jobs: list[dict]) -> list[dict]:
    """Jobs, of each CronJob only the last one: what has failed before was made good."""
    kept: dict[str, dict] = {}
    for job in sorted(jobs, key=lambda job: job["metadata"].get("creationTimestamp") or ""):
        owners = [owner["uid"] for owner in job["metadata"].get("ownerReferences") or [] if owner["kind"] == "CronJob"]
        kept[owners[0] if owners else job["metadata"]["uid"]] = job
    return list(kept.values())


def age(seconds: float) -> str:
    """A time for people: 5 min, 3 h, 12 days."""
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def environment_of(params: dict) -> Environment:
    """What a module's options tell."""
    where = params["database"]
    tls, schema = Tls(where["tls_mode"], where["ca_certificate"]), where["schema"] or PUBLIC_SCHEMA
    role = (where["username"], where["password"])
    return Environment(
        name=params["environment"],
        namespace=params["namespace"],
        record=params["record"],
        releases=params["releases"],
        stores=Stores(where["host"], where["port"], *role, where["names"], tls, schema),
        reach=where["reach"],
        artifacts=Bucket(**params["bucket"]),
        backups=Bucket(**params["backups"]) if params["backups"] else None,
        url=params["url"],
        tls_secret=params["tls_secret"],
        objects=params["objects"],
        unwanted=params["unwanted"],
    )
