"""The table of MLflow's releases and their schemas, and the script that makes it from the wheels of an index."""

from __future__ import annotations

import json
import os
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import load_file
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "roles/mlflow_schema/files/releases.json"

script = load_file(ROOT / "scripts/mlflow_releases.py")


# The table


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text())


def test_the_table_is_complete_and_in_order(table):
    assert set(table) == {"releases", "revisions"}
    versions = [Version(release) for release in table["releases"]]
    assert versions == sorted(versions)
    assert versions[0] == Version("2.0.0")
    assert not any(version.is_prerelease for version in versions)
    for release, row in table["releases"].items():
        assert list(row) == ["tracking", "auth", "auth_version_table"]
        assert isinstance(row["tracking"], str), release
        assert row["auth_version_table"] in ("alembic_version", "alembic_version_auth", None), release
        assert (row["auth"] is None) == (row["auth_version_table"] is None), release


def test_the_table_is_small_and_has_a_release_a_line(table):
    content = TABLE.read_bytes()
    assert len(content) < 40_000
    assert content.decode() == script.text_of(table)
    assert len(content.splitlines()) == len(table["releases"]) + 6


@pytest.mark.parametrize(
    ("release", "tracking", "auth"),
    [
        ("3.4.0", "71994744cf8e", "8606fa83a998"),
        ("3.6.0", "bf29a5ff90ea", "8606fa83a998"),
        ("3.8.0", "1bd49d398cd23", "0965eb92f5f0"),
        ("3.9.0", "d3e4f5a6b7c8", "a1b2c3d4e5f6"),
        ("3.10.0", "1b5f0d9ad7c1", "2ed73881770d"),
        ("3.11.1", "c3d6457b6d8a", "2ed73881770d"),
        ("3.12.0", "7d34483879f0", "c3d4e5f6a7b8"),
        ("3.14.0", "b7e4c1a90f23", "f1a2b3c4d5e6"),
        ("3.15.0", "6f8d9c3b2a1e", "f1a2b3c4d5e6"),
        ("3.16.0", "b7e2c1a4d9f3", "f1a2b3c4d5e6"),
        ("3.17.0", "dc11669786a5", "f1a2b3c4d5e6"),
        ("3.17.2", "dc11669786a5", "f1a2b3c4d5e6"),
    ],
)
def test_the_table_has_what_was_found_by_hand(table, release, tracking, auth):
    row = table["releases"][release]
    assert (row["tracking"], row["auth"]) == (tracking, auth)


@pytest.mark.parametrize(
    ("release", "version_table"),
    [("2.4.2", None), ("2.5.0", "alembic_version"), ("3.5.1", "alembic_version"), ("3.6.0", "alembic_version_auth")],
)
def test_the_table_knows_where_the_auth_revision_is_kept(table, release, version_table):
    assert table["releases"][release]["auth_version_table"] == version_table


def test_the_newest_release_knows_the_heads_of_all_and_ends_with_its_own(table):
    assert script.missing(table) == []
    newest = list(table["releases"].values())[-1]
    for schema, revisions in table["revisions"].items():
        assert len(revisions) == len(set(revisions))
        assert revisions[-1] == newest[schema]


def test_revisions_of_later_migrations_come_later(table):
    # Of the tracking schema 3.1.0 has an older one than 3.0.1, so releases say nothing about the order.
    rows = {release: row["tracking"] for release, row in table["releases"].items()}
    place = table["revisions"]["tracking"].index
    assert place(rows["3.4.0"]) < place(rows["3.6.0"]) < place(rows["3.16.0"]) < place(rows["3.17.2"])
    assert place(rows["3.1.0"]) < place(rows["3.0.1"])


# What a wheel says


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('revision = "b"\ndown_revision = "a"\n', ("b", ("a",))),
        ("revision: str = 'b'\ndown_revision: str | None = 'a'\n", ("b", ("a",))),
        ('revision = "a"\ndown_revision = None\n', ("a", ())),
        ('revision = "a"\n', ("a", ())),
        ('revision = "c"\ndown_revision = ("a", "b")\n', ("c", ("a", "b"))),
        ('"""Revises: z\n\nrevision = "x"\n"""\nrevision = "b"\ndown_revision = "a"\n', ("b", ("a",))),
        ('def upgrade():\n    revision = "z"\n', None),
        ("", None),
    ],
)
def test_a_migration_names_its_revision_and_what_it_follows(source, expected):
    assert script.revision_of(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("context.configure(connection=c, literal_binds=True)\n", "alembic_version"),
        ('def run():\n    context.configure(\n        url=u,\n        version_table="mine",\n    )\n', "mine"),
        ("# version_table='not this'\n", "alembic_version"),
    ],
)
def test_the_version_table_is_what_the_migrations_program_says(source, expected):
    assert script.version_table_of(source) == expected


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ({}, []),
        ({"a": ("c",), "b": ("a",), "c": ()}, ["c", "a", "b"]),
        ({"merge": ("x", "y"), "y": ("root",), "x": ("root",), "root": ()}, ["root", "x", "y", "merge"]),
    ],
)
def test_revisions_are_put_in_order(parents, expected):
    assert script.in_order(parents) == expected


