"""Which secrets a rotation changes, to what and why not, and what encrypts anew, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.ansible_mlflow.database import second_login
from conftest import load_file, load_filter
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
rotation = load_filter("mlflow_rotation")
RULES = load_filter("mlflow_secrets").RULES

ADMINISTRATORS = {"database_admin_username": "postgres", "object_store_admin_access_key": "minio"}
PRESENT = {name: f"present {name}" for name in rotation.ROTATABLE}
FRESH = {name: f"fresh {name}" for name in rotation.ROTATABLE}
SOURCE = dict.fromkeys(RULES, "") | PRESENT | ADMINISTRATORS
EVERY = list(RULES)


def planned(*asked: str, given: list[str] | None = None, unfinished: dict | None = None, **changed: str) -> dict:
    """The plan for an environment whose source has other values for these; without `given`, all are generated."""
    return rotation.plan(
        SOURCE | changed,
        present=PRESENT,
        asked=list(asked),
        given=given or [],
        fresh=FRESH,
        environment="dev",
        unfinished=unfinished or {},
    )


def test_the_names_are_those_of_the_secrets_that_the_cluster_has() -> None:
    # Another key for backups is for those to come: nothing has to change with it.
    assert {*rotation.ROTATABLE, "backup_encryption_key"} == {name for name, rule in RULES.items() if rule.key}


def test_what_is_generated_gets_a_new_value_and_a_key_another_name() -> None:
    plan = planned("database_password", "object_store_secret_key")
    assert plan["problems"] == []
    assert plan["new"]["database_password"] == "fresh database_password"
    assert plan["new"]["object_store_secret_key"] == "fresh object_store_secret_key"
    assert plan["new"]["object_store_access_key"].startswith("fresh object_store_access_key-")
    assert plan["former"] == {name: PRESENT[name] for name in plan["new"]}
    assert len(plan["new"]) == 3


def test_all_is_everything_that_is_generated() -> None:
    plan = planned("all")
    assert (set(plan["new"]), plan["problems"]) == (set(rotation.ROTATABLE), [])


def test_all_is_what_a_person_has_changed_where_a_person_gives_the_values() -> None:
    plan = planned("all", given=EVERY, webhook_key="another", admin_password="another one")
    assert plan["problems"] == []
    assert plan["new"] == {"webhook_key": "another", "admin_password": "another one"}


def test_without_backups_all_does_without_their_keys() -> None:
    none = {"backup_access_key": "", "backup_secret_key": ""}
    arguments = {"asked": ["all"], "given": [], "fresh": FRESH, "environment": "dev", "unfinished": {}}
    plan = rotation.plan(SOURCE | none, present=PRESENT | none, **arguments)
    assert plan["problems"] == []
    assert set(plan["new"]) == set(rotation.ROTATABLE) - set(none)


# docs/failures.md shows what is said of each: scripts/failures.py. What is given besides, in words, what is said.
BAD_ROTATIONS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"asked": []},
        "",
        "mlflow_rotation_secrets is empty; expected all, or some of admin_password, database_password",
    ),
    ({"asked": ["kek"]}, "", "mlflow_rotation_secrets has kek; expected all, or some of admin_password"),
    (
        {"asked": ["webhook_key"], "given": EVERY},
        ", with the value of before",
        "webhook_key is the one that the environment has already; expected",
    ),
    (
        {"asked": ["all"], "given": EVERY},
        ", with the values of before",
        "every secret is the one that the environment has already; expected other",
    ),
    (
        {"asked": ["webhook_key"], "given": EVERY, "webhook_key": "another", "kek_passphrase": "another"},
        ", with another `kek_passphrase`",
        "kek_passphrase is another than the environment's present one, and mlflow_rotation_secrets does not name it",
    ),
    (
        {"asked": ["object_store_secret_key"], "given": EVERY, "object_store_secret_key": "another"},
        ", with the `object_store_access_key` of before",
        "object_store_secret_key is another one, and object_store_access_key is the same; expected another",
    ),
    (
        {"asked": ["database_password"], "database_admin_username": ""},
        ", without PostgreSQL's administrator",
        "database_password: mlflow_environment_secrets has no database_admin_username; expected the administrator",
    ),
    (
        {"asked": ["backup_access_key"], "object_store_admin_access_key": ""},
        ", without MinIO's administrator",
        "mlflow_environment_secrets has no object_store_admin_access_key; expected the administrator",
    ),
]


@pytest.mark.parametrize(("case", "_given", "message"), BAD_ROTATIONS)
def test_what_cannot_be_rotated_is_refused_in_one_sentence(case: dict[str, Any], _given: str, message: str) -> None:
    case = dict(case)
    [problem] = planned(*case.pop("asked"), **case)["problems"]
    assert message in problem
    assert "expected" in problem
    assert [value for value in ("another", *FRESH.values(), *PRESENT.values()) if f"'{value}'" in problem] == []


def test_an_environment_that_is_not_deployed_has_nothing_to_rotate() -> None:
    arguments = {"given": [], "fresh": FRESH, "environment": "dev", "unfinished": {}}
    plan = rotation.plan(SOURCE, present=dict.fromkeys(PRESENT, ""), asked=["webhook_key"], **arguments)
    assert "webhook_key: the environment's Secrets have none" in plan["problems"][0]


def test_a_rotation_that_broke_off_goes_on_to_the_same_values() -> None:
    first = planned("database_password", "kek_passphrase")
    unfinished = rotation.unfinished({part: json.dumps(first[part]) for part in ("new", "former")})
    again = planned("webhook_key", unfinished=unfinished)
    assert (again["new"], again["former"], again["problems"]) == (first["new"], first["former"], [])
    changed = planned("all", unfinished=unfinished, given=EVERY, kek_passphrase="yet another")
    assert "database_password was changed again after its rotation had begun" in str(changed["problems"])
    assert rotation.unfinished({}) == {}
    with pytest.raises(AnsibleFilterError, match="has no new and former values"):
        rotation.unfinished({"new": "no JSON"})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"admin_password": "another", "flask_secret_key": "another", "database_migrator_password": "another"}, []),
        ({"object_store_secret_key": "another", "object_store_access_key": "another"}, []),
        ({"object_store_secret_key": "another"}, ["object_store_secret_key"]),
        ({"database_password": "another", "kek_passphrase": "x"}, ["database_password", "kek_passphrase"]),
    ],
)
def test_a_deployment_is_refused_what_would_fail_requests_or_lose_something(changed: dict, told: list[str]) -> None:
    problems = rotation.disturbing(SOURCE | changed, present=PRESENT)
    assert [problem.split()[0] for problem in problems] == told
    assert all("expected playbooks/rotate.yml" in problem for problem in problems)
    assert rotation.disturbing(SOURCE | changed, present=dict.fromkeys(PRESENT, "")) == []


@given(st.text(min_size=1, max_size=63).filter(lambda name: len(name.encode()) <= 63))
def test_the_second_logins_name_is_one_that_postgresql_takes(username: str) -> None:
    name = second_login(username)
    assert len(name.encode()) <= 63
    assert name.endswith("_rotation")


def program() -> Any:
    return load_file(ROOT / "roles/mlflow_rotation/files/encrypt_anew.py")


def test_a_webhooks_secret_is_encrypted_anew_once_and_a_strange_one_is_not() -> None:
    encrypt_anew = program()
    former, new, strange = (Fernet.generate_key().decode() for _ in range(3))
    change = encrypt_anew.webhook_secret(former, new)
    changed = change(Fernet(former).encrypt(b"the secret").decode())
    assert Fernet(new).decrypt(changed) == b"the secret"
    assert change(changed) == changed
    with pytest.raises(encrypt_anew.UnreadableError):
        change(Fernet(strange).encrypt(b"the secret").decode())


def test_what_was_done_is_told() -> None:
    report = {"encrypted": {"webhooks": 2}, "unreadable": {"gateway secrets": ["one", "other"]}}
    assert rotation.lines(report) == [
        "2 webhooks encrypted anew",
        "left as they are, since neither the former key nor the new one opens them: gateway secrets one, other",
    ]
    assert rotation.lines({}) == ["nothing was left to encrypt anew"]
