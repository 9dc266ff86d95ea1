"""What a Job prints is shown while it runs, and servers are stopped and started again with as many replicas."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.jobs import Progress, Waiter
from ansible.module_utils.ansible_mlflow.rollout import REPLICAS_BEFORE, Rollout
from conftest import load_file

ROOT = Path(__file__).parents[2]
action = load_file(ROOT / "plugins/action/mlflow_schema.py", "action")


def pod(**states):
    return {
        "metadata": {"name": "p"},
        "status": {
            "initContainerStatuses": [{"name": "plan", "state": states["plan"]}],
            "containerStatuses": [{"name": "schema", "state": states["schema"]}],
        },
    }


class FakeLogs:
    """The logs of containers, and how often each was asked for."""

    def __init__(self, **logs):
        self.logs, self.asked = logs, []

    def log(self, _namespace, _pod, container, lines):
        self.asked.append(container)
        return self.logs[container]


def test_each_line_is_told_once_in_order_and_the_report_never():
    cluster, told = FakeLogs(plan='one\n{"report": 1}\n', schema=""), []
    progress = Progress(cluster, "ns", told.append)
    progress.look([pod(plan={"running": {}}, schema={"waiting": {}})])
    cluster.logs["plan"] += "two\n\n"
    progress.look([pod(plan={"terminated": {}}, schema={"waiting": {}})])
    cluster.logs["schema"] = "three\n"
    progress.look([pod(plan={"terminated": {}}, schema={"running": {}})])
    progress.look([pod(plan={"terminated": {}}, schema={"running": {}})])
    assert told == ["one", "two", "three"]
    # A container that has ended says nothing more.
    assert cluster.asked == ["plan", "plan", "schema", "schema"]


def test_lines_are_shown_as_they_are_written_and_the_last_ones_at_the_end(monkeypatch, tmp_path):
    shown, path, ended = [], tmp_path / "progress", threading.Event()
    monkeypatch.setattr(action.DISPLAY, "display", lambda line: shown.append(line))
    monkeypatch.setattr(action, "INTERVAL", 0.02)
    thread = threading.Thread(target=action.show, args=(path, ended, "mlflow-dev"))
    thread.start()
    path.write_text("first\n")
    for _turn in range(200):
        if shown:
            break
        threading.Event().wait(0.02)
    assert shown == ["  [mlflow-dev] first"]
    with path.open("a") as file:
        file.write("last\n")
    ended.set()
    thread.join(5)
    assert shown == ["  [mlflow-dev] first", "  [mlflow-dev] last"]


class FakeDeployment:
    """A Deployment whose pods end some looks after it was scaled to 0."""

    def __init__(self, replicas, annotations=None, looks=2):
        self.deployment = {
            "metadata": {"annotations": annotations or {}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "m"}}},
        }
        self.looks, self.patches = looks, []

    def get(self, _path):
        return self.deployment

    def items(self, _path, labelSelector):
        assert labelSelector == "app=m"
        self.looks -= 1
        return [{"metadata": {"name": "p"}, "status": {"phase": "Running"}}] if self.looks >= 0 else []

    def request(self, method, _path, body, content_type):
        assert (method, content_type) == ("PATCH", "application/merge-patch+json")
        self.patches.append(body)
        self.deployment["spec"]["replicas"] = body["spec"]["replicas"]
        self.deployment["metadata"]["annotations"] |= body["metadata"]["annotations"]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr("ansible.module_utils.ansible_mlflow.jobs.POLL_SECONDS", 0.001)


def test_servers_are_started_again_with_as_many_replicas_as_before():
    cluster = FakeDeployment(3)
    assert Rollout(cluster, "ns", "m", 5).stop() is True
    # A later run, after the first one was killed.
    assert Rollout(cluster, "ns", "m", 5).stop() is False
    assert Rollout(cluster, "ns", "m", 5).resume() == 3
    assert [patch["spec"]["replicas"] for patch in cluster.patches] == [0, 3]
    assert cluster.patches[1]["metadata"]["annotations"] == {REPLICAS_BEFORE: None}


@pytest.mark.parametrize("cluster", [FakeDeployment(2), FakeDeployment(0)], ids=["it runs", "it was never stopped"])
def test_what_was_not_stopped_is_not_started(cluster):
    assert Rollout(cluster, "ns", "m", 5).resume() == 0
    assert cluster.patches == []


def test_a_pod_that_does_not_end_is_named():
    with pytest.raises(Error, match="Deployment ns/m was scaled to 0, but p did not end within 0 s"):
        Rollout(FakeDeployment(1, looks=10**6), "ns", "m", 0.05).stop()


class Ending(FakeDeployment):
    """A Deployment of which one pod was told to end, and does so after some looks."""

    def items(self, path, labelSelector):
        ending = {"name": "p", "deletionTimestamp": "2026-11-26T22:00:00Z", "deletionGracePeriodSeconds": 45}
        new = {"metadata": {"name": "q"}, "status": {"phase": "Running"}}
        return [new] + [pod | {"metadata": ending} for pod in super().items(path, labelSelector)]


def ended(looks: int, timeout: float = 300) -> tuple[float, int]:
    """Wait for it by a clock of its own; the seconds, and how many looks were left."""
    clock = iter(range(10**6))
    cluster = Ending(1, looks=looks)
    rollout = Rollout(cluster, "ns", "m", timeout)
    rollout.waiter = Waiter(timeout, clock=lambda: next(clock), sleep=lambda _: None)
    return rollout.wait_for_former(), cluster.looks


def test_the_pods_of_before_are_waited_for_until_they_have_ended():
    assert ended(looks=3)[1] == -1


def test_a_pod_whose_node_is_lost_is_not_waited_for_longer_than_it_was_given():
    seconds, looks = ended(looks=10**6)
    assert 45 < seconds < 300
    assert looks > 0


def test_no_longer_than_the_rollout_may_take():
    assert ended(looks=10**6, timeout=20)[0] < 40
