"""Decide whether the schema Job must run, run it, and keep what it found."""

from __future__ import annotations

from dataclasses import dataclass, field

from .database import ConnectError, Server, connect
from .errors import Error
from .jobs import JobRun
from .kubernetes import Cluster
from .tunnel import NoServiceError, reach_service

VERSION_TABLES = {"tracking": "alembic_version", "auth": "alembic_version_auth"}
DIGEST_ANNOTATION = "mlflow.ansible/program-digest"


@dataclass(frozen=True)
class Stores:
    """The databases whose schema is looked at: {"tracking": name, "auth": name}, and the role that may read them."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    names: dict[str, str]


@dataclass
class Result:
    """What was done: revisions before and after by store, and the program's report."""

    changes: list[str]
    before: dict
    after: dict
    report: dict = field(default_factory=dict)
    log: str = ""
    job_ran: bool = False


def live_revisions(
    cluster: Cluster, reach: str, stores: Stores, tolerant: bool, recorded: dict[str, str] | None = None
) -> dict[str, str | None]:
    """The revision that each database holds, None for an empty one.

    :param tolerant: a server, role or database that does not exist yet counts as empty (check mode, before the first
        run has made it).
    :param recorded: what to take, when tolerant, for a database that refuses a password: a run would first give the
        role that password, and what the last run recorded is what is known.
    """
    try:
        with reach_service(stores.host, stores.port, reach, cluster) as address:
            server = Server(stores.host, stores.port, address)
            return {store: _revision(server, stores, store, tolerant, recorded or {}) for store in stores.names}
    except NoServiceError:
        if tolerant:
            return dict.fromkeys(stores.names)
        raise


def _revision(server: Server, stores: Stores, store: str, tolerant: bool, recorded: dict[str, str]) -> str | None:
    table = VERSION_TABLES[store]
    try:
        with connect(server, stores.username, stores.password, stores.names[store]) as connection:
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone()[0] is None:
                return None
            query = f"SELECT version_num FROM {table} ORDER BY version_num"  # noqa: S608 - one of two constants
            return ", ".join(row[0] for row in connection.execute(query)) or None
    except ConnectError as error:
        if tolerant and error.state in ("28P01", "28000"):
            return recorded.get(store)
        if tolerant and error.state == "3D000":
            return None
        raise


class Record:
    """The ConfigMap that keeps which revisions which image knows and wants.

    So an unchanged environment starts no Job, and a database that is ahead of the image is refused without one.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str):
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._found = cluster.get(f"{self._path}/{name}")

    @property
    def _data(self) -> dict[str, str]:
        return (self._found or {}).get("data") or {}

    def heads(self, image: str, digest: str, stores: Stores) -> dict[str, str] | None:
        """The recorded heads by store, if they were found by this image and program."""
        if (self._data.get("image"), self._data.get("program")) != (image, digest):
            return None
        heads = {store: self._data.get(store, "") for store in stores.names}
        return heads if all(heads.values()) else None

    def knows(self, store: str, revision: str | None) -> bool:
        """Whether the recorded image has a revision; an empty database is known to every image."""
        return revision is None or revision in self._data.get(f"{store}_known", "").split()

    def write(self, image: str, digest: str, stores: dict[str, dict], labels: dict) -> bool:
        """Keep what the program reported of each store; True when the record was another one before."""
        # Another run may have written it meanwhile.
        self._found = self.cluster.get(f"{self._path}/{self.name}")
        data = {"image": image, "program": digest}
        for store, found in stores.items():
            data |= {store: found["head"], f"{store}_known": " ".join(found.get("known") or [])}
        if self._found and self._found.get("data") == data:
            return False
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name, "namespace": self.namespace, "labels": labels},
            "data": data,
        }
        if self._found:
            self.cluster.replace(f"{self._path}/{self.name}", body)
        else:
            self.cluster.create(self._path, body)
        return True


@dataclass(frozen=True)
class Plan:
    """One call of the schema step."""

    namespace: str
    manifest: dict
    record: str
    image: str
    reach: str
    timeout: float
    check_mode: bool

    @property
    def digest(self) -> str:
        """The digest of the program that the Job runs, from the manifest's annotation."""
        annotations = (self.manifest.get("metadata") or {}).get("annotations") or {}
        if not annotations.get(DIGEST_ANNOTATION):
            raise Error(f"job: expected the annotation {DIGEST_ANNOTATION} in the manifest's metadata")
        return annotations[DIGEST_ANNOTATION]


def bring_up_to_date(cluster: Cluster, plan: Plan, stores: Stores) -> Result:
    """Run the schema Job unless the record and the databases say that there is nothing to do.

    :raises Error: the databases cannot be read, or the Job failed; the message is the program's own.
    """
    record = Record(cluster, plan.namespace, plan.record)
    heads = record.heads(plan.image, plan.digest, stores)
    before = live_revisions(cluster, plan.reach, stores, plan.check_mode, heads)
    if heads is not None and before == heads:
        return Result([], before, before)
    if heads is not None:
        refuse_unknown(record, plan, stores, before)
    if plan.check_mode:
        after = heads or {store: f"head of {plan.image}" for store in stores.names}
        return Result(changes_between(stores, before, after), before, after)

    run = JobRun(cluster, plan.namespace, plan.manifest, plan.timeout)
    report, log = run.run()
    missing = [store for store in stores.names if not ((report or {}).get(store) or {}).get("head")]
    if missing:
        lacking = ", ".join(missing)
        raise Error(f"Job {plan.namespace}/{run.name} ended well, but printed no report of {lacking}", log=log)
    # What the program found under its lock; while it waited for the lock another one may have done the work.
    before = {store: report[store].get("before", before[store]) for store in stores.names}
    after = {store: report[store].get("revision") for store in stores.names}
    changes = changes_between(stores, before, after)
    found = {store: dict(report[store]) for store in stores.names}
    for store in stores.names:
        report[store].pop("known", None)
    if record.write(plan.image, plan.digest, found, plan.manifest["metadata"].get("labels") or {}):
        changes.append(f"recorded the heads of {plan.image} in ConfigMap {plan.record}")
    return Result(changes, before, after, report, log, job_ran=True)


def refuse_unknown(record: Record, plan: Plan, stores: Stores, live: dict) -> None:
    """Refuse databases that the image cannot upgrade, as the program would, but without starting it.

    :raises Error: naming each.
    """
    problems = [
        f"the {store} database {stores.names[store]} at {stores.host}:{stores.port} is at revision {revision}, which "
        f"{plan.image} does not know: a newer MLflow upgraded it (use that release, or restore the backup of before), "
        f"or {VERSION_TABLES[store]} is another program's"
        for store, revision in live.items()
        if not record.knows(store, revision)
    ]
    if problems:
        raise Error("; ".join(problems) + "; nothing was changed")


def changes_between(stores: Stores, before: dict, after: dict) -> list[str]:
    """One sentence for each store whose revision differs."""
    return [
        f"upgraded the {store} database {stores.names[store]} from {before[store] or 'empty'} to {after[store]}"
        for store in after
        if after[store] != before[store]
    ]
