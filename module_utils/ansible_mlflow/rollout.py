"""Follow a Deployment's rollout, say early and in the pod's own words that it cannot succeed, and stop it or go on."""

from __future__ import annotations

from .errors import Error, one_line
from .jobs import AWAY, LOG_LINES, Waiter, pod_words
from .kubernetes import Cluster
from .pods import Failure, Patience, diagnose

REVISION = "deployment.kubernetes.io/revision"
REPLICA_FAILURE_SECONDS = 5
NO_PROGRESS_SECONDS = 10
# What a pod may take longer than it was given before its node is taken for lost.
LOST_SECONDS = 10
# How many replicas there were before they were stopped, for whoever starts them again.
REPLICAS_BEFORE = "mlflow.ansible/replicas-before-stop"


def progress(deployment: dict) -> tuple[bool, str]:
    """Whether a Deployment runs exactly what its specification says, and its state in words (pure)."""
    spec, status = deployment["spec"], deployment.get("status") or {}
    wanted = spec.get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if not observed(deployment):
        return False, "the controller has not seen the change yet"
    if updated < wanted:
        return False, f"{updated} of {wanted} replicas are updated"
    if status.get("unavailableReplicas", 0):
        return False, f"{status['unavailableReplicas']} replicas are not available"
    if status.get("replicas", 0) > updated:
        return False, f"{status['replicas'] - updated} replicas of the previous version have not ended"
    if available < wanted:
        return False, f"{available} of {wanted} replicas are available"
    return True, f"{available} of {wanted} replicas are available"


def observed(deployment: dict) -> bool:
    """Whether the controller has seen the Deployment's present specification."""
    seen = (deployment.get("status") or {}).get("observedGeneration", 0)
    return seen >= deployment["metadata"].get("generation", 0)


