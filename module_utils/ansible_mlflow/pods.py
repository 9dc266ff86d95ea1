"""Why a pod does not run: one diagnosis for Jobs and Deployments, on the API's plain dicts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import one_line

# reason of a waiting container -> (seconds it may last, what it means). An image pull or a Secret can come right by
# itself within moments; a name that is no image name cannot.
WAITING = {
    "ErrImagePull": (20, "the image {image} cannot be pulled"),
    "ImagePullBackOff": (20, "the image {image} cannot be pulled"),
    "RegistryUnavailable": (20, "the registry of the image {image} is unavailable"),
    "ErrImageNeverPull": (0, "the image {image} is not on the node and its pull policy is Never"),
    "InvalidImageName": (0, "{image} is not a valid image name"),
    "ImageInspectError": (20, "the image {image} cannot be inspected"),
    "CreateContainerConfigError": (5, "the container's configuration is wrong"),
    "CreateContainerError": (5, "the container cannot be created"),
    "RunContainerError": (5, "the container cannot be started"),
}
IMAGE_REASONS = frozenset(reason for reason, (_grace, text) in WAITING.items() if "{image}" in text)
UNSCHEDULABLE_SECONDS = 60
RESTARTS_TOLERATED = 2
LOG_LINES_TOLD = 5


@dataclass(frozen=True)
class Failure:
    """Why a pod cannot do its work.

    ``grace`` is for how many seconds this may be a passing state; ``container`` is empty for the pod as a whole;
    ``previous`` tells that the words are in the log of the container's previous run; ``ended`` that a container ran and
    failed, where other failures keep it from starting.
    """

    reason: str
    message: str
    grace: float = 0
    pod: str = ""
    container: str = ""
    previous: bool = False
    needs_log: bool = False
    ended: bool = False

    def told(self, log: str = "") -> str:
        """One line for the operator; ``log`` stands in when the container left no message of its own."""
        where = f"pod {self.pod}" + (f", container {self.container}" if self.container else "")
        words = last_lines(log) if self.needs_log else ""
        return one_line(f"{where}: {self.message}" + (f": {words}" if words else ""))


def last_lines(log: str, count: int = LOG_LINES_TOLD) -> str:
    """The last lines of a log that say something, as one line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return one_line(" / ".join(lines[-count:]))


def diagnose(pod: dict, now: datetime | None = None, one_shot: bool = False) -> Failure | None:
    """What is wrong with a pod, or None while it may still become well.

    :param now: aware time of the observation; by default the present.
    :param one_shot: a container that ends in failure is not started again (a Job without retries).
    """
    now = now or datetime.now(UTC)
    name = pod["metadata"]["name"]
    if pod["metadata"].get("deletionTimestamp"):
        return None
    status = pod.get("status") or {}
    failure = _container_failure(pod, one_shot) or _scheduling_failure(status, now) or _pod_failure(status)
    if failure is None:
        return None
    return Failure(**{**failure.__dict__, "pod": name})


def _container_failure(pod: dict, one_shot: bool) -> Failure | None:
    status = pod.get("status") or {}
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    images = {
        container["name"]: container.get("image", "")
        for group in ("initContainers", "containers")
        for container in (pod.get("spec") or {}).get(group) or []
    }
    for container in statuses:
        failure = _waiting_failure(container, images) or _ended_failure(container, one_shot)
        if failure:
            return failure
    return None


def _waiting_failure(container: dict, images: dict) -> Failure | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    if reason not in WAITING:
        return None
    grace, text = WAITING[reason]
    # The status normalises the name of an image; the operator knows the one of the pod's specification.
    meaning = text.format(image=images.get(container["name"]) or container.get("image", ""))
    message = waiting.get("message", "")
    told = f"{meaning} ({reason})" + (f": {message}" if message else "")
    return Failure(reason, told, grace, container=container["name"])


def _ended_failure(container: dict, one_shot: bool) -> Failure | None:
    state, last = container.get("state") or {}, container.get("lastState") or {}
    ended, previous = state.get("terminated"), False
    if not ended and container.get("restartCount", 0) >= RESTARTS_TOLERATED and not container.get("ready"):
        # It runs, or waits in CrashLoopBackOff, between two failures; a start of two failures is not a slow start.
        ended, previous = last.get("terminated"), True
    if not ended or ended.get("exitCode", 0) == 0:
        return None
    if not (one_shot or previous or container.get("restartCount", 0) >= RESTARTS_TOLERATED):
        return None
    restarts = container.get("restartCount", 0)
    message = f"{ended_words(ended)}" + (f" after {restarts} restarts" if restarts else "")
    told = (ended.get("message") or "").strip()
    return Failure(
        ended.get("reason") or "Error",
        message + (f": {last_lines(told)}" if told else ""),
        container=container["name"],
        previous=previous and not state.get("terminated"),
        needs_log=not told,
        ended=True,
    )


def ended_words(terminated: dict) -> str:
    """How a container ended, in words."""
    if terminated.get("reason") == "OOMKilled":
        return "was killed because it used more memory than its limit (OOMKilled)"
    if terminated.get("reason") in ("StartError", "ContainerCannotRun"):
        return "could not be started"
    if terminated.get("signal"):
        return f"ended by signal {terminated['signal']}"
    return f"ended with exit code {terminated.get('exitCode')}"


def _scheduling_failure(status: dict, now: datetime) -> Failure | None:
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            waited = seconds_since(condition.get("lastTransitionTime"), now)
            if waited >= UNSCHEDULABLE_SECONDS:
                text = f"no node can take it ({waited:.0f} s): {condition.get('message', '')}"
                return Failure("Unschedulable", text)
    return None


def _pod_failure(status: dict) -> Failure | None:
    if status.get("phase") != "Failed":
        return None
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for container in statuses:
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode", 0) != 0:
            return _ended_failure(container, True)
    reason = status.get("reason") or "Failed"
    return Failure(reason, f"failed ({reason}): {status.get('message', '')}", ended=True)


def seconds_since(timestamp: str | None, now: datetime) -> float:
    """Seconds from an API timestamp to ``now``; 0 without one."""
    if not timestamp:
        return 0.0
    return (now - datetime.fromisoformat(timestamp.replace("Z", "+00:00"))).total_seconds()


class Patience:
    """Remembers since when each passing trouble has been seen, to tell a hiccup from a failure."""

    def __init__(self):
        self._since: dict[tuple, float] = {}

    def exhausted(self, failure: Failure, now: float) -> bool:
        """Whether ``failure`` has lasted longer than its grace; ``now`` in seconds of any steady clock."""
        # Pulling alternates between two reasons; both are one trouble.
        kind = "image" if failure.reason in IMAGE_REASONS else failure.reason
        since = self._since.setdefault((failure.pod, failure.container, kind), now)
        return now - since >= failure.grace
