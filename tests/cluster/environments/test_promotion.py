"""What stg runs is promoted to prod: written into an inventory, and refused where it is not what was verified."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Cluster, ansible_environment


@pytest.fixture
def inventories(tmp_path: Path) -> Path:
    """A copy of the inventories, to write into."""
    return Path(shutil.copytree(ROOT / "inventories", tmp_path / "inventories", symlinks=True))


def promote(inventories: Path, *args: str) -> tuple[int, str]:
    """Run promote.yml; its status and output."""
    names = [f"--inventory={inventories / name}" for name in ("stg", "prod", "embedded")]
    command = ["ansible-playbook", "playbooks/promote.yml", *names, *args]
    done = subprocess.run(
        command, cwd=ROOT, env=ansible_environment(), capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def test_what_stg_runs_is_verified_and_written_into_prods_inventory(cluster: Cluster, inventories: Path) -> None:
    file = inventories / "prod/group_vars/prod/promoted.yml"
    (inventories / "stg/group_vars/stg/more.yml").write_text("mlflow_server_pool_recycle: 1800\n")
    status, output = promote(inventories, "--check", "--diff")
    assert status == 0, output
    assert "+mlflow_environment_image: localhost/mlflow:3.17.2" in output
    assert not file.exists()

    status, output = promote(inventories)
    assert status == 0, output
    assert "From inside the cluster" in output or "Use MLflow from inside the cluster" in output
    written = yaml.safe_load(file.read_text())
    assert written["mlflow_environment_image"] == "localhost/mlflow:3.17.2"
    assert written["mlflow_server_pool_recycle"] == 1800
    assert "mlflow_server_node_port" not in written
    # The roles that know the settings read them back as they were.
    text = file.read_text()
    status, output = promote(inventories)
    assert (status, "changed=0" in output, file.read_text()) == (0, True, text), output


@pytest.mark.full
def test_what_is_not_what_was_verified_is_refused_and_nothing_is_written(cluster: Cluster, inventories: Path) -> None:
    prod = inventories / "prod/group_vars/prod"
    (inventories / "stg/group_vars/stg/more.yml").write_text("mlflow_server_pool_size: 3\n")
    status, output = promote(inventories)
    assert (status, "environment stg is not what its inventory says" in output) == (2, True), output
    (inventories / "stg/group_vars/stg/more.yml").unlink()
    (prod / "more.yml").write_text("mlflow_server_pool_size: 3\n")
    status, output = promote(inventories)
    assert (status, "more.yml sets mlflow_server_pool_size itself" in output) == (2, True), output
    status, output = promote(inventories, "-e", "mlflow_promotion_to=qa")
    assert (status, "no inventory of this run is called so" in output) == (2, True), output
    assert not (prod / "promoted.yml").exists()
