"""Applying a list of objects: what is reported, and what a diff shows."""

from __future__ import annotations

import copy
import json

import pytest
from ansible.module_utils.ansible_mlflow.apply import apply_all, release_all, remove_all
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.kubernetes import FIELD_MANAGER, ApiError

CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "config", "namespace": "mlflow-dev"},
    "data": {"WORKERS": "2"},
}
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "secrets", "namespace": "mlflow-dev"},
    "data": {"PGPASSWORD": "c2VjcmV0", "OTHER": "b3RoZXI="},
}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "mlflow", "namespace": "mlflow-dev"},
    "spec": {"template": {}},
}
SCALER = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "mlflow", "namespace": "mlflow-dev"},
    "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "mlflow"}, "minReplicas": 2, "maxReplicas": 4},
}
LABEL = "app.kubernetes.io/managed-by"
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mlflow-dev"}}


class FakeCluster:
    """An API server that keeps whole objects by their path and knows nothing but namespaces."""

    def __init__(self, *objects: dict):
        self.objects = {"/api/v1/namespaces/mlflow-dev": served(NAMESPACE)}
        self.writes = 0
        apply_all(self, list(objects), check_mode=False)
        self.writes = 0

    def get(self, path: str) -> dict | None:
        if path == "/apis/apps/v1":
            return {"resources": [{"kind": "Deployment", "name": "deployments", "namespaced": True}]}
        if path == "/apis/autoscaling/v2":
            return {"resources": [{"kind": SCALER["kind"], "name": "horizontalpodautoscalers", "namespaced": True}]}
        if path == "/api/v1":
            kinds = {"ConfigMap": True, "Secret": True, "Namespace": False}
            names = {"ConfigMap": "configmaps", "Secret": "secrets", "Namespace": "namespaces"}
            return {
                "resources": [{"kind": kind, "name": names[kind], "namespaced": is_in} for kind, is_in in kinds.items()]
            }
        return copy.deepcopy(self.objects.get(path))

    def apply(self, path: str, body: dict, dry_run: bool = False) -> dict:
        if body["kind"] != "Namespace" and "/api/v1/namespaces/mlflow-dev" not in self.objects:
            raise ApiError('namespaces "mlflow-dev" not found', 404, "NotFound")
        if not dry_run:
            self.writes += 1
            self.objects[path] = served(body)
        return served(body)

    def items(self, path: str, labelSelector: str) -> list[dict]:
        # The API leaves kind and apiVersion out of a list's items.
        return [
            {key: value for key, value in item.items() if key not in ("apiVersion", "kind")}
            for key_of, item in copy.deepcopy(self.objects).items()
            if key_of.startswith(f"{path}/")
            and {f"{key}={value}" for key, value in item["metadata"].get("labels", {}).items()}
            >= set(labelSelector.split(","))
        ]

    def delete(self, path: str, uid: str) -> None:
        assert self.objects.pop(path)["metadata"]["uid"] == uid
        self.writes += 1


def served(body: dict) -> dict:
    """An object as the API server gives it back: with what it writes by itself, never twice the same."""
    served.count += 1
    metadata = {**body["metadata"], "resourceVersion": str(served.count), "uid": "u", "managedFields": [served.count]}
    return {**copy.deepcopy(body), "metadata": metadata, "status": {"seen": served.count}}


served.count = 0


def test_a_new_object_is_created_and_an_equal_one_is_no_change() -> None:
    cluster = FakeCluster()
    assert apply_all(cluster, [CONFIG], check_mode=False).changes == ["created ConfigMap config"]
    assert apply_all(cluster, [CONFIG], check_mode=False).changes == []


def test_another_value_is_an_update_and_the_diff_shows_just_that() -> None:
    cluster = FakeCluster(CONFIG)
    applied = apply_all(cluster, [{**CONFIG, "data": {"WORKERS": "3"}}], check_mode=False)
    assert applied.changes == ["updated ConfigMap config"]
    [diff] = applied.diffs
    assert {key for key in diff["after"] if diff["after"][key] != diff["before"].get(key)} == {"data"}


def test_a_dry_run_reports_the_same_and_writes_nothing() -> None:
    cluster = FakeCluster(CONFIG)
    applied = apply_all(cluster, [{**CONFIG, "data": {}}, SECRET], check_mode=True)
    assert applied.changes == ["updated ConfigMap config", "created Secret secrets"]
    assert cluster.writes == 0


def test_a_dry_run_in_a_namespace_that_is_not_there_reports_what_would_be_created() -> None:
    cluster = FakeCluster()
    cluster.objects.clear()
    applied = apply_all(cluster, [NAMESPACE, CONFIG], check_mode=True)
    assert applied.changes == ["created Namespace mlflow-dev", "created ConfigMap config"]


