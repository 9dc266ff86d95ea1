"""MLflow's servers one by one, past the Service before them: which logins each of them accepts."""

from __future__ import annotations

import time
from dataclasses import dataclass

from .access_server import Server
from .errors import Error
from .kubernetes import Cluster
from .rollout import selector_of
from .tunnel import Tunnel

WHO = "2.0/mlflow/users/current"
# Each new connection is another worker's, by chance.
TRIES = 6
PAUSE_SECONDS = 1


def running(cluster: Cluster, namespace: str, name: str) -> list[str]:
    """The names of a Deployment's pods that serve.

    :raises Error: there is no such Deployment, or none of its pods runs.
    """
    deployment = cluster.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}")
    if deployment is None:
        raise Error(f"there is no Deployment {name} in namespace {namespace} of {cluster.server}")
    pods = cluster.items(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector_of(deployment))
    names = [
        pod["metadata"]["name"]
        for pod in pods
        if pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")
    ]
    if not names:
        raise Error(f"Deployment {namespace}/{name} has no pod that runs")
    return sorted(names)


@dataclass(frozen=True)
class Servers:
    """Where they are: the name and port that they answer to, and the path below which they do."""

    cluster: Cluster
    namespace: str
    host: str
    port: int
    prefix: str

    def wait_until_refused(self, pod: str, login: tuple[str, str], timeout: float) -> None:
        """Ask a pod until it has refused a login several times in a row.

        :raises Error: it still accepts it after ``timeout`` seconds, or does not answer.
        """
        end, refusals = time.monotonic() + timeout, 0
        with Tunnel(self.cluster, self.namespace, pod, self.port) as tunnel:
            while refusals < TRIES:
                # A new one each time, since a connection that is kept leads to the same worker.
                status, _ = Server(self.host, self.port, tunnel.address, self.prefix).send("GET", WHO, {}, login)
                refusals = refusals + 1 if status == 401 else 0
                if status == 401:
                    continue
                if time.monotonic() > end:
                    raise Error(
                        f"pod {self.namespace}/{pod} answers {status} to the former password of user {login[0]}, "
                        f"{timeout:.0f} s after it was changed; expected 401; restart it and run again"
                    )
                time.sleep(PAUSE_SECONDS)
