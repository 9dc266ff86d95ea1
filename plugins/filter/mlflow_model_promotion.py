"""Filters of the role mlflow_model_promotion: what an argument specification cannot say of what is promoted."""

from __future__ import annotations

import re
from typing import Any

# MLflow's rules for the names of models and aliases.
NAME = re.compile(r"[^/:\x00-\x1f]+")
ALIAS = re.compile(r"(?!latest$)(?!v[0-9]+$)[A-Za-z0-9_-]{1,255}", re.IGNORECASE)
VERSION = re.compile(r"[1-9][0-9]{0,8}")


def model_promotion_problems(settings: dict[str, str], environments: list[str]) -> list[str]:
    """Say what is wrong with what is to be promoted.

    Args:
        settings: The role's variables, without the role's name.
        environments: Those of this run.

    Returns:
        A sentence for each problem: the variable, what it is, and what is expected.
    """
    value = {name: str(given) for name, given in settings.items()}
    problems = []
    if value["from"] == value["to"]:
        problems.append(f"from and mlflow_model_promotion_to are both {value['to']}; expected two environments")
    else:
        problems += [
            f"{side} is {value[side]}, and this run has no inventory of it; expected -i inventories/{value[side]}"
            for side in ("from", "to")
            if value[side] not in environments
        ]
    if not value["model"]:
        problems.append("model is empty; expected the name of a registered model")
    elif not NAME.fullmatch(value["model"]) or {"'", '"'} <= set(value["model"]):
        problems.append(f"model is {value['model']!r}; expected a name without / and : and without both quotes")
    if bool(value["version"]) == bool(value["version_alias"]):
        given = "both given" if value["version"] else "both empty"
        problems.append(f"version and mlflow_model_promotion_version_alias are {given}; expected one of them")
    if value["version"] and not VERSION.fullmatch(value["version"]):
        problems.append(f"version is {value['version']!r}; expected a number, such as 7")
    problems += [
        f"{name} is {value[name]!r}; expected letters, digits, - and _, and neither latest nor v with a number"
        for name in ("version_alias", "alias")
        if value[name] and not ALIAS.fullmatch(value[name])
    ]
    return [f"mlflow_model_promotion_{problem}" for problem in problems]


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """The filters by name."""
        return {"mlflow_model_promotion_problems": model_promotion_problems}
