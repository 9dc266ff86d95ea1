"""Filters of the role mlflow_status: what was found of environments, for people, programs and browsers."""

from __future__ import annotations

import os
import textwrap
from datetime import UTC, datetime
from typing import Any

PARTS = {
    "release": "Release",
    "schema": "Schema",
    "replicas": "Replicas",
    "database": "Database",
    "bucket": "Bucket",
    "backup": "Last backup",
    "certificate": "Certificate",
    "drift": "Drift",
    "unfinished": "Unfinished",
}
# What a cell says of a part that could not be looked at.
UNKNOWN = "unknown"
ABSENT = "\N{EN DASH}"
# The text's table: columns of environments beside each other, and their width.
LABEL_WIDTH = max(map(len, PARTS.values()))
BESIDE = 3
CELL_WIDTH = 30

Row = dict[str, Any]


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1000:
        return f"{count} bytes"
    power = 1
    while count >= 999.5 * 1000**power and power < 4:
        power += 1
    return f"{count / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def hours_text(hours: float) -> str:
    """An age for people."""
    if hours < 1.5:
        return f"{hours * 60:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


def plural(count: int, one: str) -> str:
    """A count with its word."""
    return f"{count} {one}" if count == 1 else f"{count:,} {one}s"


def cell_text(name: str, part: dict[str, Any]) -> str:
    """What was found of a part, in a few words; the problems are told elsewhere."""
    if set(part) == {"problems"} and part["problems"]:
        return UNKNOWN if name != "release" else "not deployed"
    if name == "release":
        return part["image"].rpartition("/")[2]
    if name == "schema":
        revisions = part["revisions"]
        return "\n".join(f"{store} {found['state']}, {found['revision']}" for store, found in revisions.items())
    if name == "replicas":
        return f"{part['ready']} of {part['wanted']} ready"
    if name == "database":
        return f"{size(part['bytes'])}\n{part['connections']} of {part['limit']} connections"
    if name == "bucket":
        least = "" if part["complete"] else "at least "
        return f"{least}{plural(part['objects'], 'object')}\n{least}{size(part['bytes'])}"
    if name == "backup":
        if not part["wanted"]:
            return "none is wanted"
        return f"{hours_text(part['hours'])} ago\n{part['id']}" if part.get("id") else "none"
    if name == "certificate":
        return f"{part['days']} days\n{part['until'][:10]}" if "days" in part else "no TLS"
    if name == "drift":
        return plural(part["objects"], "object") if part["objects"] else "none"
    return plural(part["jobs"], "failed Job") if part["jobs"] else "none"


def problems(row: Row) -> list[str]:
    """All that is wrong with an environment, a sentence each, with the part that it is of."""
    if "unreachable" in row:
        return [f"cannot be looked at: {row['unreachable']}"]
    return [f"{PARTS[name]}: {text}" for name in PARTS for text in row["parts"][name]["problems"]]


def view(rows: list[Row]) -> list[dict[str, Any]]:
    """What is shown of each environment: its state, a cell for each part, and its problems."""
    return [
        {
            "environment": row["environment"],
            "url": row["url"],
            "state": "bad" if problems(row) else "good",
            "state_text": state_text(row),
            "seconds": row.get("parts", {}).get("seconds"),
            "cells": [cell(row, name) for name in PARTS],
            "problems": problems(row),
        }
        for row in rows
    ]


def state_text(row: Row) -> str:
    """How an environment is, in two words."""
    if "unreachable" in row:
        return "unreachable"
    return plural(len(problems(row)), "problem") if problems(row) else "well"


def cell(row: Row, name: str) -> dict[str, Any]:
    """One cell: the part's name, its text, and whether something is wrong."""
    if "unreachable" in row:
        return {"label": PARTS[name], "text": ABSENT, "state": "none"}
    part = row["parts"][name]
    return {"label": PARTS[name], "text": cell_text(name, part), "state": "bad" if part["problems"] else "good"}


def text(rows: list[Row]) -> str:
    """The table as text: a column for each environment, and below it what is wrong."""
    shown = view(rows)
    tables = [table(shown[start : start + BESIDE]) for start in range(0, len(shown), BESIDE)]
    wrong = [f"  {entry['environment']}  {one_line(problem)}" for entry in shown for problem in entry["problems"]]
    told = ["Problems", *wrong] if wrong else ["No problems"]
    return "\n\n".join([*tables, "\n".join(told)])


def one_line(words: str) -> str:
    return " ".join(words.split())


def table(shown: list[dict[str, Any]]) -> str:
    """Environments beside each other."""
    columns = [
        [entry["environment"], entry["state_text"], *(marked(found) for found in entry["cells"]), seconds_text(entry)]
        for entry in shown
    ]
    lines = []
    for label, *cells in zip(["", "State", *PARTS.values(), "Looked at"], *columns, strict=True):
        wrapped = [[part for line in found.split("\n") for part in wrap(line)] for found in cells]
        for index in range(max(map(len, wrapped))):
            parts = [found[index] if index < len(found) else "" for found in wrapped]
            first = label if index == 0 else ""
            lines.append(f"{first:<{LABEL_WIDTH}}  {'  '.join(f'{part:<{CELL_WIDTH}}' for part in parts)}".rstrip())
    return "\n".join(lines)


def wrap(line: str) -> list[str]:
    return textwrap.wrap(line, CELL_WIDTH, break_on_hyphens=False) or [""]


def marked(found: dict[str, Any]) -> str:
    """A cell's text, with a mark where something is wrong."""
    return f"! {found['text']}" if found["state"] == "bad" else found["text"]


def seconds_text(entry: dict[str, Any]) -> str:
    return f"in {entry['seconds']} s" if entry["seconds"] is not None else ABSENT


def as_json(rows: list[Row]) -> dict[str, Any]:
    """The table for programs: all that was found, and the problems of each environment."""
    return {
        "generated": now(),
        "ok": not any(map(problems, rows)),
        "environments": [{**row, "ok": not problems(row), "problems": problems(row)} for row in rows],
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def wrong(values: dict[str, Any]) -> list[str]:
    """What is wrong with the role's variables."""
    found = []
    for name in ("mlflow_status_json", "mlflow_status_html"):
        path = os.path.expanduser(values[name] or "")
        if path and (os.path.isdir(path) or not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK)):
            found.append(
                f"{name} is {values[name]!r}; expected a file in a directory that is there and can be written to"
            )
    if values["mlflow_status_json"] and values["mlflow_status_json"] == values["mlflow_status_html"]:
        found.append(
            f"mlflow_status_html is {values['mlflow_status_html']!r}, as mlflow_status_json; expected another file"
        )
    for name, least in (("mlflow_status_backup_hours", 0), ("mlflow_status_certificate_days", 0)):
        if int(values[name]) < least:
            found.append(f"{name} is {values[name]}; expected {least} or more")
    return found


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_status_json": as_json,
            "mlflow_status_problems": problems,
            "mlflow_status_text": text,
            "mlflow_status_view": view,
            "mlflow_status_wrong": wrong,
        }