def test_a_missing_namespace_is_an_error_of_a_real_run() -> None:
    cluster = FakeCluster()
    cluster.objects.clear()
    with pytest.raises(Error, match='ConfigMap config: namespaces "mlflow-dev" not found'):
        apply_all(cluster, [CONFIG], check_mode=False)


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_secrets_diff_names_the_keys_that_differ_and_shows_no_value(check_mode: bool) -> None:
    new = {**SECRET, "data": {"PGPASSWORD": "bmV3", "OTHER": "b3RoZXI=", "ADDED": "YWRkZWQ="}}
    [diff] = apply_all(FakeCluster(SECRET), [new], check_mode=check_mode).diffs
    assert diff["before"]["data"] == {"PGPASSWORD": "hidden", "OTHER": "hidden"}
    assert diff["after"]["data"] == {"PGPASSWORD": "hidden, another one", "OTHER": "hidden", "ADDED": "hidden"}
    [created] = apply_all(FakeCluster(), [SECRET], check_mode=check_mode).diffs
    for value in [*SECRET["data"].values(), *new["data"].values()]:
        assert value not in json.dumps([diff, created])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({"kind": "ConfigMap"}, "lacks apiVersion, kind or metadata.name"),
        ({**CONFIG, "kind": "Widget"}, "the cluster has no Widget in v1"),
        ({**CONFIG, "apiVersion": "no.such/v1"}, "the cluster has no ConfigMap in no.such/v1"),
        ({**CONFIG, "metadata": {"name": "config"}}, "metadata.namespace is missing"),
    ],
)
def test_a_manifest_that_is_none_is_refused(manifest: dict, message: str) -> None:
    with pytest.raises(Error, match=message):
        apply_all(FakeCluster(), [manifest], check_mode=False)


def test_what_must_not_be_there_is_removed_once_and_a_dry_run_only_says_so() -> None:
    labels = {"app.kubernetes.io/managed-by": "ansible-mlflow"}
    ours = {**CONFIG, "metadata": {**CONFIG["metadata"], "labels": labels}}
    cluster = FakeCluster(ours)
    dry = remove_all(cluster, [CONFIG, SECRET], check_mode=True)
    assert (dry.changes, cluster.writes) == (["removed ConfigMap config"], 0)
    applied = remove_all(cluster, [CONFIG, SECRET], check_mode=False)
    assert applied.changes == dry.changes
    assert applied.diffs[0]["before"]["data"] == CONFIG["data"]
    assert applied.diffs[0]["after"] == {}
    assert remove_all(cluster, [CONFIG, SECRET], check_mode=False).changes == []


def test_what_somebody_else_has_made_is_left_and_an_unknown_kind_has_nothing_to_remove() -> None:
    cluster = FakeCluster(CONFIG)
    unknown = {"apiVersion": "v1", "kind": "Ingress", "metadata": CONFIG["metadata"]}
    assert remove_all(cluster, [CONFIG, unknown], check_mode=False).changes == []
    assert cluster.writes == 0


def owned_by(*managers: str) -> dict:
    entries = [{"manager": manager, "operation": "Apply"} for manager in managers]
    entries += [{"manager": "kubelet", "operation": "Update"}]
    return {**CONFIG, "metadata": {**CONFIG["metadata"], "managedFields": entries}}


@pytest.mark.parametrize(
    ("present", "left"),
    [
        (owned_by("ansible-mlflow", "argocd-controller"), ["left ConfigMap config to argocd-controller"]),
        (owned_by("ansible-mlflow"), []),
        (owned_by("argocd-controller"), []),
        (None, []),
    ],
    ids=["both", "we alone", "another alone", "no object"],
)
def test_only_what_somebody_else_applies_too_is_left_to_them(present: dict | None, left: list[str]) -> None:
    cluster = FakeCluster()
    if present:
        cluster.objects["/api/v1/namespaces/mlflow-dev/configmaps/config"] = present
    applied = []
    cluster.apply = lambda path, body, dry_run: applied.append((body, dry_run))
    assert release_all(cluster, [CONFIG], check_mode=True) == left
    bare = {key: value for key, value in CONFIG.items() if key != "data"}
    assert applied == [(bare, True)] * len(left)


