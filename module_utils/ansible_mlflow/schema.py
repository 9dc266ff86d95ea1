"""Decide whether a database's schema has to be upgraded, and upgrade it without leaving nothing to serve."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

from .apply import apply_all
from .database import PUBLIC_SCHEMA, ConnectError, Server, Tls, connect
from .errors import Error, one_line
from .jobs import JobRun
from .kubernetes import Cluster
from .rollout import Rollout
from .tunnel import NoServiceError, reach_service

DIGEST_ANNOTATION = "mlflow.ansible/program-digest"
# Of the runs of Ansible that want to upgrade, one at a time; the program in the Job has a lock of its own.
RUN_LOCK_KEY = int.from_bytes(b"mlflow-r", "big", signed=True)
# How long a run waits to see the old version serve again after an upgrade that failed.
RESUME_SECONDS = 90
STOP_SECONDS = 180


@dataclass(frozen=True)
class Stores:
    """The databases whose schema is looked at, by store, and the role that owns them."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    names: dict[str, str]
    tls: Tls = field(default_factory=Tls)
    schema: str = PUBLIC_SCHEMA


@dataclass
class Result:
    """What was done: revisions before and after by store, and the program's report."""

    changes: list[str]
    before: dict
    after: dict
    pending: bool = False
    plan: list[str] = field(default_factory=list)
    report: dict = field(default_factory=dict)
    log: str = ""
    job_ran: bool = False
    stopped_at: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One call of the schema step.

    ``objects`` are what the Job mounts, applied before it starts. ``deployment`` is what has to stop while the schema
    is changed; ``releases`` is the path of the table of MLflow's releases and their heads.
    """

    namespace: str
    manifest: dict
    objects: list[dict]
    record: str
    image: str
    releases: str
    deployment: str
    reach: str
    timeout: float
    check_mode: bool
    say: Callable[[str], None] = lambda _line: None

    @property
    def digest(self) -> str:
        """The digest of the program that the Job runs, from the manifest's annotation."""
        annotations = (self.manifest.get("metadata") or {}).get("annotations") or {}
        if not annotations.get(DIGEST_ANNOTATION):
            raise Error(f"job: expected the annotation {DIGEST_ANNOTATION} in the manifest's metadata")
        return annotations[DIGEST_ANNOTATION]


def version_tables(store: str) -> tuple[str, ...]:
    """Where a store's revision may stand, the most telling first: MLflow before 3.6 had one table for both."""
    return ("alembic_version_auth", "alembic_version") if store == "auth" else ("alembic_version",)


class Session:
    """Connections to the databases, through one tunnel."""

    def __init__(self, server: Server, stores: Stores):
        self.server, self.stores = server, stores

    def revisions(self, tolerant: bool = False, recorded: dict[str, str] | None = None) -> dict[str, str | None]:
        """The revision that each database holds, None for an empty one; several are separated by commas.

        :param tolerant: a role or database that does not exist yet counts as empty (check mode, before the first run
            has made it).
        :param recorded: what to take, when tolerant, for a database that refuses a password: a run would first give
            the role that password, and what the last run recorded is what is known.
        """
        found = {}
        for store, name in self.stores.names.items():
            try:
                with connect(self.server, self.stores.username, self.stores.password, name) as connection:
                    found[store] = self._revision(connection, store)
            except ConnectError as error:
                if tolerant and error.state in ("28P01", "28000"):
                    found[store] = (recorded or {}).get(store)
                elif tolerant and error.state == "3D000":
                    found[store] = None
                else:
                    raise
        return found

    @staticmethod
    def _revision(connection, store: str) -> str | None:
        for table in version_tables(store):
            if connection.execute("SELECT to_regclass(%s)", [table]).fetchone()[0] is not None:
                query = f"SELECT version_num FROM {table} ORDER BY version_num"  # noqa: S608 - one of two constants
                return ", ".join(row[0] for row in connection.execute(query)) or None
        return None

    @contextmanager
    def alone(self, timeout: float, say: Callable[[str], None]):
        """Hold the lock of all runs of Ansible that upgrade this environment.

        It belongs to a connection, so it ends with this process, however that ends.

        :raises Error: another run did not end in time.
        """
        name = self.stores.names["tracking"]
        end, told = time.monotonic() + timeout, False
        with connect(self.server, self.stores.username, self.stores.password, name) as connection:
            while not connection.execute("SELECT pg_try_advisory_lock(%s)", [RUN_LOCK_KEY]).fetchone()[0]:
                if time.monotonic() >= end:
                    raise Error(f"another run still upgrades database {name} after {timeout:.0f} s of waiting")
                if not told:
                    say("another run upgrades these databases; waiting for it")
                    told = True
                time.sleep(1)
            try:
                yield
            finally:
                # The server may have gone away meanwhile, which whatever happened under the lock has noticed itself.
                connection.close()


