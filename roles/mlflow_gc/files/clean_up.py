#!/usr/bin/env python3
"""Let MLflow's own gc delete for good what was deleted long enough ago; runs in MLflow's image.

MLflow's gc asks nobody whether a registered model needs what it deletes, and takes a refused deletion in S3 for a done
one. So it is shown only what may go, and a row goes only when the last of its objects has gone: what could not be
deleted is found again by the next run, and so is what an interruption left.

Environment, besides what MLflow itself reads:
    MLFLOW_GC_OLDER_THAN   such as 30d
    MLFLOW_GC_DRY_RUN      true: count, and delete nothing
    MLFLOW_GC_SERVER       where MLflow answers, for artifacts that are kept through it

The last line on standard output is a JSON report: {"dry_run", "deleted": {"runs", "experiments", "logged_models",
"traces", "objects", "bytes"}, "kept": [{"what", "why"}], "left": [texts], "seconds", "error": a text or null}.
The exit status is 0 when all that should go has gone, else 1.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import plan as plans
from places import Size, Store, UnknownPlaceError, client

# Two at once would take the ground from under each other.
LOCK = int.from_bytes(b"mlflowgc", "big", signed=True)
PROGRESS_SECONDS = 5
SHOWN = 5
SECRETS = ("PGPASSWORD", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")


class Failure(Exception):
    """Why nothing more can be done, in one sentence."""


def say(line: str) -> None:
    """Write a line to standard error, at once."""
    print(line, file=sys.stderr, flush=True)


def sentence(error: BaseException) -> str:
    """One line on what went wrong, without a secret."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name in SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text[-600:]


class Progress:
    """Says now and then how far something is."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._next = what, total, time.monotonic() + PROGRESS_SECONDS

    def at(self, done: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            say(f"{self._what}: {done} of {self._total}")


class Outcome:
    """What was deleted, and what was not."""

    def __init__(self) -> None:
        self.deleted = dict.fromkeys(("runs", "experiments", "logged_models", "traces", "objects", "bytes"), 0)
        self.left: list[str] = []

    def count(self, kind: str, size: Size) -> None:
        """Note a thing that has gone for good."""
        self.deleted[{"run": "runs", "logged model": "logged_models", "trace": "traces"}[kind]] += 1
        self.count_objects(size)

    def count_objects(self, size: Size) -> None:
        """Note objects that have gone."""
        self.deleted["objects"] += size.objects
        self.deleted["bytes"] += size.bytes


class Guard:
    """Stands between MLflow's gc and its store: shows what may go, and lets no row go before its artifacts."""

    def __init__(self, plan: plans.Plan, store: Store, outcome: Outcome, delete: Callable[[str], None]) -> None:
        self.plan, self.store, self.outcome, self.delete = plan, store, outcome, delete
        self._progress = Progress("deleting", len(plan.things) + len(plan.experiments))
        self._done = 0
        self._gone: set[str] = set()

    def may_go(self, ids: list[str]) -> list[str]:
        """Those that the plan has."""
        return [found for found in ids if found in self.plan.things]

    def experiments(self, page: Any) -> Any:
        """A page of experiments, without those that the plan has not."""
        from mlflow.store.entities import PagedList

        return PagedList([found for found in page if found.experiment_id in self.plan.experiments], page.token)

    def end(self, identifier: str, delete_row: Callable[[], None]) -> None:
        """MLflow is done with a thing's artifacts: let the row go, if they have really gone."""
        thing = self.plan.things[identifier]
        if self._is_empty(thing):
            delete_row()
            self._gone.add(thing.label)
            self.outcome.count(thing.kind, Size())
        self._tick()

    def end_experiment(self, identifier: str, delete_row: Callable[[], None]) -> None:
        """Let an experiment go with what MLflow would forget the artifacts of: its traces and its models."""
        experiment = self.plan.experiments[identifier]
        inside = [thing for thing in experiment.things if thing.label not in self._gone]
        stays = [thing for thing in inside if thing.kind == "run"]
        for thing in inside:
            if thing not in stays:
                self.delete(thing.uri)
                if not self._is_empty(thing):
                    stays.append(thing)
        if stays:
            self.outcome.left.append(f"{experiment.label} stays, since {stays[0].label} does")
        else:
            delete_row()
            self.outcome.deleted["experiments"] += 1
            for thing in inside:
                self.outcome.count(thing.kind, Size())
        self._tick()

    def _is_empty(self, thing: plans.Thing) -> bool:
        try:
            left = self.store.size(thing.place)
        except UnknownPlaceError as error:
            self.outcome.left.append(f"{thing.label}: {error}")
            return False
        self.outcome.count_objects(thing.size - left)
        if left.objects:
            self.outcome.left.append(
                f"{thing.label} stays, since the S3 server keeps {left.objects} objects ({left.bytes} bytes) of it "
                f"below {thing.place}"
            )
        return not left.objects

    def _tick(self) -> None:
        self._done += 1
        self._progress.at(self._done)


