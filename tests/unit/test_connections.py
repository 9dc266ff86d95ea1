"""The connections that MLflow may open fit into PostgreSQL, or the sum is told with settings that fit."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml
from ansible.module_utils.ansible_mlflow.connections import JOBS, VARIABLES, Load, Room, problem
from ansible.module_utils.ansible_mlflow.errors import Error
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

DATABASES = ("tracking", "tracking", "auth", "tracking")
DEFAULTS = yaml.safe_load((ROOT / "roles/mlflow_server/defaults/main/server.yml").read_text())


def load(replicas: int = 1, workers: int = 2, pool: int = 2, overflow: int = 1, jobs: bool = False) -> Load:
    return Load(replicas, workers, pool, overflow, jobs, DATABASES)


@pytest.mark.parametrize(
    ("servers", "total"),
    [
        (load(), 2 * (2 * 4 * 3 + 3) + JOBS),
        (load(replicas=2), 3 * (2 * 4 * 3 + 3) + JOBS),
        (load(workers=4, pool=5, overflow=10), 2 * (4 * 4 * 15 + 3) + JOBS),
        (load(jobs=True), 2 * (2 * 4 * 3 + 3 + 18) + JOBS),
        (replace(load(), max_replicas=1), 2 * (2 * 4 * 3 + 3) + JOBS),
        (replace(load(), max_replicas=4), 5 * (2 * 4 * 3 + 3) + JOBS),
    ],
)
def test_the_sum(servers: Load, total: int) -> None:
    assert servers.total() == total
    # What is told is the same sum: it can be checked with a calculator.
    words, _, result = servers.sum().rpartition(" = ")
    assert int(result) == total == eval(re.sub(r"[^0-9()+*]", "", words.replace(" x ", "*")))


def test_the_sum_of_each_database_is_that_of_the_stores_in_it() -> None:
    assert load().servers("tracking") == 2 * (2 * 3 * 3 + 2)
    assert load().servers("auth") == 2 * (2 * 1 * 3 + 1)
    assert load(jobs=True).servers("tracking") - load().servers("tracking") == 2 * 18
    assert load(jobs=True).servers("auth") == load().servers("auth")
    assert load().servers("tracking") + load().servers("auth") == load().servers()


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_defaults_fit_into_postgresqls_own(replicas: int) -> None:
    names = ("mlflow_server_cpu_limit", "mlflow_server_pool_size", "mlflow_server_pool_max_overflow")
    assert problem(load(replicas, *(DEFAULTS[name] for name in names)), Room(100, 3, 1), "mlflow") == ""


@pytest.mark.parametrize(
    ("servers", "room", "words"),
    [
        (load(), Room(65, 3, 3), ""),
        (
            load(),
            Room(65, 3, 4),
            "it has 58 connections for MLflow (max_connections 65 - 3 reserved - 4 that others use now), and MLflow "
            "may open (1 replica + 1 during a rollout) x (2 workers x 4 engines x (2 pool + 1 overflow) + 3 of the "
            "starting process) + 5 of Jobs and Ansible = 59; expected mlflow_server_pool_size 1 and "
            "mlflow_server_pool_max_overflow 1 or mlflow_server_workers 1 or max_connections 66; nothing was changed",
        ),
        (
            load(replicas=4),
            Room(100, 3, 0),
            "mlflow_server_workers 1 or mlflow_server_replicas 2 or max_connections 143; nothing",
        ),
        # An autoscaler may be given less room, but not less than the least.
        (
            replace(load(replicas=2), max_replicas=4),
            Room(100, 3, 0),
            "mlflow_server_workers 1 or mlflow_server_max_replicas 2 or max_connections 143; nothing",
        ),
        (
            replace(load(replicas=3), max_replicas=4),
            Room(100, 3, 0),
            "expected mlflow_server_workers 1 or max_connections 143; nothing",
        ),
        # Nothing smaller fits.
        (load(workers=1, pool=1, overflow=1), Room(20, 3, 0), "expected max_connections 30; nothing was changed"),
        (load(), Room(100, 3, 0, role_limit=54), ""),
        (
            load(),
            Room(100, 3, 0, role_limit=40),
            "role mlflow has CONNECTION LIMIT 40, and MLflow may open",
        ),
        (load(), Room(100, 3, 0, role_limit=40), "or CONNECTION LIMIT 54 of role mlflow; nothing was changed"),
        (load(), Room(100, 3, 0, database_limits={"tracking": 45, "auth": 19}), ""),
        (
            load(),
            Room(100, 3, 0, database_limits={"tracking": 44, "auth": 19}),
            "or CONNECTION LIMIT 45 of database tracking; nothing was changed",
        ),
        (
            load(),
            Room(50, 3, 0, role_limit=0),
            "expected max_connections 62 with CONNECTION LIMIT 54 of role mlflow; nothing was changed",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_the_sum_and_what_fits(servers: Load, room: Room, words: str) -> None:
    told = problem(servers, room, "mlflow")
    assert words in told
    assert bool(words) == bool(told)


NUMBERS = st.integers(1, 12)


@given(
    NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.integers(20, 400), st.integers(0, 50), st.integers(-1, 200)
)
def test_each_setting_that_is_named_fits_and_the_next_larger_does_not(
    replicas: int, workers: int, pool: int, overflow: int, jobs: bool, maximum: int, used: int, limit: int
) -> None:
    servers, room = load(replicas, workers, pool, overflow, jobs), Room(maximum, 3, used, limit)
    told = problem(servers, room, "mlflow")
    assert bool(told) == (servers.total() > maximum - 3 - used or 0 <= limit < servers.servers())
    fields = {variable: field for field, variable in VARIABLES.items()}
    ways = told.partition("; expected ")[2].partition("; nothing")[0].split(" or ") if told else []
    for way in ways:
        numbers = {fields[name]: int(number) for name, number in re.findall(r"(mlflow_\w+) (\d+)", way)}
        raised = {name: int(number) for name, number in re.findall(r"(max_connections|CONNECTION LIMIT) (\d+)", way)}
        there = replace(
            room,
            maximum=raised.get("max_connections", maximum),
            role_limit=raised.get("CONNECTION LIMIT", limit),
        )
        assert there.holds(replace(servers, **numbers))
        for name, number in {**numbers, **raised}.items():
            larger = {name: number + 1} if name in numbers else {}
            smaller = {
                "max_connections": {"maximum": there.maximum - 1},
                "CONNECTION LIMIT": {"role_limit": there.role_limit - 1},
            }.get(name, {})
            assert not replace(there, **smaller).holds(replace(servers, **{**numbers, **larger}))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("pool_size", 0, "mlflow_server_pool_size is 0; expected at least 1; MLflow takes 0 for unset"),
        ("max_overflow", -1, "mlflow_server_pool_max_overflow is -1; expected at least 1; MLflow takes 0 for unset"),
        ("workers", 0, "mlflow_server_workers is 0; expected at least 1"),
        ("replicas", -1, "mlflow_server_replicas is -1; expected at least 0"),
    ],
)
def test_a_number_that_mlflow_would_not_use_is_refused(name: str, value: int, words: str) -> None:
    with pytest.raises(Error) as refused:
        replace(load(), **{name: value}).check()
    assert str(refused.value) == words
