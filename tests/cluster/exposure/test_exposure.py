"""Every way to reach the server, as its users see it. Each test goes on from the one before."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml
from authority import Authority
from conftest import CLIENT, Cluster, Run, apply, client_environment, folded, request, site, wait_until
from contour import GATEWAY, Contour
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from web_page import LOG, WORDS, check_page

HOST, PREFIX, TLS_SECRET = "mlflow-dev.test", "/team/mlflow", "mlflow-dev.test"
HOSTS = Path("/etc/hosts")
LINE = f"127.0.0.1 {HOST} # of ansible-mlflow's tests\n"
SIZE = 100 * 10**6
S3 = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
SERVER = ("--tags", "mlflow_server")

# Logs a run with an artifact and reads both back.
ROUND_TRIP = """
import hashlib, json, os, pathlib, sys, tempfile, time, mlflow
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
client, size = mlflow.MlflowClient(), int(sys.argv[1])
experiment = client.create_experiment(f"exposed {os.getpid()}")
run = client.create_run(experiment).info
client.log_metric(run.run_id, "one_tenth", 0.1)
with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder, "artifact.bin")
    file.write_bytes(os.urandom(size))
    digest, began = hashlib.sha256(file.read_bytes()).hexdigest(), time.monotonic()
    client.log_artifact(run.run_id, str(file))
    sent = time.monotonic()
    back = client.download_artifacts(run.run_id, file.name, tempfile.mkdtemp(dir=folder))
    read = time.monotonic()
    same = hashlib.sha256(pathlib.Path(back).read_bytes()).hexdigest() == digest
metrics = client.get_run(run.run_id).data.metrics
get_artifact_repository(run.artifact_uri).delete_artifacts()
client.delete_experiment(experiment)
print(json.dumps({"same": same, "metrics": metrics, "sent": sent - began, "read": read - sent}))
"""


@dataclass
class Front:
    """What stands in front of the server, and a client's way to it."""

    contour: Contour
    cluster: Cluster
    ca_file: Path
    secret: dict

    @property
    def ingress(self) -> dict[str, Any]:
        """The variables of an Ingress of Contour's class with the certificate."""
        return {"url": self.url(), "tls_secret": TLS_SECRET, "ingress_class": "contour"}

    @property
    def httproute(self) -> dict[str, Any]:
        """The variables of an HTTPRoute of the Gateway, below a path."""
        return {"url": self.url(PREFIX), "gateway": GATEWAY, "path_prefix": PREFIX}

    def url(self, prefix: str = "") -> str:
        """The address that people use."""
        return f"https://{HOST}:{self.contour.https}{prefix}"

    def run(self, way: str, *args: str, **given: Any) -> Run:
        """Run site.yml with an exposure; what is given has the prefix of the role's variables."""
        values = {f"mlflow_server_{name}": value for name, value in {"exposure": way, **given}.items()}
        trust = {"mlflow_verification_ca_file": str(self.ca_file)}
        shared = {"mlflow_server_artifact_access": "proxied", "mlflow_server_host": HOST}
        return site("dev", args=("-e", json.dumps(shared | values | trust), *args))

    @property
    def certificate_digest(self) -> str:
        """What Chromium knows the certificate by: its public key's digest."""
        certificate = x509.load_pem_x509_certificate(self.secret["stringData"]["tls.crt"].encode())
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(certificate.public_key().public_bytes(*form)).digest()).decode()

    def settings(self, prefix: str = "", *, trusts: bool = True) -> dict[str, str]:
        """A client's settings; it has no key of the object store."""
        settings = client_environment("dev", self.cluster.secrets("dev"))
        settings = {name: value for name, value in settings.items() if name not in S3}
        settings |= {"MLFLOW_TRACKING_URI": self.url(prefix), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
        return settings | ({"MLFLOW_TRACKING_SERVER_CERT_PATH": str(self.ca_file)} if trusts else {})

    def client(self, prefix: str = "", *, trusts: bool = True) -> subprocess.CompletedProcess[str]:
        """A real client's round trip with 100 MB."""
        settings, command = self.settings(prefix, trusts=trusts), [CLIENT, "-c", ROUND_TRIP, str(SIZE)]
        return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)

    def get(self, url: str, host: str = HOST) -> urllib3.BaseHTTPResponse:
        """One request on this machine, without following anything."""
        with urllib3.PoolManager(ca_certs=str(self.ca_file)) as pool:
            return pool.request("GET", url, headers={"Host": host}, timeout=20, retries=False, redirect=False)

    def ask_from(self, origin: str, prefix: str) -> int:
        """What a page of some origin is answered that asks as MLflow's own page does."""
        password = self.cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
        headers = {"Origin": origin, **urllib3.make_headers(basic_auth=f"admin:{password}")}
        url = f"{self.url(prefix)}/ajax-api/2.0/mlflow/experiments/search"
        with urllib3.PoolManager(ca_certs=str(self.ca_file)) as pool:
            return pool.request("POST", url, headers=headers, json={"max_results": 1}, timeout=20, retries=False).status

    def assert_serves(self, prefix: str = "") -> None:
        """A client who trusts the authority gets everything through, and nobody else does."""
        done = self.client(prefix)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout.splitlines()[-1])
        assert (report["same"], report["metrics"]) == (True, {"one_tenth": 0.1})
        speed = {way: f"{report[way]:.1f} s, {SIZE / 10**6 / report[way]:.0f} MB/s" for way in ("sent", "read")}
        print(f"100 MB through {self.url(prefix)}: {speed}")
        done = self.client(prefix, trusts=False)
        assert done.returncode != 0
        assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
        assert [self.ask_from(origin, prefix) for origin in (self.url(), "https://evil.test")] == [200, 403]

    def assert_only_the_name_over_tls(self, prefix: str = "") -> None:
        """Plain HTTP is sent to HTTPS, and no other name leads to the server."""
        plain = f"http://127.0.0.1:{self.contour.http}{prefix}/api/2.0/mlflow/experiments/get?experiment_id=0"
        answer = self.get(plain)
        assert answer.status == 301
        assert answer.headers["location"].startswith(f"https://{HOST}")
        assert self.get(plain, host="evil.test").status == 404
        assert self.get(f"{self.url(prefix)}/version", host="evil.test").status in (403, 404, 421)
        assert self.get(f"{self.url(prefix)}/version").status == 401


