"""An upgrade that is interrupted half way loses nothing, lets the old version serve again, and can be run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Cluster, Running, folded, site, wait_until
from old_objects import NAMESPACE
from old_release import FAULTS_FROM, image, restart, serves
from reading import differences, read_inside, read_outside
from watching import in_the_middle, upgrade_pods, user

OLD_IMAGE, NEW_IMAGE = f"localhost/mlflow:{FAULTS_FROM}", "localhost/mlflow:3.17.2"


@pytest.fixture
def before(cluster: Cluster) -> dict[str, Any]:
    """An old release with data; what its own client reads."""
    return restart(cluster)


def kill_the_pod(cluster: Cluster) -> None:
    (pod,) = upgrade_pods(cluster)
    cluster.core.delete_namespaced_pod(pod.metadata.name, NAMESPACE, grace_period_seconds=0)


def kill_postgres(cluster: Cluster) -> None:
    cluster.core.delete_namespaced_pod("dev-postgres-0", "pgsql", grace_period_seconds=0)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        pytest.param(kill_the_pod, "", id="the Job's pod is killed"),
        pytest.param(kill_postgres, "server went away", id="PostgreSQL is killed"),
    ],
)
@pytest.mark.full
def test_the_old_version_serves_again(
    cluster: Cluster, before: dict[str, Any], tmp_path: Path, harm: Any, words: str
) -> None:
    with user(cluster) as somebody:
        with in_the_middle(cluster, tmp_path / "log") as run:
            harm(cluster)
        status = run.wait()
        print(folded(run.output)[-1500:])
        wait_until(lambda: serves(cluster), 60, "the old version serves again")
    print(f"without service for {somebody.seconds_without:.0f} s")
    assert status != 0
    assert "Traceback" not in run.output
    assert words in folded(run.output)
    assert "the old version serves again" in folded(run.output)
    assert image(cluster) == OLD_IMAGE
    assert differences(before, read_inside(cluster)) == []
    ends_well(cluster, before)


@pytest.mark.full
def test_a_table_that_stays_locked_undoes_the_upgrade(cluster: Cluster, before: dict[str, Any], tmp_path: Path) -> None:
    with in_the_middle(cluster, tmp_path / "log") as run:
        status = run.wait()
    assert status != 0
    assert "blocked by pid" in folded(run.output)
    assert "user postgres" in folded(run.output)
    assert "Traceback" not in run.output
    assert (image(cluster), serves(cluster)) == (OLD_IMAGE, True)
    assert differences(before, read_inside(cluster)) == []
    ends_well(cluster, before)


@pytest.mark.full
def test_a_controller_that_is_killed_is_run_again(cluster: Cluster, before: dict[str, Any], tmp_path: Path) -> None:
    with in_the_middle(cluster, tmp_path / "log") as run:
        run.kill()
    # The Job goes on by itself; nothing would start servers again but the next run.
    ends_well(cluster, before)


def ends_well(cluster: Cluster, before: dict[str, Any]) -> None:
    """The next run upgrades, or finds it done, and everything is there."""
    run = site("dev")
    assert run.status == 0, run.output
    assert "Traceback" not in run.output
    assert image(cluster) == NEW_IMAGE
    assert differences(before, read_outside(cluster)) == []


@pytest.mark.full
def test_of_two_runs_in_the_same_second_one_upgrades(cluster: Cluster, before: dict[str, Any], tmp_path: Path) -> None:
    runs = [Running("site.yml", "dev", log=tmp_path / name) for name in ("one", "other")]
    assert [run.wait() for run in runs] == [0, 0], "\n".join(run.output for run in runs)
    assert [run for run in runs if "Traceback" in run.output] == []
    upgraded = ["upgraded the tracking database" in folded(run.output) for run in runs]
    assert sorted(upgraded) == [False, True]
    assert image(cluster) == NEW_IMAGE
    assert differences(before, read_outside(cluster)) == []
