"""A real Argo CD and a real External Secrets, as processes of this machine that work on the embedded cluster."""

from __future__ import annotations

import json
import secrets as random
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from conftest import KUBECONFIG, apply, wait_until
from processes import Processes, built, free_port

NAMESPACE = "argocd"
GROUPS = ("argoproj.io", "external-secrets.io", "generators.external-secrets.io")


class ArgoCD:
    """Argo CD's three controllers, External Secrets, and a Git server with one repository."""

    def __init__(self, folder: Path) -> None:
        from kubernetes import client, config

        self.folder = folder
        self.api = client.CustomObjectsApi(config.new_client_from_config(KUBECONFIG))
        self.core = client.CoreV1Api(config.new_client_from_config(KUBECONFIG))
        self.processes = Processes(folder)
        self.tree = folder / "deployments"
        try:
            self._install()
            self._serve_git()
            self._start()
        except BaseException:
            self.end()
            raise

    def _install(self) -> None:
        """The kinds of objects, and what Argo CD reads about itself. What an interrupted run has left goes first."""
        self._remove()
        for part in ("argocd", "external-secrets"):
            files = sorted((built(part) / "crds").glob("*.yaml"))
            kinds = [item for file in files for item in yaml.safe_load_all(file.read_text())]
            apply([item for item in kinds if item and item["kind"] == "CustomResourceDefinition"])
        labels = {"app.kubernetes.io/part-of": "argocd"}
        key = {"server.secretkey": random.token_urlsafe(32)}
        known = {"namespace": NAMESPACE, "labels": labels}
        apply(
            [
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
                *(
                    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **known}, "data": {}}
                    for name in ("argocd-cm", "argocd-rbac-cm", "argocd-ssh-known-hosts-cm", "argocd-tls-certs-cm")
                ),
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": "argocd-secret", **known},
                    "stringData": key,
                },
            ]
        )

    def _serve_git(self) -> None:
        """A bare repository behind a Git server, and a working tree that pushes to it."""
        port = free_port()
        bare = self.folder / "git" / "deployments.git"
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(bare), where=self.folder)
        self.url = f"git://127.0.0.1:{port}/deployments.git"
        options = (f"--base-path={bare.parent}", "--export-all", f"--port={port}", "--listen=127.0.0.1", "--reuseaddr")
        self.processes.start("git", "git", "daemon", *options)
        self.git("clone", "--quiet", str(bare), str(self.tree), where=self.folder)
        for name, value in {"user.name": "tests", "user.email": "tests@example.com"}.items():
            self.git("config", name, value)
        self.git("commit", "--quiet", "--allow-empty", "--message", "Begin")
        self.git("push", "--quiet", "--set-upstream", "origin", "main")
        self.processes.wait_for("git", port)

    def _start(self) -> None:
        """Start the controllers. Each acts by the name of its program."""
        ports = {
            name: free_port() for name in ("redis", "repo", "metrics", "probe", "webhook", "sets", "app", "es", "live")
        }
        folders = {name: self.folder / name for name in ("tls", "ssh", "gnupg", "tmp")}
        for path in folders.values():
            path.mkdir()
        redis = ("--port", str(ports["redis"]), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder))
        self.processes.start("redis", "redis-server", *redis)
        self.processes.wait_for("redis", ports["redis"])
        binary = built("argocd") / "argocd"
        environment = {
            "KUBECONFIG": KUBECONFIG,
            # What Argo CD calls its own cluster is the one of this kubeconfig.
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_TLS_DATA_PATH": str(folders["tls"]),
            "ARGOCD_SSH_DATA_PATH": str(folders["ssh"]),
            "ARGOCD_GNUPGHOME": str(folders["gnupg"]),
            "ARGOCD_RECONCILIATION_TIMEOUT": "5s",
            "ARGOCD_RECONCILIATION_JITTER": "0s",
            # Else it says for minutes nothing of a repository that it cannot read.
            "ARGOCD_REPO_ERROR_GRACE_PERIOD_SECONDS": "1s",
            "ARGOCD_REPO_SERVER_LISTEN_ADDRESS": "127.0.0.1",
            "TMPDIR": str(folders["tmp"]),
            "HOME": str(self.folder),
        }
        repository, cache = f"127.0.0.1:{ports['repo']}", ("--redis", f"127.0.0.1:{ports['redis']}")
        connection = ("--kubeconfig", KUBECONFIG, "--namespace", NAMESPACE)
        commands = {
            "argocd-repo-server": (
                *("--port", str(ports["repo"]), "--metrics-port", str(ports["metrics"]), "--disable-tls"),
                *("--address", "127.0.0.1", *cache),
            ),
            "argocd-application-controller": (
                *(*connection, *cache, "--repo-server", repository, "--repo-server-plaintext"),
                *("--metrics-port", str(ports["app"]), "--app-resync", "5", "--self-heal-timeout-seconds", "1"),
            ),
            "argocd-applicationset-controller": (
                *(*connection, "--argocd-repo-server", repository, "--repo-server-plaintext"),
                *("--metrics-addr", f"127.0.0.1:{ports['sets']}", "--probe-addr", f"127.0.0.1:{ports['probe']}"),
                *("--webhook-addr", f"127.0.0.1:{ports['webhook']}"),
            ),
        }
        for name, options in commands.items():
            link = self.folder / "bin" / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(binary)
            self.processes.start(name, link, *options, env=environment, cwd=self.folder)
        self.processes.start(
            "external-secrets",
            built("external-secrets") / "external-secrets",
            *("--metrics-addr", f"127.0.0.1:{ports['es']}"),
            env=environment,
        )
        self.processes.wait_for("argocd-repo-server", ports["repo"])
        self.processes.wait_for("argocd-application-controller", ports["app"])
        self.processes.wait_for("argocd-applicationset-controller", ports["sets"])
        self.processes.wait_for("external-secrets", ports["es"])

    def end(self) -> None:
        """Stop everything, and leave nothing of it in the cluster."""
        self.processes.end()
        self._remove()

    def _remove(self) -> None:
        """Take away what this class puts into the cluster. No finalizer would be answered any more."""
        from kubernetes import client

        definitions = client.ApiextensionsV1Api(self.core.api_client)
        for definition in definitions.list_custom_resource_definition().items:
            if definition.spec.group not in GROUPS:
                continue
            self._drop_finalizers(definition)
            definitions.delete_custom_resource_definition(definition.metadata.name)
        if any(item.metadata.name == NAMESPACE for item in self.core.list_namespace().items):
            self.core.delete_namespace(NAMESPACE)

        def gone() -> bool:
            left = {item.spec.group for item in definitions.list_custom_resource_definition().items} & {*GROUPS}
            return not left and all(item.metadata.name != NAMESPACE for item in self.core.list_namespace().items)

        wait_until(gone, 60, "Argo CD's objects go")

    def _drop_finalizers(self, definition: Any) -> None:
        group, plural = definition.spec.group, definition.spec.names.plural
        version = next(version.name for version in definition.spec.versions if version.served)
        for item in self.api.list_cluster_custom_object(group, version, plural)["items"]:
            metadata = item["metadata"]
            if metadata.get("finalizers"):
                body = [{"op": "remove", "path": "/metadata/finalizers"}]
                where = (group, version, plural, metadata["name"], body)
                if "namespace" in metadata:
                    where = (group, version, metadata["namespace"], plural, metadata["name"], body)
                    self.api.patch_namespaced_custom_object(*where)
                else:
                    self.api.patch_cluster_custom_object(*where)

    def git(self, *arguments: str, where: Path | None = None) -> str:
        """Git in the working tree; its output."""
        done = subprocess.run(
            ["git", *arguments], cwd=where or self.tree, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        """Commit whatever is in the working tree, push it, and return its name."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        self.git("push", "--quiet")
        return self.git("rev-parse", "HEAD")

    def set_up(self, environment: str) -> None:
        """What an administrator does once: apply Argo CD's own objects of an environment."""
        kinds = ("appproject", "applicationset")
        files = [self.tree / "argocd" / environment / f"{kind}-mlflow-{environment}.yaml" for kind in kinds]
        apply([yaml.safe_load(file.read_text()) for file in files])

    def refresh_set(self, environment: str) -> None:
        """Let an ApplicationSet look into the repository now, and not after minutes."""
        body = {"metadata": {"annotations": {"argocd.argoproj.io/application-set-refresh": "true"}}}
        where = ("argoproj.io", "v1alpha1", NAMESPACE, "applicationsets", f"mlflow-{environment}", body)
        self.api.patch_namespaced_custom_object(*where)

    def application(self, environment: str) -> dict[str, Any]:
        """An environment's Application, empty while there is none."""
        from kubernetes.client.exceptions import ApiException

        try:
            return self.api.get_namespaced_custom_object(
                "argoproj.io", "v1alpha1", NAMESPACE, "applications", f"mlflow-{environment}"
            )
        except ApiException as error:
            if error.status != 404:
                raise
            return {}

    def operation(self, environment: str) -> dict[str, Any]:
        """What became of its last sync."""
        return self.application(environment).get("status", {}).get("operationState", {})

    def wait_for(self, environment: str, commit: str, seconds: int = 240) -> dict[str, Any]:
        """Wait until a commit is Synced and Healthy; if its sync failed, show what it says. The Application.

        A commit that says what is there already has no sync of its own.
        """
        end = time.monotonic() + seconds
        while True:
            found = self.application(environment)
            status = found.get("status", {})
            sync, operation = status.get("sync", {}), status.get("operationState", {})
            of_commit = operation.get("syncResult", {}).get("revision") == commit
            phase = operation.get("phase")
            done = phase == "Succeeded" or (phase != "Running" and not of_commit)
            synced = (sync.get("status"), sync.get("revision")) == ("Synced", commit)
            if synced and done and status["health"]["status"] == "Healthy":
                return found
            wrong = [entry["message"] for entry in status.get("conditions", []) if entry["type"] == "InvalidSpecError"]
            assert not wrong, wrong
            failed = of_commit and operation.get("phase") in ("Failed", "Error")
            assert not failed, json.dumps(operation, indent=1)[-6000:]
            assert time.monotonic() < end, json.dumps(status, indent=1)[-8000:]
            time.sleep(0.5)

    def sync(self, environment: str, commit: str) -> None:
        """What `argocd app sync` or its web page does for a person."""
        options = self.application(environment)["spec"]["syncPolicy"]["syncOptions"]
        operation = {"initiatedBy": {"username": "somebody"}, "sync": {"revision": commit, "syncOptions": options}}
        where = ("argoproj.io", "v1alpha1", NAMESPACE, "applications", f"mlflow-{environment}")
        self.api.patch_namespaced_custom_object(*where, {"operation": operation})

    def wait_for_failure(self, environment: str, commit: str, seconds: int = 180) -> dict[str, Any]:
        """Wait until the sync of a commit has failed; what it says."""

        def failed() -> bool:
            operation = self.operation(environment)
            of_commit = operation.get("syncResult", {}).get("revision") == commit
            return of_commit and operation.get("phase") in ("Failed", "Error")

        wait_until(failed, seconds, f"the sync of {environment} fails")
        return self.operation(environment)
