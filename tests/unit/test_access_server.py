"""The module mlflow_access against a server that answers as MLflow 3.17 does, as far as the module asks it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

ADMIN, BOSS, OLD, NEW = "admin", "boss", "the-password-of-before", 'p%41:&x/y@z#1ä "\\'
ALICE = "alices-own-password"


@dataclass
class Mlflow:
    """What MLflow has; `writes` are the requests that changed it."""

    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, dict[tuple[str, str], str]] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    has_roles: bool = True
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    # Logins that a worker remembers from a time when they were right.
    remembered: set[tuple[str, str]] = field(default_factory=set)

    def add(self, name: str, password: str, *, administrator: bool = False) -> None:
        identifier = len(self.users) + 1
        self.users[name] = {"id": identifier, "password": password, "is_admin": administrator, "roles": set()}

    def shown(self, role: str) -> dict[str, Any]:
        """A role in MLflow's words; identifiers are positions, so that nothing is ever renamed."""
        permissions = [
            {"id": f"{role}|{kind}|{pattern}", "resource_type": kind, "resource_pattern": pattern, "permission": given}
            for (kind, pattern), given in self.roles[role].items()
        ]
        return {"id": f"id of {role}", "name": role, "workspace": "default", "permissions": permissions}

    def answer(self, method: str, path: str, sender: str, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        verb = f"{method} {path.removeprefix('/api/').partition('/mlflow/')[2]}"
        action: Callable[..., dict[str, Any]] | None = ACTIONS.get(verb)
        if action is None or (not self.has_roles and ("roles" in verb or "list" in verb)):
            return 404, {"message": "Not Found"}
        try:
            return 200, action(self, sender, **values)
        except KeyError as error:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"{error} not found"}
        except ValueError as error:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}


def list_users(mlflow: Mlflow, _sender: str) -> dict[str, Any]:
    return {
        "users": [
            {
                "id": user["id"],
                "username": name,
                "is_admin": user["is_admin"],
                "roles": [mlflow.shown(role) for role in sorted(user["roles"])],
            }
            for name, user in mlflow.users.items()
        ]
    }


def update_password(mlflow: Mlflow, sender: str, username: str, password: str, current_password: str = "") -> dict:
    if sender == username and mlflow.users[username]["password"] != current_password:
        raise ValueError("Current password does not match.")
    if sender == username and password == current_password:
        raise ValueError("New password must differ from the current password.")
    mlflow.users[username]["password"] = password
    return {}


def create_role(mlflow: Mlflow, _sender: str, name: str, workspace: str) -> dict[str, Any]:
    assert workspace == "default"
    assert name not in mlflow.roles
    mlflow.roles[name] = {}
    return {"role": mlflow.shown(name)}


def role_of(role_id: str) -> str:
    return role_id.removeprefix("id of ")


def add_permission(
    mlflow: Mlflow, _sender: str, role_id: str, resource_type: str, resource_pattern: str, permission: str
) -> dict[str, Any]:
    assert (resource_type, resource_pattern) not in mlflow.roles[role_of(role_id)]
    mlflow.roles[role_of(role_id)][resource_type, resource_pattern] = permission
    return {"role_permission": {}}


def grant(
    mlflow: Mlflow, _sender: str, username: str, resource_type: str, resource_id: str, permission: str
) -> dict[str, Any]:
    own = f"__user_{mlflow.users[username]['id']}__"
    mlflow.users[username]["roles"].add(own)
    held = mlflow.roles.setdefault(own, {})
    assert (resource_type, resource_id) not in held
    held[resource_type, resource_id] = permission
    return {}


def update_permission(mlflow: Mlflow, _sender: str, role_permission_id: str, permission: str) -> dict[str, Any]:
    role, kind, pattern = role_permission_id.split("|")
    assert (kind, pattern) in mlflow.roles[role]
    mlflow.roles[role][kind, pattern] = permission
    return {}


def remove_permission(mlflow: Mlflow, _sender: str, role_permission_id: str) -> dict[str, Any]:
    role, kind, pattern = role_permission_id.split("|")
    del mlflow.roles[role][kind, pattern]
    return {}


def create_user(mlflow: Mlflow, _sender: str, username: str, password: str) -> dict[str, Any]:
    if len(password) < 12:
        raise ValueError("Password must be at least 12 characters.")
    mlflow.add(username, password)
    return {"user": {}}


