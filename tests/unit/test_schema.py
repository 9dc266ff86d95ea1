"""When the schema module starts its Job, and what it keeps of it."""

from __future__ import annotations

import pytest
from ansible.module_utils.ansible_mlflow import schema
from ansible.module_utils.ansible_mlflow.database import ConnectError
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.schema import Plan, Stores, bring_up_to_date

STORES = Stores("pg", 5432, "u", "p", {"tracking": "mlflow", "auth": "mlflow_auth"})
HEADS = {"tracking": "t2", "auth": "a2"}
OLD = {"tracking": "t1", "auth": "a2"}
EMPTY = {"tracking": None, "auth": None}
MANIFEST = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "schema", "annotations": {schema.DIGEST_ANNOTATION: "d1"}, "labels": {"l": "v"}},
}
KNOWN = {"tracking_known": "t1 t2", "auth_known": "a1 a2"}
RECORD = {"image": "i1", "program": "d1", **HEADS, **KNOWN}


class Cluster:
    """Holds the record's ConfigMap."""

    def __init__(self, record):
        self.map, self.writes = record and {"data": record}, []

    def get(self, _path):
        return self.map

    def create(self, _path, body):
        self.writes.append("create")
        self.map = body

    def replace(self, _path, body):
        self.writes.append("replace")
        self.map = body


@pytest.fixture
def world(monkeypatch):
    """Runs the step with databases at given revisions and a Job that upgrades to HEADS; counts its runs."""
    runs = []

    def step(record, live, image="i1", check_mode=False, manifest=MANIFEST, report=None):
        def run(_job):
            runs.append(1)
            stores = {
                store: {"before": live[store], "revision": head, "head": head, "known": KNOWN[f"{store}_known"].split()}
                for store, head in HEADS.items()
            }
            return (stores if report is None else report), "log"

        monkeypatch.setattr(schema.JobRun, "run", run)
        monkeypatch.setattr(schema, "live_revisions", lambda *_args, **_kwargs: live)
        cluster = Cluster(record)
        plan = Plan("ns", manifest, "record", image, "auto", 60, check_mode)
        return cluster, bring_up_to_date(cluster, plan, STORES), runs

    return step


def test_nothing_is_started_when_record_and_databases_agree(world):
    cluster, result, runs = world(RECORD, HEADS)
    assert (result.changes, result.job_ran, runs, cluster.writes) == ([], False, [], [])


@pytest.mark.parametrize(
    ("record", "live", "image", "sentences"),
    [
        (
            None,
            EMPTY,
            "i1",
            ["upgraded the tracking database mlflow from empty to t2", "upgraded the auth", "recorded"],
        ),
        (RECORD, OLD, "i1", ["upgraded the tracking database mlflow from t1 to t2"]),
        (RECORD, HEADS, "i2", ["recorded the heads of i2 in ConfigMap record"]),
        ({**RECORD, "program": "d0"}, HEADS, "i1", ["recorded"]),
        ({"image": "i1", "program": "d1"}, HEADS, "i1", ["recorded"]),
        (RECORD, {**HEADS, "auth": "a1"}, "i1", ["upgraded the auth database mlflow_auth from a1 to a2"]),
        # Only the program in the new image can tell whether it knows the revision.
        (RECORD, {**HEADS, "auth": "a9"}, "i2", ["upgraded the auth database mlflow_auth from a9", "recorded"]),
    ],
)
def test_the_job_runs_otherwise_and_is_remembered(world, record, live, image, sentences):
    cluster, result, runs = world(record, live, image)
    assert len(runs) == 1
    assert result.job_ran
    assert len(result.changes) == len(sentences)
    for sentence, words in zip(result.changes, sentences, strict=True):
        assert words in sentence
    assert cluster.map["data"] == {"image": image, "program": "d1", **HEADS, **KNOWN}
    assert (result.before, result.after) == (live, HEADS)


@pytest.mark.parametrize(
    ("record", "live", "image", "after"),
    [
        (None, EMPTY, "i1", {"tracking": "head of i1", "auth": "head of i1"}),
        (RECORD, OLD, "i1", HEADS),
        (RECORD, HEADS, "i2", {"tracking": "head of i2", "auth": "head of i2"}),
    ],
)
def test_check_mode_tells_and_starts_nothing(world, record, live, image, after):
    cluster, result, runs = world(record, live, image, check_mode=True)
    assert (runs, cluster.writes, result.job_ran) == ([], [], False)
    assert result.changes
    assert (result.before, result.after) == (live, after)


def test_check_mode_of_an_environment_that_is_as_wanted_tells_no_change(world):
    _cluster, result, _runs = world(RECORD, HEADS, check_mode=True)
    assert result.changes == []


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize("revision", ["a9", "a1, a2"])
def test_a_database_that_the_recorded_image_does_not_know_is_refused_without_a_job(world, check_mode, revision):
    with pytest.raises(Error, match=f"mlflow_auth at pg:5432 is at revision {revision}, which i1 does not know"):
        world(RECORD, {**HEADS, "auth": revision}, check_mode=check_mode)


def test_a_run_that_waited_for_another_reports_what_it_found_then(world):
    report = {store: {"before": head, "revision": head, "head": head} for store, head in HEADS.items()}
    record = {**RECORD, "tracking_known": "", "auth_known": ""}
    cluster, result, _runs = world({**record, "program": "d0"}, EMPTY, report=report)
    assert result.changes == ["recorded the heads of i1 in ConfigMap record"]
    assert result.before == HEADS
    assert cluster.map["data"] == record


def test_a_program_without_a_report_is_no_success(world):
    with pytest.raises(Error, match="printed no report of auth"):
        world(None, EMPTY, report={"tracking": {"revision": "t2", "head": "t2"}})


def test_a_manifest_without_the_programs_digest_is_refused(world):
    with pytest.raises(Error, match=r"expected the annotation mlflow\.ansible/program-digest"):
        world(None, EMPTY, manifest={"metadata": {"name": "x"}})


@pytest.mark.parametrize(("state", "tolerated"), [("28P01", True), ("3D000", True), ("", False), ("53300", False)])
def test_what_is_not_there_yet_counts_as_empty_only_in_check_mode(monkeypatch, state, tolerated):
    def refuse(*_args):
        raise ConnectError("refused", state)

    monkeypatch.setattr(schema, "connect", refuse)
    stores = Stores("127.0.0.1", 1, "u", "p", {"tracking": "mlflow"})
    if tolerated:
        assert schema.live_revisions(None, "direct", stores, tolerant=True) == {"tracking": None}
        # With a password that a run would first set, the record is what is known; a missing database is missing.
        known = {"tracking": "r1" if state == "28P01" else None}
        assert schema.live_revisions(None, "direct", stores, True, {"tracking": "r1"}) == known
    else:
        with pytest.raises(ConnectError):
            schema.live_revisions(None, "direct", stores, tolerant=True)
    with pytest.raises(ConnectError):
        schema.live_revisions(None, "direct", stores, tolerant=False)


def test_no_password_stands_in_what_might_be_printed():
    assert "p'" not in repr(Stores("pg", 1, "u", "p", {}))
