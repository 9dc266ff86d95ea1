"""The templates of awx/ for prod, run by ansible-runner as AWX runs it, with the credentials of their types."""

from __future__ import annotations

import base64
import json
import re
import secrets as random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import KUBECONFIG, ROOT, Cluster, Run, ansible_environment, play, request
from jinja2.sandbox import ImmutableSandboxedEnvironment
from openbao import Bao

BIN = Path(sys.executable).parent
OVERLAID = ("prod", "embedded")
# The secrets of an environment: as docs/secrets.md has them.
NAMES = re.findall(r"^\| `(\w+)` \| `\w+` \|", (ROOT / "docs/secrets.md").read_text(), re.MULTILINE)


class Loader(yaml.SafeLoader):
    """YAML with Ansible's mark of what is no template."""


Loader.add_constructor("!unsafe", lambda loader, node: loader.construct_scalar(node))


def kinds(file: str, kind: str) -> list[dict[str, Any]]:
    """The objects of a kind, with prod's name in them."""
    text = (ROOT / "awx" / file).read_text().replace("<environment>", "prod")
    return yaml.load(text, Loader)[f"mlflow_awx_{kind}"]


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    running = Bao(tmp_path_factory.mktemp("bao"))
    running.policy("prod", "mlflow/prod")
    yield running
    running.end()


