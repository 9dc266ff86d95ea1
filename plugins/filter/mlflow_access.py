"""Filters of the role mlflow_access: what an argument specification cannot say of users, roles and permissions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

# A colon ends the name in the header that logs a user in.
USERNAME = re.compile(r"[A-Za-z0-9_.@+-]{1,255}")
# MLflow keeps what a user has without a role in a role of this name, and refuses others that begin so.
RESERVED = "__user_"
LONGEST = 255
# The types whose resources can be named one by one; of the others a permission is on all, written *.
NAMED = {
    "experiment",
    "registered_model",
    "prompt",
    "scorer",
    "gateway_secret",
    "gateway_endpoint",
    "gateway_model_definition",
    "mcp_server",
}


def access_problems(users: list[dict[str, Any]], roles: list[dict[str, Any]], administrator: str) -> list[str]:
    """Say what is wrong with the stated users and roles.

    Args:
        users: mlflow_access_users, of the types that its argument specification says.
        roles: mlflow_access_roles, likewise.
        administrator: mlflow_server_admin_username.

    Returns:
        A sentence for each problem: the variable, what it is, and what is expected.
    """
    return list(dict.fromkeys([*user_problems(users, roles, administrator), *role_problems(roles)]))


def user_problems(users: list[dict[str, Any]], roles: list[dict[str, Any]], administrator: str) -> Iterator[str]:
    """What is wrong with the users."""
    defined = [role["name"] for role in roles]
    known = ", ".join(defined) or "none"
    yield from repeated("mlflow_access_users", (user["name"] for user in users))
    for user in users:
        name = user["name"]
        where = f"mlflow_access_users: user {name!r}"
        if not USERNAME.fullmatch(name):
            yield f"{where} has no name that can be used; expected 1 to {LONGEST} letters, digits and _ . @ + -"
        if name == administrator:
            yield f"{where} is mlflow_server_admin_username, which always is an administrator; expected it left out"
        for role in user.get("roles") or []:
            if role not in defined:
                yield f"{where} has the role {role!r}; expected one of mlflow_access_roles: {known}"
        yield from repeated(f"{where}, roles", user.get("roles") or [])
        yield from permission_problems(where, user.get("permissions") or [], workspace=False)


def role_problems(roles: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with the roles."""
    yield from repeated("mlflow_access_roles", (role["name"] for role in roles))
    for role in roles:
        name = role["name"]
        where = f"mlflow_access_roles: role {name!r}"
        if not name.strip() or len(name) > LONGEST:
            yield f"{where} has no name that can be used; expected 1 to {LONGEST} characters"
        if name.startswith(RESERVED):
            yield f"{where} begins with {RESERVED}, which MLflow keeps for itself; expected another name"
        yield from permission_problems(where, role.get("permissions") or [], workspace=True)


def permission_problems(where: str, permissions: list[dict[str, Any]], *, workspace: bool) -> Iterator[str]:
    """What is wrong with the permissions of one user or role; of these only a role can have any on the workspace."""
    yield from repeated(where, (f"{entry['resource_type']} {entry['resource']}" for entry in permissions))
    for entry in permissions:
        kind, resource, permission = entry["resource_type"], entry["resource"], entry["permission"]
        what = f"{where} has {permission} on {kind} {resource!r}"
        if not resource or len(resource) > LONGEST:
            yield f"{what}; expected a resource of 1 to {LONGEST} characters"
        elif resource != "*" and kind not in NAMED:
            yield f"{what}; expected the resource '*', the only one that MLflow takes of this type"
        if kind == "workspace" and not workspace:
            yield f"{what}; expected it in a role, the only place where MLflow takes it"
        if kind == "workspace" and permission not in ("USE", "MANAGE"):
            yield f"{what}; expected USE or MANAGE, all that there is on a workspace"


def repeated(where: str, names: Iterable[str]) -> list[str]:
    """A sentence for each name that is there more than once."""
    return [
        f"{where}: {name!r} is there {count} times; expected once"
        for name, count in Counter(names).items()
        if count > 1
    ]


def with_passwords(users: list[dict[str, Any]], passwords: dict[str, str]) -> list[dict[str, Any]]:
    """The users, each with its password."""
    return [{**user, "password": passwords[user["name"]]} for user in users]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_access_problems": access_problems,
            "mlflow_access_with_passwords": with_passwords,
        }