@pytest.mark.parametrize("parents", [{"a": ("unknown",)}, {"a": ("b",), "b": ("a",)}])
def test_revisions_that_cannot_be_put_in_order_are_refused(parents):
    with pytest.raises(script.ReleasesError, match="follow unknown ones: a"):
        script.in_order(parents)


@pytest.mark.parametrize(
    ("parents", "message"),
    [({"a": (), "b": ("a",), "c": ("a",)}, "found 2: b, c"), ({"a": ("b",), "b": ("a",)}, "found 0")],
)
def test_a_schema_without_exactly_one_head_is_refused(parents, message):
    with pytest.raises(script.ReleasesError, match=message):
        script.head_of(parents)


def test_only_wheels_of_stable_releases_since_2_0_0_count():
    names = [
        "mlflow-3.10.0-py3-none-any.whl",
        "mlflow-3.9.0-py3-none-any.whl",
        "mlflow-3.9.0.tar.gz",
        "mlflow-3.11.0rc0-py3-none-any.whl",
        "mlflow-3.11.0.dev1-py3-none-any.whl",
        "mlflow-1.30.1-py3-none-any.whl",
        "mlflow-0.9.0-py2-none-any.whl",
        "not a wheel.whl",
    ]
    found = script.stable_wheels((name, f"/{name}") for name in names)
    assert [(str(version), url) for version, url in found.items()] == [
        ("3.9.0", "/mlflow-3.9.0-py3-none-any.whl"),
        ("3.10.0", "/mlflow-3.10.0-py3-none-any.whl"),
    ]


TRACKING, AUTH = "mlflow/store/db_migrations", "mlflow/server/auth/db/migrations"


def migration(revision, before=None):
    return f"revision = {revision!r}\ndown_revision = {before!r}\n"


def make_wheel(path, tracking, auth=(), version_table=None):
    """A wheel with these chains of revisions, and much else that nobody needs to read."""
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("mlflow/before.bin", os.urandom(600_000))
        for folder, chain in ((TRACKING, tracking), (AUTH, auth)):
            for before, revision in zip((None, *chain), chain, strict=False):
                wheel.writestr(f"{folder}/versions/{revision}_text.py", migration(revision, before))
            wheel.writestr(f"{folder}/versions/__init__.py", "")
            wheel.writestr(f"{folder}/versions/deeper/other.py", migration("other"))
        if auth:
            named = f"version_table={version_table!r}" if version_table else ""
            wheel.writestr(f"{AUTH}/env.py", f"context.configure({named})\n")
        wheel.writestr("mlflow/store/other_migrations/versions/x.py", migration("x"))
        wheel.writestr("mlflow/zz_after.bin", os.urandom(600_000))
    return path


@pytest.mark.parametrize(
    ("auth", "version_table", "expected"),
    [
        ((), None, None),
        (("r", "s"), None, "alembic_version"),
        (("r", "s"), "alembic_version_auth", "alembic_version_auth"),
    ],
)
def test_a_wheel_is_read(tmp_path, auth, version_table, expected):
    path = make_wheel(tmp_path / "a.whl", ("a", "b"), auth, version_table)
    histories, found = script.read_wheel(path.open("rb"))
    assert histories["tracking"] == {"a": (), "b": ("a",)}
    assert list(histories["auth"]) == list(auth)
    assert found == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zip", "mlflow 3.0.0: File is not a zip file"),
        ({f"{TRACKING}/versions/a.py": "revision ="}, "mlflow 3.0.0: invalid syntax"),
        ({"mlflow/other.py": ""}, "mlflow 3.0.0: expected one head, found 0"),
    ],
)
def test_a_wheel_that_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "a.whl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in content.items():
                wheel.writestr(name, text)
    with path.open("rb") as file, pytest.raises(script.ReleasesError, match=message):
        script.table_of([("3.0.0", file)])


# The whole, from an index on this machine


