"""Run a Job to its end and read the report that it prints."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime

from .errors import Error, one_line
from .kubernetes import ApiError, Cluster, UnreachableError
from .pods import Failure, Patience, diagnose, last_lines, seconds_since

POLL_SECONDS = 0.5
# An API server that restarts is away for a moment; one that stays away ends the waiting.
OUTAGE_SECONDS = 45
CREATE_REFUSED_SECONDS = 5
LOG_LINES = 200
# More than a Job prints: which lines are new is told by their number.
PROGRESS_LINES = 5000
STUCK_SECONDS = 10
# What Waiter.ask() returns while the API server is away; None is an answer.
AWAY = object()


class Waiter:
    """Bounded waiting that outlives a short outage of the API server.

    :param timeout: seconds until :meth:`pause` gives up.
    """

    def __init__(self, timeout: float, clock=time.monotonic, sleep=time.sleep):
        self._clock, self._sleep = clock, sleep
        self.started = clock()
        self._end = self.started + timeout
        self._outage: float | None = None

    @property
    def now(self) -> float:
        return self._clock()

    @property
    def seconds(self) -> float:
        """Seconds since the waiting began."""
        return round(self._clock() - self.started, 1)

    @property
    def expired(self) -> bool:
        return self._clock() >= self._end

    def pause(self) -> None:
        self._sleep(POLL_SECONDS)

    def ask(self, function, *args):
        """``function(*args)``, or AWAY while the API server is away for a short time."""
        try:
            answer = function(*args)
        except (UnreachableError, ApiError) as error:
            if isinstance(error, ApiError) and error.status not in (429, 500, 502, 503, 504):
                raise
            self._outage = self._outage or self._clock()
            if self._clock() - self._outage > OUTAGE_SECONDS or self.expired:
                raise
            return AWAY
        self._outage = None
        return answer


def job_state(job: dict) -> str:
    """``complete``, ``failed`` or ``running``."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("status") == "True":
            if condition["type"] in ("Complete", "SuccessCriteriaMet"):
                return "complete"
            if condition["type"] in ("Failed", "FailureTarget"):
                return "failed"
    return "running"


def work_is_done(job: dict, pods: list[dict]) -> bool:
    """Whether a Job's only pod has succeeded; the Job's own condition follows seconds later."""
    if job["spec"].get("completions", 1) != 1:
        return False
    return any((pod.get("status") or {}).get("phase") == "Succeeded" for pod in pods)


def last_json(log: str) -> dict | None:
    """The JSON object of the last line of a log that is one, or None."""
    for line in reversed(log.splitlines()):
        line = line.strip()
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    return None


