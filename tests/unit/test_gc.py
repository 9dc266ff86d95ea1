"""The clean-up's program as far as it goes without a server, and the filter of its role."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

FILES = str(Path(__file__).parents[2] / "roles/mlflow_gc/files")


def load(name: str):
    """A file of the program, which imports the others by their names."""
    sys.path.insert(0, FILES)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(FILES)


places, plans, clean_up = load("places"), load("plan"), load("clean_up")
lines = load_filter("mlflow_gc").gc_lines
ROOT_URI = "s3://mlflow/"
RUN, OTHER, MODEL = "a" * 32, "b" * 32, "m-" + "c" * 32


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://mlflow/1/abc/artifacts", "s3://mlflow/1/abc/artifacts"),
        ("s3://mlflow/1/models/m-1/artifacts/", "s3://mlflow/1/models/m-1/artifacts"),
        ("s3://other/1/abc/artifacts", "s3://other/1/abc/artifacts"),
        ("mlflow-artifacts:/1/abc/artifacts", "s3://mlflow/1/abc/artifacts"),
        ("mlflow-artifacts://host:5000/1/abc", "s3://mlflow/1/abc"),
        ("https://mlflow.example.com/ml/api/2.0/mlflow-artifacts/artifacts/1/abc", "s3://mlflow/1/abc"),
        ("s3://mlflow", None),
        ("s3://mlflow/", None),
        ("mlflow-artifacts:/", None),
        ("s3://mlflow//1", None),
        ("s3://mlflow/1/../2", None),
        ("https://mlflow.example.com/1/abc", None),
        ("file:///tmp/1", None),
        ("", None),
        (None, None),
    ],
)
def test_places_of_artifacts(uri: str | None, expected: str | None) -> None:
    found = places.place_of(uri, ROOT_URI)
    assert (str(found) if found else None) == expected


@given(st.text(), st.sampled_from(["s3://mlflow/", "s3://mlflow/below/it", "/tmp/artifacts", ""]))
def test_no_uri_is_a_bucket_as_a_whole(uri: str, destination: str) -> None:
    for text in (uri, f"s3://{uri}", f"s3://mlflow/{uri}", f"mlflow-artifacts:/{uri}"):
        try:
            found = places.place_of(text, destination)
        except ValueError:
            # urlsplit refuses what is no address at all.
            continue
        assert found is None or (found.bucket and found.prefix and not found.prefix.startswith("/"))


@pytest.mark.parametrize(
    ("age", "expected"), [("0s", 0), ("30d", 2592000000), ("1.5h", 5400000), ("1d2h3m4s", 93784000)]
)
def test_ages(age: str, expected: int) -> None:
    assert plans.milliseconds(age) == expected


@pytest.mark.parametrize("age", ["", "30", "d", "2h1d", "-1d", "30d "])
def test_what_is_no_age(age: str) -> None:
    with pytest.raises(ValueError, match="expected days"):
        plans.milliseconds(age)


def run(identifier: str = RUN, *, due: bool = True, uri: str | None = None, experiment: int = 1):
    return plans.Thing("run", identifier, uri or f"s3://mlflow/{experiment}/{identifier}/artifacts", experiment, due)


def model(*, due: bool = True, experiment: int = 1):
    return plans.Thing("logged model", MODEL, f"s3://mlflow/{experiment}/models/{MODEL}/artifacts", experiment, due)


def judged(things: list, versions: list[tuple] = (), deleted: tuple[int, ...] = ()):
    experiments = {number: plans.Experiment(number, f"experiment {number}") for number in deleted}
    return plans.judge(things, experiments, plans.Needed(versions, ROOT_URI), ROOT_URI)


def test_what_is_due_goes_and_nothing_else() -> None:
    plan = judged([run(), run(OTHER, due=False), model()])
    assert (set(plan.things), plan.experiments, plan.kept) == ({RUN, MODEL}, {}, [])


@pytest.mark.parametrize(
    "version",
    [
        ("churn", 3, f"runs:/{RUN}/model", None, None),
        ("churn", 3, f"runs:/{RUN}", None, None),
        ("churn", 3, f"s3://mlflow/1/{RUN}/artifacts/model", None, None),
        ("churn", 3, f"mlflow-artifacts:/1/{RUN}/artifacts/model", None, None),
        ("churn", 3, "models:/other/1", f"s3://mlflow/1/{RUN}/artifacts", None),
        ("churn", 3, "somewhere", None, RUN),
    ],
)
def test_a_run_that_a_version_points_at_stays(version: tuple) -> None:
    plan = judged([run(), run(OTHER)], [version])
    assert set(plan.things) == {OTHER}
    assert [(kept.label, kept.kept) for kept in plan.kept] == [
        (f"run {RUN}", "version 3 of the registered model churn points at it")
    ]


@pytest.mark.parametrize("source", [f"models:/{MODEL}", f"s3://mlflow/1/models/{MODEL}/artifacts/"])
def test_a_logged_model_that_a_version_points_at_stays(source: str) -> None:
    assert judged([model()], [("churn", 1, source, None, None)]).things == {}


def test_a_neighbour_whose_name_begins_alike_needs_nothing_of_it() -> None:
    uri = "s3://mlflow/1/abc"
    assert set(judged([run(uri=uri)], [("churn", 1, f"{uri}d/model", None, None)]).things) == {RUN}


def test_what_is_not_in_s3_stays() -> None:
    [kept] = judged([run(uri="dbfs:/1/abc")]).kept
    assert "dbfs:/1/abc, which is no place in S3" in kept.kept


@pytest.mark.parametrize(
    ("things", "versions", "reason"),
    [
        ([run(), run(OTHER, due=False)], [], f"its run {OTHER} was not deleted as long ago"),
        ([run()], [("churn", 1, f"runs:/{RUN}", None, None)], f"its run {RUN} is kept: version 1"),
        ([model(due=False)], [("churn", 1, f"models:/{MODEL}", None, None)], f"its logged model {MODEL} is kept"),
    ],
)
def test_an_experiment_with_what_stays_in_it_stays(things: list, versions: list, reason: str) -> None:
    plan = judged(things, versions, deleted=(1,))
    assert plan.experiments == {}
    assert reason in plan.kept[-1].kept


def test_an_experiment_goes_with_its_models_whatever_they_are() -> None:
    plan = judged([run(), model(due=False), run(OTHER, experiment=2, due=False)], deleted=(1,))
    assert set(plan.things) == {RUN}
    assert [thing.label for thing in plan.experiments["1"].things] == [f"run {RUN}", f"logged model {MODEL}"]
    counts = plan.counts()
    assert (counts["runs"], counts["experiments"], counts["logged_models"]) == (1, 1, 1)


def test_what_cannot_be_listed_stays_and_is_told() -> None:
    plan = judged([run(), run(OTHER, experiment=2), model(experiment=2)], deleted=(1,))
    sizes = dict.fromkeys(plan.places, places.Size(2, 10)) | {plan.things[RUN].place: "it cannot be listed"}
    assert plans.measure(plan, sizes) == ["experiment 1: it cannot be listed", f"run {RUN}: it cannot be listed"]
    assert (set(plan.things), plan.experiments) == ({OTHER, MODEL}, {})
    assert (plan.counts()["objects"], plan.counts()["bytes"]) == (4, 20)


class FakeStore:
    """What is left at each place; an unknown one cannot be listed."""

    def __init__(self, left: dict) -> None:
        self._left = left

    def size(self, place):
        if place not in self._left:
            raise places.UnknownPlaceError(f"{place} cannot be listed")
        return self._left[place]


def guarded(things: list, deleted: tuple[int, ...] = (), left: dict | None = None):
    """A guard of a plan whose things had two objects of ten bytes each; all are gone but what is left."""
    plan = judged(things, deleted=deleted)
    plans.measure(plan, dict.fromkeys(plan.places, places.Size(2, 10)))
    gone: list[str] = []
    store = FakeStore(dict.fromkeys(plan.places, places.Size()) | (left or {}))
    return clean_up.Guard(plan, store, clean_up.Outcome(), gone.append), gone


def test_a_row_goes_with_the_last_object_only() -> None:
    guard, _ = guarded([run(), run(OTHER)], left={places.place_of(run(OTHER).uri, ROOT_URI): places.Size(1, 4)})
    rows: list[str] = []
    for identifier in (RUN, OTHER):
        guard.end(identifier, lambda found=identifier: rows.append(found))
    assert rows == [RUN]
    assert (guard.outcome.deleted["runs"], guard.outcome.deleted["objects"], guard.outcome.deleted["bytes"]) == (
        1,
        3,
        16,
    )
    [told] = guard.outcome.left
    assert f"run {OTHER} stays, since the S3 server keeps 1 objects (4 bytes) of it below s3://mlflow/1/{OTHER}" in told


def test_an_experiment_goes_with_the_artifacts_that_mlflow_would_forget() -> None:
    guard, forgotten = guarded([run(), model(due=False)], deleted=(1,))
    rows: list[str] = []
    guard.end(RUN, lambda: rows.append("run"))
    guard.end_experiment("1", lambda: rows.append("experiment"))
    assert (rows, forgotten) == (["run", "experiment"], [model().uri])
    assert guard.outcome.left == []
    assert guard.outcome.deleted["logged_models"] == 1


def test_an_experiment_stays_with_what_stays_in_it() -> None:
    place = places.place_of(run().uri, ROOT_URI)
    guard, _ = guarded([run()], deleted=(1,), left={place: places.Size(1, 4)})
    rows: list[str] = []
    guard.end(RUN, lambda: rows.append("run"))
    guard.end_experiment("1", lambda: rows.append("experiment"))
    assert rows == []
    assert guard.outcome.left[-1] == f"experiment 1 stays, since run {RUN} does"


def test_mlflow_sees_only_what_may_go() -> None:
    guard, _ = guarded([run(), run(OTHER, due=False)])
    assert guard.may_go([RUN, OTHER, "unknown"]) == [RUN]


def test_a_failure_says_what_was_done_all_the_same() -> None:
    report = {"dry_run": False, "deleted": {"runs": 2, "logged_models": 0, "objects": 3}, "left": ["a", "b"]}
    assert clean_up.problem(report, "") == (
        "not all could be deleted, and the next run will try it again: a; b; deleted: 2 runs, 3 objects"
    )
    assert clean_up.problem(report | {"left": []}, "") is None
    assert clean_up.problem(report | {"left": []}, "it was away") == "it was away; deleted: 2 runs, 3 objects"


def test_a_message_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "a-long-password")
    assert clean_up.sentence(ValueError("refused:\n a-long-password")) == "refused: ***"


def test_what_is_said_at_the_end() -> None:
    deleted = {"runs": 2, "experiments": 1, "logged_models": 0, "traces": 0, "objects": 14, "bytes": 1_230_000}
    kept = [{"what": "run a", "why": "version 3 of the registered model churn points at it"}]
    report = {"dry_run": False, "deleted": deleted, "kept": kept, "kept_count": 3, "seconds": 2.04}
    assert lines(report) == [
        "Deleted 2 runs, 1 experiment, 14 objects of 1.23 MB (2.0 s)",
        "Kept run a: version 3 of the registered model churn points at it",
        "Kept 2 more for such reasons",
    ]
    nothing = {"dry_run": True, "deleted": dict.fromkeys(deleted, 0), "kept": [], "kept_count": 0, "seconds": 1}
    assert lines(nothing) == ["Would delete nothing (1.0 s)"]
