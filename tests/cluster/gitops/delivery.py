"""What the tests of the delivery by Git share: the services it needs, and runs that render, commit and push."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from argocd import ArgoCD
from conftest import ROOT, Run, apply, play, request
from openbao import Bao

# How an older release is made, filled and read is the same as for upgrades by Ansible.
sys.path.insert(0, str(ROOT / "tests/cluster/upgrade"))

OLD, NEW = "localhost/mlflow:3.16.0", "localhost/mlflow:3.17.2"
STORE = {"kind": "ClusterSecretStore", "name": "vault"}
EXPERIMENT_0 = "/api/2.0/mlflow/experiments/get?experiment_id=0"


def secrets(environment: str) -> dict[str, str]:
    """An environment's secrets, the same in every run, so that what is rendered is the same, too."""
    names = ("admin_password", "database_password", "database_migrator_password", "object_store_secret_key")
    names += ("flask_secret_key", "kek_passphrase", "backup_secret_key")
    values = {name: f"{environment}-{name.replace('_', '-')}-1" for name in names}
    return values | {
        "object_store_access_key": f"mlflow-{environment}",
        "backup_access_key": f"mlflow-backup-{environment}",
        "webhook_key": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    }


class Delivery:
    """Two environments that Argo CD delivers, and what somebody has put into their inventories."""

    def __init__(self, folder: Path) -> None:
        (folder / "bao").mkdir()
        self.bao = Bao(folder / "bao")
        # What differs from the inventories, for both of them.
        self.variables = {
            "mlflow_environment_image": {"dev": NEW, "stg": NEW},
            "mlflow_server_replicas": {"dev": 1, "stg": 2},
            "mlflow_server_auth_cache_seconds": {"dev": 60, "stg": 60},
            "mlflow_gitops_automated": {
                "dev": {"prune": True, "selfHeal": True},
                "stg": {"prune": True, "selfHeal": False},
            },
        }
        try:
            self.argo = ArgoCD(folder)
            for environment in ("dev", "stg"):
                self.bao.write(f"mlflow/{environment}", secrets(environment))
            os.environ["VAULT_TOKEN"] = self.bao.root
            self._let_external_secrets_read()
        except BaseException:
            self.bao.process.kill()
            raise

    def _let_external_secrets_read(self) -> None:
        """The store that people set up beside External Secrets."""
        token = {"namespace": "argocd", "name": "vault-token"}
        vault = {"server": self.bao.url, "path": "secret", "version": "v2"}
        vault["auth"] = {"tokenSecretRef": {**token, "key": "token"}}
        apply(
            [
                {"apiVersion": "v1", "kind": "Secret", "metadata": token, "stringData": {"token": self.bao.root}},
                {
                    "apiVersion": "external-secrets.io/v1",
                    "kind": "ClusterSecretStore",
                    "metadata": {"name": STORE["name"]},
                    "spec": {"provider": {"vault": vault}},
                },
            ]
        )

    def end(self) -> None:
        """End all that this has started."""
        os.environ.pop("VAULT_TOKEN", None)
        self.argo.end()
        self.bao.end()

    def run(self, playbook: str, *environments: str, args: tuple[str, ...] = (), **more: object) -> Run:
        """Run a playbook, which commits and pushes what it renders."""
        settings = {
            name: f"{{{{ {json.dumps(values)}[mlflow_environment_name] }}}}" for name, values in self.variables.items()
        }
        return play(playbook, *environments, args=("-e", json.dumps(settings | self.settings | more), *args))

    @property
    def settings(self) -> dict[str, object]:
        """What both inventories say of the delivery."""
        return {
            "mlflow_environment_delivery": "gitops",
            "mlflow_environment_secrets_source": "vault",
            "mlflow_environment_vault_address": self.bao.url,
            "mlflow_environment_external_secrets_store": STORE,
            "mlflow_gitops_repository": str(self.argo.tree),
            "mlflow_gitops_repository_url": self.argo.url,
            "mlflow_gitops_until": "push",
            "mlflow_gitops_timeout": 240,
        }

    def prepare(self, environment: str) -> None:
        """The databases, the bucket and the Secrets, as Ansible alone makes them."""
        more = {"mlflow_environment_delivery": "push", "mlflow_environment_external_secrets_store": {}}
        args = ("--tags", "mlflow_database,mlflow_object_store")
        run = self.run("playbooks/deploy.yml", environment, args=args, **more)
        assert run.status == 0, run.output

    def deliver(self, environment: str, **variables: object) -> str:
        """Put variables into an environment's inventory, render, commit and push; the commit."""
        for name, value in variables.items():
            self.variables[name][environment] = value
        before = self.argo.git("rev-list", "--count", "HEAD")
        run = self.run("playbooks/render.yml", environment)
        assert run.status == 0, run.output
        assert int(self.argo.git("rev-list", "--count", "HEAD")) == int(before) + 1
        return self.argo.git("rev-parse", "HEAD")


@contextmanager
def user(environment: str) -> Iterator[dict[int | str, int]]:
    """Somebody who uses an environment meanwhile, several times a second: how often he got which answer."""
    answers: dict[int | str, int] = {}
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.2):
            try:
                status = request(environment, EXPERIMENT_0, password=secrets(environment)["admin_password"]).status
            except urllib3.exceptions.HTTPError as error:
                status = str(error)
            answers[status] = answers.get(status, 0) + 1

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        over.set()
        thread.join()
