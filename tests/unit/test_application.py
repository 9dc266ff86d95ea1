"""What an Application of Argo CD says about a commit, and how long that is waited for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from ansible.module_utils.ansible_mlflow import application
from ansible.module_utils.ansible_mlflow.application import Verdict, judge, wait
from ansible.module_utils.ansible_mlflow.errors import Error

NEW, OLD = "b" * 40, "a" * 40
HEALTHY = {"kind": "Service", "name": "mlflow-dev", "status": "Synced", "health": {"status": "Healthy"}}
DEPLOYMENT = {"kind": "Deployment", "name": "mlflow-dev", "status": "Synced"}
SAID = "tracking database mlflow is ahead of this image"
HOOK = {"kind": "Pod", "name": "mlflow-schema-dev", "hookPhase": "Failed", "message": SAID}


def seen(
    sync: str = "Synced",
    at: str = NEW,
    health: str = "Healthy",
    phase: str | None = "Succeeded",
    of: str = NEW,
    automated: dict | None = None,
    resources: tuple[dict, ...] = (HEALTHY,),
    results: tuple[dict, ...] = (),
    conditions: tuple[dict, ...] = (),
    compared: str = "2026-11-26T14:00:01Z",
) -> dict[str, Any]:
    """An Application."""
    operation = {"phase": phase, "message": "some words", "syncResult": {"revision": of, "resources": list(results)}}
    status = {"sync": {"status": sync, "revision": at}, "health": {"status": health}, "resources": list(resources)}
    operation["finishedAt"] = "2026-11-26T14:00:00Z"
    status |= {"conditions": list(conditions), **({"operationState": operation} if phase else {})}
    status["reconciledAt"] = compared
    return {"spec": {"syncPolicy": {} if automated is None else {"automated": automated}}, "status": status}


OUT = {**DEPLOYMENT, "status": "OutOfSync"}
HEALING, APPLYING = {"prune": True, "selfHeal": True}, {"prune": True}


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (seen(), Verdict(reached=True)),
        # A commit that changed nothing of this environment has no sync of its own.
        (seen(of=OLD), Verdict(reached=True)),
        (seen("OutOfSync", resources=(OUT,)), Verdict(reached=True, drift=["Deployment mlflow-dev"])),
        (
            seen("OutOfSync", resources=(OUT,), automated=APPLYING),
            Verdict(reached=True, drift=["Deployment mlflow-dev"]),
        ),
        (seen("OutOfSync", of=OLD), Verdict(awaits_sync=True)),
        (seen("OutOfSync", phase=None), Verdict(awaits_sync=True)),
        (seen("OutOfSync", of=OLD, automated={"enabled": False, "selfHeal": True}), Verdict(awaits_sync=True)),
    ],
    ids=["there", "nothing to sync", "by hand", "by hand, automated", "manual", "manual, first", "turned off"],
)
def test_what_ends_the_wait(found: dict, verdict: Verdict) -> None:
    assert judge(found, NEW) == verdict


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (seen(at=OLD, of=OLD), f"it is Synced at commit {OLD}"),
        (seen("OutOfSync", of=OLD, automated=APPLYING, resources=(OUT,)), "OutOfSync: Deployment mlflow-dev"),
        (seen("OutOfSync", automated=HEALING, resources=(OUT,)), "OutOfSync: Deployment mlflow-dev"),
        (seen("OutOfSync", resources=(OUT,), compared="2026-11-26T14:00:00Z"), "not compared the cluster since"),
        (seen(phase="Running"), "a sync is running: some words"),
        (
            seen(health="Progressing", resources=({**DEPLOYMENT, "health": {"status": "Progressing"}},)),
            "Deployment mlflow-dev is Progressing",
        ),
        ({"metadata": {}}, "it is Unknown at commit none"),
    ],
    ids=[
        "another commit",
        "about to sync",
        "about to heal",
        "compared before the sync's end",
        "running",
        "not healthy yet",
        "new",
    ],
)
def test_what_is_waited_for_is_told(found: dict, told: str) -> None:
    verdict = judge(found, NEW)
    assert (verdict.reached, verdict.failure, verdict.awaits_sync) == (False, "", False)
    assert told in verdict.waiting


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (seen("OutOfSync", phase="Failed", results=(HOOK,)), f"failed: Pod mlflow-schema-dev: {SAID}"),
        (seen("OutOfSync", phase="Error"), "failed: some words"),
        (
            seen(phase="Failed", results=({**DEPLOYMENT, "status": "SyncFailed", "message": "forbidden"},)),
            "Deployment mlflow-dev: forbidden",
        ),
        (
            seen(health="Degraded", resources=({**DEPLOYMENT, "health": {"status": "Degraded", "message": "late"}},)),
            "is synced, but Deployment mlflow-dev is Degraded: late",
        ),
        (seen(conditions=({"type": "ComparisonError", "message": "no repository"},)), "ComparisonError: no repository"),
    ],
    ids=["hook", "no reason", "refused", "degraded", "no repository"],
)
def test_a_failure_is_told_with_the_words_of_what_failed(found: dict, told: str) -> None:
    assert told in judge(found, NEW).failure


def test_a_comparison_that_fails_may_be_passing_at_first() -> None:
    found = seen(conditions=({"type": "ComparisonError", "message": "no repository"},))
    verdict = judge(found, NEW, patient=True)
    assert (verdict.failure, verdict.reached) == ("", False)
    assert "no repository" in verdict.waiting


class FakeCluster:
    """An API server with one Application, which says something else each time, and the last forever."""

    server = "https://cluster"

    def __init__(self, *answers: dict | None) -> None:
        self.answers, self.refreshes = itertools.chain(answers, itertools.repeat(answers[-1])), 0

    def get(self, path: str) -> dict | None:
        assert path == "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications/mlflow-dev"
        return next(self.answers)

    def request(self, method: str, path: str, body: str, content_type: str) -> None:
        assert (method, content_type) == ("PATCH", "application/merge-patch+json")
        assert "argocd.argoproj.io/refresh" in body
        self.refreshes += 1


@pytest.fixture(autouse=True)
def _no_time_passes_but_by_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(application.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(application.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))


def test_what_is_there_is_not_asked_for_again() -> None:
    cluster = FakeCluster(seen())
    assert wait(cluster, "argocd", "mlflow-dev", NEW, 60, False).reached
    assert cluster.refreshes == 0


def test_argo_cd_is_asked_once_to_look_and_then_waited_for() -> None:
    cluster = FakeCluster(seen(at=OLD), seen(phase="Running"), seen())
    assert wait(cluster, "argocd", "mlflow-dev", NEW, 60, False).reached
    assert cluster.refreshes == 1


def test_a_dry_run_waits_for_nothing_and_writes_nothing() -> None:
    cluster = FakeCluster(seen(at=OLD))
    assert not wait(cluster, "argocd", "mlflow-dev", NEW, 60, True).reached
    assert cluster.refreshes == 0


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((None,), "there is no Application mlflow-dev in namespace argocd of https://cluster"),
        ((seen(at=OLD),), f"Application mlflow-dev is not at commit {NEW} after 60 s: it is Synced at commit {OLD}"),
        ((seen(at=OLD), seen("OutOfSync", phase="Failed", results=(HOOK,))), SAID),
    ],
    ids=["none", "late", "failed meanwhile"],
)
def test_a_wait_ends_with_the_reason(answers: tuple, told: str) -> None:
    with pytest.raises(Error, match=told):
        wait(FakeCluster(*answers), "argocd", "mlflow-dev", NEW, 60, False)
