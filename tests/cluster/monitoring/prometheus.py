"""A real Prometheus, as a process of this machine."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import urllib3
from conftest import Cluster
from processes import Processes, built, free_port

MONITORING = "monitoring.coreos.com"


def scrape_configuration(monitor: dict[str, Any], cluster: Cluster, targets: Path) -> list[dict[str, Any]]:
    """What the Prometheus operator would make of a ServiceMonitor, of the fields that ours has.

    Debian's Prometheus is built without discovery in Kubernetes, so that it reads the targets from a file.
    """
    [endpoint] = monitor["spec"]["endpoints"]
    name, namespace = monitor["metadata"]["name"], monitor["metadata"]["namespace"]
    login = {
        field: cluster.secret(namespace, reference["name"])[reference["key"]]
        for field, reference in endpoint["basicAuth"].items()
    }
    return [
        {
            "job_name": f"serviceMonitor/{namespace}/{name}/0",
            "metrics_path": endpoint["path"],
            "scrape_interval": endpoint["interval"],
            "scrape_timeout": endpoint["scrapeTimeout"],
            "basic_auth": login,
            "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
        }
    ]


def discovered(monitor: dict[str, Any], cluster: Cluster) -> list[dict[str, Any]]:
    """The targets that Prometheus would find for a ServiceMonitor: endpoints of the Services, by the port's name."""
    from kubernetes import client

    spec, slices, found = monitor["spec"], client.DiscoveryV1Api(cluster.api), []
    selector = ",".join(f"{label}={value}" for label, value in spec["selector"]["matchLabels"].items())
    for namespace in spec["namespaceSelector"]["matchNames"]:
        for service in cluster.core.list_namespaced_service(namespace, label_selector=selector).items:
            name = service.metadata.name
            listed = slices.list_namespaced_endpoint_slice(
                namespace, label_selector=f"kubernetes.io/service-name={name}"
            )
            found += [
                {
                    "targets": [f"{endpoint.addresses[0]}:{port.port}"],
                    "labels": {"namespace": namespace, "service": name, "job": name, "pod": endpoint.target_ref.name},
                }
                for part in listed.items
                for port in part.ports or []
                if port.name == spec["endpoints"][0]["port"]
                for endpoint in part.endpoints or []
            ]
    return found


def hasty(rules: dict[str, Any]) -> dict[str, Any]:
    """A copy of the rules that waits for nothing and looks at the last 20 seconds: their expressions, made quick."""
    copy = json.loads(json.dumps(rules))
    for rule in copy["groups"][0]["rules"]:
        rule["for"], rule["expr"] = "0s", rule["expr"].replace("[5m]", "[20s]")
    return copy


class Prometheus:
    """The process; what it has found can be asked for."""

    def __init__(self, folder: Path, monitor: dict[str, Any], rules: dict[str, Any], cluster: Cluster) -> None:
        self.targets_file, self.ended = folder / "targets.json", threading.Event()
        self.targets_file.write_text("[]")
        scrapes = [
            scrape | {"scrape_interval": "3s", "scrape_timeout": "3s"}
            for scrape in scrape_configuration(monitor, cluster, self.targets_file)
        ]
        (folder / "rules.yml").write_text(json.dumps(rules))
        configuration = {
            "global": {"evaluation_interval": "1s"},
            "rule_files": [str(folder / "rules.yml")],
            "scrape_configs": scrapes,
        }
        (folder / "prometheus.yml").write_text(json.dumps(configuration))
        self.port, self.processes = free_port(), Processes(folder)
        self.processes.start(
            "prometheus",
            built("prometheus") / "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )
        self.processes.wait_for("prometheus", self.port)
        self.discovery = threading.Thread(target=self._discover, args=(monitor, cluster))
        self.discovery.start()

    def _discover(self, monitor: dict[str, Any], cluster: Cluster) -> None:
        while not self.ended.wait(1):
            text = json.dumps(discovered(monitor, cluster))
            if text != self.targets_file.read_text():
                fresh = self.targets_file.with_suffix(".new")
                fresh.write_text(text)
                fresh.replace(self.targets_file)

    def end(self) -> None:
        """End it."""
        self.ended.set()
        self.discovery.join()
        self.processes.end()

    def ask(self, what: str, **fields: str) -> Any:
        """An answer of its API."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}"
        answer = urllib3.request("GET", url, fields=fields, timeout=10, retries=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def targets(self) -> dict[str, str]:
        """The health of each target, by its pod."""
        return {target["labels"]["pod"]: target["health"] for target in self.ask("targets")["activeTargets"]}

    def value(self, query: str) -> float | None:
        """The value of a query with one answer at most; None for none."""
        found = self.ask("query", query=query)["result"]
        assert len(found) < 2, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        alerts = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


def promtool(folder: Path, *arguments: str) -> str:
    """Run promtool; what it says, if it finds nothing wrong."""
    command = [built("prometheus") / "promtool", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
