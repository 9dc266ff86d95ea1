"""A small client of the Kubernetes API: plain dicts in and out, bounded times, errors an operator understands.

The Python library ``kubernetes`` takes more than half a second to import, so it is imported when a cluster is first
asked and not before.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading

from .errors import Error, MissingLibraryError, one_line

CONNECT_TIMEOUT = 10
READ_TIMEOUT = 30

# Who has set a field, as the API server remembers it.
FIELD_MANAGER = "ansible-mlflow"

HOW_TO_CHOOSE = (
    "the cluster is chosen by mlflow_environment_kubeconfig (a file) and mlflow_environment_context (a name in it)"
)

CONNECTION_ARGUMENTS = {
    "kubeconfig": {"type": "path"},
    "context": {"type": "str"},
}


class UnreachableError(Error):
    """The API server did not answer; asking again later may help."""


class ApiError(Error):
    """The API server refused a request.

    ``status`` is the HTTP status (int), ``reason`` Kubernetes' word for it such as ``AlreadyExists``.
    """

    def __init__(self, message: str, status: int, reason: str):
        super().__init__(message)
        self.status = status
        self.reason = reason


class Cluster:
    """One Kubernetes cluster, reached as kubectl would.

    :param kubeconfig: path of the kubeconfig; empty for $KUBECONFIG, ~/.kube/config or, in a pod, its service account.
    :param context: name of a context in it; empty for the current one.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None):
        self.kubeconfig = os.path.expanduser(kubeconfig) if kubeconfig else ""
        self.context = context or ""
        self._configuration = None
        self._api = None
        self._forward_lock = threading.Lock()

    @property
    def described(self) -> str:
        """Where the connection's settings come from, for messages."""
        source = f"kubeconfig {self.kubeconfig}" if self.kubeconfig else "the default kubeconfig"
        return f"{source}, context {self.context}" if self.context else f"{source}, its current context"

    @property
    def server(self) -> str:
        """URL of the API server."""
        return self._load().host

    def _load(self):
        if self._configuration is None:
            self._configuration = _load_configuration(self)
        return self._configuration

    def _client(self):
        if self._api is None:
            configuration = self._load()
            from kubernetes import client

            self._api = client.ApiClient(configuration)
        return self._api

    def request(
        self,
        method: str,
        path: str,
        body=None,
        query: dict | None = None,
        text: bool = False,
        content_type: str = "application/json",
    ):
        """Send one request.

        :param path: path of the resource, from ``/api`` or ``/apis`` on.
        :param body: JSON-able object to send, or its text where ``content_type`` is another than JSON's own.
        :param text: return the body as text (logs) instead of parsed JSON.
        :raises UnreachableError: no answer. :raises ApiError: any status from 400 on.
        """
        api = self._client()
        import urllib3
        from kubernetes.client.exceptions import ApiException

        headers = {"Accept": "*/*" if text else "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        call = api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = api.call_api(*call, _request_timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
            data = response.read()
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            raise _unreachable(self, error) from None
        if response.status >= 400:
            raise _refusal(self, method, path, response.status, data)
        if text:
            return data.decode("utf-8", "replace")
        try:
            return json.loads(data or b"{}")
        except ValueError:
            raise UnreachableError(
                f"{self.server} answered, but not as a Kubernetes API server does ({self.described}); {HOW_TO_CHOOSE}"
            ) from None

    def get(self, path: str, query: dict | None = None) -> dict | None:
        """The object at ``path``, or None when it does not exist."""
        try:
            return self.request("GET", path, query=query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str, **query) -> list[dict]:
        """The objects of a list at ``path``; empty when the namespace does not exist."""
        return (self.get(path, query=query) or {}).get("items") or []

    def create(self, path: str, body: dict) -> dict:
        return self.request("POST", path, body=body)

    def replace(self, path: str, body: dict) -> dict:
        return self.request("PUT", path, body=body)

    def apply(self, path: str, body: dict, dry_run: bool = False) -> dict:
        """Apply an object on the server's side, taking over the fields that others have set.

        An unknown field is refused. See https://kubernetes.io/docs/reference/using-api/server-side-apply/
        """
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        # JSON is YAML too, and this is the type that names the operation.
        return self.request("PATCH", path, json.dumps(body), query, content_type="application/apply-patch+yaml")

    def delete(self, path: str, uid: str) -> None:
        """Delete an object and, in the background, what it owns.

        It is fine when it is gone already, or when meanwhile another one, with another uid, has its name.
        """
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self.request("DELETE", path, body=options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def log(self, namespace: str, pod: str, container: str, lines: int = 200, previous: bool = False) -> str:
        """The last lines of a container's log, or an empty text when there is none."""
        query = {"container": container, "tailLines": lines, "previous": "true" if previous else "false"}
        try:
            return self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log", query=query, text=True)
        except ApiError:
            return ""

    def forward(self, namespace: str, pod: str, port: int):
        """Open one connection to a pod's port through the API server.

        :returns: the library's PortForward; its ``socket(port)`` is the connection.
        :raises UnreachableError: the API server or the node's kubelet refused.
        """
        configuration = self._load()
        import websocket
        from kubernetes import client
        from kubernetes.client.exceptions import ApiException
        from kubernetes.stream import portforward

        # The library swaps a method of the ApiClient while it connects, so each connection has its own, one at a time.
        with self._forward_lock:
            websocket.setdefaulttimeout(CONNECT_TIMEOUT)
            request = _ForwardRequest(client.ApiClient(configuration))
            try:
                forward = portforward(request.send, f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward", port)
            except (ApiException, OSError) as error:
                reason = handshake_problem(str(getattr(error, "reason", None) or error))
                raise UnreachableError(f"no port-forward to pod {namespace}/{pod} port {port}: {reason}") from None
            finally:
                websocket.setdefaulttimeout(None)
        return forward


def handshake_problem(text: str) -> str:
    """Why a websocket was refused: the API server's sentence out of the library's dump of the whole answer."""
    found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', text)
    return one_line(json.loads(f'"{found[1]}"'), 300) if found else connection_problem(text)


class _ForwardRequest:
    """The request for a port-forward, in the form in which the library wants it.

    Its own CoreV1Api would do the same, but takes a second and more to import.
    """

    def __init__(self, api_client):
        self.api_client = api_client

    def send(self, path: str, port: int, **_options):
        query = [("ports", str(port))]
        call = self.api_client.param_serialize("GET", path, query_params=query, auth_settings=["BearerToken"])
        return self.api_client.call_api(*call[:3]).response


class _Complaints(logging.Handler):
    """Collects what the library only logs, above all that a credential plugin is missing or failed."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _load_configuration(cluster: Cluster):
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise MissingLibraryError("kubernetes", str(error)) from None
    if cluster.kubeconfig and not os.path.isfile(cluster.kubeconfig):
        raise Error(f"there is no kubeconfig {cluster.kubeconfig}; {HOW_TO_CHOOSE}")
    default_files = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    has_file = bool(cluster.kubeconfig) or any(os.path.isfile(os.path.expanduser(name)) for name in default_files)
    configuration = client.Configuration()
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        if has_file:
            config.load_kube_config(
                config_file=cluster.kubeconfig or None,
                context=cluster.context or None,
                client_configuration=configuration,
                persist_config=False,
            )
        elif os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            places = ", ".join(default_files)
            raise Error(f"no cluster is named and there is no kubeconfig at {places}; {HOW_TO_CHOOSE}")
    except config.ConfigException as error:
        raise Error(_configuration_message(cluster, str(error))) from None
    except Error:
        raise
    except Exception as error:
        # A damaged file fails in the YAML parser, in base64 or in the library's own indexing.
        raise Error(
            f"{cluster.described} cannot be read ({type(error).__name__}: {one_line(error, 200)}); {HOW_TO_CHOOSE}"
        ) from None
    finally:
        logging.getLogger().removeHandler(complaints)
    if complaints.texts:
        told = one_line("; ".join(complaints.texts), 300)
        raise Error(f"the credentials of {cluster.described} cannot be obtained: {told}")
    # Waiting and repeating is decided by the callers, which know how long they may wait.
    configuration.retries = False
    return configuration


def _configuration_message(cluster: Cluster, text: str) -> str:
    if "Expected object with name" in text and "contexts" in text:
        source = f"kubeconfig {cluster.kubeconfig}" if cluster.kubeconfig else "the default kubeconfig"
        lacking = f"context {cluster.context}" if cluster.context else "current context"
        return f"there is no {lacking} in {source}; {HOW_TO_CHOOSE}"
    return f"{cluster.described} cannot be used: {one_line(text, 300)}; {HOW_TO_CHOOSE}"


def connection_problem(text: str) -> str:
    """Say in plain words why a connection failed, from the text of the exception."""
    table = (
        ("certificate verify failed", "its certificate is not signed by the authority that the kubeconfig names"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not signed by the authority that the kubeconfig names"),
        ("doesn't match", "its certificate is for another name"),
        ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
        ("SSL", "TLS failed"),
        ("Connection refused", "the connection was refused"),
        ("timed out", f"it did not answer within {CONNECT_TIMEOUT} s"),
        ("TimeoutError", f"it did not answer within {CONNECT_TIMEOUT} s"),
        ("Name or service not known", "its name cannot be resolved"),
        ("Failed to resolve", "its name cannot be resolved"),
        ("No route to host", "there is no route to it"),
        ("Network is unreachable", "the network is unreachable"),
        ("reset by peer", "it closed the connection"),
    )
    for pattern, meaning in table:
        if pattern in text:
            return meaning
    return one_line(text, 300)


def _unreachable(cluster: Cluster, error: Exception) -> UnreachableError:
    problem = connection_problem(f"{type(error).__name__}: {getattr(error, 'reason', None) or error}")
    return UnreachableError(
        f"the API server {cluster.server} cannot be reached: {problem} ({cluster.described}); {HOW_TO_CHOOSE}"
    )


def _refusal(cluster: Cluster, method: str, path: str, status: int, data: bytes) -> ApiError:
    try:
        answer = json.loads(data)
        message, reason = answer.get("message") or "", answer.get("reason") or ""
    except (ValueError, AttributeError):
        text = f"{cluster.server} answered {method} {path} with {status}, but not as a Kubernetes API server does"
        return ApiError(f"{text} ({cluster.described}); {HOW_TO_CHOOSE}", status, "")
    if status == 401:
        text = f"{cluster.server} does not accept the credentials of {cluster.described}; {HOW_TO_CHOOSE}"
    elif status == 403 and reason == "Forbidden" and "cannot" in message:
        text = f"the user of {cluster.described} lacks a right: {one_line(message, 400)}"
    else:
        text = f"Kubernetes refused {method} {path} ({status}): {one_line(message, 500)}"
    return ApiError(text, status, reason)
