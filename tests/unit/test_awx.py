"""AWX's objects in awx/: what they refer to is there, and the image that they run in can be built."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import load_filter
from jinja2.sandbox import SandboxedEnvironment

awx = load_filter("mlflow_awx")
ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ["dev", "stg", "prod"]


class Loader(yaml.SafeLoader):
    """YAML with Ansible's mark of what is no template."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


def data() -> dict[str, Any]:
    """What the files of awx/ say, by variable."""
    return {
        name: value
        for file in sorted((ROOT / "awx").glob("*.yml"))
        for name, value in yaml.load(file.read_text(), Loader).items()
    }


def objects() -> dict[str, list[dict]]:
    """All objects, by the API's name of their kind."""
    kinds = {
        name.removeprefix("mlflow_awx_"): value
        for name, value in data().items()
        if isinstance(value, list) and isinstance(value[0], dict)
    }
    return awx.expanded(kinds, ENVIRONMENTS)


TEMPLATES = objects()["job_templates"]


def test_every_file_is_read_by_the_playbook() -> None:
    [play] = yaml.safe_load((ROOT / "playbooks/awx.yml").read_text())
    assert sorted(play["vars_files"]) == sorted(f"../awx/{file.name}" for file in (ROOT / "awx").iterdir())


def test_the_files_and_the_role_have_the_same_variables() -> None:
    specs = yaml.safe_load((ROOT / "roles/mlflow_awx/meta/argument_specs.yml").read_text())
    options = set(specs["argument_specs"]["main"]["options"]) - {"mlflow_awx_state"}
    assert {name for name in data() if not name.startswith("__")} == options


def test_there_is_a_template_of_each_verb_for_each_environment() -> None:
    verbs = ("deploy", "check", "verify", "status", "upgrade", "backup", "restore", "gc", "rotate", "destroy", "render")
    names = {f"mlflow-{environment} {verb}" for environment in ENVIRONMENTS for verb in verbs}
    assert {template["name"] for template in TEMPLATES} == names | {
        "mlflow promote stg to prod",
        "mlflow promote a model dev to stg",
        "mlflow promote a model stg to prod",
    }


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template["name"])
def test_a_template_s_playbook_and_the_variables_that_it_is_given_exist(template: dict) -> None:
    assert (ROOT / template["playbook"]).is_file()
    known = set()
    for file in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(file.read_text())["argument_specs"].values():
            known |= set(entry["options"])
    asked = {question["variable"] for question in template.get("survey_spec", {}).get("spec", [])}
    assert asked | set(template.get("extra_vars", {})) <= known
    assert bool(asked) == template["survey_enabled"]


def test_nothing_is_restored_without_the_name_of_the_environment() -> None:
    [restore] = [template for template in TEMPLATES if template["name"] == "mlflow-prod restore"]
    [confirmation] = [
        question
        for question in restore["survey_spec"]["spec"]
        if question["variable"] == "mlflow_backup_confirm_overwrite"
    ]
    # To be typed: neither chosen, nor there already.
    assert (confirmation["type"], confirmation["default"]) == ("text", "")
    assert "mlflow_backup_confirm_overwrite" not in restore.get("extra_vars", {})


def test_every_inventory_s_path_is_there_and_no_environment_gets_another_one_s_credentials() -> None:
    for source in objects()["inventory_sources"]:
        assert (ROOT / source["source_path"] / "hosts.yml").is_file()
    for template in TEMPLATES:
        for environment in ENVIRONMENTS:
            if template["name"].startswith(f"mlflow-{environment} "):
                assert template["inventory"] == f"mlflow-{environment}"
                assert {name.split()[0] for name in template["credentials"]} == {f"mlflow-{environment}"}


def test_the_workflow_deploys_prod_after_a_person_has_agreed() -> None:
    nodes = {node["identifier"]: node for node in objects()["workflow_job_template_nodes"]}
    way, at = [], "dev"
    while at:
        way.append(at)
        [at] = nodes[at]["success_nodes"] or [""]
    assert way == ["dev", "stg", "approval", "prod"]
    assert "approval_node" in nodes["approval"]


