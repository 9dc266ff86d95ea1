"""Filters that derive the rules of an environment's NetworkPolicies."""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

SERVER_PORT = {"protocol": "TCP", "port": 5000}
OPENSHIFT_DNS = "dns-default.openshift-dns.svc"
INSTANCE = "app.kubernetes.io/instance"
NAMESPACE_NAME = "kubernetes.io/metadata.name"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def destinations(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What the pods of an environment connect to: name servers, PostgreSQL, and the object stores.

    Args:
        settings: `dns_service`, `database_host`, `database_port` and `endpoints`, the object stores' URLs.
    """
    result = [
        {"host": settings["dns_service"], "otherwise": OPENSHIFT_DNS, "port": 53, "protocols": ["UDP", "TCP"]},
        {"host": settings["database_host"], "port": int(settings["database_port"]), "protocols": ["TCP"]},
    ]
    for endpoint in dict.fromkeys(settings["endpoints"]):
        parts = urlsplit(endpoint)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        result.append({"host": parts.hostname, "port": port, "protocols": ["TCP"]})
    return result


def egress(
    ways: list[dict[str, Any]], *, environment: str, cidrs: list[str] | str, pod_cidrs: list[str] | str, extra: list
) -> list[dict[str, Any]]:
    """The rules for what the pods of an environment may connect to: each other's server, and the ways.

    Args:
        ways: Where connections end, as mlflow_cluster_info tells it.
        environment: The environment's name.
        cidrs: Where a host may be that has a name outside of the cluster: a policy knows no names but addresses.
        pod_cidrs: The ranges of the cluster's pods, of which none is meant by that.
        extra: More rules, as Kubernetes writes them.
    """
    rules = [{"to": [own(environment)], "ports": [SERVER_PORT]}]
    for way in ways:
        to = way["to"] if way["to"] is not None else outside(way["host"], cidrs, pod_cidrs)
        rules.append({"to": to, "ports": way["ports"]})
    return [*rules, *extra]


def ingress(
    namespaces: list[str] | str,
    *,
    environment: str,
    cidrs: list[str] | str,
    pod_cidrs: list[str] | str,
    node_pod_cidrs: list[str],
    extra_ports: list[int] | None = None,
) -> list[dict[str, Any]]:
    """The rule for who may connect to the server: the environment's own pods, namespaces, and addresses.

    Args:
        namespaces: Names of namespaces all of whose pods may.
        environment: The environment's name.
        cidrs: Addresses outside of the cluster that may; one within the pods' ranges is taken as it is.
        pod_cidrs: The ranges of the cluster's pods, which no wider range of addresses lets in.
        node_pod_cidrs: Each node's own part of them.
        extra_ports: More ports than the server's.
    """
    peers = [own(environment)]
    peers += [{"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: name}}} for name in texts(namespaces)]
    peers += [block(cidr, pod_cidrs) for cidr in texts(cidrs)]
    if texts(cidrs):
        # A node that hands a NodePort's request on to a pod of another node does it under its own address in the
        # pods' network: the first of its range with flannel, the second with a bridge.
        parts = [ipaddress.ip_network(cidr) for cidr in node_pod_cidrs]
        nodes = [address for part in parts for address in (part[0], part[1])]
        peers += [{"ipBlock": {"cidr": str(ipaddress.ip_network(address))}} for address in nodes]
    ports = [SERVER_PORT, *({"protocol": "TCP", "port": port} for port in extra_ports or [])]
    return [{"from": peers, "ports": ports}]


def named_policy(name: str, *, namespace: str) -> dict[str, Any]:
    """A policy by its name alone."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata}


def own(environment: str) -> dict[str, Any]:
    """The peer that is every pod of the environment."""
    return {"podSelector": {"matchLabels": {INSTANCE: environment}}}


def outside(host: str, cidrs: list[str] | str, pod_cidrs: list[str] | str) -> list[dict[str, Any]]:
    """The peers that a host outside of the cluster may be: its address, or any address for a name."""
    try:
        return [{"ipBlock": {"cidr": str(ipaddress.ip_network(host.strip("[]")))}}]
    except ValueError:
        return [block(cidr, pod_cidrs) for cidr in texts(cidrs)]


def block(cidr: str, pod_cidrs: list[str] | str) -> dict[str, Any]:
    """The peer of a range of addresses without those of pods in it."""
    network = ipaddress.ip_network(cidr)
    pods = ipaddress.collapse_addresses(
        part for part in map(ipaddress.ip_network, texts(pod_cidrs)) if part.version == network.version
    )
    without = [str(part) for part in pods if part != network and part.subnet_of(network)]
    return {"ipBlock": {"cidr": str(network), **({"except": without} if without else {})}}


def problems(settings: dict[str, Any]) -> list[str]:
    """Say which of the variables about addresses cannot work.

    Args:
        settings: `mlflow_environment_pod_cidrs`, `mlflow_environment_egress_cidrs`, `mlflow_server_allowed_cidrs`.
    """
    return [
        f"{name} has {cidr!r}; expected ranges of addresses, such as 10.244.0.0/16"
        for name, cidrs in settings.items()
        for cidr in texts(cidrs)
        if not is_range(cidr)
    ]


def is_range(cidr: Any) -> bool:
    """Whether a value is a range of addresses, such as 10.244.0.0/16."""
    try:
        return isinstance(cidr, str) and "/" in cidr and bool(ipaddress.ip_network(cidr))
    except ValueError:
        return False


def texts(values: list[str] | str) -> list[str]:
    """A list as it is, or as Ansible takes a text of the command line for one."""
    return [part for part in values.split(",") if part] if isinstance(values, str) else list(values)


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_network_destinations": destinations,
            "mlflow_network_egress": egress,
            "mlflow_network_ingress": ingress,
            "mlflow_network_policy": named_policy,
            "mlflow_network_problems": problems,
        }
