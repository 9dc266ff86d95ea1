"""A real OpenBao, for the tests that need Vault's API."""

from __future__ import annotations

import re
import secrets as random
import subprocess
from pathlib import Path
from typing import Any

import urllib3
from conftest import ROOT, wait_until
from processes import free_port


class Bao:
    """An OpenBao on this machine, which keeps everything in memory and ends with the tests."""

    def __init__(self, folder: Path) -> None:
        address = f"127.0.0.1:{free_port()}"
        self.url, self.root, self.log = f"http://{address}", f"root-{random.token_hex(8)}", folder / "log"
        options = ("-dev-no-store-token", f"-dev-root-token-id={self.root}", f"-dev-listen-address={address}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [ROOT / ".cache/servers/bin/bao", "server", "-dev", *options],
                env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: "Unseal Key:" in self.log.read_text(), 60, "OpenBao starts")
        self("POST", "sys/auth/approle", {"type": "approle"})

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """A request with the root token."""
        answer = urllib3.request(
            method, f"{self.url}/v1/{path}", json=body, headers={"X-Vault-Token": self.root}, timeout=10, retries=False
        )
        assert answer.status < 300, answer.data
        return answer.json() if answer.data else None

    def end(self) -> None:
        """End it, and what it keeps."""
        self.process.terminate()
        self.process.wait(timeout=10)

    def write(self, path: str, data: dict[str, str]) -> None:
        """Put a secret into the engine that a development server has."""
        self("POST", f"secret/data/{path}", {"data": data})

    def policy(self, name: str, path: str) -> None:
        """Allow to read one secret."""
        self("PUT", f"sys/policies/acl/{name}", {"policy": f'path "secret/data/{path}" {{capabilities = ["read"]}}'})

    def token(self, policy: str) -> str:
        """A token that may do what a policy allows."""
        return self("POST", "auth/token/create", {"policies": [policy]})["auth"]["client_token"]

    def approle(self, policy: str) -> dict[str, str]:
        """The environment of somebody who logs in by AppRole."""
        self("POST", f"auth/approle/role/{policy}", {"token_policies": [policy]})
        role = self("GET", f"auth/approle/role/{policy}/role-id")["data"]["role_id"]
        secret = self("POST", f"auth/approle/role/{policy}/secret-id")["data"]["secret_id"]
        return {"VAULT_ROLE_ID": role, "VAULT_SECRET_ID": secret}

    def unseal(self) -> None:
        """Open it again."""
        [key] = re.findall(r"Unseal Key: (\S+)", self.log.read_text())
        self("POST", "sys/unseal", {"key": key})