class FakeScaled(FakeCluster):
    """An API server that knows who has set a Deployment's replicas, and takes 1 where nobody has."""

    place = "/apis/apps/v1/namespaces/mlflow-dev/deployments/mlflow"

    def __init__(self, replicas: int | None, manager: str = FIELD_MANAGER) -> None:
        super().__init__()
        self.given_up, self.conflicts = 0, 0
        if replicas is not None:
            self.store(replicas, [manager])

    def store(self, replicas: int, managers: list[str]) -> dict:
        item = served({**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replicas": replicas}})
        item["metadata"]["managedFields"] = [
            {"manager": manager, "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
            for manager in managers
        ]
        self.objects[self.place] = item
        return item

    def apply(self, path: str, body: dict, dry_run: bool = False) -> dict:
        if body["kind"] != "Deployment":
            return super().apply(path, body, dry_run)
        before = self.objects.get(path)
        owners = {entry["manager"] for entry in before["metadata"]["managedFields"]} if before else set()
        if "replicas" in body["spec"]:
            return self.store(body["spec"]["replicas"], [FIELD_MANAGER])
        if before is None or owners == {FIELD_MANAGER}:
            return self.store(1, [])
        return self.store(before["spec"]["replicas"], sorted(owners - {FIELD_MANAGER}))

    def request(self, method: str, path: str, body: list, content_type: str) -> None:
        assert (method, content_type) == ("PATCH", "application/json-patch+json")
        [removal, version] = body
        item = self.objects[path]
        if self.conflicts:
            self.conflicts -= 1
            item["metadata"]["resourceVersion"] = "another"
            raise ApiError("the object has been modified", 409, "Conflict")
        assert version["value"] == item["metadata"]["resourceVersion"]
        assert removal == {"op": "remove", "path": "/metadata/managedFields/0/fieldsV1/f:spec/f:replicas"}
        item["metadata"]["managedFields"][0] = {"manager": "nobody", "operation": "Apply", "fieldsV1": {}}
        self.given_up += 1


@pytest.mark.parametrize(
    ("present", "manager", "then"),
    [
        (None, "", 2),
        (0, FIELD_MANAGER, 2),
        (1, FIELD_MANAGER, 2),
        (3, FIELD_MANAGER, 3),
        (3, "kube-controller-manager", 3),
    ],
)
@pytest.mark.parametrize("check_mode", [True, False])
def test_what_an_autoscaler_scales_keeps_its_replicas_or_gets_the_least(
    present: int | None, manager: str, then: int, check_mode: bool
) -> None:
    cluster = FakeScaled(present, manager)
    applied = apply_all(cluster, [DEPLOYMENT, SCALER], check_mode)
    assert applied.diffs[0]["after"]["spec"]["replicas"] == then if present != then else len(applied.changes) == 1
    if not check_mode:
        assert cluster.objects[cluster.place]["spec"]["replicas"] == then


def test_replicas_are_given_up_again_where_somebody_else_writes_at_the_same_moment() -> None:
    cluster = FakeScaled(3)
    cluster.conflicts = 2
    apply_all(cluster, [DEPLOYMENT, SCALER], check_mode=False)
    assert (cluster.given_up, cluster.objects[cluster.place]["spec"]["replicas"]) == (1, 3)
    cluster = FakeScaled(3)
    cluster.conflicts = 99
    with pytest.raises(Error, match="Deployment mlflow: the object has been modified"):
        apply_all(cluster, [DEPLOYMENT, SCALER], check_mode=False)


def test_all_that_have_the_labels_go_but_nothing_of_somebody_else() -> None:
    ours = {"app.kubernetes.io/managed-by": "ansible-mlflow", "app.kubernetes.io/instance": "dev"}
    labelled = {**CONFIG, "metadata": {**CONFIG["metadata"], "labels": ours}}
    foreign = {**CONFIG, "metadata": {**CONFIG["metadata"], "name": "other", "labels": {**ours, LABEL: "helm"}}}
    cluster = FakeCluster(labelled, foreign)
    metadata = {"namespace": "mlflow-dev", "labels": {"app.kubernetes.io/instance": "dev"}}
    meant = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    assert remove_all(cluster, [meant], check_mode=True).changes == ["removed ConfigMap config"]
    assert cluster.writes == 0
    assert remove_all(cluster, [meant], check_mode=False).changes == ["removed ConfigMap config"]
    assert remove_all(cluster, [meant], check_mode=False).changes == []


def test_a_kind_that_the_user_may_not_read_has_nothing_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster(CONFIG)
    served = cluster.get

    def refuse(path: str) -> dict | None:
        if path.endswith("/configmaps/config"):
            raise ApiError("configmaps is forbidden", 403, "Forbidden")
        return served(path)

    monkeypatch.setattr(cluster, "get", refuse)
    assert remove_all(cluster, [CONFIG], check_mode=False).changes == []
