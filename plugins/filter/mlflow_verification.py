"""Filters of the role mlflow_verification: what its client reported, in words."""

from __future__ import annotations

import json
from typing import Any


def verification_report(output: str) -> dict[str, Any]:
    """Return the client's report.

    Args:
        output: What it wrote to standard output; the report is the last line.

    Returns:
        The report, or an empty dictionary if the last line is none.
    """
    lines = output.splitlines()
    try:
        report = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def verification_lines(report: dict[str, Any]) -> list[str]:
    """Return a line for each step of a report, with its seconds, and one for the versions."""
    steps = [f"ok  {step['name']} ({step['seconds']:.1f} s)" for step in report["steps"]]
    return [*steps, f"client {report['mlflow_version']}, server {report['server_version']}"]


def verification_problem(result: dict[str, Any]) -> str:
    """Return why a client that was run by ansible.builtin.command failed: its own words, else the command's."""
    told = verification_report(result.get("stdout", "")).get("error")
    if told:
        return told
    lines = result.get("stderr", "").strip().splitlines()
    return lines[-1] if lines else result.get("msg", "the client ended without a word")


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_verification_report": verification_report,
            "mlflow_verification_lines": verification_lines,
            "mlflow_verification_problem": verification_problem,
        }