def condition(deployment: dict, kind: str) -> dict:
    """The condition of that type, or an empty dict."""
    conditions = (deployment.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def newest(replica_sets: list[dict], deployment: dict) -> dict | None:
    """The ReplicaSet of the Deployment's present revision."""
    owned = [entry for entry in replica_sets if owned_by(entry, deployment["metadata"]["uid"])]
    revision = (deployment["metadata"].get("annotations") or {}).get(REVISION)
    return next((e for e in owned if (e["metadata"].get("annotations") or {}).get(REVISION) == revision), None)


def selector_of(deployment: dict) -> str:
    """The labels by which a Deployment finds its pods, as a query."""
    return ",".join(f"{k}={v}" for k, v in deployment["spec"]["selector"].get("matchLabels", {}).items())


def owned_by(item: dict, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in item["metadata"].get("ownerReferences") or [])


def previous_words(replica_sets: list[dict], deployment: dict, current: dict | None) -> str:
    """What remains of the previous version, for the end of a failure's message."""
    ready = sum(
        (entry.get("status") or {}).get("readyReplicas", 0)
        for entry in replica_sets
        if owned_by(entry, deployment["metadata"]["uid"]) and entry is not current
    )
    return f"the previous version still serves ({ready} ready)" if ready else "nothing serves"


class Rollout:
    """The rollout of one Deployment.

    :param timeout: seconds to wait for it.
    """

    def __init__(self, cluster: Cluster, namespace: str, name: str, timeout: float):
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self.timeout = timeout
        self.waiter = Waiter(timeout)
        self._patience = Patience()
        self._path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}"

    def stop(self) -> bool:
        """Scale to nothing and wait until no pod is left; whether anything ran.

        How many replicas there were is kept at the Deployment, so that :meth:`resume` knows it in a later run, too.

        :raises Error: pods do not end in time.
        """
        deployment = self.cluster.get(self._path)
        if deployment is None:
            return False
        replicas = deployment["spec"].get("replicas", 1)
        if replicas:
            self._scale(0, {REPLICAS_BEFORE: str(replicas)})
        while True:
            pods = self.waiter.ask(self._pods_of, deployment)
            if pods is not AWAY:
                pods = [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
                if not pods:
                    return bool(replicas)
                if self.waiter.expired:
                    raise Error(
                        f"Deployment {self.namespace}/{self.name} was scaled to 0, but {pods[0]['metadata']['name']} "
                        f"did not end within {self.timeout:.0f} s"
                    )
            self.waiter.pause()

    def resume(self) -> int:
        """Scale back to what there was before :meth:`stop`; the number of replicas, 0 when it was not stopped."""
        deployment = self.cluster.get(self._path)
        if deployment is None or deployment["spec"].get("replicas", 1):
            return 0
        replicas = int((deployment["metadata"].get("annotations") or {}).get(REPLICAS_BEFORE, "0"))
        if replicas:
            self._scale(replicas, {REPLICAS_BEFORE: None})
        return replicas

    def _scale(self, replicas: int, annotations: dict) -> None:
        patch = {"metadata": {"annotations": annotations}, "spec": {"replicas": replicas}}
        self.cluster.request("PATCH", self._path, patch, content_type="application/merge-patch+json")

    def wait(self) -> dict:
        """Return ``ready`` (int), ``seconds`` (float) and ``image`` (str) when all replicas are available.

        :raises Error: there is no such Deployment, or it cannot become available.
        """
        while True:
            found = self.waiter.ask(self._look, self._path)
            if found is not AWAY:
                deployment, replica_sets, pods = found
                done, words = progress(deployment)
                if done:
                    containers = deployment["spec"]["template"]["spec"]["containers"]
                    ready = (deployment.get("status") or {}).get("readyReplicas", 0)
                    return {"ready": ready, "seconds": self.waiter.seconds, "image": containers[0]["image"]}
                self._give_up_early(deployment, replica_sets, pods)
                if self.waiter.expired:
                    doing = f"; {pod_words(pods[-1])}" if pods else ""
                    text = f"it did not finish within {self.timeout:.0f} s: {words}{doing}"
                    self._fail(text, deployment, replica_sets)
            self.waiter.pause()

    def wait_for_former(self) -> float:
        """Wait until pods that were told to end have ended; the seconds it took.

        A Deployment does not count them, and they still answer requests: of connections that clients keep, too. What
        takes longer than it was given is on a node that is lost, and answers nobody.

        :raises Error: there is no such Deployment.
        """
        since: dict[str, float] = {}
        while True:
            deployment = self.waiter.ask(self.cluster.get, self._path)
            if deployment is None:
                raise Error(
                    f"there is no Deployment {self.name} in namespace {self.namespace} of {self.cluster.server}"
                )
            pods = AWAY if deployment is AWAY else self.waiter.ask(self._pods_of, deployment)
            if (pods is not AWAY and not [pod for pod in pods if self._answers(pod, since)]) or self.waiter.expired:
                return self.waiter.seconds
            self.waiter.pause()

    def _answers(self, pod: dict, since: dict[str, float]) -> bool:
        """Whether a pod that was told to end may still do something."""
        metadata = pod["metadata"]
        if "deletionTimestamp" not in metadata or pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return False
        waited = self.waiter.now - since.setdefault(metadata["name"], self.waiter.now)
        return waited <= metadata.get("deletionGracePeriodSeconds", 0) + LOST_SECONDS

    def _look(self, path: str) -> tuple[dict, list[dict], list[dict]]:
        deployment = self.cluster.get(path)
        if deployment is None:
            raise Error(f"there is no Deployment {self.name} in namespace {self.namespace} of {self.cluster.server}")
        labels = selector_of(deployment)
        sets = self.cluster.items(f"/apis/apps/v1/namespaces/{self.namespace}/replicasets", labelSelector=labels)
        current = newest(sets, deployment)
        pods = []
        if current:
            pods = [pod for pod in self._pods_of(deployment) if owned_by(pod, current["metadata"]["uid"])]
        return deployment, sets, pods

    def _pods_of(self, deployment: dict) -> list[dict]:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return self.cluster.items(path, labelSelector=selector_of(deployment))

    def _give_up_early(self, deployment: dict, replica_sets: list[dict], pods: list[dict]) -> None:
        if deployment["spec"].get("paused"):
            self._fail("it is paused (kubectl rollout resume)", deployment, replica_sets)
        if not observed(deployment):
            # Until then the newest pods and the conditions are those of the previous version.
            return
        for pod in pods:
            failure = diagnose(pod)
            if failure and self._patience.exhausted(failure, self.waiter.now):
                told = failure.told(self._log(failure))
                self._fail(told, deployment, replica_sets)
        refused = condition(deployment, "ReplicaFailure")
        if refused.get("status") == "True":
            passing = Failure("ReplicaFailure", "", grace=REPLICA_FAILURE_SECONDS)
            if self._patience.exhausted(passing, self.waiter.now):
                self._fail(f"its pods cannot be created: {refused.get('message')}", deployment, replica_sets)
        late = condition(deployment, "Progressing")
        # The condition of a previous version stays until the present one makes its first progress.
        passing = Failure("ProgressDeadlineExceeded", "", grace=NO_PROGRESS_SECONDS)
        if late.get("reason") == passing.reason and self._patience.exhausted(passing, self.waiter.now):
            doing = f"; {pod_words(pods[-1])}" if pods else ""
            text = f"no progress for {deployment['spec'].get('progressDeadlineSeconds')} s (progressDeadlineSeconds)"
            self._fail(text + doing, deployment, replica_sets)

    def _log(self, failure: Failure) -> str:
        if not failure.needs_log:
            return ""
        return self.cluster.log(self.namespace, failure.pod, failure.container, LOG_LINES, failure.previous)

    def _fail(self, text: str, deployment: dict, replica_sets: list[dict]) -> None:
        serves = previous_words(replica_sets, deployment, newest(replica_sets, deployment))
        raise Error(f"Deployment {self.namespace}/{self.name}: {one_line(text, 600)}; {serves}")
