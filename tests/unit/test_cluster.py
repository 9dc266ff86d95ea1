"""What is read of a cluster: node ports, Secrets, rollouts, and how its refusals are told."""

from __future__ import annotations

import base64
import json

import pytest
from ansible.module_utils.ansible_mlflow import cluster_info, jobs
from ansible.module_utils.ansible_mlflow.cluster_info import decoded, node_port_problems
from ansible.module_utils.ansible_mlflow.errors import MESSAGE_LIMIT, Error, one_line
from ansible.module_utils.ansible_mlflow.kubernetes import (
    ApiError,
    Cluster,
    _refusal,
    connection_problem,
    handshake_problem,
)
from ansible.module_utils.ansible_mlflow.rollout import Rollout, newest, previous_words, progress
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(max_size=3000))
def test_any_text_becomes_one_bounded_line(text):
    line = one_line(text)
    assert "\n" not in line
    assert len(line) <= MESSAGE_LIMIT
    assert one_line(line) == line


def wanted(port: int, service: str = "mlflow-dev") -> dict:
    return {"port": port, "namespace": "mlflow-dev", "service": service}


def holder(port: int, name: str, namespace: str = "mlflow-dev") -> dict:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"ports": [{"port": 80, "nodePort": port}]}}


@pytest.mark.parametrize(
    ("ports", "services", "problems"),
    [
        ([wanted(30502)], [], []),
        ([wanted(30502)], [holder(30502, "mlflow-dev"), {"metadata": {"namespace": "a", "name": "b"}, "spec": {}}], []),
        ([wanted(30000), wanted(32767)], [], []),
        ([wanted(29999)], [], ["29999 of Service mlflow-dev/mlflow-dev is outside 30000-32767"]),
        ([wanted(32768)], [], ["outside"]),
        ([wanted(30502)], [holder(30502, "web", "shop")], ["is used by Service shop/web"]),
        ([wanted(30502), wanted(30502, "other")], [], ["wanted by both mlflow-dev/mlflow-dev and mlflow-dev/other"]),
    ],
)
def test_node_ports_that_cannot_be_used_are_named_with_who_has_them(ports, services, problems):
    found = node_port_problems(ports, services)
    assert len(found) == len(problems)
    for text, words in zip(found, problems, strict=True):
        assert words in text


class FakeApi:
    """A cluster with a few objects; a path in ``forbidden`` is refused."""

    described, server = "kubeconfig k", "https://cluster"

    def __init__(self, objects=None, forbidden=(), lists=None):
        self.objects, self.forbidden, self.lists = objects or {}, forbidden, lists or {}

    def get(self, path, query=None):
        if path in self.forbidden:
            raise ApiError("forbidden", 403, "Forbidden")
        found = self.objects.get(path)
        if isinstance(found, ApiError):
            raise found
        return found

    def items(self, path, **_query):
        if path in self.forbidden:
            raise ApiError("forbidden", 403, "Forbidden")
        return self.lists.get(path, [])

    def log(self, *_args):
        return ""


def test_kinds_that_the_cluster_does_not_know_are_named():
    budgets = {"kind": "PodDisruptionBudget", "name": "poddisruptionbudgets", "namespaced": True}
    api = FakeApi({"/apis/policy/v1": {"resources": [budgets]}})
    wanted = ["policy/v1/PodDisruptionBudget", "policy/v1/Other", "route.openshift.io/v1/Route"]
    assert cluster_info.absent_kinds(api, wanted) == wanted[1:]


def test_a_kind_whose_own_api_server_is_away_is_absent():
    metrics = "metrics.k8s.io/v1beta1/PodMetrics"
    api = FakeApi({"/apis/metrics.k8s.io/v1beta1": ApiError("no answer", 503, "")})
    assert cluster_info.absent_kinds(api, [metrics]) == [metrics]
    with pytest.raises(ApiError):
        cluster_info.absent_kinds(FakeApi({}, forbidden=("/apis/metrics.k8s.io/v1beta1",)), [metrics])


def test_openshift_is_known_by_a_group_of_its_api():
    groups = [{"name": "apps"}, {"name": "route.openshift.io"}]
    assert cluster_info.platform(FakeApi({"/apis": {"groups": groups}})) == "kubernetes"
    groups.append({"name": "security.openshift.io"})
    assert cluster_info.platform(FakeApi({"/apis": {"groups": groups}})) == "openshift"


