#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_cluster_info
short_description: Read what a deployment of MLflow must know of its cluster
description:
  - Sees that the API server answers within 10 seconds, reads some Secrets and refuses node ports that are taken.
  - It returns secrets, so a task that uses it sets C(no_log).
options:
  namespace:
    description: The namespace of the environment; it need not exist.
    type: str
    required: true
  secrets:
    description: Secrets to read; one that does not exist is returned as an empty dictionary.
    type: list
    elements: dict
    default: []
    suboptions:
      namespace:
        description: The Secret's namespace.
        type: str
        required: true
      name:
        description: The Secret's name.
        type: str
        required: true
  compare_with_others:
    description:
      - The environment's name, to read the secrets of the project's other environments in the cluster too, as far as
        the user may. Without it, none is read.
    type: str
  config_maps:
    description: ConfigMaps to read.
    type: list
    elements: dict
    default: []
    suboptions:
      namespace:
        description: Namespace of the ConfigMap.
        type: str
        required: true
      name:
        description: Name of the ConfigMap.
        type: str
        required: true
  node_ports:
    description: Node ports that the environment wants, each of 30000 to 32767 and free or its own Service's already.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: The node port.
        type: int
        required: true
      namespace:
        description: Namespace of the Service that has or will have the port.
        type: str
        required: true
      service:
        description: Name of the Service that has or will have the port.
        type: str
        required: true
  kinds:
    description: Kinds that the cluster has to know, each C(<apiVersion>/<kind>).
    type: list
    elements: str
    default: []
  priority_class:
    description: A PriorityClass that the cluster has to have; one that the user may not read is believed.
    type: str
  network:
    description: What NetworkPolicies need to know.
    type: dict
    suboptions:
      policies:
        description: Selector of the labels of policies in the environment's namespace.
        type: str
        required: true
      destinations:
        description: What pods connect to; with none, nothing is read but the policies' names.
        type: list
        elements: dict
        default: []
        suboptions:
          otherwise:
            description: Where there is no such Service, the name of another one.
            type: str
          host:
            description: A Service's name, C(<name>.<namespace>.svc[.<domain>]), or any other host.
            type: str
            required: true
          port:
            description: The port that pods connect to.
            type: int
            required: true
          protocols:
            description: TCP, UDP or both.
            type: list
            elements: str
            required: true
extends_documentation_fragment:
  - mlflow
attributes:
  check_mode:
    description: It reads only, so it does the same in check mode.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Look at the cluster
  mlflow_cluster_info:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    context: "{{ mlflow_environment_context }}"
    namespace: mlflow-dev
    secrets:
      - namespace: pgsql
        name: dev-postgres-admin
    node_ports:
      - port: 30502
        namespace: mlflow-dev
        service: mlflow-dev
  register: cluster
  no_log: true
"""

RETURN = r"""
server_version:
  description: Version of the API server.
  returned: success
  type: str
  sample: v1.36.3
platform:
  description: C(openshift) or C(kubernetes), by the groups of its API.
  returned: success
  type: str
namespace_exists:
  description: Whether the namespace exists.
  returned: success
  type: bool
secrets:
  description: The texts of the Secrets by C(<namespace>/<name>); values that are no UTF-8 text are left out.
  returned: success
  type: dict
config_maps:
  description: The data of the ConfigMaps by C(<namespace>/<name>); empty for one that does not exist.
  returned: success
  type: dict
other_environments:
  description: With O(compare_with_others), the secrets of the other environments by environment.
  returned: success
  type: dict
absent_secrets:
  description: The Secrets that do not exist, as C(<namespace>/<name>).
  returned: success
  type: list
  elements: str
network:
  description:
    - C(ways), for each destination the peers (C(to), none for a host outside of the cluster) and C(ports) of a policy's
      rule that leads there; C(pod_cidrs), each node's range of pod addresses; C(policies), the names of the policies.
  returned: when O(network) is given
  type: dict
absent_kinds:
  description: Those of O(kinds) that the cluster does not know.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.ansible_mlflow import cluster_info
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.network import read_network
from ansible.module_utils.basic import AnsibleModule

TEXT = {"type": "str", "required": True}
PORT = {"type": "int", "required": True}
OBJECT = {"namespace": TEXT, "name": TEXT}
WAY = {"host": TEXT, "port": PORT, "protocols": {"type": "list", "elements": "str", "required": True}}
ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "namespace": TEXT,
    "secrets": {"type": "list", "elements": "dict", "default": [], "no_log": False, "options": OBJECT},
    "compare_with_others": {"type": "str"},
    "config_maps": {"type": "list", "elements": "dict", "default": [], "options": OBJECT},
    "node_ports": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"port": PORT, "namespace": TEXT, "service": TEXT},
    },
    "kinds": {"type": "list", "elements": "str", "default": []},
    "priority_class": {"type": "str"},
    "network": {
        "type": "dict",
        "options": {
            "policies": TEXT,
            "destinations": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {**WAY, "otherwise": {"type": "str"}},
            },
        },
    },
}


def look(module: AnsibleModule) -> dict:
    params = module.params
    cluster = Cluster(params["kubeconfig"], params["context"])
    version = cluster_info.server_version(cluster)
    exists = cluster_info.namespace_exists(cluster, params["namespace"])
    checked = cluster_info.check_node_ports(cluster, params["node_ports"])
    cluster_info.check_priority_class(cluster, params["priority_class"])
    secrets, absent = cluster_info.read_secrets(cluster, params["secrets"])
    environment = params["compare_with_others"]
    if not checked:
        module.warn("the user may not list the Services of all namespaces: nobody checked whether a node port is taken")
    network = params["network"]
    return {
        "changed": False,
        "network": network and read_network(cluster, params["namespace"], network["policies"], network["destinations"]),
        "server_version": version,
        "platform": cluster_info.platform(cluster),
        "namespace_exists": exists,
        "secrets": secrets,
        "config_maps": cluster_info.read_config_maps(cluster, params["config_maps"]),
        "absent_secrets": absent,
        "other_environments": cluster_info.other_environments(cluster, environment) if environment else {},
        "absent_kinds": cluster_info.absent_kinds(cluster, params["kinds"]),
    }


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), look)


if __name__ == "__main__":
    main()