def delete_role(mlflow: Mlflow, _sender: str, role_id: str) -> dict[str, Any]:
    del mlflow.roles[role_of(role_id)]
    for user in mlflow.users.values():
        user["roles"].discard(role_of(role_id))
    return {}


def delete_user(mlflow: Mlflow, sender: str, username: str) -> dict[str, Any]:
    assert username != sender
    mlflow.roles.pop(f"__user_{mlflow.users.pop(username)['id']}__", None)
    return {}


def get_experiment(mlflow: Mlflow, _sender: str, experiment_name: str) -> dict[str, Any]:
    return {"experiment": {"experiment_id": mlflow.experiments[experiment_name]}}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "GET users/list": list_users,
    "GET users/get": lambda mlflow, _sender, username: {"user": mlflow.users[username]["id"]},
    "PATCH users/update-password": update_password,
    "PATCH users/update-admin": lambda mlflow, _sender, username, is_admin: mlflow.users[username].update(
        is_admin=is_admin
    ),
    "POST users/create": create_user,
    "DELETE users/delete": delete_user,
    "POST users/permissions/grant": grant,
    "GET roles/list": lambda mlflow, _sender: {"roles": [mlflow.shown(role) for role in mlflow.roles]},
    "POST roles/create": create_role,
    "DELETE roles/delete": delete_role,
    "POST roles/permissions/add": add_permission,
    "PATCH roles/permissions/update": update_permission,
    "DELETE roles/permissions/remove": remove_permission,
    "POST roles/assign": lambda mlflow, _sender, username, role_id: mlflow.users[username]["roles"].add(
        role_of(role_id)
    ),
    "DELETE roles/unassign": lambda mlflow, _sender, username, role_id: mlflow.users[username]["roles"].remove(
        role_of(role_id)
    ),
    "GET experiments/get-by-name": get_experiment,
}


