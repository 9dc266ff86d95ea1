"""Filters for how people reach the server: its address, what stands in front of it, and what cannot work."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

EXPOSURES = ("nodeport", "ingress", "httproute", "route", "none")
# These are reached by a host's name, through something that stands in front of the server.
BY_NAME = ("ingress", "httproute", "route")

# RFC 1123 subdomain: the name of a Secret, or a host's in DNS.
SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
PREFIX = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._~-]*)+")
# MLflow asks for no password below a path that begins so (is_unprotected_route in mlflow/server/auth/__init__.py).
UNPROTECTED = ("/static", "/favicon.ico", "/health")
URL = re.compile(r"https?://([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?(/[^/?#\s]+)*")

# What the controllers of these classes have to be told: neither a limit nor a wait of theirs may be shorter than the
# largest artifact needs, and nobody sends a password without TLS where there is TLS.
CONTROLLERS = {
    "contour": lambda size, tls: {
        "projectcontour.io/response-timeout": f"{proxy_seconds(size)}s",
        **({"ingress.kubernetes.io/force-ssl-redirect": "true"} if tls else {}),
    },
    "nginx": lambda size, tls: {
        "nginx.ingress.kubernetes.io/proxy-body-size": f"{size}m",
        "nginx.ingress.kubernetes.io/proxy-read-timeout": str(proxy_seconds(size)),
        "nginx.ingress.kubernetes.io/proxy-send-timeout": str(proxy_seconds(size)),
        # An artifact goes on to the server as it comes in.
        "nginx.ingress.kubernetes.io/proxy-request-buffering": "off",
        **({"nginx.ingress.kubernetes.io/ssl-redirect": "true"} if tls else {}),
    },
}
ISSUERS = {"ClusterIssuer": "cert-manager.io/cluster-issuer", "Issuer": "cert-manager.io/issuer"}


def server_url(exposure: str, *, host: str, node_port: int, tls: bool, service: str, prefix: str) -> str:
    """The address at which people reach the server.

    Args:
        exposure: Which way it is exposed.
        host: The host's name; of a NodePort, empty for localhost.
        node_port: The NodePort.
        tls: Whether an Ingress has a certificate. A Gateway's listener and a Route always have one.
        service: The Service's name and port.
        prefix: The path below which the server answers.
    """
    if exposure == "none":
        return f"http://{service}{prefix}"
    if exposure == "nodeport":
        return f"http://{host or 'localhost'}:{node_port}{prefix}"
    return f"{'https' if tls or exposure != 'ingress' else 'http'}://{host}{prefix}"


def origins(url: str) -> dict[str, str]:
    """The variable by which MLflow lets a browser's page change something; nothing for localhost, which always may.

    MLflow does not look whether a request comes from a page of its own: it compares with a list.
    """
    parts = urlsplit(url)
    local = parts.hostname == "localhost"
    return {} if local else {"MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"{parts.scheme}://{parts.netloc}"}


def proxy_seconds(max_artifact_size: int) -> int:
    """How long what stands in front waits for an answer: a second for each MiB, and a minute for any other answer."""
    return max(60, int(max_artifact_size))


def request_redirect(url: str) -> dict[str, Any]:
    """Where a Gateway sends a request that came without TLS: to the same path at the address that people use."""
    parts = urlsplit(url)
    return {"scheme": parts.scheme, "statusCode": 301, **({"port": parts.port} if parts.port else {})}


def ingress_annotations(
    given: dict[str, Any], *, ingress_class: str, max_artifact_size: int, tls_secret: str, tls_issuer: dict[str, str]
) -> dict[str, str]:
    """The annotations of the Ingress: those of its class, the issuer's, and the given ones, which come first.

    Args:
        given: Annotations by name; of a value that is no text, its text.
        ingress_class: The class.
        max_artifact_size: The largest artifact in MiB.
        tls_secret: The Secret with the certificate, if one is given.
        tls_issuer: Who else makes one.
    """
    tls = bool(tls_secret or tls_issuer)
    found = CONTROLLERS[ingress_class](int(max_artifact_size), tls) if ingress_class in CONTROLLERS else {}
    if tls_issuer:
        found[ISSUERS[tls_issuer["kind"]]] = tls_issuer["name"]
    return found | {name: text(value) for name, value in given.items()}


def text(value: Any) -> str:
    """A value as an annotation has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def problems(settings: dict[str, Any]) -> list[str]:
    """Say what is wrong with an exposure.

    Args:
        settings: The values by the names of their variables.

    Returns:
        A sentence for each problem: the variable, what it is, and what is expected.
    """
    exposure = settings["mlflow_server_exposure"]
    if exposure not in EXPOSURES:
        return [f"mlflow_server_exposure is {exposure!r}; expected one of {', '.join(EXPOSURES)}"]
    found = [*address_problems(settings), *tls_problems(settings), *gateway_problems(settings)]
    url = str(settings["mlflow_server_url"])
    # By default it is made of what is told already.
    if not found and not URL.fullmatch(url):
        found.append(f"mlflow_server_url is {shown(url)}; expected http(s)://host[:port][/path]")
    return found