def test_what_refers_to_nothing_is_named() -> None:
    wanted = objects()
    nothing = {kind: [] for kind in wanted}
    own = [{"name": "{{ mlflow_awx_organization }}"}]
    assert awx.problems(wanted, nothing | {"organizations": own}) == []
    [template, *_] = wanted["job_templates"]
    template["credentials"] = ["somebody's"]
    [problem] = awx.problems(wanted, nothing | {"organizations": own})
    assert problem.startswith("credentials of job template mlflow-dev deploy is somebody's; expected one that")
    assert awx.problems(wanted, nothing | {"credentials": [{"name": "somebody's"}]}) == []


def test_a_dry_run_compares_what_has_all_that_it_refers_to() -> None:
    wanted = {"organizations": [{"name": "o"}], "projects": [{"name": "p", "organization": "o"}]}
    assert awx.unready(awx.prepared(wanted, {"organizations": []})) == ["would make project p"]
    assert awx.unready(awx.prepared(wanted, {"organizations": [{"name": "o"}]})) == []


def injected(kind: str, **inputs: str) -> dict[str, Any]:
    """What AWX makes of a credential: a template's fields that nobody filled in are nothing."""
    [found] = [item for item in objects()["credential_types"] if item["name"] == kind]
    render = SandboxedEnvironment().from_string
    filename = {"tower": {"filename": "/runner/env/tmp1"}}
    return {
        part: {key: render(text).render(**inputs, **filename) for key, text in texts.items()}
        for part, texts in found["injectors"].items()
    }


def test_a_kubeconfig_reaches_the_roles_as_a_file() -> None:
    assert injected("MLflow kubeconfig", kubeconfig="kind: Config") == {
        "file": {"template": "kind: Config"},
        "extra_vars": {"mlflow_environment_kubeconfig": "/runner/env/tmp1"},
    }


def test_a_vault_s_login_reaches_the_roles_in_the_variables_that_they_read() -> None:
    read = (ROOT / "roles/mlflow_environment/defaults/main.yml").read_text()
    found = injected("MLflow secrets in Vault", address="https://vault", role_id="a", secret_id="b")
    # The system's authorities, and no namespace.
    assert found["env"] == {"VAULT_ADDR": "https://vault", "VAULT_CACERT": "", "VAULT_NAMESPACE": ""}
    assert set(found["env"]) <= set(re.findall(r"'(VAULT_\w+)'", read))
    login = {f"mlflow_environment_vault_{name}" for name in ("token", "role_id", "secret_id")}
    assert set(found["extra_vars"]) == login
    assert login <= set(re.findall(r"^(\w+):", read, re.MULTILINE))
    assert found["extra_vars"]["mlflow_environment_vault_secret_id"] == "b"
    with_authority = injected("MLflow secrets in Vault", ca_certificate="PEM")
    assert with_authority["file"]["template"] == "PEM"
    assert with_authority["env"]["VAULT_CACERT"] == "/runner/env/tmp1"


def test_the_execution_environment_can_be_built_and_has_what_the_project_runs_with(tmp_path: Path) -> None:
    file = ROOT / "execution-environment.yml"
    builder = Path(sys.executable).with_name("ansible-builder")
    command = [builder, "create", "--file", file, "--context", tmp_path / "context"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())
    image = yaml.safe_load(file.read_text())["dependencies"]
    collections, core, *packages = wanted["project"]["dependencies"]
    assert collections.startswith("ansible==")
    assert image["python"] == packages
    assert image["ansible_core"]["package_pip"].split("==")[1] == core.split("~=")[1]
    assert image["ansible_runner"]["package_pip"] in wanted["dependency-groups"]["dev"]
    assert (tmp_path / "context/_build/requirements.txt").read_text().splitlines() == packages
    assert (tmp_path / "context/_build/requirements.yml").read_text() == (ROOT / "requirements.yml").read_text()
