"""Where secrets come from: a real OpenBao, Secrets that somebody else has made, and passwords of every character."""

from __future__ import annotations

import json
import re
import secrets as random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from conftest import (
    ROOT,
    Cluster,
    Run,
    mlflow_client,
    play,
    request,
    s3,
    site,
)
from openbao import Bao

NAMESPACE, SECRET, MAINTENANCE, CONFIG = (
    "mlflow-dev",
    "mlflow-secrets-dev",
    "mlflow-maintenance-dev",
    "mlflow-config-dev",
)
PERCENT, DOLLAR, LONG = "p%41&x/y@z#1", "a$(PGHOST)b \"c' |d=\\", random.token_hex(32)
# Seconds that a refusal may take: 10 on an idle machine.
SOON = 60
# What each secret is called, by its key in a Secret: as docs/secrets.md has them.
NAMES = {
    key: name
    for name, key in re.findall(r"^\| `(\w+)` \| `(\w+)` \|", (ROOT / "docs/secrets.md").read_text(), re.MULTILINE)
}


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    running = Bao(tmp_path_factory.mktemp("bao"))
    running.policy("dev", "mlflow/dev")
    yield running
    running.end()


def by_name(cluster: Cluster) -> dict[str, str]:
    """The environment's secrets as people name them."""
    kept = cluster.secrets("dev") | cluster.secret(NAMESPACE, MAINTENANCE)
    return {NAMES[key]: value for key, value in kept.items()}


def from_vault(bao: Bao, **variables: str) -> tuple[str, ...]:
    """The arguments of a run that takes its secrets from OpenBao."""
    settings = {"mlflow_environment_secrets_source": "vault", "mlflow_environment_vault_address": bao.url}
    settings |= {"mlflow_environment_vault_auth_method": "approle"} | variables
    return ("-e", json.dumps(settings))


def serves_with(cluster: Cluster, expected: dict[str, str]) -> None:
    """The server, a client, MinIO, PostgreSQL and gc in the server's pod: all of them log in with these."""
    kept = cluster.secrets("dev")
    assert {name: by_name(cluster)[name] for name in expected} == expected
    assert request("dev", "/api/2.0/mlflow/users/current", password=kept["MLFLOW_AUTH_ADMIN_PASSWORD"]).status == 200
    assert s3("dev", kept["AWS_ACCESS_KEY_ID"], kept["AWS_SECRET_ACCESS_KEY"]).bucket_exists("mlflow")
    run = mlflow_client(
        "dev",
        kept,
        "mlflow.set_experiment('passwords')\n"
        "with mlflow.start_run() as run: mlflow.log_text('text', 'artifact.txt')\n"
        "mlflow.delete_run(run.info.run_id)\n"
        "answer = run.info.run_id",
    )
    [pod] = cluster.servers("dev")
    collect = (
        'MLFLOW_TRACKING_URI="$MLFLOW_BACKEND_STORE_URI" MLFLOW_TRACKING_USERNAME=admin '
        'MLFLOW_TRACKING_PASSWORD="$MLFLOW_AUTH_ADMIN_PASSWORD" '
        f"mlflow gc --tracking-uri http://localhost:5000 --run-ids {run} && echo collected"
    )
    _, answer, errors = cluster.execute(NAMESPACE, pod.metadata.name, ["sh", "-c", collect], "mlflow")
    output = answer + errors
    assert "collected" in output, output
    with cluster.database("dev", "mlflow", ("mlflow", kept["PGPASSWORD"])) as connection:
        assert connection.execute("SELECT count(*) FROM runs WHERE run_uuid = %s", (run,)).fetchone() == (0,)


def test_openbao_supplies_every_secret_by_approle_and_passwords_of_every_character_log_in(
    cluster: Cluster, bao: Bao, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"database_password": PERCENT, "object_store_secret_key": DOLLAR}
    # Another than any that the servers' role has in these tests.
    changed["database_migrator_password"] = f"{DOLLAR}2"
    stored = by_name(cluster) | changed
    assert len(stored) == 10
    bao.write("mlflow/dev", stored)
    login = bao.approle("dev")
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    run = site("dev", args=("-vvv", *from_vault(bao, mlflow_environment_secrets_at_once=True)))
    assert run.status == 0, run.output
    assert "updated Secret mlflow-secrets-dev" in run.output
    serves_with(cluster, changed)
    for secret in (*changed.values(), *login.values()):
        assert secret not in run.output
    # A dry run asks the databases, the bucket and the API server what a run would change.
    again = site("dev", args=("--check", *from_vault(bao)))
    assert again.status == 0, again.output
    assert again.changed == 0, again.output