def objects(cluster: Cluster, version: str, plural: str) -> list[str]:
    """The names of dev's objects of a kind; none where the cluster does not know it."""
    from kubernetes import client

    api = client.CustomObjectsApi(cluster.api)
    group, number = version.split("/")
    try:
        items = api.list_namespaced_custom_object(group, number, "mlflow-dev", plural)["items"]
    except client.exceptions.ApiException as error:
        if error.status != 404:
            raise
        return []
    return sorted(item["metadata"]["name"] for item in items)


def exposed(cluster: Cluster) -> dict[str, list[str]]:
    """Whatever stands in front of dev's Service, and the Service's own type."""
    return {
        "Service": [cluster.core.read_namespaced_service("mlflow-dev", "mlflow-dev").spec.type],
        "Ingress": objects(cluster, "networking.k8s.io/v1", "ingresses"),
        "HTTPRoute": objects(cluster, "gateway.networking.k8s.io/v1", "httproutes"),
        "Route": objects(cluster, "route.openshift.io/v1", "routes"),
    }


def shape(service: str, **others: list[str]) -> dict[str, list[str]]:
    """What `exposed` should say."""
    return {"Service": [service], "Ingress": [], "HTTPRoute": [], "Route": []} | others


NODEPORT, NAME = shape("NodePort"), ["mlflow-dev"]
BY_INGRESS = shape("ClusterIP", Ingress=NAME)
BY_HTTPROUTE = shape("ClusterIP", HTTPRoute=["mlflow-dev", "mlflow-dev-redirect"])
BY_ROUTE = shape("ClusterIP", Route=NAME)


