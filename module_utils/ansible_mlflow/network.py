"""What NetworkPolicies must know of the cluster: who is behind a Service, and which addresses pods have."""

from __future__ import annotations

from .errors import Error
from .kubernetes import ApiError, Cluster
from .tunnel import service_of


def read_network(cluster: Cluster, namespace: str, selector: str, destinations: list[dict]) -> dict:
    """Where traffic to some destinations ends, the nodes' ranges of pod addresses, and the policies there are.

    :param selector: labels of the policies of ``namespace`` that are of interest.
    :param destinations: what pods connect to: ``host``, ``port`` and ``protocols``. With none, no policy is wanted,
        and only the names of those that are left are read.
    :raises Error: a destination is a Service that does not exist, or has no such port.
    """
    return {
        "ways": [read_way(cluster, **destination) for destination in destinations],
        "pod_cidrs": read_pod_cidrs(cluster) if destinations else [],
        "policies": read_policies(cluster, namespace, selector),
    }


def read_policies(cluster: Cluster, namespace: str, selector: str) -> list[str]:
    """The names of a namespace's policies; none for a user who may not list them."""
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    try:
        return sorted(item["metadata"]["name"] for item in cluster.items(path, labelSelector=selector))
    except ApiError as error:
        if error.status != 403:
            raise
        return []


def read_pod_cidrs(cluster: Cluster) -> list[str]:
    """Each node's range of pod addresses; none where nodes have none, or for a user who may not list them."""
    try:
        nodes = cluster.items("/api/v1/nodes")
    except ApiError as error:
        if error.status != 403:
            raise
        return []
    ranges = [cidr for node in nodes for cidr in node["spec"].get("podCIDRs") or []]
    return sorted(ranges)


def read_way(cluster: Cluster, host: str, port: int, protocols: list[str], otherwise: str | None = None) -> dict:
    """Where a connection to ``host:port`` ends, as a policy sees it: behind the Service, at the pods' own port.

    :param otherwise: another Service's name, for a cluster that has that one.
    :returns: ``host``, ``to`` (peers of a policy's rule; None for a host that is not in the cluster) and ``ports``.
    :raises Error: there is no such Service, or it has no such port.
    """
    outside = {"host": host, "to": None, "ports": [{"protocol": protocol, "port": port} for protocol in protocols]}
    named = service_of(host)
    if named is None:
        return outside
    namespace, name = named
    service = cluster.get(f"/api/v1/namespaces/{namespace}/services/{name}")
    if service is None:
        if otherwise and cluster.get("/api/v1/namespaces/{}/services/{}".format(*service_of(otherwise))):
            return read_way(cluster, otherwise, port, protocols)
        raise Error(f"there is no Service {name} in namespace {namespace} of {cluster.server}, which {host} names")
    if service["spec"].get("type") == "ExternalName":
        return {**outside, "host": service["spec"]["externalName"]}
    slices = []
    if not service["spec"].get("selector"):
        slices = cluster.items(
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            labelSelector=f"kubernetes.io/service-name={name}",
        )
    ports = [
        {"protocol": protocol, "port": target}
        for protocol in protocols
        for target in target_ports(service, slices, port, protocol)
    ]
    return {"host": host, "to": peers(service, slices), "ports": ports}


def peers(service: dict, slices: list[dict]) -> list[dict]:
    """The peers of a rule that leads to a Service (pure).

    Somebody else writes the addresses of a Service without a selector. They change when a database fails over, so any
    pod of the Service's namespace may be meant, and besides that the addresses as they are now.
    """
    inside = {"matchLabels": {"kubernetes.io/metadata.name": service["metadata"]["namespace"]}}
    selector = service["spec"].get("selector")
    if selector:
        return [{"namespaceSelector": inside, "podSelector": {"matchLabels": selector}}]
    endpoints = [endpoint for part in slices for endpoint in part.get("endpoints") or []]
    addresses = sorted({address for endpoint in endpoints for address in endpoint.get("addresses") or []})
    return [{"namespaceSelector": inside}, *({"ipBlock": {"cidr": single(address)}} for address in addresses)]


def single(address: str) -> str:
    """The range that is one address."""
    return f"{address}/{128 if ':' in address else 32}"


def target_ports(service: dict, slices: list[dict], port: int, protocol: str) -> list[int | str]:
    """The ports behind a Service's port: numbers, or the name that the pods give to theirs (pure).

    :raises Error: the Service has no such port.
    """
    spec = service["spec"]
    known = spec.get("ports") or []
    wanted = [item for item in known if item["port"] == port and item.get("protocol", "TCP") == protocol]
    if not wanted:
        label = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
        shown = ", ".join(f"{item['port']}/{item.get('protocol', 'TCP')}" for item in known) or "none"
        raise Error(f"Service {label} has no port {port}/{protocol}; its ports: {shown}")
    # A headless Service is only a name for its pods' addresses: nothing translates the port.
    if spec.get("clusterIP") == "None":
        return [port]
    # A slice carries the target port already resolved, and is all there is where no pod is selected.
    name = wanted[0].get("name") or ""
    resolved = {
        item["port"]
        for part in slices
        for item in part.get("ports") or []
        if (item.get("name") or "") == name and item.get("protocol", "TCP") == protocol and item.get("port")
    }
    return sorted(resolved) or [wanted[0].get("targetPort") or port]
