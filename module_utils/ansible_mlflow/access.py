"""Who may do what in MLflow: how it is, how it should be, and the steps from the one to the other. Nothing is asked
here and nothing changed: access_server.py does both.

The words are MLflow's: a user has roles; users and roles have permissions, each on a resource of some type, which is
named or ``*`` for all of them. https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# A resource's type and what a permission's resource_pattern is: an identifier, or * for every resource of the type.
Resource = tuple[str, str]


@dataclass(frozen=True)
class User:
    """A user: whether all is allowed, the roles, and the permissions that no role gives."""

    administrator: bool = False
    roles: frozenset[str] = frozenset()
    permissions: dict[Resource, str] = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """Every user by name, and the permissions of every role by its name."""

    users: dict[str, User] = field(default_factory=dict)
    roles: dict[str, dict[Resource, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """One change: of the user or the role ``name``, concerning another role or a permission on a resource."""

    action: str
    kind: str
    name: str
    role: str = ""
    resource: Resource = ("", "")
    permission: str = ""
    before: str = ""


def target(current: State, wanted: State, administrator: str, prune: bool) -> State:
    """How it should be.

    Nothing is ever taken from the administrator who makes the changes, nor is that account removed.

    :param wanted: what the inventory states; the administrator is not among its users.
    :param prune: whether what it does not state is taken away.
    """
    roles = {} if prune else dict(current.roles)
    for name, stated in wanted.roles.items():
        roles[name] = {**({} if prune else current.roles.get(name, {})), **stated}
    users = {} if prune else dict(current.users)
    users[administrator] = current.users.get(administrator, User(administrator=True))
    for name, stated in wanted.users.items():
        had = current.users.get(name, User())
        others = {
            resource: given for resource, given in had.permissions.items() if not prune or is_own(resource, given)
        }
        memberships = stated.roles if prune else stated.roles | had.roles
        users[name] = User(stated.administrator, memberships, {**others, **stated.permissions})
    # A role that goes takes its memberships with it.
    users = {name: User(user.administrator, user.roles & set(roles), user.permissions) for name, user in users.items()}
    return State(users, roles)


def is_own(resource: Resource, permission: str) -> bool:
    """Whether a permission may be the one that MLflow gives to whoever makes a resource: MANAGE on just this one."""
    return permission == "MANAGE" and resource[1] != "*"


def steps(current: State, wanted: State, other_passwords: set[str]) -> list[Step]:
    """What leads from one state to the other, what is given before what is taken.

    :param other_passwords: the users whose password is another than the wanted one.
    """
    found: list[Step] = []
    for name in sorted(wanted.roles):
        if name not in current.roles:
            found.append(Step("create", "role", name))
        found += permission_steps("role", name, current.roles.get(name, {}), wanted.roles[name])
    for name, user in sorted(wanted.users.items()):
        had = current.users.get(name)
        if had is None:
            found.append(Step("create", "user", name))
        elif name in other_passwords:
            found.append(Step("set_password", "user", name))
        had = had or User()
        if had.administrator != user.administrator:
            found.append(Step("promote" if user.administrator else "demote", "user", name))
        found += [Step("assign", "user", name, role=role) for role in sorted(user.roles - had.roles)]
        # The memberships of a role that is deleted go with it.
        left = sorted((had.roles - user.roles) & set(wanted.roles))
        found += [Step("unassign", "user", name, role=role) for role in left]
        found += permission_steps("user", name, had.permissions, user.permissions)
    found += [Step("delete", "user", name) for name in sorted(set(current.users) - set(wanted.users))]
    found += [Step("delete", "role", name) for name in sorted(set(current.roles) - set(wanted.roles))]
    return found


def permission_steps(kind: str, name: str, had: dict[Resource, str], wanted: dict[Resource, str]) -> list[Step]:
    """The steps from one set of permissions of a user or a role to another."""
    given = [
        Step("change" if resource in had else "grant", kind, name, "", resource, permission, had.get(resource, ""))
        for resource, permission in sorted(wanted.items())
        if had.get(resource) != permission
    ]
    taken = sorted(set(had) - set(wanted))
    return given + [Step("revoke", kind, name, "", resource, before=had[resource]) for resource in taken]


SENTENCES: dict[str, str] = {
    "create": "created {kind} {name} in MLflow",
    "delete": "deleted {kind} {name} in MLflow",
    "set_password": "changed the password of user {name}",
    "promote": "made user {name} an administrator",
    "demote": "made user {name} an administrator no longer",
    "assign": "gave user {name} the role {role}",
    "unassign": "took the role {role} from user {name}",
    "grant": "gave {kind} {name} {permission} on {on}",
    "change": "gave {kind} {name} {permission} on {on} in place of {before}",
    "revoke": "took {before} on {on} from {kind} {name}",
}


def sentence(step: Step, label: Callable[[Resource], str]) -> str:
    """A step in words; ``label`` names a resource as people do."""
    return SENTENCES[step.action].format(on=label(step.resource), **vars(step))


def difference(
    current: State, wanted: State, other_passwords: set[str], label: Callable[[Resource], str]
) -> tuple[dict, dict]:
    """The users and the roles that differ, as a diff shows them: (before, after)."""
    before, after = {}, {}
    for name in sorted({*current.users, *wanted.users}):
        had, gets, same = current.users.get(name), wanted.users.get(name), name not in other_passwords
        if had != gets or not same:
            note(before, f"user {name}", had and shown_user(had, "another" if not same else "", label))
            note(after, f"user {name}", gets and shown_user(gets, "as given" if not same else "", label))
    for name in sorted({*current.roles, *wanted.roles}):
        had, gets = current.roles.get(name), wanted.roles.get(name)
        if had != gets:
            note(before, f"role {name}", None if had is None else shown_permissions(had, label))
            note(after, f"role {name}", None if gets is None else shown_permissions(gets, label))
    return before, after


def note(side: dict, key: str, value: dict | None) -> None:
    """Add what is there to one side of a diff."""
    if value is not None:
        side[key] = value


def shown_user(user: User, password: str, label: Callable[[Resource], str]) -> dict:
    """A user as a diff shows it; of the password only that it is another one."""
    shown = {
        "administrator": user.administrator,
        "roles": sorted(user.roles),
        "permissions": shown_permissions(user.permissions, label),
    }
    return {**shown, "password": password} if password else shown


def shown_permissions(permissions: dict[Resource, str], label: Callable[[Resource], str]) -> dict[str, str]:
    """Permissions by the names of their resources."""
    return {label(resource): permission for resource, permission in sorted(permissions.items())}