def refused(cluster: Cluster, args: tuple[str, ...], message: str) -> Run:
    """A run ends soon with a message, and has changed nothing."""
    before = cluster.resource_versions("dev")
    run = site("dev", args=("-vvv", *args), timeout=120)
    assert run.status != 0, run.output
    [line] = [line for line in run.output.splitlines() if line.lstrip().startswith("msg:") and message[:20] in line]
    # YAML writes a quote within quotes twice.
    assert message in re.sub(r"\s+", " ", run.output[run.output.index(line) :]).replace("''", "'")
    assert "Traceback" not in run.output
    assert run.changed == 0
    assert run.seconds < SOON
    assert cluster.resource_versions("dev") == before
    return run


def test_what_openbao_refuses_is_told_in_one_line_and_changes_nothing(
    cluster: Cluster, bao: Bao, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = by_name(cluster)
    bao.write("mlflow/dev", stored)
    token = bao.token("dev")
    monkeypatch.setenv("VAULT_TOKEN", token)
    bao("POST", "auth/token/revoke", {"token": token})
    by_token = from_vault(bao, mlflow_environment_vault_auth_method="token")
    run = refused(
        cluster, by_token, f"Vault at {bao.url}: no valid credentials for the login by token: the token is revoked"
    )
    assert token not in run.output

    monkeypatch.setenv("VAULT_TOKEN", bao.root)
    absent = from_vault(
        bao, mlflow_environment_vault_auth_method="token", mlflow_environment_vault_path="mlflow/nowhere"
    )
    run = refused(cluster, absent, f"Vault at {bao.url} has no secret mlflow/nowhere in the KV v2 engine secret")
    assert bao.root not in run.output

    bao.write("mlflow/dev", {name: value for name, value in stored.items() if name != "kek_passphrase"})
    run = refused(cluster, by_token, "key kek_passphrase of Vault's secret secret/mlflow/dev is missing")
    assert stored["admin_password"] not in run.output

    bao("PUT", "sys/seal")
    try:
        refused(cluster, by_token, f"Vault at {bao.url} is sealed; expected an unsealed one")
    finally:
        bao.unseal()


@pytest.mark.full
def test_other_refusals_of_a_vault_are_told_in_one_line_and_change_nothing(
    cluster: Cluster, bao: Bao, monkeypatch: pytest.MonkeyPatch
) -> None:
    bao.policy("other", "mlflow/other")
    monkeypatch.setenv("VAULT_TOKEN", bao.token("other"))
    by_token = {"mlflow_environment_vault_auth_method": "token"}
    refused(cluster, from_vault(bao, **by_token), f"Vault at {bao.url} denies reading secret mlflow/dev")
    away = from_vault(bao, **by_token, mlflow_environment_vault_address="http://127.0.0.1:1")
    refused(cluster, away, "Vault at http://127.0.0.1:1 cannot be reached (Connection refused)")
    login = bao.approle("dev")
    monkeypatch.setenv("VAULT_ROLE_ID", login["VAULT_ROLE_ID"])
    monkeypatch.setenv("VAULT_SECRET_ID", "another-secret-id")
    run = refused(cluster, from_vault(bao), f"Vault at {bao.url} refuses the login by approle at auth/approle")
    assert "another-secret-id" not in run.output
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        refused(
            cluster, from_vault(bao, mlflow_environment_vault_address=address), f"Vault at {address} cannot be reached"
        )


@pytest.mark.full
def test_a_pod_logs_in_to_openbao_with_its_service_account(cluster: Cluster, bao: Bao, tmp_path: Path) -> None:
    bao.write("mlflow/dev", by_name(cluster))
    reviewer = service_account(cluster, "vault-reviewer")
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "vault-reviewer"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
        "subjects": [{"kind": "ServiceAccount", "name": "vault-reviewer", "namespace": "default"}],
    }
    from kubernetes import client

    rights = client.RbacAuthorizationV1Api(cluster.api)
    rights.create_cluster_role_binding(binding)
    try:
        configuration = cluster.api.configuration
        bao("POST", "sys/auth/kubernetes", {"type": "kubernetes"})
        bao(
            "POST",
            "auth/kubernetes/config",
            {
                "kubernetes_host": configuration.host,
                "kubernetes_ca_cert": Path(configuration.ssl_ca_cert).read_text(),
                "token_reviewer_jwt": reviewer,
                "disable_iss_validation": True,
            },
        )
        bao(
            "POST",
            "auth/kubernetes/role/mlflow",
            {
                "bound_service_account_names": ["deployer"],
                "bound_service_account_namespaces": ["default"],
                "token_policies": ["dev"],
            },
        )
        (tmp_path / "token").write_text(service_account(cluster, "deployer"))
        settings = {
            "mlflow_environment_vault_auth_method": "kubernetes",
            "mlflow_environment_vault_role_id": "mlflow",
            "mlflow_environment_vault_jwt_file": str(tmp_path / "token"),
        }
        run = site("dev", args=("--check", *from_vault(bao, **settings)))
        assert run.status == 0, run.output
        assert run.changed == 0, run.output
        (tmp_path / "token").write_text(reviewer)
        refused(cluster, from_vault(bao, **settings), f"Vault at {bao.url} refuses the login by kubernetes")
    finally:
        rights.delete_cluster_role_binding("vault-reviewer")
        for name in ("vault-reviewer", "deployer"):
            cluster.core.delete_namespaced_service_account(name, "default")