@contextmanager
def session(cluster: Cluster, reach: str, stores: Stores):
    """Reach the databases for a while. :raises NoServiceError: their Service is not there."""
    with reach_service(stores.host, stores.port, reach, cluster) as address:
        yield Session(Server(stores.host, stores.port, address, stores.tls, stores.schema), stores)


class Record:
    """The ConfigMap that keeps which revisions which image knows and wants.

    So an unchanged environment starts no Job, and a database that is ahead of the image is refused without one.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str):
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._found = cluster.get(f"{self._path}/{name}")

    def heads(self, plan: Plan, stores: Stores) -> dict[str, str] | None:
        """The recorded heads by store, if they were found by this image and program."""
        data = (self._found or {}).get("data") or {}
        if (data.get("image"), data.get("program")) != (plan.image, plan.digest):
            return None
        heads = {store: data.get(store, "") for store in stores.names}
        return heads if all(heads.values()) else None

    def write(self, image: str, digest: str, heads: dict[str, str], labels: dict) -> bool:
        """Keep the image's heads; True when the record was another one before."""
        # Another run may have written it meanwhile.
        self._found = self.cluster.get(f"{self._path}/{self.name}")
        data = {"image": image, "program": digest, **heads}
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


class Releases:
    """The table of MLflow's releases and their heads: what can be known of an image without running it."""

    def __init__(self, path: str):
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
        self._heads, self._order = table["releases"], table["revisions"]

    def heads(self, image: str) -> dict[str, str]:
        """The heads of the release that an image's tag names; empty when it names none that is known."""
        tag = re.search(r":v?(\d+\.\d+\.\d+)[^/:]*$", image.partition("@")[0])
        found = self._heads.get(tag[1], {}) if tag else {}
        heads = {store: found.get(store) for store in ("tracking", "auth")}
        return {**heads, "registry": heads["tracking"]} if all(heads.values()) else {}

    def release_of(self, store: str, revision: str) -> str:
        """The newest release with that head, or an empty text."""
        tree = "auth" if store == "auth" else "tracking"
        return next((name for name in reversed(self._heads) if self._heads[name].get(tree) == revision), "")

    def between(self, store: str, revision: str | None, head: str) -> list[str] | None:
        """The revisions from one (without it) to another, None where the table does not tell.

        :raises ValueError: the first comes after the second.
        """
        order = self._order["auth" if store == "auth" else "tracking"]
        if head not in order or (revision is not None and revision not in order):
            return None
        start = order.index(revision) + 1 if revision else 0
        if start > order.index(head) + 1:
            raise ValueError(revision)
        return order[start : order.index(head) + 1]


def check(cluster: Cluster, plan: Plan, stores: Stores) -> Result:
    """Find out whether an upgrade is pending, and what it would do.

    Starts a Job of the target image where the record does not tell. No database is changed.

    :raises Error: the databases cannot be read, or must not be upgraded; the message is the program's own.
    """
    record = Record(cluster, plan.namespace, plan.record)
    heads = record.heads(plan, stores)
    before = read_revisions(cluster, plan, stores, heads)
    if heads is not None and before == heads:
        return Result([], before, before)
    planned = plan_from_table(plan, stores, before)
    if plan.check_mode:
        wanted = heads or Releases(plan.releases).heads(plan.image)
        after = {store: wanted.get(store) or f"head of {plan.image}" for store in stores.names}
        return Result([], before, after, pending=before != after, plan=planned)
    if not any(before.values()):
        # Nothing is there that could be lost, and nothing serves: the upgrade itself refuses what it must.
        return Result([], before, before, pending=True, plan=planned)
    applied = apply_all(cluster, plan.objects, check_mode=False)
    run = JobRun(cluster, plan.namespace, plan.manifest, plan.timeout, plan.say)
    report, log = run.run()
    heads, lines = heads_of(report, stores, run, log), report.get("plan") or []
    result = Result(applied.changes, before, before, bool(lines), lines, report, log, job_ran=True)
    if not result.pending:
        keep_record(plan, record, heads, result)
    return result


