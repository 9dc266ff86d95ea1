"""How people reach the server: its address, what stands in front of it, and what cannot work."""

from __future__ import annotations

import json

import pytest
from conftest import load_filter

exposure = load_filter("mlflow_exposure")

HOST = "mlflow.example.com"
GATEWAY = {"namespace": "gateways", "name": "company", "sectionName": "https"}
ISSUER = {"kind": "ClusterIssuer", "name": "letsencrypt"}
GOOD = {
    "mlflow_server_exposure": "nodeport",
    "mlflow_server_node_port": 30502,
    "mlflow_server_host": "",
    "mlflow_server_path_prefix": "",
    "mlflow_server_url": "http://localhost:30502",
    "mlflow_server_tls_secret": "",
    "mlflow_server_tls_issuer": {},
    "mlflow_server_gateway": {},
    "mlflow_server_max_artifact_size": 1024,
}


def chosen(way: str, **given: object) -> dict:
    """Settings of one exposure, without the variables' own prefix."""
    values = {"exposure": way, "host": HOST, "url": f"https://{HOST}", **given}
    if way == "httproute":
        values.setdefault("gateway", GATEWAY)
    return {f"mlflow_server_{name}": value for name, value in values.items()}


INGRESS, HTTPROUTE, ROUTE = chosen("ingress"), chosen("httproute"), chosen("route")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mlflow_server_host": "10.0.0.7"},
        {"mlflow_server_path_prefix": "/team/ml-flow_1"},
        INGRESS,
        # A port that another exposure leaves behind is not in the way.
        INGRESS | {"mlflow_server_node_port": 0},
        chosen("ingress", tls_secret="mlflow.example.com"),
        chosen("ingress", tls_issuer=ISSUER),
        HTTPROUTE,
        chosen("httproute", gateway=GATEWAY | {"redirectSectionName": "http"}),
        ROUTE,
        chosen("route", tls_secret="mlflow-tls"),
        chosen("none", host="", url="http://mlflow-dev.mlflow-dev.svc.cluster.local:5000"),
    ],
    ids=json.dumps,
)
def test_an_exposure_that_works_has_no_problem(settings: dict) -> None:
    assert exposure.problems(GOOD | settings) == []


# docs/failures.md shows what is said of each: scripts/failures.py.
BAD_EXPOSURES = [
    ({"mlflow_server_exposure": "loadbalancer"}, "expected one of nodeport, ingress, httproute, route, none"),
    ({"mlflow_server_node_port": 5000}, "expected a port from 30000 to 32767"),
    ({"mlflow_server_node_port": 32768}, "expected a port from 30000 to 32767"),
    ({"mlflow_server_node_port": None}, "expected a port from 30000 to 32767"),
    (chosen("ingress", host=""), "mlflow_server_host is ''; expected a name in DNS"),
    (chosen("httproute", host=None), "mlflow_server_host is ''; expected a name in DNS"),
    (chosen("route", host="10.0.0.7"), "mlflow_server_host is '10.0.0.7'; expected a name in DNS"),
    (chosen("ingress", host="https://mlflow.example.com"), "expected a name in DNS"),
    (chosen("ingress", host="MLflow.example.com"), "expected a name in DNS"),
    (chosen("ingress", host="*.example.com"), "expected a name in DNS"),
    ({"mlflow_server_host": "mlflow.example.com:443"}, "expected a name in DNS, an address, or an empty text"),
    ({"mlflow_server_path_prefix": "mlflow"}, "expected a path such as /mlflow"),
    ({"mlflow_server_path_prefix": "/mlflow/"}, "expected a path such as /mlflow"),
    ({"mlflow_server_path_prefix": "/"}, "expected a path such as /mlflow"),
    ({"mlflow_server_path_prefix": "/{team}"}, "expected a path such as /mlflow"),
    ({"mlflow_server_path_prefix": "/../mlflow"}, "expected a path such as /mlflow"),
    ({"mlflow_server_path_prefix": "/static-mlflow"}, "MLflow asks for no password there"),
    ({"mlflow_server_path_prefix": "/health/mlflow"}, "MLflow asks for no password there"),
    (chosen("ingress", url="mlflow.example.com"), "expected http(s)://host[:port][/path]"),
    (chosen("ingress", url="https://mlflow.example.com/"), "expected http(s)://host[:port][/path]"),
    (chosen("ingress", url="https://me:secret@mlflow.example.com"), "a value with a user part; expected http(s)://"),
    (chosen("ingress", tls_secret="tls", tls_issuer=ISSUER), "are both given; expected one of them"),
    (chosen("ingress", tls_secret="TLS"), "expected the name of a Secret"),
    (chosen("ingress", tls_issuer={"name": "letsencrypt"}), "expected kind, ClusterIssuer or Issuer, and name"),
    (chosen("ingress", tls_issuer=ISSUER | {"kind": "Vault"}), "expected kind, ClusterIssuer or Issuer, and name"),
    ({"mlflow_server_tls_secret": "tls"}, "mlflow_server_exposure is nodeport; expected ingress or route"),
    (chosen("route", tls_issuer=ISSUER), "mlflow_server_exposure is route; expected ingress"),
    (chosen("httproute", tls_secret="tls"), "a Gateway's listener has the certificate"),
    (chosen("httproute", gateway={}), "expected namespace, name and sectionName"),
    (chosen("httproute", gateway={"namespace": "gateways", "name": "company"}), "expected namespace, name and section"),
    (chosen("httproute", gateway=GATEWAY | {"port": "443"}), "expected namespace, name and sectionName"),
    ({"mlflow_server_max_artifact_size": 0}, "expected 1 to 99999 MiB"),
    ({"mlflow_server_max_artifact_size": 100000}, "expected 1 to 99999 MiB"),
]