class Awx:
    """What AWX does with a template: a private data directory, ansible-runner, and what that leaves behind."""

    def __init__(self, folder: Path, bao: Bao) -> None:
        self.folder = folder
        self.secrets = {name: random.token_hex(20) for name in NAMES}
        for name in ("webhook_key", "backup_encryption_key"):
            self.secrets[name] = base64.urlsafe_b64encode(random.token_bytes(32)).decode()
        # These are names.
        ids = {"object_store_access_key": "mlflow-prod", "backup_access_key": "mlflow-backup-prod"}
        bao.write("mlflow/prod", self.secrets | ids)
        login = bao.approle("prod")
        self.credentials = {
            "MLflow kubeconfig": {"kubeconfig": Path(KUBECONFIG).read_text()},
            "MLflow secrets in Vault": {
                "address": bao.url,
                "role_id": login["VAULT_ROLE_ID"],
                "secret_id": login["VAULT_SECRET_ID"],
            },
        }
        keys = re.findall(r"(?:client-key-data|token): (\S+)", self.credentials["MLflow kubeconfig"]["kubeconfig"])
        self.hidden = [*self.secrets.values(), *login.values(), *keys]
        # What AWX imports. In one inventory an overlay has no last word, so that its values are prod's own here.
        command = ["ansible-inventory", "--list", "--export", *[f"--inventory=inventories/{name}" for name in OVERLAID]]
        done = subprocess.run(
            command, cwd=ROOT, env=ansible_environment(), capture_output=True, text=True, timeout=60, check=True
        )
        self.inventory = json.loads(done.stdout)
        self.inventory["prod"]["vars"] |= self.inventory["embedded"]["vars"] | {
            "mlflow_environment_kubeconfig": "/nowhere/the/credential/wins",
            "mlflow_environment_production": True,
            "mlflow_environment_secrets_source": "vault",
            "mlflow_environment_vault_auth_method": "approle",
            "mlflow_gitops_repository_url": "https://git.example.com/deployments.git",
        }

    def launch(self, name: str, **answers: Any) -> tuple[Run, Path]:
        """Run a template, with answers to its survey; also the directory that it ran in."""
        [template] = [template for template in kinds("job_templates.yml", "job_templates") if template["name"] == name]
        folder = self.folder / name.replace(" ", "-")
        for part in ("env", "inventory"):
            (folder / part).mkdir(parents=True)
        own = shutil.ignore_patterns(".*", "__pycache__", "tests", "molecule")
        shutil.copytree(ROOT, folder / "project", symlinks=True, ignore=own)
        script = folder / "inventory/hosts"
        script.write_text(f"#!{sys.executable}\nprint({json.dumps(self.inventory)!r})\n")
        script.chmod(0o700)
        arguments = ["--check"] * (template["job_type"] == "check") + ["--diff"] * template["diff_mode"]
        environment: dict[str, str] = {}
        for kind, inputs in self.credentials.items():
            injected, extra = inject(folder, kind, inputs)
            environment |= injected
            arguments += ["-e", f"@{file_of(folder, yaml.safe_dump(extra))}"]
        (folder / "env/extravars").write_text(json.dumps(template.get("extra_vars", {}) | answers))
        (folder / "env/envvars").write_text(json.dumps(environment))
        (folder / "env/cmdline").write_text(shlex.join(arguments))
        started = time.monotonic()
        done = subprocess.run(
            [BIN / "ansible-runner", "run", folder, "--playbook", template["playbook"], "--ident", "1"],
            env={"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder), "LANG": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        run = Run(done.returncode, done.stdout, time.monotonic() - started, 0)
        left = {path: path.read_text() for path in (folder / "artifacts/1").rglob("*") if path.is_file()}
        assert len(left) > 10, run.output
        shown = {path for path, text in left.items() if any(secret in text for secret in self.hidden)}
        assert shown == set()
        assert not any(secret in run.output for secret in self.hidden)
        return run, folder


def file_of(folder: Path, content: str) -> str:
    """A file that only the job may read, and that is not part of what it leaves behind."""
    path = folder / "env" / f"tmp{random.token_hex(4)}"
    path.touch(mode=0o600)
    path.write_text(content)
    return str(path)


def inject(folder: Path, kind: str, inputs: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The environment and the extra variables that a credential of a type gives to a job."""
    [injectors] = [
        item["injectors"] for item in kinds("credential_types.yml", "credential_types") if item["name"] == kind
    ]
    names, sandbox = dict(inputs), ImmutableSandboxedEnvironment()
    for text in injectors["file"].values():
        names["tower"] = {"filename": file_of(folder, sandbox.from_string(text).render(**names))}
    return tuple(
        {key: sandbox.from_string(text).render(**names) for key, text in injectors.get(part, {}).items()}
        for part in ("env", "extra_vars")
    )


@pytest.fixture(scope="module")
def awx(cluster: Cluster, bao: Bao, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Awx]:
    """An AWX, and PostgreSQL and MinIO of prod; nothing of prod is left at the end."""
    made = play("playbooks/backing_services.yml", "prod")
    assert made.status == 0, made.output
    yield Awx(tmp_path_factory.mktemp("awx"), bao)
    removed = play("molecule/destroy_environments.yml", "prod")
    assert removed.status == 0, removed.output


def test_prod_is_deployed_with_its_credentials_and_the_survey_s_answers(cluster: Cluster, awx: Awx) -> None:
    run, folder = awx.launch("mlflow-prod upgrade", mlflow_backup_required="true", mlflow_schema_timeout=600)
    assert run.status == 0, run.output
    assert (folder / "artifacts/1/status").read_text() == "successful"
    assert run.changed > 0
    kept = cluster.secrets("prod")
    assert kept["MLFLOW_AUTH_ADMIN_PASSWORD"] == awx.secrets["admin_password"]
    assert request("prod", "/api/2.0/mlflow/users/current", password=awx.secrets["admin_password"]).status == 200


@pytest.mark.full
def test_a_check_finds_nothing_to_change_and_a_verification_works(awx: Awx) -> None:
    run, _ = awx.launch("mlflow-prod check")
    assert (run.status, run.changed) == (0, 0), run.output
    run, _ = awx.launch("mlflow-prod verify")
    assert run.status == 0, run.output


def test_a_restore_that_nobody_has_confirmed_is_refused(cluster: Cluster, awx: Awx) -> None:
    before = cluster.apps.read_namespaced_deployment("mlflow-prod", "mlflow-prod").metadata.generation
    run, _ = awx.launch("mlflow-prod restore", mlflow_backup_id="", mlflow_backup_confirm_overwrite="")
    assert run.status != 0
    assert "mlflow_backup_confirm_overwrite" in run.output
    assert cluster.apps.read_namespaced_deployment("mlflow-prod", "mlflow-prod").metadata.generation == before


@pytest.mark.full
def test_what_argo_cd_would_be_given_and_what_would_be_promoted_are_shown(awx: Awx) -> None:
    run, folder = awx.launch("mlflow-prod render")
    assert run.status == 0, run.output
    assert "environments/prod/deployment-mlflow-prod.yaml" in run.output
    assert not (folder / "project/environments").exists()
    # stg is not here: prod's settings are promoted to it.
    run, folder = awx.launch(
        "mlflow promote stg to prod",
        mlflow_promotion_from="prod",
        mlflow_promotion_to="stg",
        mlflow_promotion_inventory="{{ playbook_dir }}/../inventories/stg",
    )
    assert run.status == 0, run.output
    assert "+mlflow_environment_image: localhost/mlflow:3.17.2" in run.output
    assert (folder / "project/inventories/stg/group_vars/stg/promoted.yml").exists()
