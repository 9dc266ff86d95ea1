"""Why a pod does not run, told from its status alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ansible.module_utils.ansible_mlflow.pods import Failure, Patience, diagnose, last_lines

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def pod(*containers: dict, init: tuple[dict, ...] = (), **status) -> dict:
    """A pod whose containers have these statuses."""
    return {
        "metadata": {"name": "p"},
        "spec": {
            "containers": [{"name": entry["name"], "image": "registry/app:1"} for entry in containers],
            "initContainers": [{"name": entry["name"], "image": "registry/init:1"} for entry in init],
        },
        "status": {"containerStatuses": list(containers), "initContainerStatuses": list(init), **status},
    }


def waiting(reason: str, message: str = "", name: str = "c", restarts: int = 0, last: dict | None = None) -> dict:
    return {
        "name": name,
        "restartCount": restarts,
        "state": {"waiting": {"reason": reason, "message": message}},
        "lastState": {"terminated": last} if last else {},
    }


def ended(code: int, message: str = "", reason: str = "Error", restarts: int = 0, **more) -> dict:
    terminated = {"exitCode": code, "reason": reason, "message": message, **more}
    return {"name": "c", "restartCount": restarts, "state": {"terminated": terminated}}


def unschedulable(seconds: int) -> dict:
    since = (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/1 nodes are available: 1 Insufficient memory.",
        "lastTransitionTime": since,
    }
    return {**pod(), "status": {"phase": "Pending", "conditions": [condition]}}


RUNNING = {"name": "c", "restartCount": 0, "ready": True, "state": {"running": {}}}
CRASH = {"exitCode": 3, "reason": "Error", "message": "bad configuration"}


@pytest.mark.parametrize(
    "healthy",
    [
        pod(RUNNING),
        pod(waiting("ContainerCreating")),
        pod(waiting("PodInitializing"), init=({"name": "i", "state": {"terminated": {"exitCode": 0}}},)),
        pod({"name": "c", "state": {"terminated": {"exitCode": 0}}}, phase="Succeeded"),
        pod(waiting("CrashLoopBackOff", restarts=1, last=CRASH)),
        pod(ended(1)),
        unschedulable(30),
        {"metadata": {"name": "new"}, "spec": {"containers": []}},
        {**pod(waiting("InvalidImageName")), "metadata": {"name": "p", "deletionTimestamp": "2026-11-25T11:59:00Z"}},
        pod({**RUNNING, "restartCount": 7, "lastState": {"terminated": CRASH}}),
    ],
)
def test_a_pod_that_may_become_well_is_left_alone(healthy):
    assert diagnose(healthy, NOW) is None


@pytest.mark.parametrize(
    ("broken", "one_shot", "reason", "grace", "words"),
    [
        (
            pod(waiting("ErrImagePull", "no such host")),
            False,
            "ErrImagePull",
            20,
            ["image registry/app:1 cannot be pulled", "no such host"],
        ),
        (
            pod(waiting("ImagePullBackOff", "Back-off pulling image")),
            False,
            "ImagePullBackOff",
            20,
            ["registry/app:1", "Back-off"],
        ),
        (pod(waiting("ErrImageNeverPull")), False, "ErrImageNeverPull", 0, ["registry/app:1 is not on the node"]),
        (pod(waiting("InvalidImageName")), False, "InvalidImageName", 0, ["not a valid image name"]),
        (
            pod(waiting("CreateContainerConfigError", 'secret "s" not found')),
            False,
            "CreateContainerConfigError",
            5,
            ["container c", 'secret "s" not found'],
        ),
        (
            pod(waiting("CrashLoopBackOff", restarts=2, last=CRASH)),
            False,
            "Error",
            0,
            ["exit code 3 after 2 restarts: bad configuration"],
        ),
        (
            pod({"name": "c", "restartCount": 2, "state": {"running": {}}, "lastState": {"terminated": CRASH}}),
            False,
            "Error",
            0,
            ["exit code 3", "bad configuration"],
        ),
        (pod(ended(1, "wrong password")), True, "Error", 0, ["exit code 1: wrong password"]),
        (pod(ended(137, reason="OOMKilled"), phase="Failed"), False, "OOMKilled", 0, ["more memory than its limit"]),
        (
            pod(ended(128, "exec: nope: not found", "StartError")),
            True,
            "StartError",
            0,
            ["could not be started: exec: nope: not found"],
        ),
        (
            pod(
                waiting("PodInitializing"),
                init=(waiting("CrashLoopBackOff", name="schema", restarts=3, last=CRASH),),
            ),
            False,
            "Error",
            0,
            ["container schema", "bad configuration"],
        ),
        (unschedulable(61), False, "Unschedulable", 0, ["no node can take it (61 s)", "Insufficient memory"]),
        (
            {**pod(), "status": {"phase": "Failed", "reason": "Evicted", "message": "low on disk"}},
            False,
            "Evicted",
            0,
            ["failed (Evicted): low on disk"],
        ),
    ],
)
def test_a_broken_pod_is_told_in_its_own_words(broken, one_shot, reason, grace, words):
    failure = diagnose(broken, NOW, one_shot)
    assert (failure.reason, failure.grace) == (reason, grace)
    told = failure.told()
    assert told.startswith("pod p")
    for word in words:
        assert word in told


def test_the_log_stands_in_for_a_message_that_the_container_did_not_leave():
    failure = diagnose(pod(ended(1)), NOW, one_shot=True)
    assert failure.needs_log
    log = "starting\n\n  Traceback\nValueError: no such table  \n"
    assert (
        failure.told(log)
        == "pod p, container c: ended with exit code 1: starting / Traceback / ValueError: no such table"
    )


def test_the_log_of_the_previous_run_is_asked_for_only_while_a_new_one_runs():
    crashed = pod(waiting("CrashLoopBackOff", restarts=2, last=CRASH))
    assert diagnose(crashed, NOW).previous
    assert not diagnose(pod(ended(1, restarts=2)), NOW).previous


def test_a_passing_trouble_is_waited_out_and_a_lasting_one_is_not():
    patience = Patience()
    pull = Failure("ErrImagePull", "", grace=20, pod="p", container="c")
    back_off = Failure("ImagePullBackOff", "", grace=20, pod="p", container="c")
    assert not patience.exhausted(pull, 100)
    assert not patience.exhausted(back_off, 110)
    assert patience.exhausted(pull, 120)
    assert not patience.exhausted(Failure("ErrImagePull", "", grace=20, pod="q", container="c"), 120)
    assert patience.exhausted(Failure("InvalidImageName", "", pod="p", container="c"), 120)


@pytest.mark.parametrize(
    ("log", "expected"),
    [("", ""), ("\n\n", ""), ("one", "one"), ("1\n2\n3\n4\n5\n6\n", "2 / 3 / 4 / 5 / 6")],
)
def test_last_lines(log, expected):
    assert last_lines(log) == expected
