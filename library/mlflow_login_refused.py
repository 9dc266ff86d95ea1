#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_login_refused
short_description: See that every server of MLflow refuses a password
description:
  - Logs in to each pod of a Deployment, on new connections, until each one refuses the password several times in a row.
    Each worker of a pod remembers for a while which passwords were right.
  - A pod is reached through the API server.
options:
  namespace:
    description: Namespace of the Deployment.
    type: str
    required: true
  deployment:
    description: Name of the Deployment.
    type: str
    required: true
  host:
    description: A name that MLflow answers to.
    type: str
    required: true
  port:
    description: Port of the pods.
    type: int
    default: 5000
  path_prefix:
    description: The path below which the server answers.
    type: str
    default: ""
  username:
    description: The user.
    type: str
    required: true
  password:
    description: The password that is to be refused.
    type: str
    required: true
  timeout:
    description: How many seconds a pod may take until it refuses it.
    type: int
    default: 90
requirements:
  - urllib3 >= 2
extends_documentation_fragment:
  - mlflow
attributes:
  check_mode:
    description: It does nothing in check mode, in which no password was changed.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: See that nobody gets in with the former password
  mlflow_login_refused:
    namespace: mlflow-prod
    deployment: mlflow-prod
    host: mlflow-prod.mlflow-prod.svc.cluster.local
    username: admin
    password: "{{ vault_mlflow_former_admin_password }}"
"""

RETURN = r"""
pods:
  description: The pods that refuse it.
  returned: success, not in check mode
  type: list
  elements: str
"""

from ansible.module_utils.ansible_mlflow import access_pods
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "namespace": {"type": "str", "required": True},
    "deployment": {"type": "str", "required": True},
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5000},
    "path_prefix": {"type": "str", "default": ""},
    "username": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "timeout": {"type": "int", "default": 90},
}


def look(module: AnsibleModule) -> dict:
    params = module.params
    if module.check_mode:
        return {"changed": False, "skipped": True, "msg": "check mode: no password was changed"}
    cluster = Cluster(params["kubeconfig"], params["context"])
    pods = access_pods.running(cluster, params["namespace"], params["deployment"])
    servers = access_pods.Servers(cluster, params["namespace"], params["host"], params["port"], params["path_prefix"])
    for pod in pods:
        servers.wait_until_refused(pod, (params["username"], params["password"]), params["timeout"])
    return {"changed": False, "pods": pods}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), look)


if __name__ == "__main__":
    main()
