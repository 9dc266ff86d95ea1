"""What a run must know of the cluster before it changes anything."""

from __future__ import annotations

import base64
import binascii

from .apply import MANAGED_BY, Paths
from .errors import Error
from .kubernetes import FIELD_MANAGER, ApiError, Cluster

NODE_PORTS = range(30000, 32768)
OPENSHIFT_GROUP = "security.openshift.io"
# The namespaces of this project, and the Secrets that each environment has.
OURS = f"{MANAGED_BY}={FIELD_MANAGER}"
SECRETS = ("mlflow-secrets", "mlflow-maintenance", "mlflow-users")


def server_version(cluster: Cluster) -> str:
    """The API server's version, such as ``v1.36.3``."""
    version = (cluster.get("/version") or {}).get("gitVersion")
    if not version:
        raise Error(f"{cluster.server} answers, but is no Kubernetes API server ({cluster.described})")
    return version


def platform(cluster: Cluster) -> str:
    """``openshift`` where the API has the group of OpenShift's security context constraints, else ``kubernetes``."""
    groups = (cluster.get("/apis") or {}).get("groups") or []
    return "openshift" if any(group["name"] == OPENSHIFT_GROUP for group in groups) else "kubernetes"


def namespace_exists(cluster: Cluster, name: str) -> bool:
    """Whether the namespace exists; a user who may work in it but not read the object itself is believed."""
    try:
        return cluster.get(f"/api/v1/namespaces/{name}") is not None
    except ApiError as error:
        if error.status != 403:
            raise
        # Rights within one namespace seldom include reading the namespace; reading its ConfigMaps tells as much.
        cluster.items(f"/api/v1/namespaces/{name}/configmaps", limit=1)
        return True


def read_secrets(cluster: Cluster, wanted: list[dict]) -> tuple[dict, list[str]]:
    """The texts of Secrets by ``<namespace>/<name>``, and which of them are absent.

    A Secret that does not exist is an empty dict; keys that hold no UTF-8 text are left out.
    """
    secrets, absent = {}, []
    for entry in wanted:
        label = f"{entry['namespace']}/{entry['name']}"
        found = cluster.get(f"/api/v1/namespaces/{entry['namespace']}/secrets/{entry['name']}")
        if found is None:
            absent.append(label)
        secrets[label] = decoded((found or {}).get("data") or {})
    return secrets, absent


def other_environments(cluster: Cluster, environment: str) -> dict[str, list[str]]:
    """The secrets of the other environments of this project in the cluster, by environment.

    They are there to be compared with. What the user may not read is not in it.
    """
    found: dict[str, list[str]] = {}
    for namespace in allowed(lambda: cluster.items("/api/v1/namespaces", labelSelector=OURS), []):
        other = namespace["metadata"]["labels"].get("app.kubernetes.io/instance", environment)
        for secret in (f"{kind}-{other}" for kind in SECRETS if other != environment):
            path = f"/api/v1/namespaces/{namespace['metadata']['name']}/secrets/{secret}"
            data = (allowed(lambda path=path: cluster.get(path), None) or {}).get("data") or {}
            found.setdefault(other, []).extend(decoded(data).values())
    return found


def allowed(ask, otherwise):
    """The answer of the API server, or something else where the user may not ask."""
    try:
        return ask()
    except ApiError as error:
        if error.status != 403:
            raise
        return otherwise


def read_config_maps(cluster: Cluster, wanted: list[dict]) -> dict[str, dict]:
    """The data of ConfigMaps by ``<namespace>/<name>``; empty for one that does not exist."""
    found = {}
    for entry in wanted:
        path = f"/api/v1/namespaces/{entry['namespace']}/configmaps/{entry['name']}"
        found[f"{entry['namespace']}/{entry['name']}"] = (cluster.get(path) or {}).get("data") or {}
    return found


def absent_kinds(cluster: Cluster, wanted: list[str]) -> list[str]:
    """The kinds that the cluster does not know, or whose own API server is away, each ``<apiVersion>/<kind>``."""
    paths = Paths(cluster)

    def known(kind: str) -> bool:
        try:
            return paths.knows(*kind.rsplit("/", 1)) is not None
        except ApiError as error:
            if error.status != 503:
                raise
            return False

    return [kind for kind in wanted if not known(kind)]


def check_priority_class(cluster: Cluster, name: str | None) -> None:
    """Refuse a PriorityClass that is not there: no pod of it would be admitted, also after an upgrade has stopped all.

    :raises Error: it is not there.
    """
    path = f"/apis/scheduling.k8s.io/v1/priorityclasses/{name}"
    if name and allowed(lambda: cluster.get(path), {}) is None:
        raise Error(f"mlflow_server_priority_class is {name}, which the cluster does not have; expected one of its own")


def decoded(data: dict) -> dict:
    """The texts among a Secret's base64 values."""
    texts = {}
    for key, value in data.items():
        try:
            texts[key] = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            continue
    return texts


def node_port_problems(wanted: list[dict], services: list[dict]) -> list[str]:
    """Why node ports cannot be used: out of range, wanted twice, or held by another Service (pure)."""
    holders = {}
    for service in services:
        for entry in (service.get("spec") or {}).get("ports") or []:
            if entry.get("nodePort"):
                holders[entry["nodePort"]] = (service["metadata"]["namespace"], service["metadata"]["name"])
    problems, claimed = [], {}
    for entry in wanted:
        port, owner = entry["port"], (entry["namespace"], entry["service"])
        label = "/".join(owner)
        if port not in NODE_PORTS:
            problems.append(f"node port {port} of Service {label} is outside {NODE_PORTS.start}-{NODE_PORTS.stop - 1}")
        elif port in claimed and claimed[port] != owner:
            problems.append(f"node port {port} is wanted by both {'/'.join(claimed[port])} and {label}")
        elif holders.get(port, owner) != owner:
            problems.append(f"node port {port} of Service {label} is used by Service {'/'.join(holders[port])}")
        claimed.setdefault(port, owner)
    return problems


def check_node_ports(cluster: Cluster, wanted: list[dict]) -> bool:
    """Refuse node ports that cannot be used.

    :returns: False when the user may not list the Services of all namespaces, so that only the range was checked.
    :raises Error: naming each port, who holds it and what to do.
    """
    services, complete = [], True
    if wanted:
        try:
            services = cluster.items("/api/v1/services")
        except ApiError as error:
            if error.status != 403:
                raise
            complete = False
    problems = node_port_problems(wanted, services)
    if problems:
        raise Error("; ".join(problems) + "; choose a free port, or delete that Service")
    return complete