class JobRun:
    """One run of a Job manifest.

    :param timeout: seconds for the whole run, waiting for another run of the same name included.
    :param say: takes each line that the containers print, as they print it; None looks at no log before the end.
    """

    def __init__(self, cluster: Cluster, namespace: str, manifest: dict, timeout: float, say=None):
        self.cluster, self.namespace = cluster, namespace
        self.manifest = checked_manifest(manifest, namespace)
        self.name = self.manifest["metadata"]["name"]
        self.waiter = Waiter(timeout)
        self.timeout = timeout
        self.uid = ""
        self._patience = Patience()
        self._saw_other = False
        self._progress = Progress(cluster, namespace, say) if say else None
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"

    @property
    def seconds(self) -> float:
        return self.waiter.seconds

    def run(self) -> tuple[dict | None, str]:
        """Create the Job and wait for its end.

        :returns: the report (the last JSON line, None without one) and the tail of the log.
        :raises Error: it failed, cannot run, or did not end in time; ``details`` carries ``log`` and ``report``.
        """
        self._create()
        while True:
            looked = self.waiter.ask(self._look)
            if looked is not AWAY:
                job, pods = looked
                if self._progress:
                    self.waiter.ask(self._progress.look, pods)
                state = job_state(job)
                if state == "complete" or work_is_done(job, pods):
                    return self._result(pods)
                if state == "failed":
                    self._fail(job, pods)
                self._give_up_early(job, pods)
                if self.waiter.expired:
                    self._time_out(pods)
            self.waiter.pause()

    def delete(self) -> None:
        """Delete the Job that this run created, and its pods."""
        self.cluster.delete(f"{self._path}/{self.name}", self.uid)

    def _look(self) -> tuple[dict, list[dict]]:
        job = self.cluster.get(f"{self._path}/{self.name}")
        if job is None or job["metadata"]["uid"] != self.uid:
            raise Error(f"Job {self.namespace}/{self.name} was deleted by somebody else while it ran")
        return job, self._pods_of(self.uid)

    def _pods_of(self, uid: str) -> list[dict]:
        selector = f"batch.kubernetes.io/controller-uid={uid}"
        pods = self.cluster.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=selector)
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def _create(self) -> None:
        while True:
            if self._make_room():
                try:
                    created = self.waiter.ask(self.cluster.create, self._path, self.manifest)
                except ApiError as error:
                    if error.status == 404:
                        raise Error(f"namespace {self.namespace} does not exist: Job {self.name} cannot run") from None
                    if error.reason != "AlreadyExists":
                        raise
                    created = AWAY
                if created is not AWAY:
                    self.uid = created["metadata"]["uid"]
                    return
            if self.waiter.expired:
                raise Error(
                    f"another run of Job {self.namespace}/{self.name} did not end within {self.timeout:.0f} s; "
                    f"wait for it, or delete that Job if it hangs"
                )
            self.waiter.pause()

    def _make_room(self) -> bool:
        """Delete a finished Job of the same name; True when there is none left."""
        job = self.waiter.ask(self.cluster.get, f"{self._path}/{self.name}")
        if job is None:
            return True
        if job is AWAY or job["metadata"].get("deletionTimestamp"):
            return False
        if job_state(job) == "running" and not self._is_stuck(job):
            self._saw_other = True
            return False
        if self._saw_other:
            # Whoever started it still reads its result.
            self._saw_other = False
            for _pause in range(6):
                self.waiter.pause()
        # By its uid: another run may have replaced it since we looked.
        self.cluster.delete(f"{self._path}/{self.name}", job["metadata"]["uid"])
        return False

    def _is_stuck(self, job: dict) -> bool:
        """Whether a Job that another run left behind can never start; a run that still watches would have given up."""
        pods = self.waiter.ask(self._pods_of, job["metadata"]["uid"])
        if pods is AWAY:
            return False
        age = seconds_since(job["metadata"].get("creationTimestamp"), datetime.now(UTC))
        failures = [failure for failure in map(diagnose, pods) if failure]
        return any(not failure.ended and age > failure.grace + STUCK_SECONDS for failure in failures)

    def _log(self, pod: dict, container: str = "", previous: bool = False) -> str:
        container = container or pod["spec"]["containers"][0]["name"]
        return self.cluster.log(self.namespace, pod["metadata"]["name"], container, LOG_LINES, previous)

    def _result(self, pods: list[dict]) -> tuple[dict | None, str]:
        done = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Succeeded"] or pods
        log = self._log(done[-1]) if done else ""
        return last_json(log), log

    def _told(self, failure: Failure, pods: list[dict]) -> Error:
        pod = next(pod for pod in pods if pod["metadata"]["name"] == failure.pod)
        log = self._log(pod, failure.container, failure.previous)
        report = last_json(log) or {}
        if report.get("error"):
            return Error(f"Job {self.namespace}/{self.name} failed: {report['error']}", log=log, report=report)
        return Error(f"Job {self.namespace}/{self.name} failed: {failure.told(log)}", log=log, report=report)

    def _fail(self, job: dict, pods: list[dict]) -> None:
        condition = next(
            entry
            for entry in job["status"]["conditions"]
            if entry["type"] in ("Failed", "FailureTarget") and entry["status"] == "True"
        )
        if condition.get("reason") == "DeadlineExceeded":
            deadline = job["spec"].get("activeDeadlineSeconds")
            raise Error(
                f"Job {self.namespace}/{self.name} ran longer than its {deadline} s (activeDeadlineSeconds)",
                log=self._log(pods[-1]) if pods else "",
            )
        failures = [failure for failure in (diagnose(pod, one_shot=True) for pod in pods) if failure]
        if failures:
            raise self._told(failures[-1], pods)
        reason = condition.get("message") or condition.get("reason")
        what = "its pod was deleted or evicted before it ended" if not pods else "its pod ended without a message"
        raise Error(f"Job {self.namespace}/{self.name} failed: {what} ({reason})")

    def _give_up_early(self, job: dict, pods: list[dict]) -> None:
        one_shot = job["spec"].get("backoffLimit", 6) == 0
        for pod in pods:
            failure = diagnose(pod, one_shot=one_shot)
            if failure and self._patience.exhausted(failure, self.waiter.now):
                error = self._told(failure, pods)
                if not failure.ended:
                    # It never ran, and must not start by itself when nobody watches.
                    self.delete()
                raise error
        if not pods and self.waiter.seconds > CREATE_REFUSED_SECONDS:
            refusal = self.waiter.ask(create_refusal, self.cluster, self.namespace, self.uid)
            if refusal and refusal is not AWAY:
                self.delete()
                raise Error(f"Job {self.namespace}/{self.name} cannot start its pod: {refusal}")

    def _time_out(self, pods: list[dict]) -> None:
        doing = pod_words(pods[-1]) if pods else "it has no pod"
        log = self._log(pods[-1]) if pods else ""
        words = last_lines(log, 2)
        raise Error(
            f"Job {self.namespace}/{self.name} did not end within {self.timeout:.0f} s; {doing}"
            + (f"; its last words: {words}" if words else "")
            + "; it goes on, and running again waits for it",
            log=log,
        )


