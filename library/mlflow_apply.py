#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_apply
short_description: Apply a list of Kubernetes objects and show what changed
description:
  - Applies objects in their order, on the server's side, as the field manager C(ansible-mlflow).
  - A Deployment that a HorizontalPodAutoscaler of the same list scales keeps the replicas that it has, as long as they
    are not fewer than the least.
  - M(kubernetes.core.k8s) does so too, but shows no diff of a list, fails a dry run in a namespace that is not there
    yet, shows the values of Secrets in a diff, and takes a second longer.
options:
  objects:
    description: The manifests. A task that hands Secrets over sets C(no_log), for Ansible shows a module's arguments.
    type: list
    elements: dict
    default: []
  removed:
    description:
      - Objects that must not be there, each by its C(apiVersion), C(kind) and C(metadata). They are removed before
        others are applied, so that no autoscaler changes what is applied without it.
      - Without a name in its metadata, all of the kind and namespace are meant that have its labels.
      - One without this project's label C(app.kubernetes.io/managed-by) is somebody else's, and is left.
    type: list
    elements: dict
    default: []
  released:
    description:
      - Objects that another tool applies from now on, on the server's side too, such as Argo CD. This module gives up
        the fields that it has set, so that nobody but that tool holds them.
      - An object that nobody else applies is left as it is.
    type: list
    elements: dict
    default: []
extends_documentation_fragment:
  - mlflow
attributes:
  check_mode:
    description:
      - The API server answers what would come out. In a namespace that is not there yet, an object is reported as one
        that would be created.
    support: full
  diff_mode:
    description: Each object that changes, before and after; of a Secret, which keys differ and no value.
    support: full
"""

EXAMPLES = r"""
- name: Apply the configuration
  mlflow_apply:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    objects:
      - apiVersion: v1
        kind: ConfigMap
        metadata:
          name: mlflow-config-dev
          namespace: mlflow-dev
        data:
          MLFLOW_WORKERS: "2"

- name: Remove a policy
  mlflow_apply:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    removed:
      - apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata:
          name: mlflow-dev
          namespace: mlflow-dev
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [created ConfigMap mlflow-config-dev]
"""

from ansible.module_utils.ansible_mlflow.apply import apply_all, release_all, remove_all
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "objects": {"type": "list", "elements": "dict", "default": []},
    "removed": {"type": "list", "elements": "dict", "default": []},
    "released": {"type": "list", "elements": "dict", "default": []},
}


def apply(module: AnsibleModule) -> dict:
    params = module.params
    cluster = Cluster(params["kubeconfig"], params["context"])
    removed = remove_all(cluster, params["removed"], module.check_mode)
    applied = apply_all(cluster, params["objects"], module.check_mode)
    released = release_all(cluster, params["released"], module.check_mode)
    return {"changes": removed.changes + applied.changes + released, "diff": removed.diffs + applied.diffs}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), apply)


if __name__ == "__main__":
    main()
