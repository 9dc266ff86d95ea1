"""Secrets: where each comes from, which are refused, and that none is shown."""

from __future__ import annotations

import base64

import pytest
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

secrets = load_filter("mlflow_secrets")


def given_problems(given: dict, source: str = "inventory", production: bool = False) -> list[str]:
    return secrets.given_problems(given, source=source, production=production)


def test_an_unknown_secret_is_named_and_its_value_is_not() -> None:
    [problem] = given_problems({"admin_pasword": "hunter2"})
    assert "admin_pasword" in problem
    assert "hunter2" not in problem


def origin(source: str) -> dict[str, str]:
    return {"source": source, "environment": "dev", "namespace": "ml", "vault": "secret/mlflow/dev"}


def problems_of(values: dict, source: str = "inventory", backup_required: bool = True) -> list[str]:
    return secrets.secret_problems(values, origin=origin(source), backup_required=backup_required)


def problems_of_users(passwords: dict, source: str = "inventory") -> list[str]:
    return secrets.user_password_problems(passwords, origin=origin(source))


def values(given: dict[str, str], source: str = "generated", **places: dict) -> dict:
    places = {"kept": {}, "vault": {}, "database_admin": {}, "object_store_admin": {}} | places
    return secrets.secret_values(given, origin=origin(source), **places)


def test_generated_secrets_are_acceptable() -> None:
    assert problems_of(values({})) == []


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


@pytest.mark.parametrize(
    ("known", "told"),
    [
        ({}, ["database_password", "object_store_secret_key"]),
        ({"given": {"database_password": "given-database-password"}}, ["object_store_secret_key"]),
        ({"kept": {"PGPASSWORD": "kept-database-password"}}, ["object_store_secret_key"]),
        ({"database_admin": {"username": "postgres", "password": "p"}}, ["object_store_secret_key"]),
        ({"object_store_admin": {"access_key": "a", "secret_key": "s"}}, ["database_password"]),
    ],
)
def test_what_is_generated_with_nobody_to_tell_it_is_refused(known: dict, told: list[str]) -> None:
    found = values(known.get("given", {}), **{name: place for name, place in known.items() if name != "given"})
    problems = secrets.unknown_problems(found, given=known.get("given", {}), kept=known.get("kept", {}))
    assert [problem.split()[0] for problem in problems] == told


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
    problems = problems_of(values({}) | dict.fromkeys(BEFORE_UPGRADES, ""))
    assert [problem.split(" is missing; ")[0] for problem in problems] == [
        f"mlflow_environment_secrets.{name}" for name in BEFORE_UPGRADES
    ]


def test_without_backups_their_keys_may_be_left_out_but_are_no_less_strict_when_given() -> None:
    taken = values({}) | {"backup_access_key": "", "backup_secret_key": ""}
    assert problems_of(taken, backup_required=False) == []
    assert set(secrets.secret_data(taken, secret="mlflow-maintenance")) == {"MIGRATOR_PGPASSWORD"}
    [problem] = problems_of(taken | {"backup_secret_key": "a-long-secret-key"}, backup_required=False)
    assert "expected both or neither" in problem
    weak = taken | {"backup_access_key": "backup", "backup_secret_key": "short"}
    [problem] = problems_of(weak, backup_required=False)
    assert "backup_secret_key has 5 characters" in problem
    [problem] = problems_of(taken | {"database_migrator_password": ""}, backup_required=False)
    assert "database_migrator_password is missing" in problem


@pytest.mark.parametrize(
    ("first", "second"),
    [("database_password", "database_migrator_password"), ("object_store_access_key", "backup_access_key")],
)
def test_what_the_server_has_is_no_key_to_what_it_must_not_do(first: str, second: str) -> None:
    [problem] = problems_of(values({}) | {first: "one-and-the-same", second: "one-and-the-same"})
    assert f"{second} is the same as {first}" in problem
    assert "one-and-the-same" not in problem