def service_account(cluster: Cluster, name: str) -> str:
    """The token of a new ServiceAccount."""
    cluster.core.create_namespaced_service_account("default", {"metadata": {"name": name}})
    request = {"spec": {"expirationSeconds": 600}}
    return cluster.core.create_namespaced_service_account_token(name, "default", request).status.token


def test_a_key_that_somebody_elses_secret_lacks_is_named_and_nobody_writes_it(cluster: Cluster) -> None:
    value = cluster.core.read_namespaced_secret(MAINTENANCE, NAMESPACE).data["MIGRATOR_PGPASSWORD"]
    cluster.core.patch_namespaced_secret(MAINTENANCE, NAMESPACE, {"data": {"MIGRATOR_PGPASSWORD": None}})
    try:
        source = ("-e", "mlflow_environment_secrets_source=cluster")
        refused(cluster, source, f"key MIGRATOR_PGPASSWORD of Secret {NAMESPACE}/{MAINTENANCE} is missing")
    finally:
        cluster.core.patch_namespaced_secret(MAINTENANCE, NAMESPACE, {"data": {"MIGRATOR_PGPASSWORD": value}})


def test_production_refuses_generated_secrets_placeholders_and_those_of_another_environment(cluster: Cluster) -> None:
    production = {"mlflow_environment_production": True}
    refused(
        cluster,
        ("-e", json.dumps(production)),
        "mlflow_environment_secrets_source is 'generated' and mlflow_environment_production is true",
    )
    given = by_name(cluster) | {"admin_password": "changeme-changeme", "kek_passphrase": "the-same-passphrase"}
    given |= {"database_migrator_password": random.token_hex(16)}
    variables = production | {
        "mlflow_environment_secrets_source": "inventory",
        "mlflow_environment_secrets": given,
        "mlflow_environment_database_admin_secret": {},
        "mlflow_environment_object_store_admin_secret": {},
        # These would look for prod's PostgreSQL and MinIO first, which are not here.
        "mlflow_environment_network_policies": False,
    }
    run = play("playbooks/deploy.yml", "dev", "prod", args=("-e", json.dumps(variables)), timeout=120)
    assert run.status != 0
    assert run.changed == 0
    assert sorted(re.findall(r"fatal: \[(\S+)\]", run.output)) == ["mlflow-dev", "mlflow-prod"]
    assert "admin_password is a placeholder or a default that everybody knows" in run.output
    assert "mlflow_environment_secrets.kek_passphrase is also a secret of environment prod" in run.output
    assert "mlflow_environment_secrets.kek_passphrase is also a secret of environment dev" in run.output


