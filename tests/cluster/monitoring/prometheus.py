"""A real Prometheus, as a process of this machine that finds its targets through the cluster's API."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import urllib3
from argocd import Processes, built, free_port
from conftest import KUBECONFIG, Cluster

MONITORING = "monitoring.coreos.com"


def scrape_configuration(monitor: dict[str, Any], cluster: Cluster) -> list[dict[str, Any]]:
    """What the Prometheus operator would make of a ServiceMonitor, of the fields that ours has."""
    found, namespace = [], monitor["metadata"]["namespace"]
    for number, endpoint in enumerate(monitor["spec"]["endpoints"]):
        login = {
            name: cluster.secret(namespace, reference["name"])[reference["key"]]
            for name, reference in endpoint["basicAuth"].items()
        }
        keep = [
            {
                "action": "keep",
                "source_labels": ["__meta_kubernetes_service_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)],
                "regex": value,
            }
            for name, value in monitor["spec"]["selector"]["matchLabels"].items()
        ]
        keep.append(
            {
                "action": "keep",
                "source_labels": ["__meta_kubernetes_endpoint_port_name"],
                "regex": endpoint["port"],
            }
        )
        labels = {"namespace": "namespace", "service": "service_name", "pod": "pod_name", "job": "service_name"}
        named = [
            {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": label}
            for label, source in labels.items()
        ]
        found.append(
            {
                "job_name": f"serviceMonitor/{namespace}/{monitor['metadata']['name']}/{number}",
                "metrics_path": endpoint["path"],
                "scrape_interval": endpoint["interval"],
                "scrape_timeout": endpoint["scrapeTimeout"],
                "basic_auth": login,
                "kubernetes_sd_configs": [
                    {
                        "role": "endpoints",
                        "kubeconfig_file": KUBECONFIG,
                        "namespaces": {"names": monitor["spec"]["namespaceSelector"]["matchNames"]},
                    }
                ],
                "relabel_configs": keep + named,
            }
        )
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
        scrapes = [
            scrape | {"scrape_interval": "2s", "scrape_timeout": "2s"}
            for scrape in scrape_configuration(monitor, cluster)
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
