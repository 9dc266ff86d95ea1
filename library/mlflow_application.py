#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_application
short_description: Wait until Argo CD has a commit running
description:
  - Waits until an Application of Argo CD is Synced and Healthy at a commit. It asks Argo CD to look into the
    repository, and for no sync.
  - It fails as soon as the sync of that commit has failed, with the words of what failed, such as the last ones of a
    hook's pod.
  - M(kubernetes.core.k8s_info) can wait for a condition, but neither tells a failure nor why.
options:
  namespace:
    description: Argo CD's namespace.
    type: str
    required: true
  name:
    description: The Application.
    type: str
    required: true
  revision:
    description: The commit.
    type: str
    required: true
  timeout:
    description: Seconds until the commit has to be running.
    type: int
    default: 900
extends_documentation_fragment:
  - mlflow
attributes:
  check_mode:
    description: Reports without waiting.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
"""

EXAMPLES = r"""
- name: Wait for a commit
  mlflow_application:
    kubeconfig: "{{ mlflow_gitops_kubeconfig }}"
    namespace: argocd
    name: mlflow-dev
    revision: 3f2a9c0d1e4b5a6978877665544332211000ffee
"""

RETURN = r"""
reached:
  description: Whether the commit is running. In check mode it may not be.
  returned: success
  type: bool
awaits_sync:
  description: Whether Argo CD knows the commit and waits for a person to sync it.
  returned: success
  type: bool
drift:
  description: Objects that somebody has changed since the commit was synced, and that Argo CD leaves as they are.
  returned: success
  type: list
  elements: str
  sample: [Deployment mlflow-prod]
"""

from ansible.module_utils.ansible_mlflow.application import wait
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "namespace": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "revision": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 900},
}


def application(module: AnsibleModule) -> dict:
    params = module.params
    cluster = Cluster(params["kubeconfig"], params["context"])
    where = (params["namespace"], params["name"], params["revision"], params["timeout"])
    verdict = wait(cluster, *where, module.check_mode)
    found = {name: getattr(verdict, name) for name in ("reached", "awaits_sync", "drift")}
    return {"changed": False, **found}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), application)


if __name__ == "__main__":
    main()
