"""When the schema module starts its Job, what it stops for it, and what it keeps of it."""

from __future__ import annotations

import contextlib
import json

import pytest
from ansible.module_utils.ansible_mlflow import schema
from ansible.module_utils.ansible_mlflow.apply import Applied
from ansible.module_utils.ansible_mlflow.database import ConnectError, Server
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.schema import Plan, Releases, Session, Stores

STORES = Stores("pg", 5432, "u", "p", {"tracking": "mlflow", "auth": "mlflow_auth"})
HEADS = {"tracking": "t2", "auth": "a2"}
OLD = {"tracking": "t1", "auth": "a2"}
EMPTY = {"tracking": None, "auth": None}
MANIFEST = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "schema", "annotations": {schema.DIGEST_ANNOTATION: "d1"}, "labels": {"l": "v"}},
}
RECORD = {"image": "i1", "program": "d1", **HEADS}
TABLE = {
    "releases": {
        "3.4.0": {"tracking": "t1", "auth": "a2"},
        "3.17.0": {"tracking": "t2", "auth": "a2"},
        "3.17.2": {"tracking": "t2", "auth": "a2"},
        "3.18.0": {"tracking": "t3", "auth": "a3"},
    },
    "revisions": {"tracking": ["t0", "t1", "tx", "t2", "t3"], "auth": ["a1", "a2", "a3"]},
}


class FakeCluster:
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
def world(monkeypatch, tmp_path):
    """Runs a step with databases at given revisions and a Job that upgrades to HEADS; lists what happened in order."""
    table = tmp_path / "releases.json"
    table.write_text(json.dumps(TABLE))
    events = []

    class FakeRollout:
        def __init__(self, *_args):
            pass

        def stop(self):
            events.append("stop")
            return True

        def resume(self):
            events.append("resume")
            return 1

        def wait(self):
            events.append("wait")

    class FakeSession:
        def revisions(self, *_args):
            return self.live

        @contextlib.contextmanager
        def alone(self, *_args):
            events.append("lock")
            yield
            events.append("unlock")

    def step(work, record, live, image="i1", check_mode=False, manifest=MANIFEST, report=None, plan_lines=()):
        def run(_job):
            events.append("job")
            if isinstance(report, Exception):
                raise report
            stores = {store: {"before": live[store], "revision": head, "head": head} for store, head in HEADS.items()}
            return ({"plan": list(plan_lines), **stores} if report is None else report), "log"

        monkeypatch.setattr(schema.JobRun, "run", run)
        monkeypatch.setattr(schema, "Rollout", FakeRollout)
        monkeypatch.setattr(schema, "apply_all", lambda *_args, **_kwargs: events.append("apply") or Applied())
        FakeSession.live = live
        monkeypatch.setattr(schema, "session", lambda *_args: contextlib.nullcontext(FakeSession()))
        cluster = FakeCluster(record)
        plan = Plan("ns", manifest, [], "record", image, str(table), "mlflow-dev", "auto", 60, check_mode)
        return cluster, work(cluster, plan, STORES), events

    step.events = events
    return step


@pytest.mark.parametrize("check_mode", [False, True])
def test_nothing_is_started_when_record_and_databases_agree(world, check_mode):
    cluster, result, events = world(schema.check, RECORD, HEADS, check_mode=check_mode)
    assert (result.changes, result.pending, result.job_ran, events, cluster.writes) == ([], False, False, [], [])


@pytest.mark.parametrize(
    ("record", "live", "image", "lines", "pending", "changes"),
    [
        (RECORD, OLD, "i1", ["tracking: from t1 to t2"], True, 0),
        # Another image or program: the Job tells, and where nothing is behind it is written down.
        (RECORD, HEADS, "i2", [], False, 1),
        ({**RECORD, "program": "d0"}, HEADS, "i1", [], False, 1),
        ({"image": "i1", "program": "d1"}, HEADS, "i1", [], False, 1),
    ],
)
def test_the_plan_comes_from_a_job_in_the_image_and_stops_nothing(world, record, live, image, lines, pending, changes):
    cluster, result, events = world(schema.check, record, live, image, plan_lines=lines)
    assert events == ["apply", "job"]
    assert (result.pending, result.plan, len(result.changes)) == (pending, lines, changes)
    assert ({"image": image, "program": "d1", **HEADS} == cluster.map["data"]) == (not pending or image == "i1")


def test_empty_databases_need_no_plan(world):
    cluster, result, events = world(schema.check, None, EMPTY)
    assert (result.pending, events, cluster.writes) == (True, [], [])


