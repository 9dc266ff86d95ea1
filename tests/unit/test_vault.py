"""What is read of Vault, and how each of its refusals is told; the server is one that answers from a table."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible.module_utils.ansible_mlflow import vault

TOKEN = "s.token-not-to-be-shown"
SECRET_ID = "secret-id-not-to-be-shown"
LOGIN = (200, {"auth": {"client_token": TOKEN}})
LOOKUP, APPROLE, KUBERNETES = "/v1/auth/token/lookup-self", "/v1/auth/approle/login", "/v1/auth/kubernetes/login"
SECRET, USERS = "/v1/secret/data/mlflow/dev", "/v1/secret/data/mlflow/dev/users"
GOOD = {
    LOOKUP: (200, {"data": {"id": TOKEN}}),
    APPROLE: LOGIN,
    KUBERNETES: LOGIN,
    SECRET: (200, {"data": {"data": {"admin_password": "p%41&x/y@z#1"}, "metadata": {}}}),
    USERS: (200, {"data": {"data": {"ada@example.com": "a's"}, "metadata": {}}}),
}


def refused(status: int, *errors: str) -> tuple[int, dict]:
    return status, {"errors": list(errors)}


class FakeVault(ThreadingHTTPServer):
    """Vault, as far as a run asks it."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = dict(GOOD)
        self.asked: list[tuple[str, dict, object]] = []
        super().__init__(("127.0.0.1", 0), FakeVaultHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FakeVaultHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body) if body else None))
        status, answer = self.server.answers.get(self.path, refused(404))
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "text/html" if isinstance(answer, str) else "application/json")
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeVault]:
    """Vault; and neither this machine's token, nor its proxy, nor its settings of Vault."""
    for name in ("VAULT_TOKEN", "VAULT_ADDR", "VAULT_NAMESPACE", "VAULT_CACERT", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with FakeVault() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def read(run_module, server: FakeVault):
    """Run the module against the server."""

    def run(**options: object) -> dict:
        options = {"url": server.url, "engine": "secret", "paths": ["mlflow/dev"], **options}
        result = run_module("mlflow_vault", **options)
        result.pop("invocation")
        assert TOKEN not in str(result)
        assert SECRET_ID not in str(result)
        return result

    return run


def test_secrets_are_read_by_token_with_a_namespace(read, server: FakeVault) -> None:
    result = read(token=TOKEN, namespace="team", paths=["mlflow/dev", "mlflow/dev/users"])
    assert result["secrets"] == {
        "mlflow/dev": {"admin_password": "p%41&x/y@z#1"},
        "mlflow/dev/users": {"ada@example.com": "a's"},
    }
    assert [path for path, _, _ in server.asked] == [LOOKUP, SECRET, USERS]
    assert {headers["X-Vault-Token"] for _, headers, _ in server.asked} == {TOKEN}
    assert {headers["X-Vault-Namespace"] for _, headers, _ in server.asked} == {"team"}


def test_the_token_of_vault_login_is_taken_where_none_is_given(read, server: FakeVault, tmp_path: Path) -> None:
    (tmp_path / ".vault-token").write_text(f"{TOKEN}\n")
    assert read(token="")["secrets"]["mlflow/dev"]


def test_an_approle_logs_in_where_it_is_mounted(read, server: FakeVault) -> None:
    server.answers["/v1/auth/ci/login"] = LOGIN
    result = read(auth_method="approle", mount_point="ci", role_id="r", secret_id=SECRET_ID)
    assert result["secrets"]["mlflow/dev"] == {"admin_password": "p%41&x/y@z#1"}
    assert server.asked[0][::2] == ("/v1/auth/ci/login", {"role_id": "r", "secret_id": SECRET_ID})
    assert server.asked[1][1]["X-Vault-Token"] == TOKEN


def test_a_pod_logs_in_with_the_token_of_its_service_account(read, server: FakeVault, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a.jwt.of-a-pod\n")
    result = read(auth_method="kubernetes", role_id="mlflow", jwt_file=str(tmp_path / "token"))
    assert result["secrets"]["mlflow/dev"] == {"admin_password": "p%41&x/y@z#1"}
    assert server.asked[0][::2] == (KUBERNETES, {"role": "mlflow", "jwt": "a.jwt.of-a-pod"})


BY_TOKEN = {"token": TOKEN}
BY_APPROLE = {"auth_method": "approle", "role_id": "r", "secret_id": SECRET_ID}
SEALED = refused(503, "Vault is sealed")


@pytest.mark.parametrize(
    ("options", "answers", "expected"),
    [
        (BY_TOKEN, {LOOKUP: refused(403, "permission denied")}, ["revoked, expired", "mlflow_environment_vault_token"]),
        ({}, {}, ["there are none", "mlflow_environment_vault_token (VAULT_TOKEN"]),
        ({"auth_method": "approle"}, {}, ["there are none", "mlflow_environment_vault_role_id"]),
        (
            BY_APPROLE,
            {APPROLE: refused(400, "invalid role or secret ID")},
            [
                "refuses the login by approle at auth/approle (invalid role or secret ID)",
                "vault_role_id and _secret_id",
            ],
        ),
        (BY_APPROLE, {APPROLE: refused(404, "no handler for route")}, ["refuses the login", "no handler for route"]),
        (BY_TOKEN, {SECRET: refused(404)}, ["has no secret mlflow/dev in the KV v2 engine secret", "vault_path"]),
        (
            BY_TOKEN,
            {SECRET: (404, {"data": {"data": None, "metadata": {"deletion_time": "2026-11-26T00:00:00Z"}}})},
            ["has no secret mlflow/dev"],
        ),
        (BY_TOKEN, {SECRET: refused(403, "permission denied")}, ["denies reading", "read on secret/data/mlflow/dev"]),
        (BY_TOKEN, dict.fromkeys(GOOD, SEALED), ["is sealed; expected an unsealed one"]),
        (BY_APPROLE, dict.fromkeys(GOOD, SEALED), ["is sealed; expected an unsealed one"]),
        (BY_TOKEN, {SECRET: refused(503, "no active node")}, ["has no active node"]),
        (BY_TOKEN, {LOOKUP: refused(501, "not initialized")}, ["is not initialized"]),
        (BY_TOKEN, {SECRET: refused(500, "internal error")}, ["fails (internal error)"]),
        (BY_TOKEN, {SECRET: refused(429, "quota exceeded")}, ["refuses to read secret mlflow/dev", "quota exceeded"]),
        (BY_TOKEN, dict.fromkeys(GOOD, (200, "<html>")), ["answers, but not as Vault does", "vault_address"]),
        ({**BY_TOKEN, "url": "vault:8200"}, {}, ["mlflow_environment_vault_address", "expected http(s)://host[:port]"]),
        ({**BY_TOKEN, "url": ""}, {}, ["mlflow_environment_vault_address (VAULT_ADDR)"]),
        ({**BY_TOKEN, "url": f"http://u:{SECRET_ID}@v"}, {}, ["mlflow_environment_vault_address", "without a user"]),
        ({**BY_TOKEN, "url": "http://127.0.0.1:1"}, {}, ["http://127.0.0.1:1 cannot be reached (Connection refused)"]),
        ({**BY_TOKEN, "url": "http://vault.invalid:1"}, {}, ["http://vault.invalid:1 cannot be reached"]),
        (
            {**BY_TOKEN, "url": "https://127.0.0.1:1", "ca_cert": "/nowhere.pem"},
            {},
            ["mlflow_environment_vault_ca_file", "/nowhere.pem"],
        ),
        (
            {"auth_method": "kubernetes", "role_id": "r", "jwt_file": "/nowhere/token"},
            {},
            ["mlflow_environment_vault_jwt_file: No such file or directory (/nowhere/token)"],
        ),
    ],
)
def test_a_refusal_is_one_line_with_the_variable_and_what_is_expected(
    read, server: FakeVault, options: dict, answers: dict, expected: list[str]
) -> None:
    server.answers.update(answers)
    result = read(**options)
    assert result["failed"]
    assert "exception" not in result
    assert "\n" not in result["msg"]
    for words in expected:
        assert words in result["msg"]


def test_a_certificate_of_an_unknown_ca_is_refused_whatever_vault_skip_verify_says(
    read, server: FakeVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "true")
    # It does not even speak TLS.
    result = read(token=TOKEN, url=server.url.replace("http:", "https:"))
    assert "its certificate is not accepted" in result["msg"]
    assert "mlflow_environment_vault_ca_file" in result["msg"]


def test_a_server_that_never_answers_is_given_up(read, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 * vault.TIMEOUT_SECONDS < 10
    monkeypatch.setattr(vault, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = read(token=TOKEN, url=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "cannot be reached" in result["msg"]
    assert "timed out" in result["msg"]
