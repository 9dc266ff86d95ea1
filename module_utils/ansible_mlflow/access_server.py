"""MLflow's API of users, roles and permissions, and the one call that brings them into the wanted state."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .access import Resource, State, Step, User, difference, sentence, steps, target
from .errors import Error, MissingLibraryError, one_line

CONNECT_TIMEOUT = 5
READ_TIMEOUT = 30
# MLflow hangs up after five seconds without a request, which a tunnel learns too late.
IDLE_SECONDS = 2
# The server hashes as many passwords at once as it has cores to spare; more would only wait there.
LOGINS_AT_ONCE = 4
# Roles belong to a workspace. Where workspaces are turned off, as they are by default, it is this one.
WORKSPACE = "default"
# One answer that tells whether a login is right, who there is, and what each may do.
USERS = "2.0/mlflow/users/list"
UPDATE = "2.0/mlflow/users/update-password"


@dataclass(frozen=True)
class Wanted:
    """What the inventory states, with the resources by the names that people give them.

    ``passwords`` has one for each of the users; ``former_password`` is the administrator's of before, if it is known.
    """

    administrator: str
    password: str = field(repr=False)
    former_password: str = field(repr=False)
    state: State
    passwords: dict[str, str] = field(repr=False)
    prune: bool

    @property
    def concerns_others(self) -> bool:
        """Whether there is anything to do for anybody but the administrator."""
        return bool(self.state.users or self.state.roles or self.prune)

    def check(self) -> None:
        """Refuse what would lock the administrator out.

        :raises Error: naming the option.
        """
        if self.administrator in self.state.users:
            raise Error(f"users: {self.administrator} is the administrator that makes these changes; expected others")


@dataclass
class Outcome:
    """What was changed, or would be, and how it looked before and after."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)

    def show(self, before: dict, after: dict) -> None:
        """Add to the diff."""
        self.before |= before
        self.after |= after


class Server:
    """MLflow, as one user after another sees it.

    :param address: the (host, port) to connect to, which differs from ``host`` and ``port`` behind a tunnel.
    :param prefix: the path below which it answers.
    """

    def __init__(self, host: str, port: int, address: tuple[str, int], prefix: str = ""):
        try:
            import urllib3
        except ImportError as error:
            raise MissingLibraryError("urllib3", str(error)) from None
        self._host = f"{host}:{port}"
        self._prefix = prefix
        self.url = f"http://{self._host}{prefix}"
        retries = urllib3.Retry(total=2, backoff_factor=0.5, status_forcelist=[503], raise_on_status=False)
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
        options = {"maxsize": LOGINS_AT_ONCE, "timeout": timeout, "retries": retries}
        self._connect = lambda: urllib3.HTTPConnectionPool(*address, **options)
        self._pool, self._answered = self._connect(), time.monotonic()
        self.login = ("", "")

    def send(self, method: str, path: str, values: dict, login: tuple[str, str] | None = None) -> tuple[int, dict]:
        """(status, answer) of one request, as the current user or another.

        :raises Error: no answer.
        """
        import urllib3

        # MLflow decodes UTF-8; urllib3's own helper would encode Latin-1.
        token = base64.b64encode(":".join(login or self.login).encode()).decode()
        # The name that MLflow is called by decides whether it answers at all, also when a tunnel leads there.
        headers = {"Authorization": f"Basic {token}", "Host": self._host}
        content = {"fields": values} if method == "GET" else {"json": values}
        target = f"{self._prefix}/api/{path}"
        # A request on a connection that the server has hung up is lost, and only some may be sent once more.
        if time.monotonic() - self._answered > IDLE_SECONDS:
            self._pool = self._connect()
        try:
            answer = self._pool.request(method, target, headers=headers, redirect=False, **content)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Error(
                f"{self.url} does not answer: {one_line(getattr(error, 'reason', None) or error, 300)}"
            ) from None
        self._answered = time.monotonic()
        try:
            body = json.loads(answer.data or b"{}")
        except ValueError:
            body = {"message": answer.data.decode("utf-8", "replace")}
        return answer.status, body if isinstance(body, dict) else {}

    def ask(self, method: str, path: str, **values) -> dict:
        """The answer to a request that has to succeed.

        :raises Error: with MLflow's own sentence.
        """
        status, answer = self.send(method, path, values)
        if status >= 400:
            told = one_line(answer.get("message") or "", 300)
            raise Error(f"{self.url}: MLflow refused {method} /api/{path} ({status}): {told}")
        return answer

    def experiment_id(self, name: str) -> str | None:
        """The identifier of an experiment, or None where there is none of that name."""
        status, answer = self.send("GET", "2.0/mlflow/experiments/get-by-name", {"experiment_name": name})
        if status == 404:
            return None
        if status >= 400:
            raise Error(f"{self.url}: MLflow refused to look up experiment {name} ({status})")
        return answer["experiment"]["experiment_id"]