class Progress:
    """Hands on what a Job's containers print, line by line, while they run."""

    def __init__(self, cluster: Cluster, namespace: str, say):
        self._cluster, self._namespace, self._say = cluster, namespace, say
        self._told: dict[tuple[str, str], int] = {}
        self._ended: set[tuple[str, str]] = set()

    def look(self, pods: list[dict]) -> None:
        """Tell the lines that are new."""
        for pod in pods:
            status = pod.get("status") or {}
            for container in (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or []):
                key = (pod["metadata"]["name"], container["name"])
                state = container.get("state") or {}
                if key in self._ended or not ("running" in state or "terminated" in state):
                    continue
                lines = self._cluster.log(self._namespace, *key, lines=PROGRESS_LINES).splitlines()
                for line in lines[self._told.get(key, 0) :]:
                    # The report is for the end.
                    if line.strip() and not line.startswith("{"):
                        self._say(line.rstrip())
                self._told[key] = len(lines)
                if "terminated" in state:
                    self._ended.add(key)


def checked_manifest(manifest: dict, namespace: str) -> dict:
    """A copy of a Job manifest with its namespace set.

    :raises Error: it is no Job, or has no name.
    """
    if manifest.get("kind") != "Job" or manifest.get("apiVersion") != "batch/v1":
        raise Error(f"job: expected a manifest of kind Job (batch/v1), got {manifest.get('kind') or 'no kind'}")
    metadata = dict(manifest.get("metadata") or {})
    if not metadata.get("name"):
        raise Error("job: expected metadata.name in the manifest")
    if metadata.setdefault("namespace", namespace) != namespace:
        raise Error(f"job: its namespace {metadata['namespace']} is not the option namespace ({namespace})")
    return {**manifest, "metadata": metadata}


def create_refusal(cluster: Cluster, namespace: str, uid: str) -> str:
    """Why a controller may not create pods (quota, pod security, a webhook), from its events; empty if it may."""
    events = cluster.items(f"/api/v1/namespaces/{namespace}/events", fieldSelector=f"involvedObject.uid={uid}")
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    return one_line(refused[-1].get("message", ""), 500) if refused else ""


def pod_words(pod: dict) -> str:
    """What a pod is doing, in a few words."""
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        state = container.get("state") or {}
        if state.get("waiting", {}).get("reason"):
            return f"pod {pod['metadata']['name']}: container {container['name']} waits ({state['waiting']['reason']})"
        if "running" in state and not container.get("ready"):
            return f"pod {pod['metadata']['name']}: container {container['name']} runs and is not ready"
    return f"pod {pod['metadata']['name']} is {status.get('phase', 'Pending')}"