def stand_between(guard: Guard) -> None:
    """Put the guard before the methods that MLflow's gc calls."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking

    def filtered(name: str, change: Callable[[Any], Any]) -> None:
        original = getattr(Tracking, name)
        setattr(Tracking, name, lambda self, *args, **kwargs: change(original(self, *args, **kwargs)))

    def ended(name: str, end: Callable[[str, Callable[[], None]], None]) -> None:
        original = getattr(Tracking, name)
        setattr(Tracking, name, lambda self, found: end(str(found), lambda: original(self, found)))

    filtered("_get_deleted_runs", guard.may_go)
    filtered("search_experiments", guard.experiments)
    ended("_hard_delete_run", guard.end)
    ended("_hard_delete_experiment", guard.end_experiment)
    # MLflow has logged models since 3.0.
    if hasattr(Tracking, "_hard_delete_logged_model"):
        filtered("_get_deleted_logged_models", guard.may_go)
        ended("_hard_delete_logged_model", guard.end)


def delete_artifacts(uri: str) -> None:
    """Delete what is below a URI, as MLflow's gc does."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(uri).delete_artifacts()


def collect(age: str) -> None:
    """Run MLflow's own gc."""
    from mlflow.cli import gc

    # An argument of this call is none of the process.
    backend = os.environ["MLFLOW_BACKEND_STORE_URI"]
    arguments = ["--backend-store-uri", backend, "--tracking-uri", os.environ["MLFLOW_GC_SERVER"], "--older-than", age]
    # It says of each row that it has gone, also of those that stay.
    with contextlib.redirect_stdout(io.StringIO()):
        gc.main(args=arguments, standalone_mode=False)


@contextlib.contextmanager
def database(uri: str):
    """A function that asks a database."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    with create_engine(uri, poolclass=NullPool).connect() as connection:
        yield lambda statement, **values: connection.execute(text(statement), values).all()
        # Nothing was changed, and an open transaction would hold up whoever wants to change tables.
        connection.rollback()


@contextlib.contextmanager
def alone():
    """Holds the lock of this program in the tracking database.

    Raises:
        Failure: Another one has it.
    """
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    engine = create_engine(os.environ["MLFLOW_BACKEND_STORE_URI"], poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}).scalar():
            raise Failure("another clean-up of this environment is under way; nothing was deleted by this one")
        yield


def clean(report: dict[str, Any], dry_run: bool) -> None:
    """Find out what may go, and unless it is a dry run let it go; the report has what was done at any time."""
    age = os.environ["MLFLOW_GC_OLDER_THAN"]
    before = round(time.time() * 1000) - plans.milliseconds(age)
    tracking = os.environ["MLFLOW_BACKEND_STORE_URI"]
    registry = os.environ.get("MLFLOW_REGISTRY_STORE_URI") or tracking
    with database(tracking) as ask, database(registry) as ask_registry:
        plan = plans.read(ask, ask_registry, before, os.environ["MLFLOW_ARTIFACTS_DESTINATION"])
    report["kept"] = [{"what": found.label, "why": found.kept} for found in plan.kept]
    store, places = Store(client()), plan.places
    report["left"] = plans.measure(plan, store.sizes(places, Progress("looking", len(set(places))).at))
    if dry_run:
        report["deleted"] = plan.counts()
        return
    say(f"may go: {', '.join(f'{count} {what}' for what, count in plan.counts().items())}")
    outcome = Outcome()
    report["deleted"] = outcome.deleted
    outcome.left = report["left"]
    if plan.things or plan.experiments:
        stand_between(Guard(plan, store, outcome, delete_artifacts))
        collect(age)


def problem(report: dict[str, Any], error: str) -> str | None:
    """Why the run has failed, in one sentence; None if it has not."""
    left = report["left"]
    told = [error] if error else []
    if left:
        more = f"; and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        told.append(f"not all could be deleted, and the next run will try it again: {'; '.join(left[:SHOWN])}{more}")
    if not told:
        return None
    done = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in report["deleted"].items() if count)
    would = "would be deleted" if report["dry_run"] else "deleted"
    return f"{'; '.join(told)}; {would}: {done or 'nothing'}"


def main() -> int:
    # The first process of a container gets no default action for this signal. Nothing is lost: see above.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    started, dry_run = time.monotonic(), os.environ["MLFLOW_GC_DRY_RUN"] == "true"
    report: dict[str, Any] = {"dry_run": dry_run, "deleted": Outcome().deleted, "kept": [], "left": []}
    error = ""
    try:
        with contextlib.nullcontext() if dry_run else alone():
            clean(report, dry_run)
    except Exception as found:
        error = (
            sentence(found)
            if isinstance(found, (Failure, ValueError))
            else f"{type(found).__name__}: {sentence(found)}"
        )
    report["seconds"] = round(time.monotonic() - started, 1)
    report["error"] = problem(report, error)
    # More of them than fit into a log's last lines are no reading.
    report["kept_count"], report["kept"] = len(report["kept"]), report["kept"][:50]
    report["left"] = report["left"][:50]
    print(json.dumps(report), flush=True)
    return 1 if report["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