class Directory:
    """MLflow's users and roles by name, and the identifiers by which its API changes them."""

    def __init__(self, server: Server, users: list[dict], passwords: dict[str, str]):
        self.server, self.passwords = server, passwords
        self.experiments: dict[str, str] = {}
        roles = [role for role in server.ask("GET", "3.0/mlflow/roles/list")["roles"] if role["workspace"] == WORKSPACE]
        # MLflow keeps what was given to a user directly in a role of this name, which only this user has.
        direct = {f"__user_{user['id']}__": user["username"] for user in users}
        self.role_ids = {role["name"]: role["id"] for role in roles if role["name"] not in direct}
        self.permission_ids: dict[tuple[str, str, Resource], int] = {}
        permissions: dict[tuple[str, str], dict[Resource, str]] = {}
        for role in roles:
            holder = ("user", direct[role["name"]]) if role["name"] in direct else ("role", role["name"])
            for entry in role["permissions"]:
                resource = (entry["resource_type"], entry["resource_pattern"])
                permissions.setdefault(holder, {})[resource] = entry["permission"]
                self.permission_ids[(*holder, resource)] = entry["id"]
        self.state = State(
            {
                user["username"]: User(
                    user["is_admin"],
                    frozenset(role["name"] for role in user["roles"] if role["id"] in self.role_ids.values()),
                    permissions.get(("user", user["username"]), {}),
                )
                for user in users
            },
            {name: permissions.get(("role", name), {}) for name in self.role_ids},
        )

    def label(self, resource: Resource) -> str:
        """A resource as people name it."""
        kind, pattern = resource
        if kind == "experiment" and pattern != "*":
            # Of what is not in the inventory only the identifier is known.
            pattern = self.experiments.get(pattern, f"of id {pattern}")
        return f"{kind} {pattern}"

    def resolved(self, stated: State, warnings: list[str]) -> State:
        """What is stated, with the identifiers of experiments in place of their names.

        An experiment that is not there cannot be named in a permission, so that it is left out, with a warning.
        """
        held = [user.permissions for user in stated.users.values()] + list(stated.roles.values())
        names = {pattern for each in held for kind, pattern in each if kind == "experiment" and pattern != "*"}
        found = {name: identifier for name in sorted(names) if (identifier := self.server.experiment_id(name))}
        self.experiments = {identifier: name for name, identifier in found.items()}
        warnings += [
            f"there is no experiment {name} yet, so that nobody got a permission on it; run again when there is"
            for name in sorted(names - set(found))
        ]

        def identified(permissions: dict[Resource, str]) -> dict[Resource, str]:
            return {
                (kind, found.get(pattern, pattern) if kind == "experiment" else pattern): permission
                for (kind, pattern), permission in permissions.items()
                if kind != "experiment" or pattern == "*" or pattern in found
            }

        return State(
            {
                name: User(user.administrator, user.roles, identified(user.permissions))
                for name, user in stated.users.items()
            },
            {name: identified(permissions) for name, permissions in stated.roles.items()},
        )

    def perform(self, step: Step) -> None:
        """Make one change."""
        getattr(self, f"_{step.action}")(step)

    def _create(self, step: Step) -> None:
        if step.kind == "user":
            self._user("POST", "create", step, password=self.passwords[step.name])
        else:
            made = self._role("POST", "create", name=step.name, workspace=WORKSPACE)
            self.role_ids[step.name] = made["role"]["id"]

    def _delete(self, step: Step) -> None:
        if step.kind == "user":
            self._user("DELETE", "delete", step)
        else:
            self._role("DELETE", "delete", role_id=self.role_ids[step.name])

    def _set_password(self, step: Step) -> None:
        self.server.ask("PATCH", UPDATE, username=step.name, password=self.passwords[step.name])

    def _promote(self, step: Step) -> None:
        self._user("PATCH", "update-admin", step, is_admin=True)

    def _demote(self, step: Step) -> None:
        self._user("PATCH", "update-admin", step, is_admin=False)

    def _assign(self, step: Step) -> None:
        self._role("POST", "assign", username=step.name, role_id=self.role_ids[step.role])

    def _unassign(self, step: Step) -> None:
        self._role("DELETE", "unassign", username=step.name, role_id=self.role_ids[step.role])

    def _grant(self, step: Step) -> None:
        kind, pattern = step.resource
        given = {"resource_type": kind, "permission": step.permission}
        if step.kind == "user":
            path = "3.0/mlflow/users/permissions/grant"
            self.server.ask("POST", path, username=step.name, resource_id=pattern, **given)
        else:
            self._role("POST", "permissions/add", role_id=self.role_ids[step.name], resource_pattern=pattern, **given)

    def _change(self, step: Step) -> None:
        self._role("PATCH", "permissions/update", permission=step.permission, **self._permission(step))

    def _revoke(self, step: Step) -> None:
        self._role("DELETE", "permissions/remove", **self._permission(step))

    def _permission(self, step: Step) -> dict[str, int]:
        return {"role_permission_id": self.permission_ids[(step.kind, step.name, step.resource)]}

    def _user(self, method: str, verb: str, step: Step, **values) -> dict:
        return self.server.ask(method, f"2.0/mlflow/users/{verb}", username=step.name, **values)

    def _role(self, method: str, verb: str, **values) -> dict:
        return self.server.ask(method, f"3.0/mlflow/roles/{verb}", **values)