def upgrade(cluster: Cluster, plan: Plan, stores: Stores) -> Result:
    """Upgrade what is behind: stop the servers, run the Job, and start the old ones again when it fails.

    :raises Error: the message is the program's own, and says what serves now.
    """
    if plan.check_mode:
        found = check(cluster, plan, stores)
        found.changes = changes_between(stores, found.before, found.after)
        return found
    run = JobRun(cluster, plan.namespace, plan.manifest, plan.timeout, plan.say)
    stopped_at, failed = 0.0, None
    with session(cluster, plan.reach, stores) as databases, databases.alone(plan.timeout, plan.say):
        before = databases.revisions()
        applied = apply_all(cluster, plan.objects, check_mode=False)
        try:
            if any(before.values()):
                stopped_at = stop(cluster, plan)
            report, log = run.run()
            heads = heads_of(report, stores, run, log)
        except Error as error:
            failed = Error(f"{error}; {resume(cluster, plan)}", **error.details)
    if failed:
        # Outside: the tunnel would add what it saw of it.
        raise failed
    # What the program found under its lock; while it waited for the lock another one may have done the work.
    before = {store: report[store].get("before", before[store]) for store in stores.names}
    after = {store: report[store].get("revision") for store in stores.names}
    changes = applied.changes + changes_between(stores, before, after)
    result = Result(changes, before, after, report=report, log=log, job_ran=True, stopped_at=stopped_at)
    keep_record(plan, Record(cluster, plan.namespace, plan.record), heads, result)
    return result


def stop(cluster: Cluster, plan: Plan) -> float:
    """Stop the servers, so that nothing uses the databases while they change; since when, 0 if nothing ran."""
    plan.say(f"stopping {plan.deployment}: nothing may use the databases while they change")
    stopping = time.time()
    return stopping if Rollout(cluster, plan.namespace, plan.deployment, STOP_SECONDS).stop() else 0.0


def read_revisions(cluster: Cluster, plan: Plan, stores: Stores, recorded: dict | None) -> dict[str, str | None]:
    """The revisions that the databases hold; in check mode what does not exist yet counts as empty."""
    try:
        with session(cluster, plan.reach, stores) as databases:
            return databases.revisions(plan.check_mode, recorded)
    except NoServiceError:
        if plan.check_mode:
            return dict.fromkeys(stores.names)
        raise


def plan_from_table(plan: Plan, stores: Stores, before: dict) -> list[str]:
    """What an upgrade would do as far as the table of releases tells it, without starting anything.

    :raises Error: a database is newer than the image.
    """
    table, lines, problems = Releases(plan.releases), [], []
    heads = table.heads(plan.image)
    for store, name in stores.names.items():
        revision, head = before[store], heads.get(store)
        if not head or revision == head:
            continue
        try:
            pending = table.between(store, revision, head)
        except ValueError:
            release = table.release_of(store, revision)
            problems.append(
                f"the {store} database {name} at {stores.host}:{stores.port} is at revision {revision}"
                f"{f' of MLflow {release}' if release else ''}, newer than {plan.image}: use that release, or restore "
                f"the backup of before its upgrade (playbooks/restore.yml)"
            )
            continue
        steps = f", {len(pending)} revisions: {', '.join(pending)}" if pending is not None and revision else ""
        lines.append(f"{store} database {name}: from {revision or 'empty'} to {head}{steps}")
    if problems:
        raise Error("; ".join(problems) + "; nothing was changed")
    return lines


def resume(cluster: Cluster, plan: Plan) -> str:
    """Start the servers again after an upgrade that failed; what serves now, in words.

    Their init container lets them serve only if the databases are still at the revision that they want.
    """
    rollout = Rollout(cluster, plan.namespace, plan.deployment, RESUME_SECONDS)
    try:
        if not rollout.resume():
            return "nothing served before, and nothing does"
        plan.say("starting the old version again")
        rollout.wait()
    except Error as error:
        return f"the old version was started again, but does not serve yet: {one_line(error, 300)}"
    return "the old version serves again"


def heads_of(report: dict | None, stores: Stores, run: JobRun, log: str) -> dict[str, str]:
    """The heads that a Job reported. :raises Error: it reported none."""
    missing = [store for store in stores.names if not ((report or {}).get(store) or {}).get("head")]
    if missing:
        lacking = ", ".join(missing)
        raise Error(f"Job {run.namespace}/{run.name} ended well, but printed no report of {lacking}", log=log)
    return {store: report[store]["head"] for store in stores.names}


def keep_record(plan: Plan, record: Record, heads: dict[str, str], result: Result) -> None:
    """Write down what the image wants, so that the next run need not ask it."""
    if record.write(plan.image, plan.digest, heads, plan.manifest["metadata"].get("labels") or {}):
        result.changes.append(f"recorded the heads of {plan.image} in ConfigMap {plan.record}")


def changes_between(stores: Stores, before: dict, after: dict) -> list[str]:
    """One sentence for each store whose revision differs."""
    return [
        f"upgraded the {store} database {stores.names[store]} from {before[store] or 'empty'} to {after[store]}"
        for store in after
        if after[store] != before[store]
    ]