@pytest.mark.parametrize(("settings", "expected"), BAD_EXPOSURES, ids=json.dumps)
def test_an_exposure_that_cannot_work_is_refused_with_its_variable(settings: dict, expected: str) -> None:
    [problem] = exposure.problems(GOOD | settings)
    assert problem.startswith("mlflow_server_")
    assert expected in problem
    assert "secret@" not in problem


@pytest.mark.parametrize(
    ("way", "host", "tls", "prefix", "url"),
    [
        ("nodeport", "", False, "", "http://localhost:30502"),
        ("nodeport", "node.example.com", False, "/ml", "http://node.example.com:30502/ml"),
        ("ingress", HOST, False, "", f"http://{HOST}"),
        ("ingress", HOST, True, "/ml", f"https://{HOST}/ml"),
        ("httproute", HOST, False, "", f"https://{HOST}"),
        ("route", HOST, False, "", f"https://{HOST}"),
        ("none", "", False, "/ml", "http://mlflow-dev.mlflow-dev.svc:5000/ml"),
    ],
)
def test_the_address_follows_the_exposure(way: str, host: str, tls: bool, prefix: str, url: str) -> None:
    service = "mlflow-dev.mlflow-dev.svc:5000"
    assert exposure.server_url(way, host=host, node_port=30502, tls=tls, service=service, prefix=prefix) == url


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://localhost:30502", None),
        ("https://mlflow.example.com/ml", "https://mlflow.example.com"),
        ("https://mlflow.example.com:8443", "https://mlflow.example.com:8443"),
    ],
)
def test_the_page_at_the_servers_own_address_may_change_things(url: str, origin: str | None) -> None:
    assert exposure.origins(url).get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS") == origin


@pytest.mark.parametrize(
    ("url", "redirect"),
    [
        ("https://mlflow.example.com/ml", {"scheme": "https", "statusCode": 301}),
        ("https://mlflow.example.com:8443", {"scheme": "https", "statusCode": 301, "port": 8443}),
    ],
)
def test_a_request_without_tls_is_sent_to_the_servers_own_address(url: str, redirect: dict) -> None:
    assert exposure.request_redirect(url) == redirect


def annotations(given: dict, **options: object) -> dict[str, str]:
    defaults = {"ingress_class": "", "max_artifact_size": 300, "tls_secret": "", "tls_issuer": {}}
    return exposure.ingress_annotations(given, **defaults | options)


def test_a_controller_is_told_how_long_and_how_large_a_request_may_be() -> None:
    assert annotations({}, ingress_class="contour") == {"projectcontour.io/response-timeout": "300s"}
    nginx = annotations({}, ingress_class="nginx", tls_secret="tls")
    assert nginx["nginx.ingress.kubernetes.io/proxy-body-size"] == "300m"
    assert nginx["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "300"
    assert nginx["nginx.ingress.kubernetes.io/ssl-redirect"] == "true"


def test_a_small_limit_of_artifacts_leaves_other_requests_their_time() -> None:
    found = annotations({}, ingress_class="nginx", max_artifact_size=5)
    assert found["nginx.ingress.kubernetes.io/proxy-body-size"] == "5m"
    assert found["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "60"


def test_with_a_certificate_contour_redirects() -> None:
    found = annotations({}, ingress_class="contour", tls_secret="tls")
    assert found["ingress.kubernetes.io/force-ssl-redirect"] == "true"


def test_what_is_given_comes_first_and_is_text() -> None:
    given = {"projectcontour.io/response-timeout": "infinity", "a": True, "b": 5}
    found = annotations(given, ingress_class="contour", tls_issuer=ISSUER)
    assert found["projectcontour.io/response-timeout"] == "infinity"
    assert (found["a"], found["b"]) == ("true", "5")
    assert found["cert-manager.io/cluster-issuer"] == "letsencrypt"


def test_a_class_that_is_not_known_gets_what_is_given_alone() -> None:
    assert annotations({"a": "b"}, ingress_class="traefik", tls_secret="tls") == {"a": "b"}
    assert annotations({}, tls_issuer={"kind": "Issuer", "name": "ca"}) == {"cert-manager.io/issuer": "ca"}
