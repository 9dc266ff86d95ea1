"""Users, roles and permissions: what is refused, and the steps from how it is to how it should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.module_utils.ansible_mlflow.access import State, Step, User, difference, sentence, steps, target
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
mlflow_access = load_filter("mlflow_access")

ADMIN = "admin"
CHURN, MODEL, ALL = ("experiment", "7"), ("registered_model", "fraud"), ("experiment", "*")


def user(*roles: str, administrator: bool = False, **permissions: str) -> User:
    resources = {"churn": CHURN, "model": MODEL, "all": ALL}
    given = {resources[name]: permission for name, permission in permissions.items()}
    return User(administrator, frozenset(roles), given)


def people(**users: User) -> dict[str, User]:
    return {ADMIN: User(administrator=True), **users}


def told(current: State, wanted: State, prune: bool, stale: set[str] = frozenset()) -> list[str]:
    aim = target(current, wanted, ADMIN, prune)
    return [sentence(step, " ".join) for step in steps(current, aim, stale)]


TEAM = {CHURN: "EDIT"}
# How it is, what is stated, what is done without prune, and what more with it.
CASES = {
    "nothing": (State(people()), State(), [], []),
    "a new user with all there is": (
        State(people()),
        State({"alice": user("team", administrator=True, churn="MANAGE")}, {"team": TEAM}),
        [
            "created role team in MLflow",
            "gave role team EDIT on experiment 7",
            "created user alice in MLflow",
            "made user alice an administrator",
            "gave user alice the role team",
            "gave user alice MANAGE on experiment 7",
        ],
        [],
    ),
    "as it should be": (
        State(people(alice=user("team", churn="READ")), {"team": TEAM}),
        State({"alice": user("team", churn="READ")}, {"team": TEAM}),
        [],
        [],
    ),
    "another permission": (
        State(people(alice=user(churn="READ")), {"team": {CHURN: "READ"}}),
        State({"alice": user(churn="EDIT")}, {"team": TEAM}),
        [
            "gave role team EDIT on experiment 7 in place of READ",
            "gave user alice EDIT on experiment 7 in place of READ",
        ],
        [],
    ),
    "an administrator no longer": (
        State(people(alice=user(administrator=True))),
        State({"alice": user()}),
        ["made user alice an administrator no longer"],
        [],
    ),
    "a permission that is no longer stated": (
        State(people(alice=user("team", model="READ")), {"team": {**TEAM, MODEL: "USE"}}),
        State({"alice": user("team")}, {"team": TEAM}),
        [],
        ["took USE on registered_model fraud from role team", "took READ on registered_model fraud from user alice"],
    ),
    "a membership that is no longer stated": (
        State(people(alice=user("team")), {"team": TEAM}),
        State({"alice": user()}, {"team": TEAM}),
        [],
        ["took the role team from user alice"],
    ),
    "a role that is no longer stated": (
        State(people(alice=user("team")), {"team": TEAM}),
        State({"alice": user()}),
        [],
        ["deleted role team in MLflow"],
    ),
    "a user who is no longer stated": (
        State(people(bob=user(model="MANAGE"), root=user(administrator=True))),
        State(),
        [],
        ["deleted user bob in MLflow", "deleted user root in MLflow"],
    ),
    "what a user has made": (
        State(people(alice=user(churn="MANAGE", model="MANAGE", all="MANAGE"))),
        State({"alice": user()}),
        [],
        ["took MANAGE on experiment * from user alice"],
    ),
    "what a user has made, stated with less": (
        State(people(alice=user(churn="MANAGE"))),
        State({"alice": user(churn="READ")}),
        ["gave user alice READ on experiment 7 in place of MANAGE"],
        [],
    ),
    "an administrator with permissions and roles of its own": (
        State({ADMIN: user("team", administrator=True, churn="READ", all="DENY")}, {"team": TEAM}),
        State(),
        [],
        ["deleted role team in MLflow"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_done(case: str) -> None:
    current, wanted, done, pruned = CASES[case]
    assert told(current, wanted, prune=False) == done
    assert told(current, wanted, prune=True) == done + pruned


def test_another_password_is_given_and_shown_without_it() -> None:
    current = State(people(alice=user()))
    aim = target(current, State({"alice": user()}), ADMIN, prune=False)
    assert steps(current, aim, {"alice"}) == [Step("set_password", "user", "alice")]
    before, after = difference(current, aim, {"alice"}, " ".join)
    assert (before["user alice"].pop("password"), after["user alice"].pop("password")) == ("another", "as given")
    assert before == after == {"user alice": {"administrator": False, "roles": [], "permissions": {}}}


def test_a_diff_shows_what_differs_and_nothing_else() -> None:
    current = State(people(alice=user("team", churn="READ"), bob=user(), carol=user()), {"team": TEAM, "old": {}})
    wanted = State({"alice": user("team", churn="EDIT"), "bob": user(), "dora": user(model="USE")}, {"team": TEAM})
    before, after = difference(current, target(current, wanted, ADMIN, prune=True), set(), " ".join)
    plain = {"administrator": False, "roles": [], "permissions": {}}
    assert before == {
        "user alice": {**plain, "roles": ["team"], "permissions": {"experiment 7": "READ"}},
        "user carol": plain,
        "role old": {},
    }
    assert after == {
        "user alice": {**plain, "roles": ["team"], "permissions": {"experiment 7": "EDIT"}},
        "user dora": {**plain, "permissions": {"registered_model fraud": "USE"}},
    }


NAMES = st.sampled_from(["alice", "bob", "carol"])
ROLES = st.sampled_from(["team", "readers"])
PERMISSIONS = st.dictionaries(
    st.sampled_from([CHURN, MODEL, ALL]), st.sampled_from(["READ", "USE", "EDIT", "MANAGE", "DENY"])
)


@st.composite
def states(draw: st.DrawFn, with_admin: bool) -> State:
    roles = draw(st.dictionaries(ROLES, PERMISSIONS))
    some_roles = st.frozensets(st.sampled_from(sorted(roles))) if roles else st.just(frozenset())
    users = draw(st.dictionaries(NAMES, st.builds(User, st.booleans(), some_roles, PERMISSIONS)))
    if with_admin:
        users[ADMIN] = draw(st.builds(User, st.just(True), some_roles, PERMISSIONS))
    return State(users, roles)


def performed(state: State, step: Step) -> State:
    """What MLflow has after a step."""
    users, roles = dict(state.users), {name: dict(given) for name, given in state.roles.items()}
    if step.kind == "role":
        match step.action:
            case "create":
                assert step.name not in roles
                roles[step.name] = {}
            case "delete":
                del roles[step.name]
                users = {
                    name: User(had.administrator, had.roles - {step.name}, had.permissions)
                    for name, had in users.items()
                }
            case "grant":
                assert step.resource not in roles[step.name]
                roles[step.name][step.resource] = step.permission
            case "change":
                assert step.resource in roles[step.name]
                roles[step.name][step.resource] = step.permission
            case "revoke":
                del roles[step.name][step.resource]
        return State(users, roles)
    if step.action == "create":
        assert step.name not in users
        users[step.name] = User()
        return State(users, roles)
    had = users.pop(step.name)
    administrator, memberships, given = had.administrator, set(had.roles), dict(had.permissions)
    match step.action:
        case "delete":
            return State(users, roles)
        case "promote" | "demote":
            administrator = step.action == "promote"
        case "assign":
            assert step.role in roles
            memberships.add(step.role)
        case "unassign":
            memberships.remove(step.role)
        case "grant":
            assert step.resource not in given
            given[step.resource] = step.permission
        case "change":
            assert step.resource in given
            given[step.resource] = step.permission
        case "revoke":
            del given[step.resource]
    users[step.name] = User(administrator, frozenset(memberships), given)
    return State(users, roles)


@given(states(with_admin=True), states(with_admin=False), st.booleans())
def test_the_steps_lead_to_the_target_and_then_there_are_none(current: State, wanted: State, prune: bool) -> None:
    aim = target(current, wanted, ADMIN, prune)
    reached = current
    for step in steps(current, aim, set()):
        reached = performed(reached, step)
    assert reached == aim
    assert steps(reached, target(reached, wanted, ADMIN, prune), set()) == []


@given(states(with_admin=True), states(with_admin=False), st.booleans(), st.integers(0, 20))
def test_a_run_that_broke_off_is_completed_by_the_next(
    current: State, wanted: State, prune: bool, performed_steps: int
) -> None:
    aim = target(current, wanted, ADMIN, prune)
    reached = current
    for step in steps(current, aim, set())[:performed_steps]:
        reached = performed(reached, step)
    assert target(reached, wanted, ADMIN, prune) == aim


@given(states(with_admin=True), states(with_admin=False), st.booleans())
def test_nothing_is_done_to_the_administrator(current: State, wanted: State, prune: bool) -> None:
    aim = target(current, wanted, ADMIN, prune)
    assert aim.users[ADMIN].administrator
    assert [step for step in steps(current, aim, set(wanted.users)) if step.name == ADMIN and step.kind == "user"] == []


@given(states(with_admin=True), states(with_admin=False))
def test_what_is_stated_is_there_and_without_prune_nothing_is_taken(current: State, wanted: State) -> None:
    aim = target(current, wanted, ADMIN, prune=False)
    for name, stated in wanted.users.items():
        assert aim.users[name].administrator == stated.administrator
        assert stated.roles <= aim.users[name].roles
        assert stated.permissions.items() <= aim.users[name].permissions.items()
    done = {step.action for step in steps(current, aim, set())}
    assert done <= {"create", "promote", "demote", "assign", "grant", "change"}


PERMISSION = {"resource_type": "experiment", "resource": "churn", "permission": "READ"}


def problems(users: list[dict] | None = None, roles: list[dict] | None = None) -> list[str]:
    return mlflow_access.access_problems(users or [], roles or [], ADMIN)


@pytest.mark.parametrize(
    ("users", "roles"),
    [
        ([], []),
        ([{"name": "a.b+c@example.com"}], []),
        ([{"name": "alice", "roles": ["team"], "permissions": [PERMISSION]}], [{"name": "team"}]),
        ([{"name": "alice", "roles": None, "permissions": None}], [{"name": "team", "permissions": None}]),
        ([], [{"name": "team", "permissions": [{**PERMISSION, "resource_type": "run", "resource": "*"}]}]),
        (
            [],
            [
                {
                    "name": "owners",
                    "permissions": [{"resource_type": "workspace", "resource": "*", "permission": "MANAGE"}],
                }
            ],
        ),
    ],
)
def test_what_can_be_is_not_refused(users: list[dict], roles: list[dict]) -> None:
    assert problems(users, roles) == []


# docs/failures.md shows what is said of each: scripts/failures.py.
BAD_PEOPLE = [
    ([{"name": "alice"}, {"name": "alice"}], [], "mlflow_access_users: 'alice' is there 2 times; expected once"),
    ([{"name": ADMIN}], [], "user 'admin' is mlflow_server_admin_username"),
    (
        [{"name": "a:b"}],
        [],
        "user 'a:b' has no name that can be used; expected 1 to 255 letters, digits and _ . @ + -",
    ),
    ([{"name": ""}], [], "user '' has no name that can be used"),
    (
        [{"name": "alice", "roles": ["tem"]}],
        [{"name": "team"}],
        "the role 'tem'; expected one of mlflow_access_roles: team",
    ),
    ([{"name": "alice", "roles": ["team"]}], [], "expected one of mlflow_access_roles: none"),
    ([{"name": "alice", "roles": ["team", "team"]}], [{"name": "team"}], "roles: 'team' is there 2 times"),
    (
        [{"name": "alice", "permissions": [PERMISSION, {**PERMISSION, "permission": "EDIT"}]}],
        [],
        "user 'alice': 'experiment churn' is there 2 times",
    ),
    (
        [{"name": "alice", "permissions": [{**PERMISSION, "resource_type": "workspace", "resource": "*"}]}],
        [],
        "expected it in a role",
    ),
    ([], [{"name": "team"}, {"name": "team"}], "mlflow_access_roles: 'team' is there 2 times"),
    ([], [{"name": " "}], "role ' ' has no name that can be used"),
    ([], [{"name": "r" * 256}], "expected 1 to 255 characters"),
    ([], [{"name": "__user_7__"}], "begins with __user_, which MLflow keeps for itself"),
    ([], [{"name": "team", "permissions": [{**PERMISSION, "resource": ""}]}], "expected a resource of 1 to 255"),
    (
        [],
        [{"name": "team", "permissions": [{**PERMISSION, "resource_type": "run"}]}],
        "READ on run 'churn'; expected the resource '*'",
    ),
    (
        [],
        [{"name": "team", "permissions": [{**PERMISSION, "resource_type": "workspace", "resource": "*"}]}],
        "READ on workspace '*'; expected USE or MANAGE",
    ),
]


@pytest.mark.parametrize(("users", "roles", "message"), BAD_PEOPLE)
def test_what_cannot_be_is_refused_in_one_sentence(users: list[dict], roles: list[dict], message: str) -> None:
    (problem,) = [problem for problem in problems(users, roles) if message in problem]
    assert "expected" in problem
    assert len(problems(users, roles)) <= 2


def test_the_types_of_the_specification_are_those_that_are_checked() -> None:
    spec = yaml.safe_load((ROOT / "roles/mlflow_access/meta/argument_specs.yml").read_text())
    options = spec["argument_specs"]["main"]["options"]
    permission = options["mlflow_access_roles"]["options"]["permissions"]["options"]
    assert permission == options["mlflow_access_users"]["options"]["permissions"]["options"]
    assert set(permission["resource_type"]["choices"]) > mlflow_access.NAMED
