#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_rollout
short_description: Wait for a Deployment's rollout and fail early, or stop it
description:
  - Waits until all replicas of a Deployment are updated and available and none of the previous version is left.
  - It fails as soon as the newest pods cannot become ready, with their own words - an image that cannot be pulled, a
    container or init container that ends again and again, a wrong configuration, a quota - and says whether the
    previous version still serves.
options:
  namespace:
    description: Namespace of the Deployment.
    type: str
    required: true
  name:
    description: Name of the Deployment.
    type: str
    required: true
  state:
    description:
      - C(complete) waits for the rollout, and changes nothing.
      - C(replaced) waits for the rollout, and until the pods of before, which answer their last requests, have ended.
      - C(stopped) scales to 0 and waits until no pod is left, so that nothing uses the databases. A Deployment that is
        not there is stopped.
    type: str
    choices: [complete, replaced, stopped]
    default: complete
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
    description: There is nothing to show.
    support: none
"""

EXAMPLES = r"""
- name: Wait for MLflow
  mlflow_rollout:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    namespace: mlflow-dev
    name: mlflow-dev
    timeout: 300

- name: Stop MLflow
  mlflow_rollout:
    namespace: mlflow-dev
    name: mlflow-dev
    state: stopped
"""

RETURN = r"""
ready:
  description: Number of ready replicas.
  returned: success, not with state C(stopped) and not in check mode
  type: int
finished:
  description: When it was done, in seconds since 1970.
  returned: success, not in check mode
  type: float
seconds:
  description: How long it waited.
  returned: success, not in check mode
  type: float
image:
  description: Image of the first container.
  returned: success, not with state C(stopped) and not in check mode
  type: str
"""

import time

from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.rollout import Rollout
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "namespace": {"type": "str", "required": True},
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["complete", "replaced", "stopped"], "default": "complete"},
    "timeout": {"type": "int", "default": 300},
}


def follow(module: AnsibleModule) -> dict:
    params = module.params
    stop = params["state"] == "stopped"
    if module.check_mode:
        label, what = f"{params['namespace']}/{params['name']}", "stopped" if stop else "waited for"
        return {"changed": stop, "skipped": True, "msg": f"check mode: the rollout of {label} was not {what}"}
    rollout = Rollout(
        Cluster(params["kubeconfig"], params["context"]), params["namespace"], params["name"], params["timeout"]
    )
    if stop:
        changed = rollout.stop()
        return {"changed": changed, "seconds": rollout.waiter.seconds, "finished": time.time()}
    outcome = rollout.wait()
    if params["state"] == "replaced":
        outcome["seconds"] = rollout.wait_for_former()
    return {"changed": False, **outcome, "finished": time.time()}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), follow)


if __name__ == "__main__":
    main()
