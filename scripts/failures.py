#!/usr/bin/env python3
"""Writes docs/failures.md: what a run says of bad input, taken from the tables of the unit tests.

The tests say which input is bad; what is said of it comes from the same functions that they call.

    .venv/bin/python scripts/failures.py            # write the page
    .venv/bin/python scripts/failures.py --check    # write nothing; exit 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs/failures.md"
sys.path.insert(0, str(ROOT / "tests/unit"))

INTRODUCTION = """# Bad input, and what is said of it
Every run looks at all of its variables and secrets before it changes anything, and tells all that is wrong at once. No
value of a secret is shown. This page is made from the tables of the unit tests: `.venv/bin/python scripts/failures.py`
writes it, and a test fails when it is out of date.

What goes wrong later, with the cluster, PostgreSQL or the object store, is in
[troubleshooting.md](troubleshooting.md), and what stops an upgrade in [upgrading.md](upgrading.md).
"""


def page() -> str:
    """The whole page."""
    # Lets the tests import the project's code.
    import conftest  # noqa: F401

    parts = [INTRODUCTION]
    for title, rows in (
        ("Settings", settings()),
        ("Secrets", secrets()),
        ("Rotation of secrets", rotations()),
        ("Users and roles of MLflow", people()),
        ("A promoted model", models()),
    ):
        parts.append(f"\n## {title}\n| given | the run says |\n| --- | --- |\n")
        parts += [f"| {cell(given)} | {cell(said)} |\n" for given, said in rows]
    return "".join(parts)


def cell(text: str) -> str:
    """Text of one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def shown(value: object) -> str:
    """A value as a variable has it, shortened where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:40]}… ({len(text)} characters)"


def settings() -> list[tuple[str, str]]:
    """Each bad setting of an environment, and what is said of it."""
    from test_exposure import BAD_EXPOSURES, exposure
    from test_exposure import GOOD as GOOD_EXPOSURE
    from test_filters import BAD_SCALING, BAD_SETTINGS, BAD_STORES, GOOD, environment
    from test_network import BAD_RANGES, network

    rows = []
    for name, value, _ in BAD_SETTINGS:
        [said] = environment.environment_problems(GOOD | {name: value})
        rows.append((f"`{name}: {shown(value)}`", said))
    for store, changed, expected in BAD_STORES:
        if expected:
            values = changed | {"mlflow_environment_external_secrets_store": store}
            [said] = environment.environment_problems(GOOD | values)
            rows.append((", ".join(f"`{name}: {shown(value)}`" for name, value in values.items()), said))
    for values, expected in BAD_SCALING:
        if expected:
            [said] = environment.environment_problems(GOOD | values)
            rows.append((", ".join(f"`{name}: {shown(value)}`" for name, value in values.items()), said))
    for values, _ in BAD_EXPOSURES:
        [said] = exposure.problems(GOOD_EXPOSURE | values)
        rows.append((", ".join(f"`{name}: {shown(value)}`" for name, value in values.items()), said))
    for value in BAD_RANGES:
        [said] = network.problems({"mlflow_environment_pod_cidrs": [value]})
        rows.append((f"`mlflow_environment_pod_cidrs: [{shown(value)}]`", said))
    return rows


def secrets() -> list[tuple[str, str]]:
    """Each weak secret, and what is said of it; what all placeholders are told stands once."""
    from test_secrets import PLACEHOLDERS, WEAK_SECRETS, in_production, problems_of, values

    rows = []
    for name, value, _ in WEAK_SECRETS:
        [said] = problems_of(values({}) | {name: value})
        rows.append((f"`{name}` {'none' if value == '' else f'such as `{shown(value)}`'}", said))
    for value in PLACEHOLDERS:
        [said] = in_production({"admin_password": value})
        rows.append((f"`admin_password` such as `{value}`, where mlflow_environment_production is true", said))
    return rows


def rotations() -> list[tuple[str, str]]:
    """What cannot be rotated, and what is said of it."""
    from test_rotation import BAD_ROTATIONS, planned

    rows = []
    for case, given, _ in BAD_ROTATIONS:
        options = dict(case)
        asked = options.pop("asked")
        [said] = planned(*asked, **options)["problems"]
        rows.append((f"`mlflow_rotation_secrets: {shown(asked)}`{given}", said))
    return rows


def people() -> list[tuple[str, str]]:
    """Users and roles that cannot be, and what is said of them."""
    from test_access import BAD_PEOPLE, problems

    rows = []
    for users, roles, message in BAD_PEOPLE:
        said = next(problem for problem in problems(users, roles) if message in problem)
        given = {"mlflow_access_users": users, "mlflow_access_roles": roles}
        rows.append((", ".join(f"`{name}: {shown(value)}`" for name, value in given.items() if value), said))
    return rows


def models() -> list[tuple[str, str]]:
    """What cannot be promoted, and what is said of it."""
    from test_model_promotion import BAD_PROMOTIONS, GOOD, promotion

    rows = []
    for values, _ in BAD_PROMOTIONS:
        [said] = promotion.model_promotion_problems(GOOD | values, ["dev", "stg"])
        given = {f"mlflow_model_promotion_{name}": value for name, value in values.items()}
        rows.append((", ".join(f"`{name}: {shown(value)}`" for name, value in given.items()), said))
    return rows


def main() -> int:
    """Command line; see the top."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if not arguments.check:
        OUTPUT.write_text(page(), "utf-8")
        return 0
    if OUTPUT.read_text("utf-8") == page():
        return 0
    print(f"{OUTPUT.relative_to(ROOT)} is out of date: run scripts/failures.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