@pytest.fixture(scope="module")
def front(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Contour and Envoy, and a name of this machine for dev's server; at the end, dev as it was."""
    folder, authority = tmp_path_factory.mktemp("front"), Authority()
    key, certificate = authority.issue(HOST)
    (ca_file := folder / "ca.crt").write_text(authority.certificate)
    tls = {"tls.key": key, "tls.crt": certificate}
    metadata = {"name": TLS_SECRET, "namespace": "mlflow-dev"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": metadata,
        "stringData": tls,
    }
    hosts = HOSTS.read_text().replace(LINE, "")
    HOSTS.write_text(hosts + LINE)
    contour = Contour(folder, key, certificate)
    # What an interrupted run has left goes first.
    forget_routes(contour)
    cluster.core.delete_collection_namespaced_secret("mlflow-dev", field_selector=f"metadata.name={TLS_SECRET}")
    yield Front(contour, cluster, ca_file, secret)
    # Unless the last test has done so.
    left = site("dev", args=SERVER) if exposed(cluster) != NODEPORT else None
    HOSTS.write_text(hosts)
    cluster.core.delete_collection_namespaced_secret("mlflow-dev", field_selector=f"metadata.name={TLS_SECRET}")
    forget_routes(contour)
    contour.end()
    assert left is None or left.status == 0, left.output


def forget_routes(contour: Contour) -> None:
    """Let the cluster know no Route any more."""
    for definition in contour.definitions.list_custom_resource_definition().items:
        if definition.spec.group == "route.openshift.io":
            contour.definitions.delete_custom_resource_definition(definition.metadata.name)


def test_what_the_cluster_does_not_have_is_refused_before_anything_changes(front: Front, cluster: Cluster) -> None:
    before = cluster.resource_versions("dev")
    for way, given, told in (
        ("ingress", {"tls_secret": TLS_SECRET}, f"The cluster has no Secret mlflow-dev/{TLS_SECRET}; expected in it"),
        ("route", {}, "mlflow_server_exposure needs Route (route.openshift.io/v1), which the cluster does not know"),
    ):
        run = front.run(way, **given)
        assert run.status != 0
        assert " ".join(told.split()) in folded(run.output)
        assert run.changed == 0
    assert cluster.resource_versions("dev") == before


def test_a_dry_run_tells_what_an_ingress_takes_and_changes_nothing(front: Front, cluster: Cluster) -> None:
    apply([front.secret])
    before = cluster.resource_versions("dev")
    run = front.run("ingress", *SERVER, "--check", **front.ingress)
    assert run.status == 0, run.output
    for change in ("updated ConfigMap mlflow-config-dev", "updated Service mlflow-dev", "created Ingress mlflow-dev"):
        assert change in run.output
    assert cluster.resource_versions("dev") == before
    assert exposed(cluster) == NODEPORT


def test_an_ingress_with_tls_serves_who_trusts_the_authority(front: Front, cluster: Cluster) -> None:
    outside = ("-e", "mlflow_verification_outside=true")
    run = front.run("ingress", *outside, **front.ingress)
    assert run.status == 0, run.output
    # The run's own client on this machine has been there already.
    assert f"MLflow   {front.url()}" in run.output
    assert exposed(cluster) == BY_INGRESS
    front.assert_serves()


@pytest.mark.full
def test_an_ingress_has_nothing_to_change_at_a_second_run(front: Front) -> None:
    for args in (SERVER, (*SERVER, "--check")):
        run = front.run("ingress", *args, **front.ingress)
        assert (run.status, run.changed) == (0, 0), run.output


def test_without_tls_or_by_another_name_an_ingress_leads_nowhere(front: Front) -> None:
    front.assert_only_the_name_over_tls()


def test_a_browser_opens_a_run_through_the_ingress(front: Front, cluster: Cluster) -> None:
    name = f"Exposed {uuid.uuid4().hex[:6]}"
    program = "import mlflow\n" + LOG.format(experiment=name, run="a-run", words=WORDS)
    done = subprocess.run(
        [CLIENT, "-c", program], env=front.settings(), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    password = cluster.secrets("dev")["MLFLOW_AUTH_ADMIN_PASSWORD"]
    # Chromium has no option for an authority of one's own; this one is for the certificate.
    trust = f"--ignore-certificate-errors-spki-list={front.certificate_digest}"
    check_page(front.url(), password, name, arguments=(trust,))


@pytest.mark.full
def test_a_gateway_takes_the_place_of_the_ingress(front: Front, cluster: Cluster) -> None:
    check = front.run("httproute", *SERVER, "--check", **front.httproute)
    assert check.status == 0, check.output
    for change in (
        "created HTTPRoute mlflow-dev",
        "created HTTPRoute mlflow-dev-redirect",
        "removed Ingress mlflow-dev",
    ):
        assert change in check.output
    assert exposed(cluster) == BY_INGRESS
    run = front.run("httproute", **front.httproute)
    assert run.status == 0, run.output
    assert f"MLFLOW_TRACKING_URI={front.url(PREFIX)}" in run.output
    assert exposed(cluster) == BY_HTTPROUTE
    front.assert_serves(PREFIX)


@pytest.mark.full
def test_a_gateway_has_nothing_to_change_at_a_second_run(front: Front) -> None:
    run = front.run("httproute", *SERVER, **front.httproute)
    assert (run.status, run.changed) == (0, 0), run.output


@pytest.mark.full
def test_without_tls_or_by_another_name_a_gateway_leads_nowhere(front: Front) -> None:
    front.assert_only_the_name_over_tls(PREFIX)
    # Nor does what lies beside the path: MLflow has answers there that ask for no password.
    assert front.get(f"{front.url()}/health").status == 404


@pytest.mark.full
def test_openshifts_api_accepts_the_route(front: Front, cluster: Cluster) -> None:
    [definition] = yaml.safe_load_all((Path(__file__).parent / "reduced_route_crd.yml").read_text())
    apply([definition])
    wait_until(lambda: known(cluster), 60, "the API server knows Routes")
    given = {"tls_secret": TLS_SECRET, "path_prefix": PREFIX, "max_artifact_size": 300}
    run = front.run("route", *SERVER, **given)
    assert run.status == 0, run.output
    assert exposed(cluster) == BY_ROUTE
    # What the API adds by itself is no change of ours.
    again = front.run("route", *SERVER, "--check", **given)
    assert (again.status, again.changed) == (0, 0), again.output


def test_without_any_of_it_the_node_port_answers_again(front: Front, cluster: Cluster) -> None:
    run = site("dev", args=SERVER)
    assert run.status == 0, run.output
    assert exposed(cluster) == NODEPORT
    wait_until(lambda: request("dev", "/health").status == 200, 60, "the NodePort answers")
    again = site("dev", args=SERVER)
    assert (again.status, again.changed) == (0, 0), again.output


def known(cluster: Cluster) -> bool:
    """Whether the API server serves Routes."""
    from kubernetes import client

    return any(group.name == "route.openshift.io" for group in client.ApisApi(cluster.api).get_api_versions().groups)
