"""A real metrics-server, as a process of this machine that the embedded cluster's API server asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import KUBECONFIG, apply, wait_until
from processes import Processes, built, free_port

NAME, NAMESPACE, GROUP, VERSION = "metrics-server", "kube-system", "metrics.k8s.io", "v1beta1"
AUTHORITY = "/var/lib/ansible-mlflow/pki/ca.crt"


class MetricsServer:
    """It measures pods every 10 s, as often as it can."""

    def __init__(self, folder: Path) -> None:
        from kubernetes import client, config

        api = config.new_client_from_config(KUBECONFIG)
        self.core, self.objects = client.CoreV1Api(api), client.CustomObjectsApi(api)
        self.registrations = client.ApiregistrationV1Api(api)
        self.processes, port = Processes(folder), free_port()
        try:
            self._start(folder, port)
            self._register(port)
            wait_until(self._measures, 90, "metrics-server measures pods")
        except BaseException:
            self.end()
            raise

    def _start(self, folder: Path, port: int) -> None:
        files = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        self.processes.start(
            NAME,
            built(NAME) / NAME,
            *(f"--{name}={KUBECONFIG}" for name in files),
            *("--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={folder / 'certificates'}"),
            *("--kubelet-preferred-address-types=InternalIP", f"--kubelet-certificate-authority={AUTHORITY}"),
            *("--metric-resolution=10s", "--kubelet-request-timeout=5s"),
        )
        self.processes.wait_for(NAME, port)

    def _register(self, port: int) -> None:
        """Let the API server ask it. Its certificate is one that it has made for itself."""
        service = {"name": NAME, "namespace": NAMESPACE}
        apply(
            [
                {
                    "apiVersion": "v1",
                    "kind": "Service",
                    "metadata": service,
                    "spec": {"type": "ExternalName", "externalName": "localhost"},
                },
                {
                    "apiVersion": "apiregistration.k8s.io/v1",
                    "kind": "APIService",
                    "metadata": {"name": f"{VERSION}.{GROUP}"},
                    "spec": {
                        "group": GROUP,
                        "version": VERSION,
                        "service": {**service, "port": port},
                        "insecureSkipTLSVerify": True,
                        "groupPriorityMinimum": 100,
                        "versionPriority": 100,
                    },
                },
            ]
        )

    def _measures(self) -> bool:
        from kubernetes.client.exceptions import ApiException

        try:
            return bool(self.pods(NAMESPACE))
        except ApiException:
            return False

    def pods(self, namespace: str) -> list[dict[str, Any]]:
        """What pods of a namespace use."""
        return self.objects.list_namespaced_custom_object(GROUP, VERSION, namespace, "pods")["items"]

    def end(self) -> None:
        """Stop it, and leave nothing of it in the cluster."""
        from kubernetes.client.exceptions import ApiException

        self.processes.end()
        for remove, names in (
            (self.registrations.delete_api_service, (f"{VERSION}.{GROUP}",)),
            (self.core.delete_namespaced_service, (NAME, NAMESPACE)),
        ):
            try:
                remove(*names)
            except ApiException as error:
                if error.status != 404:
                    raise
