"""Filters that write what Grafana shows."""

from __future__ import annotations

from typing import Any

WIDTH, HEIGHT = 12, 8
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard_panels(panels: list[dict[str, Any]], selector: str) -> list[dict[str, Any]]:
    """Grafana's panels, two beside each other.

    Args:
        panels: Each a `title`, `queries` of `legend` and `expression`, and perhaps a `unit` of Grafana's.
        selector: What stands for OURS in an expression.
    """
    return [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel["title"],
            "datasource": DATASOURCE,
            "gridPos": {"x": number % 2 * WIDTH, "y": number // 2 * HEIGHT, "w": WIDTH, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.get("unit", "none"), "min": 0}, "overrides": []},
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "datasource": DATASOURCE,
                    "expr": query["expression"].replace("OURS", selector),
                    "legendFormat": query["legend"],
                }
                for place, query in enumerate(panel["queries"])
            ],
        }
        for number, panel in enumerate(panels)
    ]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"mlflow_dashboard_panels": dashboard_panels}
