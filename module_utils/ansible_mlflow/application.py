"""What an Application of Argo CD says about one commit: there, failed, waiting, or changed by somebody since."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from .errors import Error
from .kubernetes import Cluster

INTERVAL = 2
# Seconds between two requests to look into the repository and the cluster.
REFRESH_INTERVAL = 30
# Seconds for which Argo CD may fail to read the repository or the cluster before that counts.
COMPARISON_GRACE = 60
REFRESH = "argocd.argoproj.io/refresh"


@dataclass
class Verdict:
    """What is to be said of a commit: one of `reached`, `failure` and `awaits_sync`, or what is waited for."""

    reached: bool = False
    failure: str = ""
    awaits_sync: bool = False
    waiting: str = ""
    drift: list[str] = field(default_factory=list)


def wait(cluster: Cluster, namespace: str, name: str, revision: str, timeout: int, check_mode: bool) -> Verdict:
    """Wait until Argo CD has a commit running, or until it is clear that it will not.

    :param timeout: seconds.
    :raises Error: there is no such Application, its sync has failed, or the time is over.
    """
    path = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/applications/{name}"
    start, next_refresh = time.monotonic(), 0.0
    while True:
        found = cluster.get(path)
        if found is None:
            raise Error(
                f"there is no Application {name} in namespace {namespace} of {cluster.server}; expected one that the "
                f"ApplicationSet in the folder argocd/ of the repository makes: apply what is in that folder once"
            )
        passed = time.monotonic() - start
        verdict = judge(found, revision, patient=passed < min(COMPARISON_GRACE, timeout))
        if verdict.failure:
            raise Error(f"Application {name}: {verdict.failure}")
        if verdict.reached or verdict.awaits_sync or check_mode:
            return verdict
        if passed > timeout:
            raise Error(f"Application {name} is not at commit {revision} after {timeout} s: {verdict.waiting}")
        if passed >= next_refresh:
            # Argo CD looks into the repository every few minutes by itself.
            body = {"metadata": {"annotations": {REFRESH: "normal"}}}
            cluster.request("PATCH", path, json.dumps(body), content_type="application/merge-patch+json")
            next_refresh = passed + REFRESH_INTERVAL
        time.sleep(INTERVAL)


def judge(application: dict, revision: str, patient: bool = False) -> Verdict:
    """What an Application says about a commit.

    :param patient: whether errors of the comparison may still be passing ones.
    """
    status = application.get("status") or {}
    sync, operation = status.get("sync") or {}, status.get("operationState") or {}
    result = operation.get("syncResult") or {}
    is_of_revision = revision in (result.get("revision"), (operation.get("operation") or {}).get("revision"))
    phase = operation.get("phase")
    if is_of_revision and phase in ("Failed", "Error"):
        return Verdict(failure=f"the sync of commit {revision} failed: {failed_parts(operation)}")
    errors = [
        f"{entry['type']}: {entry.get('message', '')}"
        for entry in status.get("conditions") or []
        if entry["type"] in ("ComparisonError", "InvalidSpecError", "UnknownError")
    ]
    if errors and not patient:
        return Verdict(failure="; ".join(errors))
    if sync.get("revision") != revision or phase == "Running" or errors:
        return Verdict(waiting=doing(status, errors))
    automated = ((application.get("spec") or {}).get("syncPolicy") or {}).get("automated")
    out = [
        f"{item['kind']} {item['name']}" for item in status.get("resources") or [] if item.get("status") == "OutOfSync"
    ]
    if sync.get("status") == "OutOfSync":
        if is_of_revision and not (automated or {}).get("selfHeal"):
            # What is from before the sync's end says nothing of what somebody has changed since.
            if status.get("reconciledAt", "") <= operation.get("finishedAt", ""):
                return Verdict(waiting="it has not compared the cluster since the sync")
            return Verdict(reached=True, drift=out)
        if automated is None or automated.get("enabled") is False:
            return Verdict(awaits_sync=True)
        return Verdict(waiting=f"OutOfSync: {', '.join(out)}")
    health = (status.get("health") or {}).get("status")
    if health == "Degraded":
        return Verdict(failure=f"commit {revision} is synced, but {unhealthy(status)}")
    return Verdict(reached=True) if health == "Healthy" else Verdict(waiting=unhealthy(status))


def failed_parts(operation: dict) -> str:
    """Why a sync failed: the words of what failed in it, or else Argo CD's own."""
    parts = [
        f"{item['kind']} {item['name']}: {item.get('message', '')}"
        for item in (operation.get("syncResult") or {}).get("resources") or []
        if item.get("hookPhase") in ("Failed", "Error") or item.get("status") == "SyncFailed"
    ]
    return "; ".join(parts) or operation.get("message", "no reason is given")


def doing(status: dict, errors: list[str]) -> str:
    """What Argo CD is doing about another commit, or about this one still."""
    sync, operation = status.get("sync") or {}, status.get("operationState") or {}
    told = [f"it is {sync.get('status', 'Unknown')} at commit {sync.get('revision', 'none')}", *errors]
    if operation.get("phase") == "Running":
        told.append(f"a sync is running: {operation.get('message', '')}")
    return "; ".join(told)


def unhealthy(status: dict) -> str:
    """Which objects are not healthy, and what Argo CD says of each."""
    parts = []
    for item in status.get("resources") or []:
        health = item.get("health") or {}
        if health.get("status") not in (None, "Healthy"):
            parts.append(
                f"{item['kind']} {item['name']} is {health['status']}: {health.get('message', '')}".rstrip(": ")
            )
    return "; ".join(parts) or f"its health is {(status.get('health') or {}).get('status', 'Unknown')}"
