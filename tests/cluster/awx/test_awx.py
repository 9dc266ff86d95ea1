"""playbooks/awx.yml against a fake of AWX's API: made, made again, changed, compared, refused and removed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
from ansible.parsing.dataloader import DataLoader
from conftest import ROOT, Run, ansible_environment
from fake_awx import FakeAwx

TOKEN = "a-token-of-awx-12"
SETTINGS = {"mlflow_awx_repository": "https://git.example.com/mlflow.git", "mlflow_awx_image": "example.com/mlflow:1"}


@pytest.fixture(scope="module")
def awx() -> Iterator[FakeAwx]:
    fake = FakeAwx(ROOT, TOKEN)
    yield fake
    fake.close()


def stated(kind: str) -> list[str]:
    """The names of what a file of awx/ has, each environment's own among them."""
    items = DataLoader().load_from_file(str(ROOT / f"awx/{kind}.yml"))[f"mlflow_awx_{kind}"]
    environments = ("dev", "stg", "prod")
    return [name for item in items for name in {item["name"].replace("<environment>", each) for each in environments}]


def play(awx: FakeAwx, *args: str, token: str = TOKEN, **variables: str) -> tuple[Run, list[tuple[str, str]]]:
    """Run the playbook; also what it wrote."""
    given = [f"--extra-vars={name}={value}" for name, value in (SETTINGS | variables).items()]
    awx.writes.clear()
    done = subprocess.run(
        ["ansible-playbook", "playbooks/awx.yml", *given, *args],
        cwd=ROOT,
        env=ansible_environment() | {"CONTROLLER_HOST": awx.url, "CONTROLLER_OAUTH_TOKEN": token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    return Run(done.returncode, done.stdout, 0, 0), list(awx.writes)


def test_a_dry_run_on_an_empty_awx_tells_all_of_it_and_writes_nothing(awx: FakeAwx) -> None:
    run, writes = play(awx, "--check")
    assert run.status == 0, run.output
    assert run.changed > 0
    assert writes == []
    assert "changed: [localhost] => (item=MLflow)" in run.output
    for told in ("job template mlflow-prod restore", "schedule mlflow-dev nightly verification"):
        assert f"would make {told}" in run.output


def test_what_is_missing_or_wrong_is_refused_before_anything_is_written(
    awx: FakeAwx, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, writes = play(awx, token="", mlflow_awx_repository="")
    assert (run.status, writes) == (2, [])
    assert "CONTROLLER_OAUTH_TOKEN is not in the environment; expected a token of AWX" in run.output
    assert "mlflow_awx_repository is empty; expected the URL" in run.output
    run, writes = play(awx, token="another-token")
    assert (run.status, writes) == (2, [])
    assert run.output.count("msg: ") == 1
    assert "Invalid authentication credentials for /api/v2/me/ (HTTP 401)" in run.output
    assert "another-token" not in run.output
    run, writes = play(awx, "--extra-vars", '{"mlflow_awx_environments": ["stg", "prod"]}')
    assert (run.status, writes) == (2, [])
    assert "unified_job_template of workflow job template node dev is mlflow-dev deploy; expected one" in run.output


def test_it_makes_what_the_files_say(awx: FakeAwx) -> None:
    run, _ = play(awx, "-vvv")
    assert run.status == 0, run.output
    assert TOKEN not in run.output
    for kind in ("inventories", "job_templates"):
        assert awx.names(kind) == sorted(stated(kind))
    check = awx.get("job_templates", "mlflow-prod check")
    assert (check["playbook"], check["job_type"], check["diff_mode"]) == ("site.yml", "check", True)
    assert check["inventory"] == awx.get("inventories", "mlflow-prod")["id"]
    assert set(awx.related[check["id"], "credentials"]) == {
        awx.get("credentials", f"mlflow-prod {name}")["id"] for name in ("kubeconfig", "secrets")
    }
    restore = awx.get("job_templates", "mlflow-prod restore")
    asked = {question["variable"] for question in awx.surveys[restore["id"]]["spec"]}
    assert (restore["survey_enabled"], asked) == (True, {"mlflow_backup_id", "mlflow_backup_confirm_overwrite"})
    # Not templates here, but in AWX and in the run.
    [kubeconfig, _] = awx.objects["credential_types"].values()
    assert kubeconfig["injectors"]["extra_vars"] == {"mlflow_environment_kubeconfig": "{{ tower.filename }}"}
    assert "{{ playbook_dir }}" in awx.get("job_templates", "mlflow-dev render")["extra_vars"]
    nodes = {name: awx.get("workflow_job_template_nodes", name) for name in ("dev", "stg", "approval", "prod")}
    assert awx.related[nodes["stg"]["id"], "success_nodes"] == [nodes["approval"]["id"]]
    assert awx.related[nodes["approval"]["id"], "success_nodes"] == [nodes["prod"]["id"]]
    assert awx.names("workflow_approval_templates") == ["Deploy prod?"]
    assert len(awx.names("schedules")) == 6
    # A person writes the secrets into AWX.
    assert [credential["inputs"] for credential in awx.objects["credentials"].values()] == [{}] * 6


@pytest.mark.full
def test_a_second_run_changes_nothing_and_keeps_what_a_person_has_filled_in(awx: FakeAwx) -> None:
    credential = awx.get("credentials", "mlflow-prod kubeconfig")
    credential["inputs"] = {"kubeconfig": "$encrypted$"}
    run, writes = play(awx)
    assert (run.status, run.changed, writes) == (0, 0, []), run.output
    assert credential["inputs"] == {"kubeconfig": "$encrypted$"}


@pytest.mark.full
def test_one_changed_value_changes_one_object_and_a_dry_run_says_so_beforehand(awx: FakeAwx) -> None:
    project = awx.get("projects", "ansible-mlflow")
    # The dry run of the project alone, which is quicker.
    others = "job_templates", "inventory_sources", "credentials", "workflow_job_template_nodes", "schedules"
    few = json.dumps({f"mlflow_awx_{kind}": [] for kind in others})
    run, writes = play(awx, "--check", f"--extra-vars={few}", mlflow_awx_branch="release")
    assert (run.status, run.changed, writes) == (0, 1, []), run.output
    assert re.findall(r"^changed: .*$", run.output, re.MULTILINE) == ["changed: [localhost] => (item=ansible-mlflow)"]
    run, writes = play(awx, mlflow_awx_branch="release")
    assert (run.status, run.changed) == (0, 1), run.output
    assert writes == [("PATCH", project["url"])]
    assert project["scm_branch"] == "release"


@pytest.mark.full
def test_it_goes_and_the_organization_stays(awx: FakeAwx) -> None:
    run, writes = play(awx, "--check", mlflow_awx_state="absent")
    assert (run.status, writes) == (0, []), run.output
    assert run.changed == 8
    run, _ = play(awx, mlflow_awx_state="absent")
    assert (run.status, run.changed) == (0, 8), run.output
    assert {kind: awx.names(kind) for kind in awx.objects if awx.names(kind)} == {"organizations": ["MLflow"]}
    run, writes = play(awx, mlflow_awx_state="absent")
    assert (run.status, run.changed, writes) == (0, 0, []), run.output
