"""The way to a Service: which names are one, which pod is chosen, and a listener that closes cleanly."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from ansible.module_utils.ansible_mlflow import tunnel
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.kubernetes import UnreachableError
from ansible.module_utils.ansible_mlflow.tunnel import (
    NoServiceError,
    Tunnel,
    choose_endpoint,
    reach_service,
    service_of,
)
from hypothesis import given
from hypothesis import strategies as st

LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(LABEL, LABEL, st.sampled_from(["", ".", ".cluster.local", ".cluster.local.", ".example.com"]))
def test_a_services_name_is_taken_apart_whatever_the_clusters_domain(name, namespace, domain):
    assert service_of(f"{name}.{namespace}.svc{domain}") == (namespace, name)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "127.0.0.1",
        "postgres.example.com",
        "a.svc",
        "a.b.svcx",
        "a.b.c.svc.cluster.local",
        "-a.b.svc",
        ".svc",
    ],
)
def test_other_names_are_no_services(host):
    assert service_of(host) is None


def service(*ports: dict) -> dict:
    return {"metadata": {"namespace": "pgsql", "name": "pg"}, "spec": {"ports": list(ports)}}


def endpoints(ports: list[dict], *pods: tuple[str, bool | None]) -> dict:
    return {
        "ports": ports,
        "endpoints": [
            {"targetRef": {"kind": "Pod", "name": name}, "conditions": {} if ready is None else {"ready": ready}}
            for name, ready in pods
        ],
    }


@pytest.mark.parametrize(
    ("ports", "slices", "expected"),
    [
        ([{"port": 5434}], [endpoints([{"port": 5432}], ("pg-0", True))], ("pg-0", 5432)),
        ([{"port": 5434}], [endpoints([{"name": "", "port": 5432}], ("pg-0", None))], ("pg-0", 5432)),
        (
            [{"name": "console", "port": 9001}, {"name": "s3", "port": 5434, "targetPort": "s3"}],
            [endpoints([{"name": "console", "port": 1}, {"name": "s3", "port": 9000}], ("a", False), ("b", True))],
            ("b", 9000),
        ),
        (
            [{"port": 5434}],
            [endpoints([{"port": 5432}], ("old", False)), endpoints([{"port": 5433}], ("new", True))],
            ("new", 5433),
        ),
    ],
)
def test_a_ready_pod_and_its_own_port_are_chosen(ports, slices, expected):
    assert choose_endpoint(service(*ports), slices, 5434) == expected


@pytest.mark.parametrize(
    ("ports", "slices", "message"),
    [
        ([{"port": 5432}, {"port": 80}], [], "Service pgsql/pg has no port 5434; its ports: 5432, 80"),
        ([{"port": 5434}], [], "Service pgsql/pg has no ready pod behind port 5434"),
        ([{"port": 5434}], [endpoints([{"port": 5432}], ("pg-0", False))], "no ready pod"),
        ([{"port": 5434}], [{"ports": [{"port": 5432}], "endpoints": None}], "no ready pod"),
    ],
)
def test_a_service_that_leads_nowhere_is_named(ports, slices, message):
    with pytest.raises(Error, match=message):
        choose_endpoint(service(*ports), slices, 5434)


class Forward:
    """What the library returns: a socket, here to a server that sends back what it gets."""

    def __init__(self, echo: bool = True):
        self.remote, self.server = socket.socketpair()
        self.websocket = self
        if echo:
            threading.Thread(target=self._echo, daemon=True).start()

    def _echo(self):
        while data := self.server.recv(65536):
            self.server.sendall(data)

    def settimeout(self, _seconds):
        pass

    def socket(self, _port):
        return self.remote

    def error(self, _port):
        return None

    def close(self):
        self.remote.close()
        self.server.close()


class Cluster:
    server = "https://cluster"

    def __init__(self, forward=Forward, slices=None):
        self._forward, self.opened = forward, []
        self._slices = [endpoints([{"port": 5432}], ("pg-0", True))] if slices is None else slices

    def get(self, path):
        return service({"port": 5434}) if path == "/api/v1/namespaces/pgsql/services/pg" else None

    def items(self, _path, **_query):
        return self._slices

    def forward(self, namespace, pod, port):
        self.opened.append((namespace, pod, port))
        return self._forward()


def test_many_connections_carry_much_data_both_ways():
    cluster, data = Cluster(), bytes(range(256)) * 8000
    with reach_service("pg.pgsql.svc", 5434, "tunnel", cluster) as address:
        connections = [socket.create_connection(address, timeout=5) for _ in range(5)]
        for connection in connections:
            threading.Thread(target=connection.sendall, args=(data,), daemon=True).start()
        for connection in connections:
            received = b""
            while len(received) < len(data):
                received += connection.recv(65536)
            assert received == data
            connection.close()
    assert cluster.opened == [("pgsql", "pg-0", 5432)] * 5
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=1)


def test_a_connection_still_open_is_cut_when_the_tunnel_closes():
    with Tunnel(Cluster(lambda: Forward(echo=False)), "pgsql", "pg-0", 5432) as open_tunnel:
        connection = socket.create_connection(open_tunnel.address, timeout=5)
        connection.sendall(b"x")
        time.sleep(0.05)
    assert connection.recv(1) == b""


def test_the_librarys_thread_that_dies_ends_the_connection_instead_of_hanging_it():
    hook = threading.excepthook
    with Tunnel(Cluster(lambda: Forward(echo=False)), "pgsql", "pg-0", 5432) as open_tunnel:
        connection = socket.create_connection(open_tunnel.address, timeout=5)
        connection.sendall(b"x")
        time.sleep(0.05)

        def die():
            raise ConnectionResetError("reset by peer")

        threading.Thread(target=die, daemon=True).start()
        assert connection.recv(1) == b""
        assert "the connection to pod pg-0 was lost (reset by peer)" in open_tunnel.problem
    assert threading.excepthook is hook


def test_the_reason_of_the_tunnel_is_added_to_what_the_client_saw():
    def refuse():
        raise UnreachableError("pods pg-0 not found")

    def use(address):
        with socket.create_connection(address, timeout=5) as connection:
            if connection.recv(1) == b"":
                raise Error("it closed the connection", log="x")

    with (
        pytest.raises(Error, match="closed the connection; the tunnel to pgsql/pg: pods pg-0 not found") as caught,
        reach_service("pg.pgsql.svc", 5434, "tunnel", Cluster(refuse)) as address,
    ):
        use(address)
    assert caught.value.details == {"log": "x"}


@pytest.mark.parametrize(
    ("host", "reach", "message"),
    [
        ("other.pgsql.svc", "tunnel", "there is no Service other in namespace pgsql of https://cluster"),
        ("postgres.example.com", "tunnel", "expected <service>.<namespace>.svc"),
    ],
)
def test_a_tunnel_that_cannot_be_is_refused(host, reach, message):
    with pytest.raises(Error, match=message), reach_service(host, 5434, reach, Cluster()):
        pass


def test_a_service_without_ready_pods_is_its_own_kind_of_error():
    with pytest.raises(NoServiceError), reach_service("pg.pgsql.svc", 5434, "tunnel", Cluster(slices=[])):
        pass


@pytest.mark.parametrize(
    ("host", "reach", "answering", "direct"),
    [
        ("pg.pgsql.svc", "auto", True, True),
        ("pg.pgsql.svc", "auto", False, False),
        ("pg.pgsql.svc", "direct", False, True),
        ("pg.pgsql.svc", "tunnel", True, False),
        ("postgres.example.com", "auto", False, True),
    ],
)
def test_auto_takes_the_tunnel_only_to_a_service_that_does_not_answer(monkeypatch, host, reach, answering, direct):
    monkeypatch.setattr(tunnel, "answers", lambda *_args: answering)
    with reach_service(host, 5434, reach, Cluster()) as address:
        assert (address == (host, 5434)) is direct


def test_a_name_that_does_not_resolve_does_not_answer():
    assert not tunnel.answers("pg.pgsql.svc.invalid", 5434, timeout=1)


@pytest.mark.parametrize(
    ("host", "asked"),
    [("pg.pgsql.svc.cluster.local", "pg.pgsql.svc.cluster.local."), ("pg.pgsql.svc", "pg.pgsql.svc")],
)
def test_a_full_name_is_asked_for_without_search_domains(monkeypatch, host, asked):
    names = []

    def connect(address, timeout):
        names.append(address[0])
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    assert tunnel.answers(host, 5434)
    assert names == [asked]
