#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_rollout
short_description: Wait for a Deployment's rollout and fail early
description:
  - Waits until all replicas of a Deployment are updated and available and none of the previous version is left.
  - It fails as soon as the newest pods cannot become ready, with their own words - an image that cannot be pulled, a
    container or init container that ends again and again, a wrong configuration, a quota - and says whether the
    previous version still serves.
  - It never changes anything.
options:
  namespace:
    description: Namespace of the Deployment.
    type: str
    required: true
  name:
    description: Name of the Deployment.
    type: str
    required: true
  timeout:
    description: How many seconds to wait.
    type: int
    default: 300
extends_documentation_fragment:
  - mlflow
attributes:
  check_mode:
    description: It returns at once in check mode, for there nothing was changed that could roll out.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Wait for MLflow
  mlflow_rollout:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    namespace: mlflow-dev
    name: mlflow-dev
    timeout: 300
"""

RETURN = r"""
ready:
  description: Number of ready replicas.
  returned: success, not in check mode
  type: int
seconds:
  description: How long it waited.
  returned: success, not in check mode
  type: float
image:
  description: Image of the first container.
  returned: success, not in check mode
  type: str
"""

from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.rollout import Rollout
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "namespace": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "timeout": {"type": "int", "default": 300},
}


def wait(module: AnsibleModule) -> dict:
    params = module.params
    if module.check_mode:
        label = f"{params['namespace']}/{params['name']}"
        return {"changed": False, "skipped": True, "msg": f"check mode: the rollout of {label} was not waited for"}
    cluster = Cluster(params["kubeconfig"], params["context"])
    return {"changed": False, **Rollout(cluster, params["namespace"], params["name"], params["timeout"]).wait()}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), wait)


if __name__ == "__main__":
    main()
