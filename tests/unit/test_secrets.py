"""Secrets: where each comes from, which are refused, and that none is shown."""

from __future__ import annotations

import base64

import pytest
from conftest import load_filter

secrets = load_filter("mlflow_secrets")


def test_an_unknown_secret_is_named_and_its_value_is_not() -> None:
    [problem] = secrets.given_problems({"admin_pasword": "hunter2"})
    assert "admin_pasword" in problem
    assert "hunter2" not in problem


def values(
    given: dict[str, str], source: str = "generated", kept: dict[str, str] | None = None, **admins: dict
) -> dict:
    admins = {"database_admin": {}, "object_store_admin": {}} | admins
    return secrets.secret_values(given, source=source, environment="dev", kept=kept or {}, **admins)


def test_generated_secrets_are_acceptable() -> None:
    assert secrets.secret_problems(values({})) == []


def test_generated_secrets_differ_from_each_other_and_from_run_to_run() -> None:
    first, second = values({}), values({})
    made = [value for name, value in first.items() if value] + [
        value for name, value in second.items() if value and name not in secrets.ACCESS_KEYS
    ]
    assert len(set(made)) == len(made)
    assert (first["object_store_access_key"], first["backup_access_key"]) == ("mlflow-dev", "mlflow-backup-dev")
    assert first["admin_password"] != second["admin_password"]


def test_what_the_cluster_keeps_is_not_generated_again() -> None:
    kept = {"PGPASSWORD": "kept-database-password"}
    assert values({}, kept=kept)["database_password"] == "kept-database-password"


def test_what_is_given_beats_what_is_kept() -> None:
    kept = {"PGPASSWORD": "kept-database-password"}
    assert values({"database_password": "given"}, kept=kept)["database_password"] == "given"


def test_the_inventory_source_takes_nothing_from_the_cluster() -> None:
    assert values({}, source="inventory", kept={"PGPASSWORD": "kept"})["database_password"] == ""


def test_administrators_come_from_their_secrets() -> None:
    taken = values(
        {},
        database_admin={"username": "postgres", "password": "p"},
        object_store_admin={"access_key": "a", "secret_key": "s"},
    )
    assert taken["database_admin_username"] == "postgres"
    assert taken["object_store_admin_secret_key"] == "s"


def test_each_secret_is_in_the_clusters_secret_of_those_who_read_it_and_administrators_in_none() -> None:
    taken = values({"database_admin_username": "postgres", "database_admin_password": "top"})
    assert set(secrets.secret_data(taken)) == {
        "MLFLOW_AUTH_ADMIN_PASSWORD",
        "PGPASSWORD",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_FLASK_SERVER_SECRET_KEY",
        "MLFLOW_CRYPTO_KEK_PASSPHRASE",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
    }
    assert set(secrets.secret_data(taken, secret="mlflow-maintenance")) == {
        "MIGRATOR_PGPASSWORD",
        "BACKUP_AWS_ACCESS_KEY_ID",
        "BACKUP_AWS_SECRET_ACCESS_KEY",
    }


BEFORE_UPGRADES = ("database_migrator_password", "backup_access_key", "backup_secret_key")


def test_an_inventory_of_before_there_were_upgrades_is_told_each_secret_that_it_lacks() -> None:
    problems = secrets.secret_problems(values({}) | dict.fromkeys(BEFORE_UPGRADES, ""))
    assert [problem.split(" is missing; ")[0] for problem in problems] == [
        f"mlflow_environment_secrets.{name}" for name in BEFORE_UPGRADES
    ]


def test_without_backups_their_keys_may_be_left_out_but_are_no_less_strict_when_given() -> None:
    taken = values({}) | {"backup_access_key": "", "backup_secret_key": ""}
    assert secrets.secret_problems(taken, backup_required=False) == []
    assert set(secrets.secret_data(taken, secret="mlflow-maintenance")) == {"MIGRATOR_PGPASSWORD"}
    [problem] = secrets.secret_problems(taken | {"backup_secret_key": "a-long-secret-key"}, backup_required=False)
    assert "together" in problem
    weak = taken | {"backup_access_key": "backup", "backup_secret_key": "short"}
    [problem] = secrets.secret_problems(weak, backup_required=False)
    assert "backup_secret_key has 5 characters" in problem
    [problem] = secrets.secret_problems(taken | {"database_migrator_password": ""}, backup_required=False)
    assert "database_migrator_password is missing" in problem