# docs/failures.md shows what is said of each: scripts/failures.py.
WEAK_SECRETS = [
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
    ("database_admin_password", "alone", "expected both or neither"),
    ("object_store_admin_access_key", "alone", "expected both or neither"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WEAK_SECRETS)
def test_a_weak_secret_is_refused_without_showing_it(name: str, value: str, expected: str) -> None:
    [problem] = problems_of(values({}) | {name: value})
    assert name in problem
    assert expected in problem
    assert not value or str(value) not in problem.replace(name, "")


ADA = {"ada@example.com": "ada's own password"}


def passwords(names: list[str], source: str = "generated", **places: dict) -> dict:
    places = {"given": {}, "kept": {}, "vault": {}} | places
    return secrets.user_passwords(names, origin=origin(source), **places)


def test_a_users_password_is_given_or_kept_or_made_once() -> None:
    assert passwords(list(ADA), given=ADA) == ADA
    made = passwords(["ada@example.com", "bob"])
    assert problems_of_users(made) == []
    assert made["ada@example.com"] != made["bob"]
    kept = {key: base64.b64decode(value).decode() for key, value in secrets.user_data(made).items()}
    assert passwords(["ada@example.com", "bob"], kept=kept) == made
    assert passwords(["ada@example.com"], given=ADA, kept=kept) == ADA
    assert passwords(["ada@example.com"], source="inventory", kept=kept) == {"ada@example.com": ""}


def test_a_users_password_that_is_missing_or_weak_is_refused_without_showing_it() -> None:
    problems = problems_of_users({"ada": "", "bob": "hunter2", "eve": None, "joe": "a-good-password"})
    assert [problem.split(" ")[0] for problem in problems] == [
        f"mlflow_environment_secrets.user_passwords['{name}']" for name in ("ada", "bob", "eve")
    ]
    assert "is missing" in problems[0]
    assert "has 7 characters; expected at least 12" in problems[1]
    assert "hunter2" not in str(problems)


def test_two_users_of_one_key_in_a_secret_are_refused() -> None:
    [problem] = problems_of_users({"a@b": "a-good-password", "a_b": "a-good-password"})
    assert "the users a@b and a_b have the same key" in problem


def test_passwords_that_are_no_dictionary_are_refused() -> None:
    [problem] = given_problems({"user_passwords": ["hunter2"]})
    assert "is no dictionary" in problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("source", "place", "user_place"),
    [
        (
            "inventory",
            "mlflow_environment_secrets.backup_secret_key",
            "mlflow_environment_secrets.user_passwords['a@b']",
        ),
        (
            "vault",
            "key backup_secret_key of Vault's secret secret/mlflow/dev",
            "key a@b of Vault's secret secret/mlflow/dev/users",
        ),
        (
            "cluster",
            "key BACKUP_AWS_SECRET_ACCESS_KEY of Secret ml/mlflow-maintenance-dev",
            "key a_b of Secret ml/mlflow-users-dev",
        ),
    ],
)
def test_a_missing_secret_is_told_with_the_place_where_people_put_it(source: str, place: str, user_place: str) -> None:
    [problem] = problems_of(values({}) | {"backup_secret_key": ""}, source)
    assert problem.startswith(f"{place} is missing; ")
    [problem] = problems_of_users({"a@b": ""}, source)
    assert problem.startswith(f"{user_place} is missing; ")


def test_vault_supplies_every_secret_by_its_name_and_users_by_theirs() -> None:
    stored = {name: f"{name} of Vault" for name in secrets.RULES}
    assert values({}, "vault", vault=stored, kept={"PGPASSWORD": "kept"}) == stored
    assert passwords(["ada"], "vault", vault={"ada": "of Vault", "eve": "gone"}, kept={"ada": "kept"}) == {
        "ada": "of Vault"
    }
    assert values({"database_admin_username": "root"}, "vault", vault=stored)["database_admin_username"] == "root"


def test_the_clusters_secrets_supply_every_secret_by_its_key_and_administrators_come_from_elsewhere() -> None:
    kept = {rule.key: f"kept {name}" for name, rule in secrets.RULES.items() if rule.key}
    taken = values({"database_admin_username": "root"}, "cluster", kept=kept)
    assert taken["webhook_key"] == "kept webhook_key"
    assert taken["database_admin_username"] == "root"
    assert passwords(["a@b"], "cluster", kept={"a_b": "kept"}) == {"a@b": "kept"}
    assert values({}, "cluster")["admin_password"] == ""


@pytest.mark.parametrize("source", ["vault", "cluster"])
def test_only_administrators_are_given_beside_a_store_of_secrets(source: str) -> None:
    assert given_problems({"database_admin_password": "p", "admin_password": ""}, source) == []
    [problem] = given_problems({"database_admin_password": "p", "admin_password": "hunter2"}, source)
    assert "mlflow_environment_secrets has admin_password, but mlflow_environment_secrets_source is" in problem
    assert "hunter2" not in problem


