"""What each user of an MLflow may do, found by real requests; read.py prints it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from people import PASSWORDS

URI = os.environ["MLFLOW_TRACKING_URI"]
ADMIN = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"])
# What a verification leaves behind is no user's.
FOREIGN = "ansible-mlflow verification"
LOG_IN = "experiments/search?max_results=1"
TEAMS = {"vision": "red", "closed": "green", "carol's own": "carol"}


def rights() -> dict[str, dict]:
    """What each user may do, found by asking for it.

    Nothing is changed: a tag is set to what it is, and what needs more than to edit is asked for where it is not.
    """
    found = get("experiments/search?max_results=1000", ADMIN)["experiments"]
    experiments = {item["name"]: item["experiment_id"] for item in found}
    people = {"admin": ADMIN, **{name: (name, password) for name, password in PASSWORDS.items()}}
    answer: dict[str, dict] = {
        "nobody": {"logs in": call("GET", LOG_IN, None)},
        "a wrong password": {"logs in": call("GET", LOG_IN, ("alice", "a-wrong-password"))},
    }
    # A server hashes a password for each request, and has more than one core to do it on.
    with ThreadPoolExecutor(3) as pool:
        each = pool.map(lambda login: rights_of(login, experiments), people.values())
        return answer | dict(zip(people, each, strict=True))


def rights_of(login: tuple[str, str], experiments: dict[str, str]) -> dict[str, Any]:
    """What one user may do."""
    answer: dict[str, Any] = {
        "logs in": call("GET", LOG_IN, login),
        "is admin": call("PATCH", "users/update-admin", login, username="nobody", is_admin=False),
        "sees experiments": names("experiments/search?max_results=1000", login, "experiments"),
        "sees models": names("registered-models/search?max_results=100", login, "registered_models"),
    }
    for experiment in TEAMS:
        answer[f"experiment {experiment}"] = experiment_rights(experiment, experiments[experiment], login)
    for model in ("classifier", "closed-model", "greeting"):
        answer[f"model {model}"] = model_rights(model, login)
    return answer


def experiment_rights(name: str, key: str, login: tuple[str, str]) -> dict:
    return levels(
        ("GET", f"experiments/get?experiment_id={key}", {}),
        ("POST", "experiments/set-experiment-tag", {"experiment_id": key, "key": "team", "value": TEAMS[name]}),
        ("POST", "experiments/restore", {"experiment_id": key}),
        login,
    )


def model_rights(name: str, login: tuple[str, str]) -> dict:
    key, value = ("tone", "kind") if name == "greeting" else ("domain", name)
    return levels(
        ("GET", f"registered-models/get?name={name}", {}),
        ("POST", "registered-models/set-tag", {"name": name, "key": key, "value": value}),
        ("DELETE", "registered-models/alias", {"name": name, "alias": "none"}),
        login,
    )


def levels(read: tuple, edit: tuple, manage: tuple, login: tuple[str, str]) -> dict[str, int]:
    """The statuses of three requests; who may not do the one is not asked for the next."""
    answer = {}
    for level, (method, path, body) in (("read", read), ("edit", edit), ("manage", manage)):
        answer[level] = call(method, path, login, **body)
        if answer[level] == 403:
            break
    return answer


def names(path: str, login: tuple[str, str], kind: str) -> list[str]:
    return sorted(item["name"] for item in get(path, login).get(kind, []) if not item["name"].startswith(FOREIGN))


def get(path: str, login: tuple[str, str]) -> dict[str, Any]:
    answer = requests.get(f"{URI}/api/2.0/mlflow/{path}", auth=login, timeout=30)
    answer.raise_for_status()
    return answer.json()


def call(method: str, path: str, login: tuple[str, str] | None, **body: Any) -> int:
    """The status that a request ends with."""
    url = f"{URI}/api/2.0/mlflow/{path}"
    return requests.request(method, url, json=body or None, auth=login, timeout=30).status_code