@pytest.mark.parametrize(
    ("first", "second"),
    [("database_password", "database_migrator_password"), ("object_store_access_key", "backup_access_key")],
)
def test_what_the_server_has_is_no_key_to_what_it_must_not_do(first: str, second: str) -> None:
    [problem] = secrets.secret_problems(values({}) | {first: "one-and-the-same", second: "one-and-the-same"})
    assert f"{second} is the same as {first}" in problem
    assert "one-and-the-same" not in problem


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("admin_password", "", "is missing"),
        ("admin_password", 123456789012, "is no text"),
        ("admin_password", "eleven-char", "has 11 characters; expected at least 12"),
        ("admin_password", "password1234", "published"),
        ("admin_password", "two lines\nof password", "line break"),
        ("database_password", "tiny!", "has 5 characters"),
        ("database_migrator_password", "tiny!", "has 5 characters; expected at least 12"),
        ("backup_access_key", "ab", "has 2 characters; expected 3 to 128"),
        ("backup_secret_key", "", "is missing"),
        ("backup_secret_key", "tiny!", "has 5 characters; expected 12 to 128"),
        ("object_store_access_key", "ab", "has 2 characters; expected 3 to 128"),
        ("flask_secret_key", "short", "has 5 characters"),
        ("kek_passphrase", "mlflow-default-kek-passphrase-for-development-only", "published"),
        ("webhook_key", "x" * 44, "not a Fernet key"),
        ("webhook_key", "short", "expected 44 to 44"),
        ("database_admin_password", "alone", "together"),
        ("object_store_admin_access_key", "alone", "together"),
    ],
)
def test_a_weak_secret_is_refused_without_showing_it(name: str, value: str, expected: str) -> None:
    [problem] = secrets.secret_problems(values({}) | {name: value})
    assert name in problem
    assert expected in problem
    assert not value or str(value) not in problem.replace(name, "")


ADA = {"ada@example.com": "ada's own password"}


def passwords(names: list[str], source: str = "generated", given: dict | None = None, kept: dict | None = None) -> dict:
    return secrets.user_passwords(names, given=given or {}, source=source, kept=kept or {})


def test_a_users_password_is_given_or_kept_or_made_once() -> None:
    assert passwords(list(ADA), given=ADA) == ADA
    made = passwords(["ada@example.com", "bob"])
    assert secrets.user_password_problems(made) == []
    assert made["ada@example.com"] != made["bob"]
    kept = {key: base64.b64decode(value).decode() for key, value in secrets.user_data(made).items()}
    assert passwords(["ada@example.com", "bob"], kept=kept) == made
    assert passwords(["ada@example.com"], given=ADA, kept=kept) == ADA
    assert passwords(["ada@example.com"], source="inventory", kept=kept) == {"ada@example.com": ""}


def test_a_users_password_that_is_missing_or_weak_is_refused_without_showing_it() -> None:
    problems = secrets.user_password_problems({"ada": "", "bob": "hunter2", "eve": None, "joe": "a-good-password"})
    assert [problem.split(" ")[0] for problem in problems] == [
        f"mlflow_environment_secrets.user_passwords['{name}']" for name in ("ada", "bob", "eve")
    ]
    assert "is missing" in problems[0]
    assert "has 7 characters; expected at least 12" in problems[1]
    assert "hunter2" not in str(problems)


def test_two_users_of_one_key_in_a_secret_are_refused() -> None:
    [problem] = secrets.user_password_problems({"a@b": "a-good-password", "a_b": "a-good-password"})
    assert "the users a@b and a_b have the same key" in problem


def test_passwords_that_are_no_dictionary_are_refused() -> None:
    [problem] = secrets.given_problems({"user_passwords": ["hunter2"]})
    assert "is no dictionary" in problem
    assert "hunter2" not in problem
