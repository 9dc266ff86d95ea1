"""After an upgrade, restore.yml brings the old release back with everything that it held."""

from __future__ import annotations

import re

import pytest
from conftest import Cluster, folded, mlflow_client, play, site
from old_release import image, restart, serves
from reading import differences, read_inside
from watching import state

LATER = """
mlflow.set_experiment("vision")
with mlflow.start_run(run_name="later") as run:
    mlflow.log_param("a", 1)
answer = run.info.run_id
"""


@pytest.mark.full
def test_a_restore_brings_the_old_release_back(cluster: Cluster) -> None:
    before = restart(cluster)
    old_image = image(cluster)
    run = site("dev")
    assert run.status == 0, run.output
    backup = re.search(r"(\S+); playbooks/restore.yml", folded(run.output))[1]
    mlflow_client("dev", cluster.secrets("dev"), LATER)

    upgraded = state(cluster)
    refusal = play("playbooks/restore.yml", "dev", args=("-e", f"mlflow_backup_id={backup}"))
    assert refusal.status != 0
    assert "mlflow_backup_confirm_overwrite=dev" in folded(refusal.output)
    assert state(cluster) == upgraded

    confirmed = ("-e", f"mlflow_backup_id={backup}", "-e", "mlflow_backup_confirm_overwrite=dev")
    restored = play("playbooks/restore.yml", "dev", args=confirmed)
    print(f"restore.yml: {restored.seconds:.0f} s")
    assert restored.status == 0, restored.output
    assert "Traceback" not in restored.output
    assert (image(cluster), serves(cluster)) == (old_image, True)
    # What was written after the upgrade is gone: that is what a restore means.
    assert differences(before, read_inside(cluster)) == []

    # And forward again.
    again = site("dev")
    assert again.status == 0, again.output
    assert image(cluster) != old_image