@pytest.mark.parametrize(
    ("record", "live", "image", "after", "plan"),
    [
        (None, EMPTY, "i1", {"tracking": "head of i1", "auth": "head of i1"}, []),
        (RECORD, OLD, "i1", HEADS, []),
        (
            None,
            OLD,
            "r/mlflow:v3.17.2-full",
            HEADS,
            ["tracking database mlflow: from t1 to t2, 2 revisions: tx, t2"],
        ),
    ],
)
@pytest.mark.parametrize("work", [schema.check, schema.upgrade])
def test_check_mode_tells_and_starts_nothing(world, work, record, live, image, after, plan):
    cluster, result, events = world(work, record, live, image, check_mode=True)
    assert (events, cluster.writes, result.job_ran) == ([], [], False)
    assert (result.before, result.after, result.plan) == (live, after, plan)
    assert result.pending
    assert bool(result.changes) == (work is schema.upgrade)


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_database_newer_than_the_image_is_refused_without_a_job(world, check_mode):
    told = r"auth database mlflow_auth at pg:5432 is at revision a3 of MLflow 3\.18\.0, newer than i:3\.17\.2.*restore"
    with pytest.raises(Error, match=told):
        world(schema.check, None, {**HEADS, "auth": "a3"}, "i:3.17.2", check_mode=check_mode)
    assert world.events == []


def test_an_upgrade_stops_the_servers_under_the_lock_and_is_remembered(world):
    cluster, result, events = world(schema.upgrade, None, OLD)
    assert events == ["lock", "apply", "stop", "job", "unlock"]
    assert cluster.map["data"] == RECORD
    assert result.stopped_at > 0
    assert result.changes == [
        "upgraded the tracking database mlflow from t1 to t2",
        "recorded the heads of i1 in ConfigMap record",
    ]


def test_a_first_run_has_nothing_to_stop(world):
    _cluster, result, events = world(schema.upgrade, None, EMPTY)
    assert "stop" not in events
    assert result.stopped_at == 0
    assert len(result.changes) == 3


def test_after_a_failure_the_old_version_is_started_again_before_others_may_go_on(world):
    with pytest.raises(Error, match="the Job's own words; the old version serves again"):
        world(schema.upgrade, RECORD, OLD, report=Error("the Job's own words"))
    assert world.events == ["lock", "apply", "stop", "job", "resume", "wait", "unlock"]


def test_a_run_that_waited_for_another_reports_what_it_found_then(world):
    report = {store: {"before": head, "revision": head, "head": head} for store, head in HEADS.items()}
    cluster, result, _events = world(schema.upgrade, {**RECORD, "program": "d0"}, OLD, report=report)
    assert result.changes == ["recorded the heads of i1 in ConfigMap record"]
    assert result.before == HEADS
    assert cluster.map["data"] == RECORD


def test_a_program_without_a_report_is_no_success(world):
    with pytest.raises(Error, match="printed no report of auth"):
        world(schema.upgrade, None, EMPTY, report={"tracking": {"revision": "t2", "head": "t2"}})


def test_a_manifest_without_the_programs_digest_is_refused(world):
    with pytest.raises(Error, match=r"expected the annotation mlflow\.ansible/program-digest"):
        world(schema.check, None, EMPTY, manifest={"metadata": {"name": "x"}})


@pytest.mark.parametrize(
    ("image", "head"),
    [
        ("ghcr.io/mlflow/mlflow:v3.17.2-full", "t2"),
        ("localhost:5000/mlflow:3.4.0@sha256:" + "0" * 64, "t1"),
        ("mlflow:latest", None),
        ("mlflow:v9.9.9", None),
        ("localhost:5000/mlflow", None),
    ],
)
def test_an_images_heads_are_known_by_its_tag(tmp_path, image, head):
    path = tmp_path / "releases.json"
    path.write_text(json.dumps(TABLE))
    assert Releases(str(path)).heads(image).get("tracking") == head


@pytest.mark.parametrize(("state", "tolerated"), [("28P01", "r1"), ("3D000", None), ("", False), ("53300", False)])
def test_what_is_not_there_yet_counts_as_empty_only_in_check_mode(monkeypatch, state, tolerated):
    def refuse(*_args):
        raise ConnectError("refused", state)

    monkeypatch.setattr(schema, "connect", refuse)
    session = Session(Server("h", 1, ("h", 1)), Stores("h", 1, "u", "p", {"tracking": "mlflow"}))
    if tolerated is not False:
        # With a password that a run would first set, the record is what is known; a missing database is missing.
        assert session.revisions(True, {"tracking": "r1"}) == {"tracking": tolerated}
        assert session.revisions(True) == {"tracking": None}
    else:
        with pytest.raises(ConnectError):
            session.revisions(True)
    with pytest.raises(ConnectError):
        session.revisions(False)


def test_no_password_stands_in_what_might_be_printed():
    assert "p'" not in repr(Stores("pg", 1, "u", "p", {}))