def test_a_priority_class_that_is_not_there_is_refused_and_one_that_cannot_be_read_is_believed():
    path = "/apis/scheduling.k8s.io/v1/priorityclasses/high"
    cluster_info.check_priority_class(FakeApi({path: {"value": 1}}), "high")
    cluster_info.check_priority_class(FakeApi({}), "")
    cluster_info.check_priority_class(FakeApi({}, forbidden=(path,)), "high")
    with pytest.raises(Error, match="mlflow_server_priority_class is high, which the cluster does not have"):
        cluster_info.check_priority_class(FakeApi({}), "high")


def test_secrets_are_decoded_and_the_absent_ones_named():
    data = {"password": base64.b64encode("pä$$".encode()).decode(), "blob": base64.b64encode(b"\xff\xfe").decode()}
    api = FakeApi({"/api/v1/namespaces/a/secrets/b": {"data": data}})
    names = [{"namespace": "a", "name": "b"}, {"namespace": "a", "name": "c"}]
    assert cluster_info.read_secrets(api, names) == ({"a/b": {"password": "pä$$"}, "a/c": {}}, ["a/c"])


@given(st.dictionaries(st.text(max_size=5), st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)))
def test_every_text_comes_back_as_it_was(texts):
    assert decoded({key: base64.b64encode(value.encode()).decode() for key, value in texts.items()}) == texts


def test_rights_within_one_namespace_are_enough():
    api = FakeApi(forbidden=("/api/v1/namespaces/a", "/api/v1/services"))
    assert cluster_info.namespace_exists(api, "a") is True
    assert cluster_info.check_node_ports(api, [wanted(30502)]) is False
    with pytest.raises(Error, match="outside"):
        cluster_info.check_node_ports(api, [wanted(80)])


def test_the_secrets_of_other_environments_are_read_as_far_as_the_user_may():
    def namespace(name, **labels):
        return {"metadata": {"name": name, "labels": {f"app.kubernetes.io/{key}": labels[key] for key in labels}}}

    def secret(text):
        return {"data": {"k": base64.b64encode(text.encode()).decode()}}

    secrets = "/api/v1/namespaces/{}/secrets/{}".format
    api = FakeApi(
        {
            secrets("mlflow-dev", "mlflow-secrets-dev"): secret("of dev"),
            secrets("mlflow-dev", "mlflow-users-dev"): secret("of dev's users"),
            secrets("mlflow-prod", "mlflow-secrets-prod"): secret("of prod"),
        },
        forbidden=(secrets("mlflow-dev", "mlflow-maintenance-dev"), secrets("mlflow-stg", "mlflow-secrets-stg")),
        lists={
            "/api/v1/namespaces": [
                namespace("mlflow-dev", instance="dev"),
                namespace("mlflow-stg", instance="stg"),
                namespace("mlflow-prod", instance="prod"),
                namespace("pgsql"),
            ]
        },
    )
    assert cluster_info.other_environments(api, "prod") == {"dev": ["of dev", "of dev's users"], "stg": []}
    assert cluster_info.other_environments(FakeApi(forbidden=("/api/v1/namespaces",)), "prod") == {}


def test_something_else_than_kubernetes_is_told():
    with pytest.raises(Error, match="is no Kubernetes API server"):
        cluster_info.server_version(FakeApi())


CLUSTER = Cluster("/path/kubeconfig", "prod")
CLUSTER._configuration = type("Configuration", (), {"host": "https://cluster:6443"})()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            401,
            {"reason": "Unauthorized", "message": "Unauthorized"},
            ["does not accept the credentials", "context prod"],
        ),
        (403, {"reason": "Forbidden", "message": 'User "u" cannot get x'}, ["lacks a right", 'User "u" cannot get x']),
        (403, {"reason": "Forbidden", "message": "exceeded quota: q"}, ["refused GET /api/x (403): exceeded quota: q"]),
        (422, {"reason": "Invalid", "message": "spec:\n required"}, ["(422): spec: required"]),
        (502, b"<html>Bad\nGateway</html>", ["not as a Kubernetes API server does", "502"]),
        (500, b"null", ["not as a Kubernetes API server does"]),
    ],
)
def test_a_refusal_of_the_api_server_is_told_in_one_line(status, body, words):
    error = _refusal(CLUSTER, "GET", "/api/x", status, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert error.status == status
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NewConnectionError: [Errno 111] Connection refused", "the connection was refused"),
        ("ConnectTimeoutError: timed out", "within 10 s"),
        ("SSLError: certificate verify failed: unable to get issuer", "not signed by the authority"),
        ("SSLError: [SSL: WRONG_VERSION_NUMBER]", "does not speak TLS"),
        ("NameResolutionError: Failed to resolve 'x'", "cannot be resolved"),
        ("Strange\nthing", "Strange thing"),
    ],
)
def test_a_failed_connection_is_told_in_plain_words(text, words):
    assert words in connection_problem(text)


