"""Each role's defaults and its argument specification say the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir())


def load(role: str, name: str) -> dict:
    """What a role's file says, or all files of the folder that is there in its place."""
    path = ROOT / "roles" / role / name
    files = [path.with_suffix(".yml"), *sorted(path.glob("*.yml"))]
    return {key: value for file in files if file.exists() for key, value in yaml.safe_load(file.read_text()).items()}


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_argument_specs_name_the_same_variables(role: str) -> None:
    options = load(role, "meta/argument_specs")["argument_specs"]["main"]["options"]
    documented = {name: option["default"] for name, option in options.items() if "default" in option}
    assert documented == load(role, "defaults/main")


@pytest.mark.parametrize("role", ROLES)
def test_an_option_without_a_default_is_required(role: str) -> None:
    options = load(role, "meta/argument_specs")["argument_specs"]["main"]["options"]
    assert [name for name, option in options.items() if "default" not in option and not option.get("required")] == []


@pytest.mark.parametrize("role", ROLES)
def test_tasks_main_reads_as_a_table_of_contents(role: str) -> None:
    lines = (ROOT / "roles" / role / "tasks/main.yml").read_text().splitlines()
    assert len(lines) < 60
