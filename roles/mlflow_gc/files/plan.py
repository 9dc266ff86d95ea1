"""What MLflow's gc may delete: what was deleted long enough ago, but for what a registered model needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from places import Place, Size, place_of

AGE = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
UNITS = (86400, 3600, 60, 1)
RUN_URI = re.compile(r"runs:/([0-9a-f]{32})(?:/|$)")
MODEL_URI = re.compile(r"models:/(m-[0-9a-f]{32})(?:/|$)")

RUNS = "SELECT run_uuid, artifact_uri, experiment_id, lifecycle_stage, deleted_time FROM runs"
EXPERIMENTS = (
    "SELECT experiment_id, name FROM experiments WHERE lifecycle_stage = 'deleted' AND last_update_time < :before"
)
MODELS = """
    SELECT model_id, artifact_location, experiment_id, lifecycle_stage, last_updated_timestamp_ms FROM logged_models"""
TRACES = """
    SELECT t.request_id, tag.value, t.experiment_id FROM trace_info t
    JOIN trace_tags tag ON tag.request_id = t.request_id AND tag.key = 'mlflow.artifactLocation'
    JOIN experiments e ON e.experiment_id = t.experiment_id AND e.lifecycle_stage = 'deleted'"""
# A version that was deleted stays as a row without a meaning.
VERSIONS = """
    SELECT name, version, source, storage_location, run_id FROM model_versions
    WHERE current_stage IS DISTINCT FROM 'Deleted_Internal'"""

NOTHING = Size()

Ask = Callable[..., Iterable[tuple[Any, ...]]]


def milliseconds(age: str) -> int:
    """The milliseconds of an age as MLflow writes it: 30d, 1d12h.

    Raises:
        ValueError: It is none.
    """
    found = AGE.fullmatch(age) if age else None
    if not found:
        raise ValueError(f"MLFLOW_GC_OLDER_THAN is {age!r}; expected days, hours, minutes and seconds: 30d, 1d12h")
    return round(1000 * sum(float(number) * unit for number, unit in zip(found.groups(), UNITS) if number))  # noqa: B905


@dataclass
class Thing:
    """A run, a logged model, or a trace of a deleted experiment."""

    kind: str
    id: str
    uri: str
    experiment: int
    # Whether it was deleted before the date that is asked for.
    due: bool
    place: Place | None = None
    size: Size = NOTHING
    # Why it is kept; empty where it is deleted.
    kept: str = ""

    @property
    def label(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass
class Experiment:
    """A deleted experiment, with everything in it."""

    id: int
    name: str
    things: list[Thing] = field(default_factory=list)
    kept: str = ""

    @property
    def label(self) -> str:
        return f"experiment {self.id}"


class Needed:
    """What registered model versions need."""

    def __init__(self, versions: Iterable[tuple[Any, ...]], destination: str) -> None:
        self.ids: dict[str, str] = {}
        self.places: dict[Place, str] = {}
        for name, version, source, location, run in versions:
            who = f"version {version} of the registered model {name}"
            if run:
                self.ids.setdefault(run, who)
            for uri in filter(None, (source, location)):
                for pattern in (RUN_URI, MODEL_URI):
                    if found := pattern.match(uri):
                        self.ids.setdefault(found[1], who)
                place = place_of(uri, destination)
                # What is deleted goes with all that is in it.
                for outer in place.ancestors() if place else ():
                    self.places.setdefault(outer, who)

    def by(self, thing: Thing) -> str:
        """Which version needs it; empty for none."""
        return self.ids.get(thing.id) or (self.places.get(thing.place, "") if thing.place else "")


@dataclass
class Plan:
    """What is deleted, by id, and what would be if nothing needed it."""

    things: dict[str, Thing] = field(default_factory=dict)
    experiments: dict[str, Experiment] = field(default_factory=dict)
    kept: list[Thing | Experiment] = field(default_factory=list)

    @property
    def places(self) -> list[Place]:
        """Where artifacts are that are deleted."""
        inside = [thing for experiment in self.experiments.values() for thing in experiment.things]
        return [thing.place for thing in [*self.things.values(), *inside] if thing.place]

    def counts(self) -> dict[str, int]:
        """How many of each kind are deleted, a trace and an active model of a deleted experiment among them."""
        all_things = {thing.label: thing for thing in self.things.values()}
        for experiment in self.experiments.values():
            all_things.update((thing.label, thing) for thing in experiment.things)
        total = sum((thing.size for thing in all_things.values()), NOTHING)
        return {
            "runs": sum(thing.kind == "run" for thing in all_things.values()),
            "experiments": len(self.experiments),
            "logged_models": sum(thing.kind == "logged model" for thing in all_things.values()),
            "traces": sum(thing.kind == "trace" for thing in all_things.values()),
            "objects": total.objects,
            "bytes": total.bytes,
        }


def read(ask: Ask, ask_registry: Ask, before: int, destination: str) -> Plan:
    """Find out what may be deleted.

    Args:
        ask: Asks the tracking database: a statement, and its parameters.
        ask_registry: Asks the database of the model registry.
        before: Milliseconds since 1970: what was deleted later stays.
        destination: MLFLOW_ARTIFACTS_DESTINATION.
    """
    tables = {name for (name,) in ask("SELECT relname FROM pg_class WHERE pg_table_is_visible(oid) AND relkind = 'r'")}
    things = [
        Thing("run", run, uri, experiment, stage == "deleted" and moment is not None and moment <= before)
        for run, uri, experiment, stage, moment in ask(RUNS)
    ]
    if "logged_models" in tables:
        things += [
            # With an experiment its models go, whatever they are themselves.
            Thing("logged model", model, uri, experiment, stage == "deleted" and moment <= before)
            for model, uri, experiment, stage, moment in ask(MODELS)
        ]
    if "trace_tags" in tables:
        things += [Thing("trace", trace, uri, experiment, False) for trace, uri, experiment in ask(TRACES)]
    experiments = {found: Experiment(found, name) for found, name in ask(EXPERIMENTS, before=before)}
    return judge(things, experiments, Needed(ask_registry(VERSIONS), destination), destination)


def judge(things: list[Thing], experiments: dict[int, Experiment], needed: Needed, destination: str) -> Plan:
    """Keep what a registered model needs, what is not in S3, and experiments with such things (pure)."""
    plan = Plan()
    for thing in things:
        experiment = experiments.get(thing.experiment)
        if not thing.due and not experiment:
            continue
        thing.place = place_of(thing.uri, destination)
        if who := needed.by(thing):
            thing.kept = f"{who} points at it"
        elif thing.place is None:
            thing.kept = f"its artifacts are at {thing.uri}, which is no place in S3"
        if thing.due and thing.kept:
            plan.kept.append(thing)
        elif thing.due:
            plan.things[thing.id] = thing
        if experiment:
            experiment.things.append(thing)
            # Its row would go with the experiment's, and its artifacts would be left.
            if thing.kept:
                experiment.kept = experiment.kept or f"its {thing.label} is kept: {thing.kept}"
            elif thing.kind == "run" and not thing.due:
                experiment.kept = experiment.kept or f"its {thing.label} was not deleted as long ago"
    for experiment in experiments.values():
        if experiment.kept:
            plan.kept.append(experiment)
        else:
            plan.experiments[str(experiment.id)] = experiment
    return plan


def measure(plan: Plan, sizes: dict[Place, Size | str]) -> list[str]:
    """Write down the sizes, and leave out what could not be listed; say why."""
    problems = []
    for experiment in list(plan.experiments.values()):
        for thing in experiment.things:
            found = sizes[thing.place]
            thing.size = found if isinstance(found, Size) else NOTHING
            if isinstance(found, str):
                plan.experiments.pop(str(experiment.id), None)
                problems.append(f"{experiment.label}: {found}")
                break
    for thing in list(plan.things.values()):
        found = sizes[thing.place]
        if isinstance(found, Size):
            thing.size = found
        else:
            del plan.things[thing.id]
            problems.append(f"{thing.label}: {found}")
    return problems