def test_the_sentence_is_taken_out_of_a_refused_port_forward():
    dump = 'Handshake status 500 {...} -+-+- {"kind":"Status","message":"pods \\"pg-0\\" not found","code":404}'
    assert handshake_problem(dump) == 'pods "pg-0" not found'
    assert handshake_problem("Connection refused") == "the connection was refused"


def deployment(generation=2, observed=2, annotations="2", spec=None, conditions=(), **status) -> dict:
    return {
        "metadata": {
            "uid": "d",
            "generation": generation,
            "annotations": {"deployment.kubernetes.io/revision": annotations},
        },
        "spec": {
            "replicas": 2,
            "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"containers": [{"name": "c", "image": "image:2"}]}},
            **(spec or {}),
        },
        "status": {"observedGeneration": observed, "conditions": list(conditions), **status},
    }


DONE = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2}


@pytest.mark.parametrize(
    ("found", "done", "words"),
    [
        (deployment(**DONE), True, "2 of 2"),
        (deployment(spec={"replicas": 0}), True, "0 of 0"),
        (deployment(generation=3, **DONE), False, "has not seen the change"),
        (deployment(**{**DONE, "updatedReplicas": 1}), False, "1 of 2 replicas are updated"),
        (deployment(**{**DONE, "unavailableReplicas": 1}), False, "1 replicas are not available"),
        (deployment(**{**DONE, "replicas": 3}), False, "1 replicas of the previous version"),
        (deployment(**{**DONE, "availableReplicas": 1}), False, "1 of 2 replicas are available"),
    ],
)
def test_a_rollout_is_done_when_every_replica_is_new_and_available(found, done, words):
    assert progress(found) == (done, progress(found)[1])
    assert words in progress(found)[1]


def replica_set(revision: str, ready: int = 0, owner: str = "d") -> dict:
    return {
        "metadata": {
            "uid": f"rs{revision}",
            "annotations": {"deployment.kubernetes.io/revision": revision},
            "ownerReferences": [{"uid": owner}],
        },
        "status": {"readyReplicas": ready},
    }


def test_the_previous_version_is_told_apart_from_the_newest():
    sets = [replica_set("1", 2), replica_set("2", 1), replica_set("2", 5, "another")]
    current = newest(sets, deployment())
    assert current is sets[1]
    assert previous_words(sets, deployment(), current) == "the previous version still serves (2 ready)"
    assert previous_words(sets[1:], deployment(), current) == "nothing serves"


BROKEN = {
    "metadata": {"name": "web-x", "ownerReferences": [{"uid": "rs2"}]},
    "spec": {"containers": [{"name": "c", "image": "image:2"}]},
    "status": {
        "containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "InvalidImageName", "message": "no name"}}}]
    },
}
OLD_BROKEN = {**BROKEN, "metadata": {"name": "web-old", "ownerReferences": [{"uid": "rs1"}]}}
REFUSED = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


@pytest.mark.parametrize(
    ("found", "pods", "words"),
    [
        (deployment(), [BROKEN], ["web-x", "no name", "the previous version still serves (1 ready)"]),
        (deployment(spec={"paused": True}), [], ["paused"]),
        (deployment(conditions=[REFUSED]), [], ["cannot be created: exceeded quota"]),
        (deployment(conditions=[LATE]), [], ["no progress for 600 s"]),
        (deployment(), [OLD_BROKEN], ["did not finish within 0 s", "0 of 2 replicas are updated"]),
        (deployment(generation=3), [BROKEN], ["did not finish within 0 s", "has not seen the change"]),
        (None, [], ["there is no Deployment web in namespace ns"]),
    ],
)
def test_a_rollout_that_cannot_succeed_ends_early_and_says_what_serves(monkeypatch, found, pods, words):
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0)
    for name in ("REPLICA_FAILURE_SECONDS", "NO_PROGRESS_SECONDS"):
        monkeypatch.setattr(f"ansible.module_utils.ansible_mlflow.rollout.{name}", 0)
    api = FakeApi(
        {"/apis/apps/v1/namespaces/ns/deployments/web": found},
        lists={
            "/apis/apps/v1/namespaces/ns/replicasets": [replica_set("1", 1), replica_set("2")],
            "/api/v1/namespaces/ns/pods": pods,
        },
    )
    with pytest.raises(Error) as caught:
        Rollout(api, "ns", "web", 0).wait()
    for word in words:
        assert word in str(caught.value)


def test_a_finished_rollout_is_described():
    api = FakeApi({"/apis/apps/v1/namespaces/ns/deployments/web": deployment(**DONE)})
    result = Rollout(api, "ns", "web", 10).wait()
    assert (result["ready"], result["image"]) == (2, "image:2")
