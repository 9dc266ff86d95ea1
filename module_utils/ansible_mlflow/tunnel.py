"""Reach a Service of the cluster from anywhere: directly if its name works here, else through the API server."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

from .errors import Error
from .kubernetes import Cluster

REACH_ARGUMENT = {"type": "str", "choices": ["auto", "direct", "tunnel"], "default": "auto"}
DIRECT_TIMEOUT = 3
BLOCK = 256 * 1024


class NoServiceError(Error):
    """The Service does not exist, or nothing behind it is ready."""


_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_SERVICE = re.compile(rf"^(?P<name>{_LABEL})\.(?P<namespace>{_LABEL})\.svc(?:\.|$)")


def service_of(host: str) -> tuple[str, str] | None:
    """(namespace, name) of the Service that ``host`` names, or None when it is not a Service's name."""
    match = _SERVICE.match(host.lower())
    return (match["namespace"], match["name"]) if match else None


def answers(host: str, port: int, timeout: float = DIRECT_TIMEOUT) -> bool:
    """Whether a TCP connection to the name can be made from here within ``timeout`` seconds."""
    outcome: list[bool] = []

    def attempt():
        try:
            # A search domain with a wildcard answers for every relative name, so a full name is asked as one.
            name = host if host.endswith((".svc", ".")) else host + "."
            with socket.create_connection((name, port), timeout=timeout):
                outcome.append(True)
        except OSError:
            pass

    # The resolver takes no timeout and can hang for half a minute, so it is left behind in a thread of its own.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(outcome)


@contextlib.contextmanager
def reach_service(host: str, port: int, reach: str, cluster: Cluster):
    """Yield the (host, port) at which ``host:port`` can be connected to.

    :param reach: ``direct`` uses the name as it is, ``tunnel`` goes through the API server, ``auto`` tries the name of
        a Service directly and else takes the tunnel; other names are always direct.
    :raises NoServiceError: the Service does not exist or has no ready pod. :raises Error: the name is no Service's.
    """
    service = service_of(host)
    if reach == "direct" or (reach == "auto" and (service is None or answers(host, port))):
        yield host, port
        return
    if service is None:
        raise Error(f"{host} cannot be reached through a tunnel: expected <service>.<namespace>.svc[.cluster.local]")
    namespace, name = service
    pod, pod_port = find_endpoint(cluster, namespace, name, port)
    with Tunnel(cluster, namespace, pod, pod_port) as tunnel:
        try:
            yield tunnel.address
        except Error as error:
            # What the client saw is only a closed connection; the tunnel knows why.
            if tunnel.problem:
                raise Error(f"{error}; the tunnel to {namespace}/{name}: {tunnel.problem}", **error.details) from None
            raise


def find_endpoint(cluster: Cluster, namespace: str, name: str, port: int) -> tuple[str, int]:
    """(pod, port of the pod) behind a Service's port.

    :raises Error: no such Service, no such port, or no ready pod behind it.
    """
    service = cluster.get(f"/api/v1/namespaces/{namespace}/services/{name}")
    if service is None:
        raise NoServiceError(f"there is no Service {name} in namespace {namespace} of {cluster.server}")
    slices = cluster.items(
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        labelSelector=f"kubernetes.io/service-name={name}",
    )
    return choose_endpoint(service, slices, port)


def choose_endpoint(service: dict, slices: list[dict], port: int) -> tuple[str, int]:
    """Pick a ready pod and its port from a Service and its EndpointSlices (pure)."""
    label = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
    ports = service["spec"].get("ports") or []
    wanted = [entry for entry in ports if entry["port"] == port]
    if not wanted:
        known = ", ".join(str(entry["port"]) for entry in ports) or "none"
        raise Error(f"Service {label} has no port {port}; its ports: {known}")
    # A slice names the Service's port and carries the target port already resolved, whether it was a number or a name.
    port_name = wanted[0].get("name") or ""
    for part in slices:
        target = [entry.get("port") for entry in part.get("ports") or [] if (entry.get("name") or "") == port_name]
        for endpoint in part.get("endpoints") or []:
            reference = endpoint.get("targetRef") or {}
            ready = (endpoint.get("conditions") or {}).get("ready") is not False
            if ready and reference.get("kind") == "Pod" and target and target[0]:
                return reference["name"], target[0]
    raise NoServiceError(f"Service {label} has no ready pod behind port {port}")


class Tunnel:
    """A listener on 127.0.0.1 whose connections end at a pod's port; closed with the ``with`` block."""

    def __init__(self, cluster: Cluster, namespace: str, pod: str, port: int):
        self._cluster, self._namespace, self._pod, self._port = cluster, namespace, pod, port
        self._listener: socket.socket | None = None
        self._closing = threading.Event()
        self._open: set = set()
        self.problem = ""

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) to connect to."""
        return self._listener.getsockname()

    def __enter__(self) -> Tunnel:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._hook, threading.excepthook = threading.excepthook, self._note
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exc) -> None:
        self._closing.set()
        # shutdown() wakes the thread in accept(), which close() alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()
        threading.excepthook = self._hook

    def _note(self, args) -> None:
        # The library's own thread dies with a traceback when the pod or the API server goes away.
        self.problem = self.problem or f"the connection to pod {self._pod} was lost ({args.exc_value})"
        # It leaves its socket open, and whoever reads from that would wait for ever.
        self._hang_up()

    def _hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                local, _peer = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(local,), daemon=True).start()

    def _serve(self, local: socket.socket) -> None:
        with local:
            self._open.add(local)
            try:
                forward = self._cluster.forward(self._namespace, self._pod, self._port)
            except Error as error:
                self.problem = str(error)
                return
            finally:
                self._open.discard(local)
            # Connecting had a timeout; an open connection may be silent as long as a query takes.
            forward.websocket.settimeout(None)
            remote = forward.socket(self._port)
            self._open.update((local, remote))
            try:
                pump(local, remote)
            finally:
                self._open.difference_update((local, remote))
                with contextlib.suppress(OSError):
                    forward.close()
                if forward.error(self._port):
                    self.problem = forward.error(self._port)


def pump(left, right) -> None:
    """Carry bytes both ways until either side closes; one thread a direction, so that neither waits for the other."""

    def carry(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(BLOCK):
                target.sendall(data)
        for end in (left, right):
            # Wakes the other direction; what was sent already still arrives.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    upward = threading.Thread(target=carry, args=(left, right), daemon=True)
    upward.start()
    carry(right, left)
    upward.join()