@pytest.mark.full
def test_what_terraform_has_made_is_taken_over_without_a_gap(cluster: Cluster) -> None:
    """Somebody else's field manager, other keys, another value of one of ours, and labels of theirs."""
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    strange = {"MLFLOW_BACKEND_STORE_URI": "postgresql://nobody:x@nowhere/x", "MLFLOW_ENABLE_WORKSPACES": "true"}
    for name, read, replace, create in (
        (
            CONFIG,
            cluster.core.read_namespaced_config_map,
            cluster.core.delete_namespaced_config_map,
            cluster.core.create_namespaced_config_map,
        ),
        (
            SECRET,
            cluster.core.read_namespaced_secret,
            cluster.core.delete_namespaced_secret,
            cluster.core.create_namespaced_secret,
        ),
    ):
        found = cluster.api.sanitize_for_serialization(read(name, NAMESPACE))
        body = {key: value for key, value in found.items() if key in ("apiVersion", "kind", "type", "data")}
        body["metadata"] = {"name": name, "labels": {"app.kubernetes.io/managed-by": "Terraform"}}
        body["data" if name == CONFIG else "stringData"] = (body["data"] | strange) if name == CONFIG else strange
        if name == CONFIG:
            body["data"]["MLFLOW_WORKERS"] = "3"
        replace(name, NAMESPACE)
        create(NAMESPACE, body, field_manager="Terraform")

    failures, over = [], threading.Event()

    def ask() -> None:
        while not over.wait(0.5):
            try:
                status = request("dev", "/api/3.0/mlflow/server-info", password=password).status
            except urllib3.exceptions.HTTPError as error:
                status = str(error)
            if status != 200:
                failures.append(status)

    user = threading.Thread(target=ask)
    user.start()
    try:
        # Another request of the pods, so that they are replaced.
        run = site("dev", args=("-e", "mlflow_server_cpu_request=150m"))
    finally:
        over.set()
        user.join()
    assert run.status == 0, run.output
    assert failures == []
    assert f"updated ConfigMap {CONFIG}" in run.output
    assert f"updated Secret {SECRET}" in run.output
    config = cluster.core.read_namespaced_config_map(CONFIG, NAMESPACE)
    assert config.metadata.labels["app.kubernetes.io/managed-by"] == "ansible-mlflow"
    assert config.data["MLFLOW_WORKERS"] != "3"
    assert config.data["MLFLOW_ENABLE_WORKSPACES"] == "true", "somebody else's key stays"
    serves_with(cluster, {})
    again = site("dev", args=("-e", "mlflow_server_cpu_request=150m"))
    assert (again.status, again.changed) == (0, 0), again.output
    # As it was.
    cluster.core.patch_namespaced_config_map(CONFIG, NAMESPACE, {"data": {"MLFLOW_ENABLE_WORKSPACES": None}})
    cluster.core.patch_namespaced_secret(SECRET, NAMESPACE, {"data": dict.fromkeys(strange)})
    assert site("dev").status == 0


@pytest.mark.full
def test_a_run_with_somebody_elses_secrets_never_writes_them(cluster: Cluster) -> None:
    before = {name: cluster.core.read_namespaced_secret(name, NAMESPACE) for name in (SECRET, MAINTENANCE)}
    run = site("dev", args=("-e", "mlflow_environment_secrets_source=cluster"))
    assert (run.status, run.changed) == (0, 0), run.output
    for name, secret in before.items():
        after = cluster.core.read_namespaced_secret(name, NAMESPACE)
        assert after.metadata.resource_version == secret.metadata.resource_version


@pytest.mark.full
@pytest.mark.parametrize("password", [PERCENT, DOLLAR, LONG], ids=["percent", "dollar", "64 characters"])
def test_a_password_is_the_databases_minios_and_the_administrators(cluster: Cluster, password: str) -> None:
    given = {"database_password": password, "object_store_secret_key": password, "admin_password": password}
    variables = {"mlflow_environment_secrets": given, "mlflow_environment_secrets_at_once": True}
    secrets = ("-e", json.dumps(variables))
    run = site("dev", args=secrets)
    assert run.status == 0, run.output
    serves_with(cluster, given)
    again = site("dev", args=secrets)
    assert (again.status, again.changed) == (0, 0), again.output


def test_the_servers_keys_are_the_same_in_every_replica_and_run_and_none_is_mlflows_own(cluster: Cluster) -> None:
    kept = cluster.secrets("dev")
    keys = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_CRYPTO_KEK_PASSPHRASE", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY")
    pod = cluster.apps.read_namespaced_deployment("mlflow-dev", NAMESPACE).spec.template.spec
    [server] = pod.containers
    sources = {variable.name: variable.value_from for variable in server.env}
    for key in keys:
        # Every replica reads it from the one Secret.
        assert sources[key].secret_key_ref.name == SECRET
        assert len(kept[key]) >= 32
    assert "mlflow-default-kek-passphrase-for-development-only" not in kept.values()
    assert len({kept[key] for key in keys}) == 3
