"""Where the platform assigns users to pods, as OpenShift does, the pods of an environment take what they get.

OpenShift itself cannot be had here. Its admission of restricted-v2 is put in its place by policies of Kubernetes' own:
one gives each pod a user of the namespace's range, and one refuses pods that ask for another.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Cluster, apply, mlflow_client, play, site, wait_until
from kubernetes import client
from kubernetes.client.exceptions import ApiException

NAME, NAMESPACE = "mlflow-dev", "mlflow-dev"
USER = 1000680000
KUBERNETES = ("-e", "mlflow_environment_platform=kubernetes")
KIND = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "securitycontextconstraints.security.openshift.io"},
    "spec": {
        "group": "security.openshift.io",
        "scope": "Cluster",
        "names": {"kind": "SecurityContextConstraints", "plural": "securitycontextconstraints"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
PODS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
    "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
}
API = "admissionregistration.k8s.io/v1"
CONTEXT = "Object.spec.securityContext"
ASSIGNED = f"""
Object{{spec: Object.spec{{securityContext: {CONTEXT}{{
  runAsUser: has(object.spec.securityContext.runAsUser) ? object.spec.securityContext.runAsUser : {USER},
  fsGroup: has(object.spec.securityContext.fsGroup) ? object.spec.securityContext.fsGroup : {USER}}}}}}}"""
REFUSALS = {
    "runAsUser": f"object.spec.securityContext.runAsUser == {USER}",
    "fsGroup": f"object.spec.securityContext.fsGroup == {USER}",
    "seccompProfile": "object.spec.securityContext.seccompProfile.type == 'RuntimeDefault'",
    "capabilities": "object.spec.containers.all(c, c.securityContext.capabilities.drop == ['ALL'])",
}
POLICIES = [
    {
        "kind": "MutatingAdmissionPolicy",
        "spec": {
            "matchConstraints": PODS,
            "reinvocationPolicy": "Never",
            "failurePolicy": "Fail",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": ASSIGNED}}],
        },
    },
    {"kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": "openshift"}},
    {
        "kind": "ValidatingAdmissionPolicy",
        "spec": {
            "matchConstraints": PODS,
            "failurePolicy": "Fail",
            "validations": [
                {"expression": expression, "message": f"restricted-v2: {name} is not what this namespace may have"}
                for name, expression in REFUSALS.items()
            ],
        },
    },
    {
        "kind": "ValidatingAdmissionPolicyBinding",
        "spec": {"policyName": "openshift", "validationActions": ["Deny"]},
    },
]


def remove(cluster: Cluster) -> None:
    """Take OpenShift's marks off the cluster, whatever is there of them."""
    admission, kinds = client.AdmissionregistrationV1Api(cluster.api), client.ApiextensionsV1Api(cluster.api)
    for delete, name in (
        (admission.delete_mutating_admission_policy_binding, "openshift"),
        (admission.delete_mutating_admission_policy, "openshift"),
        (admission.delete_validating_admission_policy_binding, "openshift"),
        (admission.delete_validating_admission_policy, "openshift"),
        (kinds.delete_custom_resource_definition, KIND["metadata"]["name"]),
    ):
        try:
            delete(name)
        except ApiException as error:
            if error.status != 404:
                raise
    wait_until(lambda: "security.openshift.io" not in groups(cluster), 60, "the API forgets OpenShift's group")


def groups(cluster: Cluster) -> list[str]:
    return [group.name for group in client.ApisApi(cluster.api).get_api_versions().groups]


@pytest.fixture(scope="module", autouse=True)
def openshift(cluster: Cluster) -> Iterator[None]:
    try:
        apply([KIND, *({"apiVersion": API, "metadata": {"name": "openshift"}, **policy} for policy in POLICIES)])
        wait_until(lambda: "security.openshift.io" in groups(cluster), 60, "the API has OpenShift's group")
        wait_until(lambda: refused(cluster, fixed_user()), 60, "the API server enforces the policies")
        yield
    finally:
        remove(cluster)
        run = site("dev")
        assert run.status == 0, run.output


def fixed_user() -> dict[str, Any]:
    """A pod that is the user 1001, and else all that is asked for."""
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    context = {"runAsNonRoot": True, "runAsUser": 1001, "seccompProfile": {"type": "RuntimeDefault"}}
    containers = [{"name": "one", "image": "one", "securityContext": restricted}]
    return {"securityContext": context, "containers": containers}


def refused(cluster: Cluster, spec: dict[str, Any]) -> str:
    """What the API server says of a pod in a dry run, if it refuses it."""
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "trial"}, "spec": spec}
    try:
        cluster.core.create_namespaced_pod(NAMESPACE, body, dry_run="All")
    except ApiException as error:
        return error.body
    return ""


@pytest.mark.full
def test_the_servers_run_as_who_they_are_told_and_serve_a_real_client(cluster: Cluster) -> None:
    run = site("dev")
    assert run.status == 0, run.output
    template = cluster.apps.read_namespaced_deployment(NAME, NAMESPACE).spec.template.spec.security_context
    assert (template.run_as_user, template.run_as_group, template.fs_group) == (None, None, None)
    assert (template.run_as_non_root, template.seccomp_profile.type) == (True, "RuntimeDefault")
    [pod] = cluster.servers("dev")
    assert pod.spec.security_context.run_as_user == USER
    code = """
with mlflow.start_run() as run:
    mlflow.log_param("alpha", 1)
    mlflow.log_text("served by a user of the platform", "note.txt")
client = mlflow.MlflowClient()
answer = [client.get_run(run.info.run_id).data.params, mlflow.artifacts.load_text(run.info.artifact_uri + "/note.txt")]
"""
    assert mlflow_client("dev", cluster.secrets("dev"), code) == [{"alpha": "1"}, "served by a user of the platform"]
    again = site("dev", args=("--check",))
    assert (again.status, again.changed) == (0, 0), again.output


@pytest.mark.parametrize(("args", "words"), [((), ""), (KUBERNETES, "restricted-v2: runAsUser is not what")])
def test_every_pod_that_an_environment_starts_is_admitted_as_it_is_rendered(
    cluster: Cluster, tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    repository = {"repository": tmp_path, "repository_url": "https://git.example.com/deployments.git"}
    written = [word for name, value in repository.items() for word in ("-e", f"mlflow_gitops_{name}={value}")]
    run = play("playbooks/render.yml", "dev", args=(*written, *args))
    assert run.status == 0, run.output
    objects = [yaml.safe_load(file.read_text()) for file in (tmp_path / "environments/dev").glob("*.yaml")]
    specs = {
        item["kind"]: item["spec"]["template"]["spec"] if item["kind"] == "Deployment" else item["spec"]
        for item in objects
        if item["kind"] in ("Deployment", "Pod")
    }
    assert set(specs) == {"Deployment", "Pod"}
    for spec in specs.values():
        told = refused(cluster, spec)
        assert words in told if words else told == ""


@pytest.mark.full
def test_a_user_that_the_platform_does_not_admit_is_told_and_the_servers_go_on(cluster: Cluster) -> None:
    before = [pod.metadata.uid for pod in cluster.servers("dev")]
    run = site("dev", args=KUBERNETES)
    assert run.status != 0
    assert "restricted-v2: runAsUser is not what this namespace may have" in run.output
    assert [pod.metadata.uid for pod in cluster.servers("dev")] == before
