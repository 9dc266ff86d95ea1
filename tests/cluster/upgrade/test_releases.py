"""Every release that MLflow's users come from is upgraded with all its data and all its users' rights."""

from __future__ import annotations

import re

import old_release
import pytest
from conftest import Cluster, site
from old_release import timed
from reading import differences, fill, read_inside, read_outside
from watching import bare_server, state


@pytest.fixture(scope="module", autouse=True)
def prepared(cluster: Cluster) -> None:
    old_release.prepare()


@pytest.mark.parametrize("release", old_release.releases())
def test_a_release_is_upgraded_with_all_that_it_holds(cluster: Cluster, release: str) -> None:
    timed(f"deploy MLflow {release}", old_release.deploy, cluster, release)
    timed("fill it", fill, cluster)
    before = timed("read it with its own client", read_inside, cluster)
    # Else the comparison would be of nothing with nothing.
    assert all(before["data"].values()), before["data"].keys()
    assert is_denied(before["rights"]) == (release != "3.16.0"), "3.14 to 3.16 cannot deny"

    run = site("dev")
    print(f"site.yml: {run.seconds:.0f} s; {' '.join(re.findall('Without service.*', run.output))}")
    assert run.status == 0, run.output
    assert "Traceback" not in run.output
    assert old_release.image(cluster) == "localhost/mlflow:3.17.2"
    after = timed("read it with the new client", read_outside, cluster)
    assert differences(before, after) == []

    again = site("dev")
    assert (again.status, again.changed) == (0, 0), again.output


@pytest.mark.full
@pytest.mark.parametrize("release", old_release.releases())
def test_the_new_server_migrates_nothing_of_a_release_by_starting(cluster: Cluster, release: str) -> None:
    old_release.deploy(cluster, release)
    given = site("dev", args=("--tags", "mlflow_database"))
    assert given.status == 0, given.output
    before = state(cluster)
    end = bare_server(cluster, "3.17.2")
    print(f"the new server alone: {end[-300:]}")
    assert state(cluster) == before
    assert old_release.serves(cluster)


def is_denied(rights: dict) -> bool:
    """Whether dave is refused what everybody else may see."""
    return rights["dave"]["experiment closed"]["read"] == rights["dave"]["model closed-model"]["read"] == 403
