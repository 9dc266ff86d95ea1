"""A second run, and dry runs, of a deployed environment."""

from __future__ import annotations

import re

from conftest import Cluster, site


def test_a_second_run_changes_nothing(cluster: Cluster) -> None:
    before = cluster.resource_versions("dev")
    run = site("dev")
    print(f"no-change run: {run.seconds:.1f} s wall, {run.cpu_seconds:.1f} s CPU")
    assert run.status == 0, run.output
    assert run.changed == 0, run.output
    assert cluster.resource_versions("dev") == before
    assert re.search(r"Changed\W+nothing", run.output)


def test_a_dry_run_of_a_deployed_environment_reports_nothing_and_changes_nothing(cluster: Cluster) -> None:
    before = cluster.everything("dev")
    run = site("dev", args=("--check", "--diff"))
    assert run.status == 0, run.output
    assert run.changed == 0, run.output
    assert diff_lines(run.output) == []
    assert cluster.everything("dev") == before


def test_a_dry_run_shows_exactly_the_one_variable_that_changed(cluster: Cluster) -> None:
    before = cluster.everything("dev")
    run = site("dev", args=("--check", "--diff", "-e", "mlflow_server_cpu_request=300m"))
    assert run.status == 0, run.output
    assert run.changed == 1, run.output
    assert diff_lines(run.output) == ["-cpu: 250m", "+cpu: 300m"]
    assert cluster.everything("dev") == before


def diff_lines(output: str) -> list[str]:
    """The changed lines of the diffs in a run's output, without their indentation and without the generation."""
    lines = [line[0] + line[1:].strip() for line in output.splitlines() if re.match(r"[-+](?![-+]{2})", line)]
    return [line for line in lines if "generation:" not in line]