class FakeIndex(BaseHTTPRequestHandler):
    """A package index that serves the wheels of a directory."""

    def do_GET(self):
        server = self.server
        if server.status != 200:
            return self.answer(server.status, b"")
        if self.path == "/simple/mlflow/":
            names = sorted(path.name for path in server.directory.iterdir())
            files = [{"filename": name, "url": f"{server.url}/files/{name}"} for name in names]
            return self.answer(200, json.dumps({"files": files}).encode() if server.json else b"<html></html>")
        content = (server.directory / self.path.removeprefix("/files/")).read_bytes()
        wanted = self.headers.get("Range")
        if not (wanted and server.ranges):
            return self.answer(200, content)
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        return self.answer(206, part, f"bytes {first}-{first + len(part) - 1}/{len(content)}")

    def answer(self, status, content, content_range=""):
        self.server.sent += len(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def index(tmp_path, monkeypatch):
    """The index that pip is configured with, with three releases."""
    directory = tmp_path / "index"
    directory.mkdir()
    for version, *content in (
        ("2.0.0", ("a",)),
        ("2.10.0", ("a", "b"), ("r",)),
        ("2.9.0", ("a",), ("r",)),
        ("2.11.0rc0", ("z",)),
        ("3.6.0", ("a", "b", "c"), ("r", "s"), "alembic_version_auth"),
    ):
        make_wheel(directory / f"mlflow-{version}-py3-none-any.whl", *content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeIndex)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.directory, server.status, server.json, server.ranges, server.sent = directory, 200, True, True, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run(tmp_path):
    output = tmp_path / "releases.json"

    def run(*words):
        return script.main(["--output", str(output), *words])

    run.output = output
    return run


MADE = """\
{"releases": {
"2.0.0": {"tracking": "a", "auth": null, "auth_version_table": null},
"2.9.0": {"tracking": "a", "auth": "r", "auth_version_table": "alembic_version"},
"2.10.0": {"tracking": "b", "auth": "r", "auth_version_table": "alembic_version"},
"3.6.0": {"tracking": "c", "auth": "s", "auth_version_table": "alembic_version_auth"}
},
"revisions": {
"tracking": ["a", "b", "c"],
"auth": ["r", "s"]
}}
"""


@pytest.mark.parametrize("ranges", [True, False])
def test_the_table_is_made_from_the_index_that_pip_uses(index, run, ranges):
    index.ranges = ranges
    assert run() == 0
    assert run.output.read_text() == MADE
    # Each wheel has 1.2 MB.
    assert (index.sent < 2_000_000) == ranges


def test_a_second_run_changes_nothing(index, run, capsys):
    assert run() == 0
    before = run.output.stat().st_mtime_ns
    assert run() == 0
    assert "up to date" in capsys.readouterr().out
    assert run.output.stat().st_mtime_ns == before


def test_check_tells_whether_the_file_is_out_of_date_and_never_writes(index, run, capsys):
    assert run("--check") == 1
    assert not run.output.exists()
    run()
    assert run("--check") == 0
    run.output.write_text(MADE.replace('"b", "auth"', '"c", "auth"'))
    changed = run.output.read_text()
    assert run("--check") == 1
    assert "out of date" in capsys.readouterr().err
    assert run.output.read_text() == changed


def test_a_new_release_makes_the_file_out_of_date(index, run):
    run()
    make_wheel(index.directory / "mlflow-3.7.0-py3-none-any.whl", ("a", "b", "c"), ("r", "s"))
    assert run("--check") == 1


def test_a_head_that_the_newest_release_does_not_know_is_told(index, run, capsys):
    make_wheel(index.directory / "mlflow-3.5.0-py3-none-any.whl", ("a", "lost"), ("r",))
    assert run() == 0
    assert "not known to the newest release: 3.5.0: tracking lost" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": 404}, "mlflow: the package index answered 404"),
        ({"status": 401}, "mlflow: the package index answered 401"),
        ({"json": False}, "does not answer in JSON (PEP 691)"),
    ],
)
def test_an_index_that_does_not_serve_is_told_without_its_url(index, run, capsys, monkeypatch, change, message):
    vars(index).update(change)
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//user:s3cret@") + "/simple")
    assert run() == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "s3cret" not in printed.out + printed.err
    assert not run.output.exists()


def test_an_index_without_a_stable_release_is_refused(index, run, capsys):
    for path in index.directory.iterdir():
        path.unlink()
    assert run() == 2
    assert "has no stable release of mlflow since 2.0.0" in capsys.readouterr().err


def test_a_pip_that_does_not_say_its_settings_is_told(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip._internal.commands", None)
    assert run() == 2
    assert "error: pip's settings: expected a pip" in capsys.readouterr().err


def test_an_index_that_is_away_is_told(run, capsys, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert run() == 2
    assert "mlflow: the package index gave no answer (ConnectionError)" in capsys.readouterr().err