def ensure(server: Server, wanted: Wanted, check_mode: bool) -> Outcome:
    """Bring the administrator's password, the users, the roles and the permissions into the wanted state.

    :raises Error: nobody can log in, or MLflow refuses a change.
    """
    wanted.check()
    outcome = Outcome()
    users = log_in(server, wanted, check_mode, outcome)
    if not wanted.concerns_others:
        return outcome
    if users is None:
        if check_mode:
            return foreseen(wanted, outcome)
        raise Error(
            f"{server.url} has no roles, as its release is older than 3.17; expected mlflow_access_users and "
            f"mlflow_access_roles to be empty, and mlflow_access_prune false"
        )
    directory = Directory(server, users, wanted.passwords)
    aim = target(
        directory.state, directory.resolved(wanted.state, outcome.warnings), wanted.administrator, wanted.prune
    )
    others = other_passwords(server, wanted.passwords, directory.state)
    for step in steps(directory.state, aim, others):
        if not check_mode:
            directory.perform(step)
        outcome.changes.append(sentence(step, directory.label))
    outcome.show(*difference(directory.state, aim, others, directory.label))
    return outcome


def log_in(server: Server, wanted: Wanted, check_mode: bool, outcome: Outcome) -> list[dict] | None:
    """Log in as the administrator, and change the password if MLflow still has the former one.

    :returns: MLflow's users with their roles, or None where the release has none.
    :raises Error: neither password is right, or the user is no administrator.
    """
    name = wanted.administrator
    for password in dict.fromkeys((wanted.password, wanted.former_password)):
        server.login = (name, password)
        status, answer = server.send("GET", USERS, {}) if password else (401, {})
        # There are two to choose from: a worker may remember the wanted one from a time before the former one.
        doubtful = status == 200 and wanted.former_password not in ("", wanted.password)
        if status != 401 and not (doubtful and has_roles(answer) and not is_present(server, server.login)):
            break
    else:
        raise Error(
            f"{server.url}: MLflow accepts neither mlflow_environment_secrets.admin_password for its administrator "
            f"{name} nor the password that was right at the last run; give the one that is right as admin_password, or "
            f"another mlflow_server_admin_username, which MLflow adds as an administrator (docs/access.md)"
        )
    users = answer.get("users") or []
    if status not in (200, 404):
        raise Error(f"{server.url}: MLflow refused GET /api/{USERS} ({status}): {one_line(answer.get('message'), 300)}")
    # Releases that have no roles either have no such list, or one without them.
    users = users if status == 200 and has_roles(answer) else None
    if users is not None and not any(user["username"] == name and user["is_admin"] for user in users):
        raise Error(
            f"{server.url}: user {name} (mlflow_server_admin_username) is no administrator of MLflow; another "
            f"administrator has to make it one, or name another user, whom MLflow adds as an administrator"
        )
    if server.login[1] != wanted.password:
        outcome.changes.append(f"changed the password of administrator {name}")
        outcome.show({f"user {name}": {"password": "another"}}, {f"user {name}": {"password": "as given"}})
        if not check_mode:
            values = {"username": name, "password": wanted.password, "current_password": server.login[1]}
            server.ask("PATCH", UPDATE, **values)
            server.login = (name, wanted.password)
    return users


def has_roles(answer: dict) -> bool:
    """Whether an answer to USERS is that of a release with roles."""
    return all("roles" in user for user in answer.get("users") or [])


def is_present(server: Server, login: tuple[str, str]) -> bool:
    """Whether a user's password is the one in MLflow's database.

    Each worker remembers for a while a login that was right once, so a login may be believed that is right no more.
    Whoever changes the own password has the present one compared with the database before anything else; as a password
    cannot be changed to itself, nothing is changed by asking so.
    """
    name, password = login
    values = {"username": name, "password": password, "current_password": password}
    status, answer = server.send("PATCH", UPDATE, values, login)
    return status != 401 and "does not match" not in (answer.get("message") or "")


def other_passwords(server: Server, passwords: dict[str, str], state: State) -> set[str]:
    """The users who cannot log in with the password that they should have."""
    names = sorted(set(passwords) & set(state.users))

    def differs(name: str) -> bool:
        return not is_present(server, (name, passwords[name]))

    with ThreadPoolExecutor(LOGINS_AT_ONCE) as pool:
        return {name for name, other in zip(names, pool.map(differs, names), strict=True) if other}


def foreseen(wanted: Wanted, outcome: Outcome | None = None) -> Outcome:
    """What a run will change on a server that is not there yet, or has no roles yet."""
    outcome = outcome or Outcome()
    current = State({wanted.administrator: User(administrator=True)})
    aim = target(current, wanted.state, wanted.administrator, prune=False)
    outcome.changes += [sentence(step, " ".join) for step in steps(current, aim, set())]
    outcome.show(*difference(current, aim, set(), " ".join))
    return outcome
