"""Running a Job to its end against an API that answers from a script."""

from __future__ import annotations

import itertools
from copy import deepcopy

import pytest
from ansible.module_utils.ansible_mlflow import jobs
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.jobs import JobRun, last_json
from ansible.module_utils.ansible_mlflow.kubernetes import ApiError, UnreachableError

MANIFEST = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "verify"},
    "spec": {"backoffLimit": 0, "activeDeadlineSeconds": 60, "template": {}},
}
PATH = "/apis/batch/v1/namespaces/ns/jobs"
COMPLETE = [{"type": "Complete", "status": "True"}]
FAILED = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "reached its limit"}]
DEADLINE = [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "was active longer"}]


def pod(status: dict) -> dict:
    return {
        "metadata": {"name": "verify-x", "creationTimestamp": "2026-11-25T12:00:00Z"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
        "status": status,
    }


class Api:
    """A cluster whose Job goes through ``states``: (conditions, pods) at each look."""

    def __init__(self, states, log="", events=(), existing=None, outages=0):
        self.states = iter([*states[:-1], *itertools.repeat(states[-1], 1000)])
        self.text, self.events, self.job = log, list(events), existing
        self.outages, self.created, self.deleted, self.pods = outages, 0, 0, []

    def get(self, path):
        assert path == f"{PATH}/verify"
        if self.outages:
            self.outages -= 1
            raise UnreachableError("away")
        if self.job and self.job["metadata"]["uid"] == "own":
            conditions, self.pods = next(self.states)
            self.job = conditions if conditions is None else {**self.job, "status": {"conditions": conditions}}
        return self.job

    def create(self, path, body):
        assert path == PATH
        if self.job:
            raise ApiError("exists", 409, "AlreadyExists")
        self.created += 1
        self.job = {**deepcopy(body), "metadata": {**body["metadata"], "uid": "own"}}
        return self.job

    def delete(self, path, uid):
        assert uid == self.job["metadata"]["uid"]
        self.deleted += 1
        self.job = None

    def items(self, path, **query):
        if path.endswith("/events"):
            return self.events
        uid = self.job["metadata"]["uid"] if self.job else "own"
        assert query == {"labelSelector": f"batch.kubernetes.io/controller-uid={uid}"}
        return self.pods

    def log(self, *_args):
        return self.text


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0)


def test_the_report_is_the_last_json_line():
    api = Api([([], []), (COMPLETE, [pod({"phase": "Succeeded"})])], log='{"old": 1}\n{"steps": 3}\nbye\n')
    report, log = JobRun(api, "ns", MANIFEST, 60).run()
    assert report == {"steps": 3}
    assert log.endswith("bye\n")


def test_a_finished_job_of_the_same_name_is_replaced():
    old = {"metadata": {"uid": "old"}, "status": {"conditions": FAILED}}
    api = Api([(COMPLETE, [])], existing=old)
    JobRun(api, "ns", MANIFEST, 60).run()
    assert (api.deleted, api.created) == (1, 1)


def test_another_run_is_waited_for_and_told_of_when_it_does_not_end():
    api = Api([(COMPLETE, [])], existing={"metadata": {"uid": "other"}})
    with pytest.raises(Error, match="another run of Job ns/verify did not end within 0 s"):
        JobRun(api, "ns", MANIFEST, 0).run()
    assert (api.deleted, api.created) == (0, 0)


@pytest.mark.parametrize(("created", "replaced"), [("2026-01-01T00:00:00Z", True), ("2999-01-01T00:00:00Z", False)])
def test_a_job_that_an_ended_run_left_unable_to_start_is_replaced(created, replaced):
    api = Api([(COMPLETE, [])], existing={"metadata": {"uid": "other", "creationTimestamp": created}})
    api.pods = [pod({"containerStatuses": [WAITING]})]
    if replaced:
        assert JobRun(api, "ns", MANIFEST, 60).run() == (None, "")
    else:
        # It was made a moment ago: whoever did so is still watching.
        with pytest.raises(Error, match="another run"):
            JobRun(api, "ns", MANIFEST, 0).run()
    assert (api.deleted, api.created) == ((1, 1) if replaced else (0, 0))