class FakeMlflow(BaseHTTPRequestHandler):
    """HTTP for it, with MLflow's login."""

    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        mlflow: Mlflow = self.server.mlflow
        length = int(self.headers.get("Content-Length") or 0)
        values = json.loads(self.rfile.read(length)) if length else dict(parse_qsl(urlsplit(self.path).query))
        name, _, password = base64.b64decode(self.headers["Authorization"].split()[1]).decode().partition(":")
        path = urlsplit(self.path).path
        mlflow.requests.append((self.command, path, name))
        if self.headers["Host"] != f"127.0.0.1:{self.server.server_port}":
            status, answer = 403, {"message": "Invalid Host header"}
        elif mlflow.users.get(name, {}).get("password") != password and (name, password) not in mlflow.remembered:
            status, answer = 401, {}
        else:
            status, answer = mlflow.answer(self.command, path, name, values)
        if status == 200 and self.command != "GET":
            mlflow.writes.append(f"{self.command} {path}")
        body = json.dumps(answer or {}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def mlflow() -> Mlflow:
    found = Mlflow(experiments={"churn": "7", "Default": "0"})
    found.add(ADMIN, NEW, administrator=True)
    return found


@pytest.fixture
def access(mlflow: Mlflow, run_module: Callable[..., dict[str, Any]]) -> Iterator[Callable[..., dict[str, Any]]]:
    """Run the module against it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeMlflow)
    server.mlflow = mlflow
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def run(**options: Any) -> dict[str, Any]:
        mlflow.requests.clear()
        mlflow.writes.clear()
        where = {"host": "127.0.0.1", "port": server.server_port, "reach": "direct"}
        result = run_module("mlflow_access", **{**where, "admin_username": ADMIN, "admin_password": NEW, **options})
        shown = json.dumps({key: value for key, value in result.items() if key != "invocation"})
        assert [secret for secret in (OLD, NEW, ALICE) if json.dumps(secret)[1:-1] in shown] == []
        return result

    yield run
    server.shutdown()
    server.server_close()


def permission(kind: str, resource: str, what: str) -> dict[str, str]:
    return {"resource_type": kind, "resource": resource, "permission": what}


WANTED = {
    "roles": [{"name": "team", "permissions": [permission("experiment", "churn", "EDIT")]}],
    "users": [
        {"name": "alice", "password": ALICE, "roles": ["team"]},
        {
            "name": BOSS,
            "password": ALICE,
            "administrator": True,
            "permissions": [permission("experiment", "*", "MANAGE"), permission("registered_model", "fraud", "USE")],
        },
    ],
}


def test_without_anything_stated_a_run_is_one_request(mlflow: Mlflow, access: Callable) -> None:
    result = access()
    assert (result["changed"], result["changes"], result["diff"]) == (False, [], {"before": {}, "after": {}})
    assert [(method, path) for method, path, _ in mlflow.requests] == [("GET", "/api/2.0/mlflow/users/list")]


def test_everything_is_made_and_the_second_run_writes_nothing(mlflow: Mlflow, access: Callable) -> None:
    foreseen = access(check_mode=True, **WANTED)
    assert (foreseen["changed"], mlflow.writes) == (True, [])
    made = access(**WANTED)
    assert (made["changes"], made["diff"]) == (foreseen["changes"], foreseen["diff"])
    assert mlflow.roles["team"] == {("experiment", "7"): "EDIT"}
    assert mlflow.users["alice"]["roles"] == {"team"}
    assert mlflow.users[BOSS]["is_admin"]
    assert mlflow.roles["__user_3__"] == {("experiment", "*"): "MANAGE", ("registered_model", "fraud"): "USE"}
    again = access(**WANTED)
    assert (again["changed"], again["changes"], mlflow.writes) == (False, [], [])
    # One for what there is, one for the roles, one for each experiment by name and one question for each user.
    assert len(mlflow.requests) == 5


def test_what_is_no_longer_stated_goes_with_prune_alone(mlflow: Mlflow, access: Callable) -> None:
    access(**WANTED)
    mlflow.roles["__user_2__"] = {("experiment", "0"): "MANAGE", ("prompt", "greeting"): "READ"}
    less = {"users": [{"name": "alice", "password": ALICE}]}
    assert not access(**less)["changed"]
    expected = [
        "took READ on prompt greeting from user alice",
        "deleted user boss in MLflow",
        "deleted role team in MLflow",
    ]
    assert access(check_mode=True, prune=True, **less)["changes"] == expected
    assert access(prune=True, **less)["changes"] == expected
    assert (set(mlflow.users), mlflow.roles) == ({ADMIN, "alice"}, {"__user_2__": {("experiment", "0"): "MANAGE"}})
    assert not access(prune=True, **less)["changed"]


def test_a_permission_that_is_another_is_changed_in_place(mlflow: Mlflow, access: Callable) -> None:
    access(**WANTED)
    others = json.loads(json.dumps(WANTED).replace('"USE"', '"READ"').replace('"EDIT"', '"READ"'))
    assert access(**others)["changes"] == [
        "gave role team READ on experiment churn in place of EDIT",
        "gave user boss READ on registered_model fraud in place of USE",
    ]
    assert mlflow.writes == ["PATCH /api/3.0/mlflow/roles/permissions/update"] * 2
    assert mlflow.roles["team"] == {("experiment", "7"): "READ"}


def test_a_users_password_that_is_another_is_changed(mlflow: Mlflow, access: Callable) -> None:
    access(**WANTED)
    mlflow.users["alice"]["password"] = "chosen in the browser"
    for check_mode in (True, False):
        result = access(check_mode=check_mode, **WANTED)
        assert result["changes"] == ["changed the password of user alice"]
        assert result["diff"]["after"]["user alice"]["password"] == "as given"
    assert mlflow.users["alice"]["password"] == ALICE
    assert not access(**WANTED)["changed"]


def test_the_administrators_password_is_changed_by_the_former_one(mlflow: Mlflow, access: Callable) -> None:
    mlflow.users[ADMIN]["password"] = OLD
    foreseen = access(check_mode=True, former_admin_password=OLD, **WANTED)
    assert foreseen["changes"][0] == "changed the password of administrator admin"
    assert (mlflow.users[ADMIN]["password"], mlflow.writes) == (OLD, [])
    assert access(former_admin_password=OLD, **WANTED)["changes"] == foreseen["changes"]
    assert mlflow.users[ADMIN]["password"] == NEW
    # The run may have broken off before the new one was kept.
    assert not access(former_admin_password=OLD, **WANTED)["changed"]
    assert not access(former_admin_password=NEW, **WANTED)["changed"]


def test_a_former_password_that_is_only_remembered_is_not_taken_for_the_present_one(
    mlflow: Mlflow, access: Callable
) -> None:
    access(**WANTED)
    mlflow.users[ADMIN]["password"], mlflow.users["alice"]["password"] = OLD, "the next one of alice"
    mlflow.remembered = {(ADMIN, NEW), ("alice", ALICE)}
    changes = ["changed the password of administrator admin", "changed the password of user alice"]
    assert access(check_mode=True, former_admin_password=OLD, **WANTED)["changes"] == changes
    assert (mlflow.users[ADMIN]["password"], mlflow.writes) == (OLD, [])
    assert access(former_admin_password=OLD, **WANTED)["changes"] == changes
    assert (mlflow.users[ADMIN]["password"], mlflow.users["alice"]["password"]) == (NEW, ALICE)
    assert not access(former_admin_password=OLD, **WANTED)["changed"]


@pytest.mark.parametrize("former", [OLD, "", None])
def test_where_nobody_can_log_in_one_line_says_what_to_do(mlflow: Mlflow, access: Callable, former: str | None) -> None:
    mlflow.users[ADMIN]["password"] = "chosen in the browser"
    result = access(former_admin_password=former, **WANTED)
    assert "MLflow accepts neither mlflow_environment_secrets.admin_password for its administrator" in result["msg"]
    assert "docs/access.md" in result["msg"]
    assert mlflow.writes == []


def test_a_user_who_is_no_administrator_is_told(mlflow: Mlflow, access: Callable) -> None:
    mlflow.users[ADMIN]["is_admin"] = False
    assert "user admin (mlflow_server_admin_username) is no administrator of MLflow" in access()["msg"]


def test_the_administrator_is_not_to_be_among_the_users(mlflow: Mlflow, access: Callable) -> None:
    result = access(users=[{"name": ADMIN, "password": ALICE}], prune=True)
    assert "admin is the administrator that makes these changes" in result["msg"]
    assert mlflow.requests == []


def test_an_experiment_that_is_not_there_is_left_out_with_a_warning(mlflow: Mlflow, access: Callable) -> None:
    del mlflow.experiments["churn"]
    result = access(**WANTED)
    assert "there is no experiment churn yet" in str(result["warnings"])
    assert mlflow.roles["team"] == {}
    assert not access(**WANTED)["changed"]
    mlflow.experiments["churn"] = "12"
    assert access(**WANTED)["changes"] == ["gave role team EDIT on experiment churn"]


def test_a_release_without_roles_serves_who_states_none(mlflow: Mlflow, access: Callable) -> None:
    mlflow.has_roles = False
    mlflow.users[ADMIN]["password"] = OLD
    assert access(former_admin_password=OLD)["changes"] == ["changed the password of administrator admin"]
    assert "has no roles, as its release is older than 3.17" in access(**WANTED)["msg"]
    # Before an upgrade a dry run tells what will be there after it.
    assert "created user alice in MLflow" in access(check_mode=True, **WANTED)["changes"]


def test_mlflows_own_sentence_is_told_where_it_refuses(access: Callable) -> None:
    result = access(users=[{"name": "alice", "password": "short"}])
    assert "POST /api/2.0/mlflow/users/create (400): Password must be at least 12 characters." in result["msg"]


def test_a_dry_run_before_there_is_a_server_tells_what_will_be_made(
    run_module: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import contextlib
    import importlib

    from ansible.module_utils.ansible_mlflow.tunnel import NoServiceError

    @contextlib.contextmanager
    def nowhere(*_args: object) -> Iterator[None]:
        raise NoServiceError("there is no Service mlflow-dev")
        yield

    monkeypatch.setattr(importlib.import_module("mlflow_access"), "reach_service", nowhere)
    options = {"host": "mlflow", "admin_username": ADMIN, "admin_password": NEW, **WANTED}
    foreseen = run_module("mlflow_access", check_mode=True, **options)
    assert "gave role team EDIT on experiment churn" in foreseen["changes"]
    assert "as if MLflow had no user but the administrator" in str(foreseen["warnings"])
    assert run_module("mlflow_access", **options)["msg"] == "there is no Service mlflow-dev"


def test_a_server_that_is_not_there_is_told_in_one_line(run_module: Callable[..., dict[str, Any]]) -> None:
    options = {"host": "127.0.0.1", "port": 1, "reach": "direct", "admin_username": ADMIN, "admin_password": NEW}
    assert run_module("mlflow_access", **options)["msg"].startswith("http://127.0.0.1:1 does not answer: ")
