"""When each alert has to fire, for promtool: the series that Prometheus would have, a value a minute."""

from __future__ import annotations

import re
from typing import Any

OURS = 'namespace="mlflow-dev",job="mlflow-metrics-dev"'
REQUESTS = "mlflow_http_request_total{" + OURS + ',pod="a",method="GET",status='
BUCKETS = "mlflow_http_request_duration_seconds_bucket{" + OURS + ',pod="a",status="200",le='
FINE = {
    **{
        f'mlflow_check_success{{{OURS},check="{check}"}}': "1x180"
        for check in ("request", "schema", "connections", "bucket", "backups")
    },
    f'up{{{OURS},pod="a"}}': "1x180",
    REQUESTS + '"200"}': "0+97x180",
    REQUESTS + '"503"}': "0+3x180",
    BUCKETS + '"1.0"}': "0+96x180",
    BUCKETS + '"2.5"}': "0+96x180",
    BUCKETS + '"5.0"}': "0+100x180",
    BUCKETS + '"+Inf"}': "0+100x180",
    f'mlflow_schema_current{{{OURS},store="tracking"}}': "1x180",
    f'mlflow_schema_current{{{OURS},store="auth"}}': "1x180",
    f'mlflow_database_connections_used_ratio{{{OURS},of="server"}}': "0.85x180",
    f"mlflow_backup_last_timestamp_seconds{{{OURS}}}": "-590000x180",
}
# What is different, the minutes after which it is told, and the labels that the alert has more than all have.
FAULTS: dict[str, tuple[dict[str, str], int, dict[str, str]]] = {
    "MlflowDown": ({f'mlflow_check_success{{{OURS},check="request"}}': "0x180"}, 2, {}),
    "MlflowUnwatched": ({f'up{{{OURS},pod="b"}}': "0x180"}, 10, {}),
    "MlflowErrors": ({REQUESTS + '"503"}': "0+6x180"}, 5, {}),
    "MlflowSlow": ({BUCKETS + '"1.0"}': "0+90x180", BUCKETS + '"2.5"}': "0+94x180"}, 10, {}),
    "MlflowSchemaMismatch": ({f'mlflow_schema_current{{{OURS},store="auth"}}': "0x180"}, 10, {"store": "auth"}),
    "MlflowDatabaseConnections": (
        {f'mlflow_database_connections_used_ratio{{{OURS},of="server"}}': "0.86x180"},
        5,
        {"of": "server"},
    ),
    "MlflowBucketUnreachable": ({f'mlflow_check_success{{{OURS},check="bucket"}}': "0x180"}, 5, {}),
    "MlflowBackupOld": ({f"mlflow_backup_last_timestamp_seconds{{{OURS}}}": "-605000x180"}, 60, {}),
}
# Counters have a rate only from the second value on.
COUNTED = {"MlflowErrors", "MlflowSlow"}


def rule_tests(rules: list[dict[str, Any]], rule_file: str) -> dict[str, Any]:
    """promtool's tests: nothing fires while all is fine; each fault is told in its time, not before, and alone."""
    tests = [case(FINE, {minutes: [] for minutes in (1, 30, 150)}, rules)]
    for name, (change, minutes, labels) in FAULTS.items():
        told = minutes + 2 * (name in COUNTED)
        rule = next(rule for rule in rules if rule["alert"] == name)
        told_of = {
            "exp_labels": rule["labels"] | labels,
            "exp_annotations": {key: filled(text, labels) for key, text in rule["annotations"].items()},
        }
        tests.append(case(FINE | change, {minutes - 1: [], told: [(name, told_of)]}, rules))
    absent = {series: values for series, values in FINE.items() if "check_success" not in series}
    rule = next(rule for rule in rules if rule["alert"] == "MlflowUnwatched")
    nobody = {"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]}
    tests.append(case(absent, {9: [], 10: [("MlflowUnwatched", nobody)]}, rules))
    return {"rule_files": [rule_file], "evaluation_interval": "1m", "tests": tests}


def case(series: dict[str, str], told: dict[int, list], rules: list[dict[str, Any]]) -> dict[str, Any]:
    """One of promtool's tests; at each minute, every alert that is not told must not fire."""
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": rule["alert"],
                "exp_alerts": [alert for name, alert in alerts if name == rule["alert"]],
            }
            for minute, alerts in told.items()
            for rule in rules
        ],
    }


def filled(text: str, labels: dict[str, str]) -> str:
    """A text with the alert's labels in it, as Prometheus writes them."""
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
