"""The program that runs in MLflow's image, as far as it goes without MLflow and without a database."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

FILES = Path(__file__).parents[2] / "roles/mlflow_schema/files"
# The program's files import each other by their bare names, as they lie in one directory in the pod.
sys.path.insert(0, str(FILES))

import crossings  # noqa: E402
import history  # noqa: E402
import schema  # noqa: E402
import stores  # noqa: E402
from problems import Exit, SchemaError  # noqa: E402

LINE = history.History({"a": (), "b": ("a",), "c": ("b",)})
BRANCHED = history.History({"a": (), "b": ("a",), "x": ("a",), "m": ("b", "x"), "z": ("m",)})
AUTH_LINE = history.History({stores.FIRST_AUTH_REVISION: (), "b": (stores.FIRST_AUTH_REVISION,)})
PLACE = {"dbname": "d", "host": "h", "port": 1}
NAME = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('revision = "b"\ndown_revision = "a"\n', ("b", ("a",), ())),
        ('revision: str = "b"\ndown_revision: str | None = None\n', ("b", (), ())),
        ("revision = 'm'\ndown_revision = ('b', 'x')\nrevision_of = 1\n", ("m", ("b", "x"), ())),
        (
            "revision = 'b'\n\ndef upgrade():\n    op.create_table('jobs', sa.Column('id'))\n"
            "    op.create_table('gone')\n    op.drop_table('gone')\n    op.create_table(Model.name)\n"
            "\ndef downgrade():\n    op.create_table('old')\n",
            ("b", (), ("jobs",)),
        ),
        ("import os\n\ndef upgrade():\n    revision = 'no'\n", None),
        ("", None),
    ],
)
def test_a_migrations_revision_is_read_without_running_it(source, expected):
    assert history.revision_of(source) == expected


@pytest.mark.parametrize(
    ("line", "revision", "pending"),
    [
        (LINE, None, ["a", "b", "c"]),
        (LINE, "a", ["b", "c"]),
        (LINE, "c", []),
        (BRANCHED, "b", ["x", "m", "z"]),
        (BRANCHED, "m", ["z"]),
    ],
)
def test_the_pending_revisions_come_oldest_first(line, revision, pending):
    assert line.pending(revision) == pending


def test_an_image_with_two_heads_is_refused():
    with pytest.raises(SchemaError, match="2 heads of its schema: b, x") as caught:
        _ = history.History({"a": (), "b": ("a",), "x": ("a",)}).head
    assert caught.value.code == Exit.REFUSED


@given(NAME, NAME, st.integers(1, 65535))
def test_a_uri_is_taken_apart_whatever_its_names(user, database, port):
    uri = f"postgresql+psycopg2://{quote(user, safe='')}@pg.svc:{port}/{quote(database, safe='')}?sslmode=require"
    assert stores.parse_uri(uri, "V") == {
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
    with pytest.raises(SchemaError, match="V: expected postgresql") as caught:
        stores.parse_uri(uri, "V")
    assert "hunter2" not in str(caught.value)


MLFLOW = {"experiments", "runs", "metrics", "alembic_version"}
AUTH = {"users", "experiment_permissions", "roles", "role_permissions"}


FIRST = stores.FIRST_AUTH_REVISION
RELEASES = {"9.0.0": {"tracking": "zz", "auth": "yy"}, "3.4.0": {"tracking": "a", "auth": FIRST}}


def store_of(name, place=PLACE, version_table="alembic_version_auth"):
    made = stores.Store(name, "postgresql://u@h/d", place, AUTH_LINE if name == "auth" else LINE)
    if name == "auth":
        made.version_table = version_table
    return made


@pytest.fixture(autouse=True)
def _an_image_with_mlflow(monkeypatch):
    monkeypatch.setattr(stores, "mlflow_version", lambda: "3.17.2")
    monkeypatch.setattr(schema, "mlflow_version", lambda: "3.17.2")
    monkeypatch.setattr(history, "mlflow_version", lambda: "3.17.2")
    monkeypatch.setattr(history, "releases", lambda: RELEASES)
    # The session that watches an upgrade needs a database.
    monkeypatch.setattr(schema.Watch, "_run", lambda _self: None)


@pytest.mark.parametrize(
    ("name", "tables", "versions", "state", "revision", "pending", "words"),
    [
        ("tracking", set(), {}, "empty", None, 3, ""),
        ("tracking", MLFLOW, {"alembic_version": ["c"]}, "current", "c", 0, ""),
        ("tracking", MLFLOW, {"alembic_version": ["a"]}, "behind", "a", 2, ""),
        ("registry", MLFLOW, {"alembic_version": ["a"]}, "behind", "a", 2, ""),
        ("tracking", MLFLOW, {"alembic_version": ["zz"]}, "ahead", "zz", 0, "zz (MLflow 9.0.0), newer than MLflow 3"),
        ("tracking", MLFLOW, {"alembic_version": ["f00"]}, "foreign", "f00", 0, "neither MLflow 3.17.2 nor any"),
        ("tracking", MLFLOW, {"alembic_version": ["b", "a"]}, "several-heads", "a, b", 0, "2 revisions at once"),
        ("tracking", MLFLOW, {"alembic_version": []}, "unversioned", None, 0, "but no revision"),
        ("tracking", {"studies", "alembic_version"}, {"alembic_version": ["v3"]}, "foreign", "v3", 0, "studies"),
        ("tracking", {"studies"}, {}, "foreign", None, 0, "tables of another program (studies)"),
        # The auth store's tables, in the same database, do not make the tracking store anything but empty.
        ("tracking", AUTH | {"alembic_version_auth"}, {"alembic_version_auth": ["b"]}, "empty", None, 3, ""),
        ("tracking", AUTH | {"alembic_version"}, {"alembic_version": [FIRST]}, "shared", FIRST, 0, "before 3.6"),
        ("auth", set(), {}, "empty", None, 2, ""),
        ("auth", MLFLOW, {"alembic_version": ["c"]}, "empty", None, 2, ""),
        ("auth", AUTH, {"alembic_version_auth": ["b"]}, "current", "b", 0, ""),
        ("auth", AUTH, {"alembic_version_auth": ["yy"]}, "ahead", "yy", 0, "newer than MLflow 3.17.2"),
        ("auth", AUTH, {"alembic_version": [FIRST]}, "behind", FIRST, 1, ""),
        ("auth", AUTH, {}, "behind", FIRST, 1, ""),
        ("auth", {"alembic_version_auth"}, {"alembic_version_auth": ["b"]}, "foreign", "b", 0, "another program"),
    ],
)  # fmt: skip
def test_the_state_of_a_database(name, tables, versions, state, revision, pending, words):
    store = store_of(name)
    stores.judge(store, tables, versions)
    assert (store.state, store.revision, len(store.pending)) == (state, revision, pending)
    assert bool(store.problem) == (state not in ("empty", "current", "behind"))
    assert words in store.problem
    assert store.unstamped == (name == "auth" and state == "behind")


@pytest.mark.parametrize(
    ("versions", "state"),
    [({"alembic_version": [FIRST]}, "behind"), ({"alembic_version_auth": ["b"]}, "ahead")],
)
def test_an_image_of_before_3_6_looks_for_the_users_revision_where_it_was_then(versions, state):
    store = store_of("auth", version_table="alembic_version")
    stores.judge(store, AUTH, versions)
    assert (store.state, store.unstamped) == (state, False)


OTHER = {**PLACE, "dbname": "other"}


@pytest.mark.parametrize(
    ("auth", "users", "tracking_state", "auth_state", "words"),
    [
        (store_of("auth", OTHER), 3, "shared", "empty", "holds 3 of MLflow's users too"),
        (store_of("auth", OTHER), 0, "behind", "empty", ""),
        (store_of("auth"), 3, "behind", "empty", ""),
        (store_of("auth", version_table="alembic_version"), 0, "behind", "shared", "cannot share"),
    ],
    ids=["users would be left behind", "apart", "shared since 3.6", "shared before 3.6"],
)
def test_users_are_never_left_behind_in_the_tracking_database(auth, users, tracking_state, auth_state, words):
    tracking = store_of("tracking")
    tracking.state, tracking.revision, tracking.users = "behind", "a", users
    auth.state = "empty"
    stores.judge_together([tracking, auth])
    assert (tracking.state, auth.state) == (tracking_state, auth_state)
    assert words in tracking.problem + auth.problem


@pytest.mark.parametrize(
    ("tree", "revision", "words"),
    [
        ("tracking", None, "empty"),
        ("tracking", "q", "q"),
        ("tracking", "a", "a (MLflow 3.4.0)"),
        ("auth", "yy", "yy (MLflow 9.0.0)"),
    ],
)
def test_a_revision_is_told_with_its_release(tree, revision, words):
    assert history.named(tree, revision) == words


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ("rrr", "r (MLflow 1 to 3)"),
        ("rrx", "r (MLflow 1 to 2)"),
        ("rxr", "r (MLflow 1, 3)"),
        ("rxrr", "r (MLflow 1, 3 to 4)"),
    ],
)
def test_a_release_between_with_another_schema_is_not_named(monkeypatch, heads, words):
    table = {str(place): {"tracking": head} for place, head in enumerate(heads, start=1)}
    monkeypatch.setattr(history, "releases", lambda: table)
    assert history.named("tracking", "r") == words


@pytest.mark.parametrize(
    ("backup", "waived", "outcome"),
    [
        (None, "required", Exit.REFUSED),
        (None, "waived", {"waived": True}),
        ({"id": "1", "revisions": {"tracking": "a"}}, "required", {"id": "1", "revisions": {"tracking": "a"}}),
        ({"id": "1", "revisions": {"tracking": "b"}}, "required", Exit.RETRYABLE),
        (None, "perhaps", Exit.USAGE),
    ],
)
def test_nothing_is_upgraded_without_a_backup_of_it(monkeypatch, tmp_path, backup, waived, outcome):
    monkeypatch.setenv("MLFLOW_SCHEMA_WORK", str(tmp_path))
    monkeypatch.setenv("MLFLOW_SCHEMA_BACKUP", waived)
    if backup:
        (tmp_path / "backup.json").write_text(json.dumps(backup))
    tracking, auth = store_of("tracking"), store_of("auth")
    tracking.revision = "a"
    if isinstance(outcome, dict):
        assert schema.backup_of([tracking, auth]) == outcome
    else:
        with pytest.raises(SchemaError) as caught:
            schema.backup_of([tracking, auth])
        assert caught.value.code == outcome


def test_an_empty_database_needs_no_backup():
    assert schema.backup_of([store_of("tracking")]) == {}


def test_the_backup_is_asked_for_every_database_with_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_SCHEMA_WORK", str(tmp_path))
    tracking, auth = store_of("tracking", {**PLACE, "user": "m"}), store_of("auth")
    tracking.revision = "a"
    schema.ask_for_backup([tracking, auth], wanted=True)
    assert (tmp_path / "dump.list").read_text() == "tracking\th\t1\td\tm\ta\n"
    schema.ask_for_backup([tracking, auth], wanted=False)
    assert (tmp_path / "dump.list").read_text() == ""


@pytest.mark.parametrize(
    ("words", "blockers", "code", "told"),
    [
        (["x", "ValueError: no such column", "[SQL: DROP", "]"], [], Exit.UPGRADE_FAILED, "1: ValueError: no such"),
        (["psycopg2.errors.LockNotAvailable: canceling statement due to lock timeout"], ["pid 7, user u"],
         Exit.RETRYABLE, "blocked by pid 7, user u"),
        (["psycopg2.OperationalError: server closed the connection unexpectedly"], [], Exit.RETRYABLE, "went away"),
        ([], [], Exit.UPGRADE_FAILED, "no output"),
    ],
)  # fmt: skip
def test_why_an_upgrade_failed_and_whether_to_try_again(words, blockers, code, told):
    error = schema.failure(store_of("tracking"), "MLflow's upgrade", 1, words, blockers)
    assert error.code == code
    assert told in str(error)


@pytest.mark.parametrize("users", [["dave"], [f"u{number}" for number in range(12)]])
def test_what_becomes_of_denials_is_told(users):
    assert f"denials of {len(users)} user" in crossings.denial_words(users)
    assert users[0] in crossings.denial_words(users)


@pytest.mark.parametrize("version", ["2.22.4", "3.9.1", "3.16.0", "3.16.0rc1"])
def test_an_image_whose_server_could_not_start_here_is_refused(monkeypatch, version):
    monkeypatch.setattr(schema, "mlflow_version", lambda: version)
    with pytest.raises(SchemaError, match=rf"MLflow {version} .*of MLflow 3\.17 or later \(mlflow_env") as caught:
        schema.refuse_old_image()
    assert caught.value.code == Exit.REFUSED


@pytest.mark.parametrize("version", ["3.17.0", "3.17.2", "3.100.0", "4.0.0", "3.17.0rc0"])
def test_other_images_are_taken(monkeypatch, version):
    monkeypatch.setattr(schema, "mlflow_version", lambda: version)
    schema.refuse_old_image()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        ([], {}, "usage: schema.py check|plan|prepare|upgrade"),
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
    assert schema.main(arguments) == Exit.USAGE
    output = capsys.readouterr()
    report = json.loads(output.out.splitlines()[-1])
    assert words in report["error"]
    assert report["changed"] is False
    assert output.err.strip() == report["error"] == reason.read_text()


def test_mlflows_own_upgrade_gets_no_setting_of_the_server_and_its_last_words_are_told(monkeypatch, tmp_path):
    fake = tmp_path / "python"
    frames = 'Traceback (most recent call last):\n  File "x.py", line 1\n    do()\n    ^^^^\n'
    output = f"{frames}ValueError: no such column\n[SQL: DROP\n]"
    fake.write_text(
        f"#!/bin/sh\nenv | grep -e ^MLFLOW_ -e ^PGOPTIONS\nshift 4; echo \"$@\"\ncat <<'END'\n{output}\nEND\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    said = []
    monkeypatch.setattr(schema.sys.stderr, "write", said.append)
    with pytest.raises(SchemaError, match="failed with exit code 1: ValueError: no such column"):
        schema.run_mlflow(store_of("tracking"), ["mlflow", "db", "upgrade", "postgresql://u@h/d"], "MLflow's upgrade")
    output = "".join(said)
    assert "MLFLOW_TRACKING_URI" not in output
    assert "ValueError: no such column" in output
    assert "Traceback" not in output
    assert "x.py" not in output
    assert "mlflow db upgrade postgresql://u@h/d" in output
    assert "PGOPTIONS=-c lock_timeout=10000 -c statement_timeout=3600000" in output


def test_each_revision_is_told_once_with_its_number(monkeypatch, capsys, tmp_path):
    fake = tmp_path / "python"
    line = "INFO [alembic.runtime.migration] Running upgrade a -> b, add things"
    fake.write_text(f"#!/bin/sh\necho '{line}'\necho '{line}'\necho 'Context impl PostgresqlImpl.'\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    store = store_of("tracking")
    store.revision, store.pending = "a", ["b", "c"]
    schema.run_mlflow(store, ["mlflow"], "MLflow's upgrade")
    assert capsys.readouterr().err == "revision 1 of 2: b, add things\n"


def test_the_program_needs_no_mlflow_to_start():
    names = {
        line.split()[1].split(".")[0]
        for path in FILES.glob("*.py")
        for line in path.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert names <= set(sys.stdlib_module_names) | {path.stem for path in FILES.glob("*.py")}
