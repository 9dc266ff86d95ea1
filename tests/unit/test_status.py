"""What is told of environments: the judgement of each part, the text, and a page that escapes everything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
import pytest
from ansible.module_utils.ansible_mlflow import status
from ansible.module_utils.ansible_mlflow.schema import Releases
from conftest import certificate, load_filter
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
RELEASES = str(ROOT / "roles/mlflow_schema/files/releases.json")
TEMPLATE = (ROOT / "roles/mlflow_status/templates/status.html.j2").read_text()
filters = load_filter("mlflow_status")
HEADS = Releases(RELEASES).heads("mlflow:3.17.2")


def part(*problems: str, **values: Any) -> dict[str, Any]:
    return {**values, "problems": list(problems)}


def parts(**changed: Any) -> dict[str, Any]:
    """What is found of an environment that is well."""
    revisions = {"tracking": {"revision": "dc11669786a5", "head": "dc11669786a5", "state": "current"}}
    return {
        "release": part(image="ghcr.io/mlflow/mlflow:v3.17.2-full"),
        "schema": part(revisions=revisions),
        "replicas": part(ready=2, wanted=2),
        "database": part(bytes=19_600_000, connections=12, limit=97),
        "bucket": part(objects=1204, bytes=3_100_000_000, complete=True),
        "backup": part(wanted=True, id="20261125T134500Z-3f2a", hours=5.2),
        "certificate": part(days=80, until="2027-02-14T00:00:00+00:00"),
        "drift": part(objects=0),
        "unfinished": part(jobs=0),
        "seconds": 2.1,
        **changed,
    }


def row(environment: str = "dev", **changed: Any) -> dict[str, Any]:
    return {"environment": environment, "url": f"http://{environment}:30502", "parts": parts(**changed)}


def unreachable(environment: str = "prod", reason: str = "the API server cannot be reached") -> dict[str, Any]:
    return {"environment": environment, "url": "http://prod:30500", "unreachable": reason}


def page(rows: list[dict[str, Any]]) -> str:
    template = jinja2.Environment(trim_blocks=True, autoescape=False).from_string(TEMPLATE)
    return template.render(__mlflow_status_view=filters.view(rows), __mlflow_status_generated="2026-11-26T20:00:00Z")


class Page(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@given(st.text(min_size=1), st.text(), st.text())
def test_whatever_is_found_is_text_and_nothing_else(name: str, reason: str, problem: str) -> None:
    plain = Page(page([unreachable("a", "b"), row("c", drift=part("d", objects=1))]))
    shown = Page(page([unreachable(name, reason), row(name, drift=part(problem, objects=1))]))
    assert shown.tags == plain.tags
    assert len(shown.attributes) == len(plain.attributes)
    told = "".join(shown.texts)
    # A parser reads line ends as one kind.
    assert reason.replace("\r\n", "\n").replace("\r", "\n") in told.replace("\r\n", "\n").replace("\r", "\n")


def test_a_page_asks_for_nothing_and_says_what_it_is() -> None:
    text = page([row(), row("stg", backup=part("there is no backup", wanted=True)), unreachable()])
    found = Page(text)
    assert not {"script", "img", "link", "iframe", "object"} & set(found.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert ("lang", "en") in found.attributes
    assert "2 of 3 environments have problems" in text
    assert [value for name, value in found.attributes if name == "href"] == [
        "http://dev:30502",
        "http://stg:30502",
        "http://prod:30500",
    ]
    assert found.tags.count("tr") == 4
    assert "All environments are well" in page([row()])


def test_the_text_is_a_column_for_each_environment_and_what_is_wrong() -> None:
    bad = part("Deployment mlflow-stg differs in spec.replicas", objects=1)
    lines = filters.text([row(), row("stg", drift=bad), unreachable()]).splitlines()
    assert lines[0].split() == ["dev", "stg", "prod"]
    assert re.split(r"\s{2,}", lines[1]) == ["State", "well", "1 problem", "unreachable"]
    assert any(re.split(r"\s{2,}", line)[:3] == ["Drift", "none", "! 1 object"] for line in lines)
    assert lines[-3:] == [
        "Problems",
        "  stg  Drift: Deployment mlflow-stg differs in spec.replicas",
        "  prod  cannot be looked at: the API server cannot be reached",
    ]
    assert max(map(len, lines)) <= 110
    assert all(line == line.rstrip() for line in lines)


def test_four_environments_are_two_tables() -> None:
    text = filters.text([row(name) for name in ("dev", "stg", "qa", "prod")])
    assert [
        line.split() for line in text.splitlines() if not line.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ "))
    ] == [[]] * 2
    assert text.count("Release") == 2
    assert text.endswith("No problems")


def test_json_has_everything_and_one_word_for_a_monitor() -> None:
    found = json.loads(json.dumps(filters.as_json([row(), unreachable()])))
    assert (found["ok"], [entry["ok"] for entry in found["environments"]]) == (False, [True, False])
    assert found["environments"][0]["parts"]["bucket"]["objects"] == 1204
    assert filters.as_json([row()])["ok"] is True


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bucket", part("there is no bucket mlflow"), "unknown"),
        ("release", part("it is not deployed: there is no Deployment"), "not deployed"),
        ("bucket", part(objects=1, bytes=999, complete=True), "1 object\n999 bytes"),
        ("bucket", part(objects=10**6, bytes=10**12, complete=False), "at least 1,000,000 objects\nat least 1 TB"),
        ("backup", part(wanted=False), "none is wanted"),
        ("backup", part("there is no backup", wanted=True), "none"),
        ("backup", part(wanted=True, id="20261125T134500Z-3f2a", hours=200.0), "8 days ago\n20261125T134500Z-3f2a"),
        ("certificate", part(), "no TLS"),
        (
            "certificate",
            part("the certificate ended", days=-3, until="2026-11-01T00:00:00+00:00"),
            "-3 days\n2026-11-01",
        ),
        ("unfinished", part("Job a failed", "Job b failed", jobs=2), "2 failed Jobs"),
    ],
)
def test_cells(name: str, value: dict[str, Any], expected: str) -> None:
    assert filters.cell_text(name, value) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"mlflow_status_json": "/nonexistent/status.json"}, "expected a file in a directory that is there"),
        ({"mlflow_status_html": "/"}, "expected a file in a directory that is there"),
        ({"mlflow_status_json": "a", "mlflow_status_html": "a"}, "expected another file"),
        ({"mlflow_status_backup_hours": -1}, "expected 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], expected: str) -> None:
    good = {
        "mlflow_status_json": "",
        "mlflow_status_html": "status.html",
        "mlflow_status_backup_hours": 168,
        "mlflow_status_certificate_days": 21,
    }
    assert filters.wrong(good) == []
    [said] = filters.wrong(good | values)
    assert expected in said


@pytest.mark.parametrize(
    ("revision", "head", "expected"),
    [
        (HEADS["tracking"], HEADS["tracking"], "current"),
        ("71994744cf8e", HEADS["tracking"], "behind"),
        (HEADS["tracking"], "71994744cf8e", "ahead"),
        ("ffffffffffff", HEADS["tracking"], "ahead"),
        (None, HEADS["tracking"], "empty"),
        ("ffffffffffff", "", "unknown"),
    ],
)
def test_where_a_revision_is(revision: str | None, head: str, expected: str) -> None:
    assert status.judge_revision(Releases(RELEASES), "tracking", revision, head) == expected


def deployment(ready: int, wanted: int, updated: int, in_all: int | None = None) -> dict[str, Any]:
    return {
        "spec": {"replicas": wanted, "selector": {"matchLabels": {"app": "mlflow"}}},
        "status": {
            "readyReplicas": ready,
            "updatedReplicas": updated,
            "replicas": wanted if in_all is None else in_all,
        },
    }


class NoPods:
    def items(self, *_args: Any, **_kwargs: Any) -> list:
        return []


@pytest.mark.parametrize(
    ("found", "problems"),
    [
        (deployment(2, 2, 2), []),
        (deployment(1, 2, 2), ["1 of 2 replicas are ready"]),
        (deployment(2, 2, 1), ["a rollout is not complete: 1 of 2 pods have the new version"]),
        (deployment(2, 2, 2, 3), ["a rollout is not complete: 2 of 3 pods have the new version"]),
        (deployment(0, 0, 0), ["the servers are stopped: the Deployment has no replicas"]),
    ],
)
def test_replicas(found: dict[str, Any], problems: list[str]) -> None:
    environment = status.Environment("dev", "mlflow-dev", "", "", None, "auto", None, None, "", "", [], [])
    assert status.replicas(NoPods(), environment, found)["problems"] == problems


def test_only_the_last_job_of_a_schedule_counts() -> None:
    def job(name: str, created: str, owner: str = "") -> dict[str, Any]:
        owners = [{"kind": "CronJob", "uid": owner}] if owner else []
        return {"metadata": {"name": name, "uid": name, "creationTimestamp": created, "ownerReferences": owners}}

    jobs = [
        job("gc-2", "2026-11-02T00:00:00Z", "gc"),
        job("gc-1", "2026-11-01T00:00:00Z", "gc"),
        job("own", "2026-11-01"),
    ]
    assert {found["metadata"]["name"] for found in status.latest(jobs)} == {"gc-2", "own"}


def test_the_fields_that_differ_are_named_without_what_they_hold() -> None:
    before = {"data": {"a": "secret one", "b": "x"}, "spec": {"ports": [{"port": 1}, {"port": 2}]}}
    after = {"data": {"a": "secret two"}, "spec": {"ports": [{"port": 1}, {"port": 3}]}, "more": 1}
    told = status.where({"before": before, "after": after})
    assert told == " in data.a, data.b, more and 1 more"
    assert status.where({"before": {}, "after": {}}) == ""


def test_the_end_of_a_certificate_is_read() -> None:
    end = status.end_of(certificate())
    assert end.tzinfo is not None
    with pytest.raises(status.Error, match="expected PEM text"):
        status.end_of("no certificate")


@pytest.mark.parametrize(("seconds", "expected"), [(60, "1 min"), (7200, "2 h"), (86400 * 9, "9 days")])
def test_ages(seconds: float, expected: str) -> None:
    assert status.age(seconds) == expected