def address_problems(settings: dict[str, Any]) -> Iterator[str]:
    """What is wrong with where the server is reached."""
    exposure, host = settings["mlflow_server_exposure"], settings["mlflow_server_host"] or ""
    port, prefix = settings["mlflow_server_node_port"], settings["mlflow_server_path_prefix"] or ""
    if exposure == "nodeport" and not 30000 <= int(port or 0) <= 32767:
        yield f"mlflow_server_node_port is {port!r}; expected a port from 30000 to 32767"
    if exposure in BY_NAME and (not SUBDOMAIN.fullmatch(host) or ADDRESS.fullmatch(host)):
        yield (
            f"mlflow_server_host is {host!r}; expected a name in DNS such as mlflow.example.com, as "
            f"mlflow_server_exposure is {exposure}"
        )
    elif host and not SUBDOMAIN.fullmatch(host):
        yield f"mlflow_server_host is {host!r}; expected a name in DNS, an address, or an empty text"
    if prefix and not PREFIX.fullmatch(prefix):
        yield f"mlflow_server_path_prefix is {prefix!r}; expected a path such as /mlflow, or an empty text"
    elif prefix.startswith(UNPROTECTED):
        yield (
            f"mlflow_server_path_prefix is {prefix!r}; expected another beginning than {', '.join(UNPROTECTED)}: "
            f"MLflow asks for no password there"
        )
    size = settings["mlflow_server_max_artifact_size"]
    if not 1 <= int(size) <= 99999:
        yield f"mlflow_server_max_artifact_size is {size!r}; expected 1 to 99999 MiB"


def tls_problems(settings: dict[str, Any]) -> Iterator[str]:
    """What is wrong with where the certificate comes from."""
    exposure, secret = settings["mlflow_server_exposure"], settings["mlflow_server_tls_secret"] or ""
    issuer = settings["mlflow_server_tls_issuer"] or {}
    elsewhere = "; a Gateway's listener has the certificate" if exposure == "httproute" else ""
    if secret and issuer:
        yield "mlflow_server_tls_secret and mlflow_server_tls_issuer are both given; expected one of them"
    elif secret and exposure not in ("ingress", "route"):
        yield (
            f"mlflow_server_tls_secret is given, but mlflow_server_exposure is {exposure}; expected ingress or route"
            f"{elsewhere}"
        )
    elif issuer and exposure != "ingress":
        yield (
            f"mlflow_server_tls_issuer is given, but mlflow_server_exposure is {exposure}; expected ingress{elsewhere}"
        )
    elif secret and not SUBDOMAIN.fullmatch(secret):
        yield f"mlflow_server_tls_secret is {secret!r}; expected the name of a Secret"
    elif issuer and not (
        set(issuer) == {"kind", "name"} and issuer["kind"] in ISSUERS and SUBDOMAIN.fullmatch(str(issuer["name"]))
    ):
        yield f"mlflow_server_tls_issuer is {issuer!r}; expected kind, {' or '.join(ISSUERS)}, and name"


def gateway_problems(settings: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the Gateway that an HTTPRoute is for."""
    needed, also = {"namespace", "name", "sectionName"}, {"redirectSectionName"}
    gateway = settings["mlflow_server_gateway"] or {}
    if settings["mlflow_server_exposure"] != "httproute":
        return
    names_are_names = all(SUBDOMAIN.fullmatch(str(name)) for name in gateway.values())
    if not (needed <= set(gateway) <= needed | also and names_are_names):
        yield (
            f"mlflow_server_gateway is {gateway!r}; expected namespace, name and sectionName, its listener, and "
            f"perhaps redirectSectionName, one without TLS"
        )


def shown(url: str) -> str:
    """A URL as it may be shown: one with a user part may have a password in it."""
    return "a value with a user part" if "@" in url else repr(url)


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_server_url": server_url,
            "mlflow_server_origins": origins,
            "mlflow_proxy_seconds": proxy_seconds,
            "mlflow_request_redirect": request_redirect,
            "mlflow_ingress_annotations": ingress_annotations,
            "mlflow_exposure_problems": problems,
        }