def test_nothing_is_generated_where_real_work_depends_on_it() -> None:
    [problem] = given_problems({}, "generated", production=True)
    assert "mlflow_environment_secrets_source is 'generated' and mlflow_environment_production is true" in problem
    assert given_problems({}, "generated", production=False) == []
    assert given_problems({}, "inventory", production=True) == []


def in_production(changed: dict, users: dict | None = None, others: dict | None = None) -> list[str]:
    return secrets.production_problems(
        values({}) | changed, passwords=users or {}, origin=origin("inventory"), others=others or {}
    )


# docs/failures.md shows what is said of each: scripts/failures.py.
PLACEHOLDERS = [
    "changeme",
    "ChangeMe-ChangeMe",
    "CHANGE_ME",
    "change-me-please",
    "<password>",
    "<the admin's password>",
    "{{ password }}",
    "${PASSWORD}",
    "REPLACE_WITH_A_STRONG_ONE",
    "replace this",
    "password",
    "Password123456",
    "password1234",
    "mlflow",
    "mlflow-2026!",
    "minioadmin",
    "minioadmin1234",
    "postgres",
    "postgres5432",
    "admin",
    "secret",
    "xxxxxxxxxxxxxxxx",
    "************",
    "placeholder",
    "your-password-here",
    "todo",
    "FIXME FIXME",
    "test1234",
]


@pytest.mark.parametrize("value", PLACEHOLDERS)
def test_placeholders_and_defaults_are_refused_where_real_work_depends_on_them(value: str) -> None:
    [problem] = in_production({"admin_password": value})
    assert problem.startswith("mlflow_environment_secrets.admin_password is a placeholder or a default")
    [problem] = in_production({}, users={"ada": value})
    assert problem.startswith("mlflow_environment_secrets.user_passwords['ada'] is a placeholder")


def test_an_access_key_may_be_called_anything_but_minios_first_administrator() -> None:
    assert in_production({"object_store_access_key": "mlflow", "database_admin_username": "postgres"}) == []
    assert len(in_production({"object_store_access_key": "minioadmin"})) == 1
    assert len(in_production({"database_admin_password": "postgres"})) == 1


def test_what_is_generated_is_no_placeholder() -> None:
    assert [in_production({}, users=passwords(["ada"])) for _ in range(50)] == [[]] * 50


def test_a_secret_that_another_environment_has_too_is_refused_without_showing_it() -> None:
    shared = "one-and-the-same-secret"
    others = {"dev": [shared, "mlflow", "postgres"], "stg": ["another"]}
    [problem] = in_production({"kek_passphrase": shared}, others=others)
    assert problem.startswith("mlflow_environment_secrets.kek_passphrase is also a secret of environment dev")
    assert shared not in problem
    assert len(in_production({}, users={"ada": shared}, others=others)) == 1
    names = {"object_store_access_key": "mlflow", "database_admin_username": "postgres"}
    assert in_production(names, others=others) == []
    # A server, and so its administrator, may well be shared.
    assert in_production({"database_admin_password": shared}, others=others) == []


def test_the_environments_of_one_run_are_compared() -> None:
    hostvars = {
        "mlflow-stg": {
            "mlflow_environment_name": "stg",
            "__mlflow_environment_secret_values": {"kek_passphrase": "k", "webhook_key": 5},
            "__mlflow_environment_user_passwords": {"ada": "a"},
        },
        "mlflow-dev": {"mlflow_environment_name": "dev"},
    }
    assert secrets.others_in_run(hostvars, hostvars) == {"stg": ["k", 5, "a"], "dev": []}
    assert in_production({"kek_passphrase": ["k"]}, others={"stg": ["k", ["k"]]}) == []


@given(st.text(st.characters(), min_size=12, max_size=64))
def test_any_text_is_taken_or_refused_in_one_line(value: str) -> None:
    problems = problems_of(values({}) | {"admin_password": value, "database_migrator_password": value})
    broken = {"\n", "\r", "\0"} & set(value) or any("\ud800" <= character <= "\udfff" for character in value)
    assert len(problems) == (2 if broken else 0)
    if not broken:
        data = secrets.secret_data(values({}) | {"admin_password": value})
        assert base64.b64decode(data["MLFLOW_AUTH_ADMIN_PASSWORD"]).decode() == value
