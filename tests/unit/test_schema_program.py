"""The program that runs in MLflow's image, as far as it goes without MLflow and without a database."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = Path(__file__).parents[2] / "roles/mlflow_schema/files/schema.py"


def load():
    spec = importlib.util.spec_from_file_location("schema_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


schema = load()
LINE = schema.History({"a": (), "b": ("a",), "c": ("b",)})
BRANCHED = schema.History({"a": (), "b": ("a",), "x": ("a",), "m": ("b", "x"), "z": ("m",)})
AUTH_LINE = schema.History({schema.FIRST_AUTH_REVISION: (), "b": (schema.FIRST_AUTH_REVISION,)})
NAME = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('revision = "b"\ndown_revision = "a"\n', ("b", ("a",))),
        ('revision: str = "b"\ndown_revision: str | None = None\n', ("b", ())),
        ("revision = 'm'\ndown_revision = ('b', 'x')\nrevision_of = 1\n", ("m", ("b", "x"))),
        ("import os\n\ndef upgrade():\n    revision = 'no'\n", None),
        ("", None),
    ],
)
def test_a_migrations_revision_is_read_without_running_it(source, expected):
    assert schema.revision_of(source) == expected


@pytest.mark.parametrize(
    ("history", "revision", "pending"),
    [
        (LINE, None, ["a", "b", "c"]),
        (LINE, "a", ["b", "c"]),
        (LINE, "c", []),
        (BRANCHED, "b", ["x", "m", "z"]),
        (BRANCHED, "m", ["z"]),
    ],
)
def test_the_pending_revisions_come_oldest_first(history, revision, pending):
    assert history.pending(revision) == pending


def test_an_image_with_two_heads_is_refused():
    with pytest.raises(schema.SchemaError, match="2 heads of its schema: b, x") as caught:
        _ = schema.History({"a": (), "b": ("a",), "x": ("a",)}).head
    assert caught.value.code == schema.Exit.REFUSED


@given(NAME, NAME, st.integers(1, 65535))
def test_a_uri_is_taken_apart_whatever_its_names(user, database, port):
    uri = f"postgresql+psycopg2://{quote(user, safe='')}@pg.svc:{port}/{quote(database, safe='')}?sslmode=require"
    assert schema.parse_uri(uri, "V") == {
        "user": user,
        "host": "pg.svc",
        "port": port,
        "dbname": database,
        "sslmode": "require",
    }


@pytest.mark.parametrize(
    "uri",
    ["", "mysql://u:hunter2@h/d", "postgresql://u:hunter2@h", "sqlite:///x", "postgresql://u:hunter2@h:port/d", "h"],
)
def test_another_uri_is_refused_and_not_repeated(uri):
    with pytest.raises(schema.SchemaError, match="V: expected postgresql") as caught:
        schema.parse_uri(uri, "V")
    assert "hunter2" not in str(caught.value)


MLFLOW = {"experiments", "runs", "metrics", "alembic_version"}
AUTH = {"users", "experiment_permissions", "roles", "role_permissions"}


@pytest.mark.parametrize(
    ("kind", "tables", "versions", "state", "revision", "pending"),
    [
        ("TRACKING", set(), {}, "empty", None, 3),
        ("TRACKING", MLFLOW, {"alembic_version": ["c"]}, "current", "c", 0),
        ("TRACKING", MLFLOW, {"alembic_version": ["a"]}, "behind", "a", 2),
        ("TRACKING", MLFLOW, {"alembic_version": ["f00"]}, "ahead-or-foreign", "f00", 0),
        ("TRACKING", MLFLOW, {"alembic_version": ["b", "a"]}, "several-heads", "a, b", 0),
        ("TRACKING", MLFLOW, {"alembic_version": []}, "unversioned", None, 0),
        ("TRACKING", {"studies", "alembic_version"}, {"alembic_version": ["a"]}, "foreign", "a", 0),
        ("TRACKING", {"studies"}, {}, "foreign", None, 0),
        # The auth store's tables, in the same database, do not make the tracking store anything but empty.
        ("TRACKING", AUTH | {"alembic_version_auth"}, {"alembic_version_auth": ["b"]}, "empty", None, 3),
        ("TRACKING", AUTH | {"alembic_version"}, {"alembic_version": ["a"]}, "foreign", "a", 0),
        ("AUTH", set(), {}, "empty", None, 2),
        ("AUTH", MLFLOW, {"alembic_version": ["c"]}, "empty", None, 2),
        ("AUTH", AUTH, {"alembic_version_auth": ["b"]}, "current", "b", 0),
        ("AUTH", AUTH, {"alembic_version": [schema.FIRST_AUTH_REVISION]}, "behind", schema.FIRST_AUTH_REVISION, 1),
        ("AUTH", AUTH, {}, "behind", schema.FIRST_AUTH_REVISION, 1),
        ("AUTH", {"alembic_version_auth"}, {"alembic_version_auth": ["b"]}, "foreign", "b", 0),
    ],
)
def test_the_state_of_a_database(monkeypatch, kind, tables, versions, state, revision, pending):
    monkeypatch.setattr(schema, "mlflow_version", lambda: "3.17.2")
    kind = getattr(schema, kind)
    history = LINE if kind is schema.TRACKING else AUTH_LINE
    store = schema.Store(kind, "", {"dbname": "d", "host": "h", "port": 1}, history)
    schema.judge(store, tables, versions)
    assert (store.state, store.revision, len(store.pending)) == (state, revision, pending)
    assert bool(store.problem) == (state not in ("empty", "current", "behind"))
    if store.problem:
        with pytest.raises(schema.SchemaError, match="nothing was changed") as caught:
            schema.refuse([store])
        assert caught.value.code == schema.Exit.REFUSED


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "usage: schema.py check|upgrade"),
        (["downgrade"], {}, "usage"),
        (["check"], {}, "MLFLOW_BACKEND_STORE_URI: expected postgresql+psycopg2://"),
        (["check"], {"MLFLOW_BACKEND_STORE_URI": "sqlite:///x"}, "MLFLOW_BACKEND_STORE_URI: expected"),
        (["check"], {"MLFLOW_BACKEND_STORE_URI": "postgresql://u@h/d"}, "MLflow is not installed in this image"),
    ],
)
def test_a_wrong_use_ends_with_one_sentence_and_a_report(monkeypatch, capsys, tmp_path, arguments, environment, words):
    reason = tmp_path / "termination-log"
    reason.touch()
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SCHEMA_TERMINATION_LOG", str(reason))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert schema.main(arguments) == schema.Exit.USAGE
    output = capsys.readouterr()
    report = json.loads(output.out.splitlines()[-1])
    assert words in report["error"]
    assert report["changed"] is False
    assert output.err.strip() == report["error"] == reason.read_text()


def test_mlflows_own_upgrade_gets_no_setting_of_the_server_and_its_last_words_are_told(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    output = "ValueError: no such column\n[SQL: DROP\n]"
    fake.write_text(f"#!/bin/sh\nenv | grep ^MLFLOW_\necho \"$@\"\ncat <<'END'\n{output}\nEND\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    said = []
    monkeypatch.setattr(schema.sys.stderr, "write", said.append)
    store = schema.Store(schema.TRACKING, "postgresql://u@h/d", {"dbname": "d", "host": "h", "port": 1}, LINE)
    with pytest.raises(schema.SchemaError, match="failed with exit code 1: ValueError: no such column"):
        schema.apply(store)
    output = "".join(said)
    assert "MLFLOW_TRACKING_URI" not in output
    assert "-m mlflow db upgrade postgresql://u@h/d" in output


def test_the_program_needs_no_mlflow_to_start():
    names = {
        line.split()[1].split(".")[0]
        for line in PROGRAM.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert names <= set(sys.stdlib_module_names)
