"""A real Contour and the Envoy that it configures, as processes of this machine in front of the embedded cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from conftest import KUBECONFIG, ROOT, apply, wait_until
from processes import Processes, built, free_port

NAMESPACE = "projectcontour"
GROUPS = ("projectcontour.io", "gateway.networking.k8s.io", "gateway.networking.x-k8s.io")
# What the variable mlflow_server_gateway names.
GATEWAY = {"namespace": NAMESPACE, "name": "company", "sectionName": "https", "redirectSectionName": "http"}
SECRET = "company-tls"
# How much higher than a listener's port is the one that Contour lets Envoy listen at.
OFFSET = 8000


class Contour:
    """An Ingress controller of the class contour, and a Gateway with a listener for HTTP and one for HTTPS.

    Envoy runs on the node, so that it reaches the pods as a controller on the host's network does.
    """

    def __init__(self, folder: Path, key: str, certificate: str) -> None:
        from kubernetes import client, config

        self.api = config.new_client_from_config(KUBECONFIG)
        self.core = client.CoreV1Api(self.api)
        self.definitions = client.ApiextensionsV1Api(self.api)
        self.folder, self.processes = folder, Processes(folder)
        self.http, self.https = free_port(), free_port()
        try:
            self._remove()
            self._install(key, certificate)
            self._start()
        except BaseException:
            self.end()
            raise

    def _install(self, key: str, certificate: str) -> None:
        """The kinds of objects, and the Gateway."""
        files = sorted((built("contour") / "crds").glob("*.yaml"))
        kinds = [item for file in files for item in yaml.safe_load_all(file.read_text())]
        apply([item for item in kinds if item and item["kind"] == "CustomResourceDefinition"])

        def known() -> bool:
            found = [item for item in self.definitions.list_custom_resource_definition().items if ours(item)]
            return all(
                any(state.type == "Established" and state.status == "True" for state in item.status.conditions or [])
                for item in found
            )

        wait_until(known, 60, "the API server knows the new kinds")
        where = {"name": SECRET, "namespace": NAMESPACE}
        listener = {"allowedRoutes": {"namespaces": {"from": "All"}}}
        tls = {"mode": "Terminate", "certificateRefs": [{"name": SECRET}]}
        apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "type": "kubernetes.io/tls",
                    "metadata": where,
                    "stringData": {"tls.key": key, "tls.crt": certificate},
                },
                {
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "GatewayClass",
                    "metadata": {"name": "contour"},
                    "spec": {"controllerName": "projectcontour.io/gateway-controller"},
                },
                {
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "metadata": {"name": GATEWAY["name"], "namespace": NAMESPACE},
                    "spec": {
                        "gatewayClassName": "contour",
                        "listeners": [
                            {"name": "http", "protocol": "HTTP", "port": self.http - OFFSET, **listener},
                            {"name": "https", "protocol": "HTTPS", "port": self.https - OFFSET, "tls": tls, **listener},
                        ],
                    },
                },
            ]
        )

    def _start(self) -> None:
        """Start Contour and, once it answers, Envoy."""
        ports = {name: str(free_port()) for name in ("xds", "metrics", "health", "stats", "debug")}
        reference = {"name": GATEWAY["name"], "namespace": NAMESPACE}
        settings, bootstrap = self.folder / "contour.yaml", self.folder / "envoy.json"
        settings.write_text(yaml.safe_dump({"gateway": {"gatewayRef": reference}}))
        contour = built("contour") / "contour"
        self.processes.start(
            "contour",
            *(contour, "serve", "--no-incluster", f"--kubeconfig={KUBECONFIG}", f"--config-path={settings}"),
            *("--insecure", "--disable-leader-election", "--ingress-class-name=contour"),
            *("--xds-address=127.0.0.1", f"--xds-port={ports['xds']}"),
            *("--http-address=127.0.0.1", f"--http-port={ports['metrics']}"),
            *("--health-address=127.0.0.1", f"--health-port={ports['health']}"),
            *("--stats-address=127.0.0.1", f"--stats-port={ports['stats']}"),
            *("--debug-http-address=127.0.0.1", f"--debug-http-port={ports['debug']}"),
            *("--envoy-service-http-address=127.0.0.1", "--envoy-service-https-address=127.0.0.1"),
        )
        self.processes.wait_for("contour", int(ports["xds"]))
        self.processes.start(
            "bootstrap",
            *(contour, "bootstrap", bootstrap, "--xds-address=127.0.0.1", f"--xds-port={ports['xds']}"),
            f"--admin-address={self.folder / 'admin.sock'}",
        )
        assert self.processes.running.pop("bootstrap").wait(timeout=30) == 0
        self.processes.start(
            "envoy",
            *(ROOT / ".cache/servers/bin/envoy", "--config-path", bootstrap, "--concurrency", "1"),
            *(
                "--log-level",
                "warning",
                "--use-dynamic-base-id",
                "--service-node",
                "envoy",
                "--service-cluster",
                "envoy",
            ),
        )

    def wait_for(self, port: int) -> None:
        """Wait until Envoy accepts connections: without anything to serve, it listens nowhere."""
        self.processes.wait_for("envoy", port)

    def end(self) -> None:
        """Stop both, and leave nothing of them in the cluster."""
        self.processes.end()
        self._remove()

    def _remove(self) -> None:
        """Take away what this class puts into the cluster, and every object of its kinds with it."""

        def present() -> list[Any]:
            return [item for item in self.definitions.list_custom_resource_definition().items if ours(item)]

        def namespaces() -> list[str]:
            return [item.metadata.name for item in self.core.list_namespace().items if item.metadata.name == NAMESPACE]

        for definition in present():
            self.definitions.delete_custom_resource_definition(definition.metadata.name)
        for name in namespaces():
            self.core.delete_namespace(name)
        wait_until(lambda: not present() and not namespaces(), 60, "Contour's objects go")


def ours(definition: Any) -> bool:
    """Whether a kind of objects is one that Contour brings along."""
    return definition.spec.group in GROUPS