@pytest.mark.parametrize(("container", "deleted"), [("WAITING", 1), ("ENDED", 0)])
def test_a_job_that_never_ran_is_not_left_to_start_later(container, deleted):
    api = Api([([], [pod({"containerStatuses": [globals()[container]]})])])
    with pytest.raises(Error):
        JobRun(api, "ns", MANIFEST, 60).run()
    assert api.deleted == deleted


def test_a_short_outage_of_the_api_server_is_waited_out():
    api = Api([(COMPLETE, [])], outages=3)
    assert JobRun(api, "ns", MANIFEST, 60).run() == (None, "")


def test_a_long_outage_is_not(monkeypatch):
    monkeypatch.setattr(jobs, "OUTAGE_SECONDS", -1)
    with pytest.raises(UnreachableError):
        JobRun(Api([(COMPLETE, [])], outages=5), "ns", MANIFEST, 60).run()


WAITING = {"name": "c", "state": {"waiting": {"reason": "InvalidImageName", "message": "couldn't parse"}}}
ENDED = {"name": "c", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}


@pytest.mark.parametrize(
    ("state", "log", "words"),
    [
        ((FAILED, [pod({"phase": "Failed", "containerStatuses": [ENDED]})]), "boom\n", ["exit code 1: boom"]),
        (([], [pod({"containerStatuses": [ENDED]})]), "boom\n", ["exit code 1: boom"]),
        (
            ([], [pod({"containerStatuses": [ENDED]})]),
            '{"error": "the database is ahead"}',
            ["failed: the database is"],
        ),
        (([], [pod({"containerStatuses": [WAITING]})]), "", ["couldn't parse"]),
        ((FAILED, []), "", ["its pod was deleted or evicted", "reached its limit"]),
        ((DEADLINE, []), "", ["longer than its 60 s (activeDeadlineSeconds)"]),
        ((None, []), "", ["was deleted by somebody else"]),
    ],
)
def test_a_failure_is_told_at_once_in_the_pods_words(state, log, words):
    with pytest.raises(Error) as caught:
        JobRun(Api([state], log), "ns", MANIFEST, 600).run()
    for word in words:
        assert word in str(caught.value)
    assert caught.value.details.get("log", log) == log


def test_a_quota_that_forbids_the_pod_is_told(monkeypatch):
    monkeypatch.setattr(jobs, "CREATE_REFUSED_SECONDS", -1)
    event = {"reason": "FailedCreate", "message": "exceeded quota: pods=0"}
    with pytest.raises(Error, match="cannot start its pod: exceeded quota: pods=0"):
        JobRun(Api([([], [])], events=[event]), "ns", MANIFEST, 60).run()


def test_a_job_that_does_not_end_is_left_running_and_described():
    running = {"name": "c", "ready": True, "state": {"running": {}}}
    api = Api([([], [pod({"phase": "Running", "containerStatuses": [running]})])], log="step 1\nstep 2\n")
    with pytest.raises(
        Error, match=r"did not end within 0 s; pod verify-x is Running; its last words: step 1 / step 2"
    ):
        JobRun(api, "ns", MANIFEST, 0).run()
    assert api.deleted == 0


def test_a_retried_job_is_given_its_retries():
    manifest = {**MANIFEST, "spec": {"backoffLimit": 3}}
    crashed = pod({"phase": "Running", "containerStatuses": [ENDED]})
    api = Api([([], [crashed]), ([], [crashed]), (COMPLETE, [pod({"phase": "Succeeded"})])])
    assert JobRun(api, "ns", manifest, 60).run() == (None, "")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", None),
        ("no json", None),
        ("[1]", None),
        ('{"a": 1}', {"a": 1}),
        ('{"a": 1}\n{broken\ntext', {"a": 1}),
        ('  {"a": {"b": "ü"}}  \n', {"a": {"b": "ü"}}),
    ],
)
def test_last_json(log, expected):
    assert last_json(log) == expected
