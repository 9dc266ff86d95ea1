"""NetworkPolicies: where a connection ends behind a Service, and which rules come of it."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.kubernetes import ApiError
from ansible.module_utils.ansible_mlflow.network import read_network, read_way
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

network = load_filter("mlflow_network")

SERVICE = "/api/v1/namespaces/pgsql/services/db"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/pgsql/endpointslices"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/mlflow-dev/networkpolicies"
INSIDE = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "pgsql"}}}
PODS = {**INSIDE, "podSelector": {"matchLabels": {"app": "db"}}}
OWN = {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "dev"}}}
SERVER = [{"protocol": "TCP", "port": 5000}]


class FakeApi:
    """A cluster with a few objects and lists; a path in ``forbidden`` is refused."""

    server = "https://cluster"

    def __init__(self, objects: dict | None = None, lists: dict | None = None, forbidden: tuple = ()):
        self.objects, self.lists, self.forbidden = objects or {}, lists or {}, forbidden

    def get(self, path: str) -> dict | None:
        return self.objects.get(path)

    def items(self, path: str, **_query: str) -> list[dict]:
        if path in self.forbidden:
            raise ApiError("forbidden", 403, "Forbidden")
        return self.lists.get(path, [])


def service(**spec: Any) -> dict:
    """A Service at port 5434 whose pods listen at another one."""
    ports = [{"name": "pg", "port": 5434, "targetPort": 5432}]
    metadata = {"namespace": "pgsql", "name": "db"}
    return {"metadata": metadata, "spec": {"ports": ports, "selector": {"app": "db"}, "clusterIP": "10.96.0.7", **spec}}


def endpoints(*addresses: str, port: int = 6432) -> dict:
    """An EndpointSlice."""
    return {"ports": [{"name": "pg", "port": port}], "endpoints": [{"addresses": [address]} for address in addresses]}


@pytest.mark.parametrize(
    ("found", "slices", "to", "ports"),
    [
        (service(), [], [PODS], [5432]),
        # What a name means is the pods' own matter, and may differ between them.
        (service(ports=[{"port": 5434, "targetPort": "postgres"}]), [], [PODS], ["postgres"]),
        (service(ports=[{"port": 5434}]), [], [PODS], [5434]),
        # Nothing translates the port of a headless Service.
        (service(clusterIP="None"), [], [PODS], [5434]),
        # Patroni and others write the endpoints themselves.
        (
            service(selector=None),
            [endpoints("10.244.0.9"), endpoints("fd00::9")],
            [INSIDE, {"ipBlock": {"cidr": "10.244.0.9/32"}}, {"ipBlock": {"cidr": "fd00::9/128"}}],
            [6432],
        ),
        (service(selector=None), [], [INSIDE], [5432]),
        (service(type="ExternalName", externalName="db.example.com", selector=None), [], None, [5434]),
    ],
    ids=["number", "name", "same port", "headless", "no selector", "no endpoint yet", "external name"],
)
def test_a_policy_sees_what_is_behind_a_service(found: dict, slices: list, to: list | None, ports: list) -> None:
    api = FakeApi({SERVICE: found}, {SLICES: slices})
    way = read_way(api, "db.pgsql.svc.cluster.local", 5434, ["TCP"])
    assert way["to"] == to
    assert way["ports"] == [{"protocol": "TCP", "port": port} for port in ports]


@pytest.mark.parametrize(
    ("objects", "protocol", "message"),
    [
        ({}, "TCP", "there is no Service db in namespace pgsql of https://cluster"),
        ({SERVICE: service(ports=[{"port": 1}])}, "TCP", "pgsql/db has no port 5434/TCP; its ports: 1/TCP"),
        ({SERVICE: service()}, "UDP", "has no port 5434/UDP"),
    ],
)
def test_a_service_that_cannot_be_meant_is_told(objects: dict, protocol: str, message: str) -> None:
    with pytest.raises(Error, match=message):
        read_way(FakeApi(objects), "db.pgsql.svc", 5434, [protocol])


def test_a_host_that_is_no_service_is_outside() -> None:
    way = read_way(FakeApi(), "db.example.com", 5432, ["TCP"])
    assert way == {"host": "db.example.com", "to": None, "ports": [{"protocol": "TCP", "port": 5432}]}


def test_what_a_user_may_not_list_is_unknown() -> None:
    destination = {"host": "db.pgsql.svc", "port": 5434, "protocols": ["TCP"]}
    nodes = [{"spec": {"podCIDRs": ["10.244.1.0/24"]}}, {"spec": {}}]
    lists = {"/api/v1/nodes": nodes, POLICIES: [{"metadata": {"name": "mlflow-dev"}}]}
    found = read_network(FakeApi({SERVICE: service()}, lists), "mlflow-dev", "a=b", [destination])
    assert (found["pod_cidrs"], found["policies"]) == (["10.244.1.0/24"], ["mlflow-dev"])
    narrow = FakeApi({SERVICE: service()}, lists, ("/api/v1/nodes", POLICIES))
    found = read_network(narrow, "mlflow-dev", "a=b", [destination])
    assert (found["pod_cidrs"], found["policies"]) == ([], [])


def test_without_policies_the_cluster_is_asked_for_old_ones_alone() -> None:
    api = FakeApi(lists={POLICIES: [{"metadata": {"name": "mlflow-dev"}}]}, forbidden=("/api/v1/nodes",))
    assert read_network(api, "mlflow-dev", "a=b", []) == {"ways": [], "pod_cidrs": [], "policies": ["mlflow-dev"]}


def test_where_the_name_servers_service_is_not_there_openshifts_is_taken() -> None:
    ports = [{"port": 53, "protocol": "UDP", "targetPort": "dns"}]
    service = {"metadata": {"namespace": "openshift-dns", "name": "dns-default"}, "spec": {"ports": ports}}
    service["spec"]["selector"] = {"dns": "default"}
    [asked] = network.destinations(
        {"dns_service": "kube-dns.kube-system.svc", "database_host": "db", "database_port": 5432, "endpoints": []}
    )[:1]
    api = FakeApi({"/api/v1/namespaces/openshift-dns/services/dns-default": service})
    found = read_way(api, **{**asked, "protocols": ["UDP"]})
    assert (found["host"], found["ports"]) == (asked["otherwise"], [{"protocol": "UDP", "port": "dns"}])
    with pytest.raises(Error, match="there is no Service kube-dns in namespace kube-system"):
        read_way(FakeApi({}), **asked)


def test_destinations_are_what_the_settings_name_each_store_once() -> None:
    settings = {"dns_service": "dns", "database_host": "db", "database_port": "5434"}
    found = network.destinations({**settings, "endpoints": ["http://s3:9000", "http://s3:9000", "https://backups"]})
    assert [(item["host"], item["port"], item["protocols"]) for item in found] == [
        ("dns", 53, ["UDP", "TCP"]),
        ("db", 5434, ["TCP"]),
        ("s3", 9000, ["TCP"]),
        ("backups", 443, ["TCP"]),
    ]


def block(cidr: str, *without: str) -> dict:
    return {"ipBlock": {"cidr": cidr, **({"except": list(without)} if without else {})}}


@pytest.mark.parametrize(
    ("host", "cidrs", "pods", "to"),
    [
        ("192.0.2.7", ["0.0.0.0/0"], ["10.244.0.0/16"], [block("192.0.2.7/32")]),
        ("[2001:db8::7]", ["0.0.0.0/0"], [], [block("2001:db8::7/128")]),
        # No address is known of a name, so it is every address but a pod's.
        ("db.example.com", ["0.0.0.0/0"], ["10.244.0.0/16"], [block("0.0.0.0/0", "10.244.0.0/16")]),
        (
            "db.example.com",
            ["0.0.0.0/0", "::/0"],
            ["10.244.0.0/17", "10.244.128.0/17", "fd00:1::/64"],
            [block("0.0.0.0/0", "10.244.0.0/16"), block("::/0", "fd00:1::/64")],
        ),
        ("db.example.com", "192.0.2.0/24,198.51.100.0/24", [], [block("192.0.2.0/24"), block("198.51.100.0/24")]),
    ],
)
def test_a_host_outside_is_its_address_or_any_but_a_pods(host: str, cidrs: Any, pods: list, to: list) -> None:
    way = {"host": host, "to": None, "ports": [{"protocol": "TCP", "port": 5432}]}
    rules = network.egress([way], environment="dev", cidrs=cidrs, pod_cidrs=pods, extra=[])
    assert rules == [{"to": [OWN], "ports": SERVER}, {"to": to, "ports": way["ports"]}]


def test_nothing_more_may_be_reached_than_is_said() -> None:
    more = {"to": [block("169.254.20.10/32")], "ports": [{"protocol": "UDP", "port": 53}]}
    way = {"host": "db.pgsql.svc", "to": [PODS], "ports": [{"protocol": "TCP", "port": 5432}]}
    rules = network.egress([way], environment="dev", cidrs=["0.0.0.0/0"], pod_cidrs=["10.244.0.0/16"], extra=[more])
    assert rules == [{"to": [OWN], "ports": SERVER}, {"to": [PODS], "ports": way["ports"]}, more]


@pytest.mark.parametrize(
    ("namespaces", "cidrs", "pods", "nodes", "peers"),
    [
        ([], [], ["10.244.0.0/16"], ["10.244.1.0/24"], []),
        (
            ["ingress"],
            [],
            ["10.244.0.0/16"],
            [],
            [{"namespaceSelector": {"matchLabels": {network.NAMESPACE_NAME: "ingress"}}}],
        ),
        ([], ["0.0.0.0/0"], ["10.244.0.0/16"], [], [block("0.0.0.0/0", "10.244.0.0/16")]),
        # A node hands on a request for a pod of another node under an address of the pods' network.
        (
            [],
            ["0.0.0.0/0"],
            ["10.244.0.0/24", "10.244.1.0/24"],
            ["10.244.1.0/24"],
            [block("0.0.0.0/0", "10.244.0.0/23"), block("10.244.1.0/32"), block("10.244.1.1/32")],
        ),
        ([], ["192.0.2.0/24"], ["10.244.0.0/16"], [], [block("192.0.2.0/24")]),
        # What is given by itself is meant.
        (
            [],
            ["10.244.0.0/16", "10.244.3.0/32"],
            ["10.244.0.0/16"],
            [],
            [block("10.244.0.0/16"), block("10.244.3.0/32")],
        ),
    ],
)
def test_who_may_connect(namespaces: list, cidrs: list, pods: list, nodes: list, peers: list) -> None:
    [rule] = network.ingress(namespaces, environment="dev", cidrs=cidrs, pod_cidrs=pods, node_pod_cidrs=nodes)
    assert rule == {"from": [OWN, *peers], "ports": SERVER}


def test_who_may_connect_may_read_metrics_too_where_there_are_any() -> None:
    options = {"environment": "dev", "cidrs": [], "pod_cidrs": [], "node_pod_cidrs": []}
    [rule] = network.ingress(["monitoring"], **options, extra_ports=[9464])
    assert rule["ports"] == [*SERVER, {"protocol": "TCP", "port": 9464}]


CIDRS = st.builds(
    lambda number, length: ipaddress.ip_network((number, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)


@given(CIDRS, st.lists(CIDRS, max_size=5))
def test_an_exception_is_always_within_its_range_as_the_api_server_demands(cidr: Any, pods: list) -> None:
    peer = network.block(str(cidr), [str(part) for part in pods])["ipBlock"]
    for part in peer.get("except", []):
        assert ipaddress.ip_network(part) != cidr
        assert ipaddress.ip_network(part).subnet_of(cidr)


# docs/failures.md shows what is said of each: scripts/failures.py.
BAD_RANGES = ["10.244.0.0", "10.244.0.1/16", "pods/16", "10.244.0.0/33", 10, None]


@pytest.mark.parametrize("value", BAD_RANGES)
def test_what_is_no_range_of_addresses_is_refused(value: Any) -> None:
    assert network.problems({"mlflow_environment_pod_cidrs": ["10.244.0.0/16", "fd00::/64"]}) == []
    [problem] = network.problems({"mlflow_environment_pod_cidrs": [value]})
    assert problem == (
        f"mlflow_environment_pod_cidrs has {value!r}; expected ranges of addresses, such as 10.244.0.0/16"
    )
