"""Users, roles and permissions in the inventory, as people meet them: who may do what in dev's MLflow."""

from __future__ import annotations

import base64
import contextlib
import importlib
import io
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from ansible.module_utils.testing import patch_module_args
from conftest import KUBECONFIG, NODE_PORTS, ROOT, Cluster, Run, play, wait_until

sys.path.insert(0, str(ROOT / "library"))

URL = f"http://localhost:{NODE_PORTS['dev']}"
PASSWORDS = {"alice": 'p%41:&x/y@z#1ä "\\', "bob": "bobs-own-password", "carol": "carols-own-password"}
OURS, THEIRS = "access test: ours", "access test: theirs"


class Mlflow:
    """dev's MLflow through its NodePort, and the module through the API server."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.experiments = {name: self.experiment(name) for name in (OURS, THEIRS)}

    def request(self, user: str, method: str, path: str, **values: Any) -> tuple[int, Any]:
        """(status, answer) of a request of a user, the administrator or one of PASSWORDS."""
        content = {"fields": values} if method == "GET" else {"json": values}
        headers = {"Authorization": basic(user, self.password if user == "admin" else PASSWORDS[user])}
        answer = urllib3.request(method, f"{URL}/api/{path}", headers=headers, timeout=20, retries=False, **content)
        return answer.status, json.loads(answer.data) if answer.status == 200 else answer.data

    def experiment(self, name: str) -> str:
        """Make an experiment, or bring it back; its identifier."""
        self.request("admin", "POST", "2.0/mlflow/experiments/create", name=name)
        found = self.request("admin", "GET", "2.0/mlflow/experiments/get-by-name", experiment_name=name)[1]
        identifier = found["experiment"]["experiment_id"]
        self.request("admin", "POST", "2.0/mlflow/experiments/restore", experiment_id=identifier)
        return identifier

    def may(self, user: str, experiment: str) -> str:
        """What a user may do with an experiment, by trying: read, write and delete."""
        identifier = self.experiments[experiment]
        tried = {
            "read": ("GET", "2.0/mlflow/experiments/get", {"experiment_id": identifier}),
            "write": ("POST", "2.0/mlflow/runs/create", {"experiment_id": identifier}),
            "delete": ("POST", "2.0/mlflow/experiments/delete", {"experiment_id": identifier}),
        }
        answers = {
            what: self.request(user, method, path, **values)[0] for what, (method, path, values) in tried.items()
        }
        if answers["delete"] == 200:
            self.request("admin", "POST", "2.0/mlflow/experiments/restore", experiment_id=identifier)
        assert set(answers.values()) <= {200, 403}, answers
        return " ".join(what for what, status in answers.items() if status == 200)

    def ensure(self, **options: Any) -> dict[str, Any]:
        """Run the module; its result."""
        arguments = {
            "kubeconfig": KUBECONFIG,
            "reach": "tunnel",
            "host": "mlflow-dev.mlflow-dev.svc.cluster.local",
            "admin_username": "admin",
            "admin_password": self.password,
            "_ansible_diff": True,
            **options,
        }
        output = io.StringIO()
        with patch_module_args(arguments), contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            importlib.import_module("mlflow_access").main()
        result = json.loads(output.getvalue())
        shown = json.dumps({key: value for key, value in result.items() if key != "invocation"}, ensure_ascii=False)
        assert [name for name, password in PASSWORDS.items() if password in shown] == []
        return result

    def users(self) -> set[str]:
        """The names of the users."""
        return {user["username"] for user in self.request("admin", "GET", "2.0/mlflow/users/list")[1]["users"]}


def basic(user: str, password: str) -> str:
    """The header that logs a user in, in UTF-8."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def mlflow(cluster: Cluster) -> Iterator[Mlflow]:
    """dev's MLflow with two experiments of the administrator's, and nobody else in it before and after."""
    found = Mlflow(cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"])
    nobody = found.ensure(prune=True)
    assert "changes" in nobody, nobody
    yield found
    found.ensure(prune=True)
    for identifier in found.experiments.values():
        found.request("admin", "POST", "2.0/mlflow/experiments/delete", experiment_id=identifier)
    assert found.users() == {"admin"}


def permission(resource: str, what: str, kind: str = "experiment") -> dict[str, str]:
    return {"resource_type": kind, "resource": resource, "permission": what}


def user(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "password": PASSWORDS[name], **options}


ROLES = [{"name": "team", "permissions": [permission(OURS, "EDIT")]}]
USERS = [
    user("alice", roles=["team"], permissions=[permission(THEIRS, "DENY")]),
    user("bob", permissions=[permission(OURS, "MANAGE")]),
    user("carol", administrator=True),
]
# What is tried, after each of the tests below in their order: everybody may read by mlflow_server_default_permission.
STATED = {
    ("alice", OURS): "read write",
    ("alice", THEIRS): "",
    ("bob", OURS): "read write delete",
    ("bob", THEIRS): "read",
    ("carol", OURS): "read write delete",
    ("carol", THEIRS): "read write delete",
}


def test_what_is_stated_is_what_users_may_do(mlflow: Mlflow) -> None:
    foreseen = mlflow.ensure(users=USERS, roles=ROLES, _ansible_check_mode=True)
    assert mlflow.users() == {"admin"}
    made = mlflow.ensure(users=USERS, roles=ROLES)
    assert made["changes"] == foreseen["changes"], made
    assert {key: mlflow.may(*key) for key in STATED} == STATED
    assert mlflow.request("carol", "GET", "3.0/mlflow/roles/list")[0] == 200
    assert mlflow.request("alice", "GET", "3.0/mlflow/roles/list")[0] == 403


def test_the_second_run_changes_nothing_and_is_quick(mlflow: Mlflow) -> None:
    start = time.monotonic()
    again = mlflow.ensure(users=USERS, roles=ROLES)
    print(f"three users and a role as they should be: {time.monotonic() - start:.1f} s")
    assert (again["changed"], again["changes"]) == (False, [])


def test_other_permissions_and_another_rank_take_effect(mlflow: Mlflow) -> None:
    users = [
        user("alice", roles=["team"], administrator=True),
        user("bob", permissions=[permission(OURS, "READ")]),
        user("carol"),
    ]
    assert mlflow.ensure(users=users, roles=ROLES)["changes"] == [
        "made user alice an administrator",
        f"gave user bob READ on experiment {OURS} in place of MANAGE",
        "made user carol an administrator no longer",
    ]
    assert mlflow.may("alice", THEIRS) == "read write delete"
    assert mlflow.may("bob", OURS) == "read"
    assert mlflow.may("carol", OURS) == "read"
    assert mlflow.ensure(users=USERS, roles=ROLES)["changed"]
    assert {key: mlflow.may(*key) for key in STATED} == STATED


def test_another_password_is_the_one_that_works(mlflow: Mlflow) -> None:
    PASSWORDS["bob"] = "bobs-next-password"
    changed = mlflow.ensure(
        users=[*USERS[:1], user("bob", permissions=USERS[1]["permissions"]), *USERS[2:]], roles=ROLES
    )
    assert changed["changes"] == ["changed the password of user bob"]
    assert mlflow.may("bob", THEIRS) == "read"


def test_what_a_user_made_stays_and_the_rest_goes_with_prune_alone(mlflow: Mlflow) -> None:
    mine = "access test: alice's own"
    status, made = mlflow.request("alice", "POST", "2.0/mlflow/experiments/create", name=mine)
    assert status == 200
    mlflow.experiments[mine] = made["experiment_id"]
    less = [user("alice")]
    assert not mlflow.ensure(users=less)["changed"]
    assert mlflow.may("alice", OURS) == "read write"
    pruned = mlflow.ensure(users=less, prune=True)
    assert pruned["changes"] == [
        f"took DENY on experiment of id {mlflow.experiments[THEIRS]} from user alice",
        "deleted user bob in MLflow",
        "deleted user carol in MLflow",
        "deleted role team in MLflow",
    ]
    assert mlflow.users() == {"admin", "alice"}
    assert (mlflow.may("alice", OURS), mlflow.may("alice", THEIRS)) == ("read", "read")
    assert mlflow.may("alice", mine) == "read write delete"
    assert not mlflow.ensure(users=less, prune=True)["changed"]


def test_a_password_that_nobody_knows_is_told_and_changes_nothing(mlflow: Mlflow) -> None:
    refused = mlflow.ensure(admin_password="not-the-password-1", former_admin_password="nor-is-it-this-one", prune=True)
    assert (
        "MLflow accepts neither mlflow_environment_secrets.admin_password for its administrator admin" in refused["msg"]
    )
    assert "alice" in mlflow.users()


def deploy(tag: str, password: str) -> Run:
    """Run the deployment's part that has a tag, and what every part needs, with a password for the administrator."""
    secrets = json.dumps({"mlflow_environment_secrets": {"admin_password": password}})
    run = play("playbooks/deploy.yml", "dev", args=("--tags", tag, "--diff", "-e", secrets))
    assert run.status == 0, run.output
    assert password not in run.output
    return run


@pytest.mark.full
def test_the_administrators_password_is_rotated_also_after_a_run_that_broke_off(
    cluster: Cluster, mlflow: Mlflow
) -> None:
    def works(password: str) -> bool:
        headers = {"Authorization": basic("admin", password)}
        answer = urllib3.request(
            "GET", f"{URL}/api/2.0/mlflow/users/current", headers=headers, timeout=20, retries=False
        )
        return answer.status == 200

    before = mlflow.password
    try:
        # As if the run had ended right after it wrote the Secret: MLflow has the password of before.
        deploy("nothing", "the-second-password")
        assert cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"] == "the-second-password"
        assert (works(before), works("the-second-password")) == (True, False)
        rotated = deploy("mlflow_access", 'the-th!rd "p%41$word\\')
        assert "changed the password of administrator admin" in rotated.output or rotated.changed
        assert works('the-th!rd "p%41$word\\')
        assert deploy("mlflow_access", 'the-th!rd "p%41$word\\').changed == 0
    finally:
        # A worker remembers the password of before for a minute, and the run is not to take it for the present one.
        deploy("mlflow_access", before)
    assert works(before)


@pytest.mark.full
def test_the_old_password_is_refused_when_it_is_no_longer_remembered(mlflow: Mlflow) -> None:
    mlflow.ensure(users=[user("bob")])
    old = basic("bob", PASSWORDS["bob"])
    mlflow.ensure(users=[{"name": "bob", "password": "bobs-last-password"}])

    def refused() -> bool:
        headers = {"Authorization": old}
        answer = urllib3.request(
            "GET", f"{URL}/api/2.0/mlflow/users/current", headers=headers, timeout=20, retries=False
        )
        return answer.status == 401

    wait_until(refused, 75, "the old password is refused")
    assert all(refused() for _ in range(20))
