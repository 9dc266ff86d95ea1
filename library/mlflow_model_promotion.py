#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_model_promotion
short_description: Copy a registered model's version from one MLflow server to another
description:
  - Copies a version with its run, its logged model, their artifacts, parameters, metrics and tags, and registers it.
    MLflow's own copy stays on one server.
  - Artifacts go from bucket to bucket through the machine that runs Ansible, part by part, and are read back. The
    version is registered when all bytes are there and are the same.
  - What it makes has tags that say where it came from. By these the next run finds it, compares the hashes of both
    sides' bytes, or finishes what was cut off, also in the middle of a large file.
options:
  source:
    description: The environment that has the version.
    type: dict
    required: true
    suboptions: &environment
      environment:
        description: Its name.
        type: str
        required: true
      url:
        description: How people reach its MLflow, for the tags.
        type: str
        default: ""
      kubeconfig:
        description: Path of its cluster's kubeconfig.
        type: path
      context:
        description: Name of a context in the kubeconfig.
        type: str
      host:
        description: Name of its server, one that it answers to.
        type: str
        required: true
      path_prefix:
        description: The path below which the server answers.
        type: str
        default: ""
      reach:
        description: How to reach the server.
        type: str
        choices: [auto, direct, tunnel]
        default: auto
      username:
        description: The administrator of MLflow.
        type: str
        required: true
      password:
        description: The administrator's password.
        type: str
        required: true
      artifact_root:
        description: Where a server that hands out artifacts keeps them, C(s3://<bucket>/<path>).
        type: str
        required: true
      endpoint:
        description: The object store, C(http://host[:port]) or C(https://host[:port]).
        type: str
        required: true
      region:
        description: The region to sign for.
        type: str
        default: us-east-1
      access_key:
        description: The access key of MLflow's artifacts.
        type: str
        required: true
      secret_key:
        description: The secret key.
        type: str
        required: true
      object_store_reach:
        description: C(direct) connects, C(tunnel) goes through the API server, C(auto) takes what works.
        type: str
        choices: [auto, direct, tunnel]
        default: auto
  target:
    description: The environment that gets it.
    type: dict
    required: true
    suboptions: *environment
  model:
    description: Name of the registered model, in both.
    type: str
    required: true
  version:
    description: Number of the version. Either this or O(version_alias).
    type: str
    default: ""
  version_alias:
    description: An alias that the version has in the source.
    type: str
    default: ""
  alias:
    description: An alias that the version gets in the target, whichever version had it; empty for none.
    type: str
    default: ""
  notes:
    description: More to write down in the version's tags, by the names of the tags.
    type: dict
    default: {}
  progress:
    description: A file to write lines to about how far it is.
    type: path
requirements: [kubernetes >= 30, minio >= 7.2]
author: [the ansible-mlflow authors]
attributes:
  check_mode:
    description: It looks at both sides, and compares what was promoted before.
    support: full
  diff_mode:
    description: What would be made, and which version has the alias.
    support: full
"""

EXAMPLES = r"""
- name: Version 7 of churn goes from stg to prod, which serves it as champion
  mlflow_model_promotion:
    source: "{{ stg }}"
    target:
      environment: prod
      host: mlflow-prod.mlflow-prod.svc.cluster.local
      username: admin
      password: "{{ vault_prod_admin_password }}"
      artifact_root: s3://mlflow/
      endpoint: http://minio-prod.pgsql.svc.cluster.local:9000
      access_key: mlflow-prod
      secret_key: "{{ vault_prod_secret_key }}"
    model: churn
    version: "7"
    alias: champion
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["made in prod: version 3 of model churn, of version 7 of model churn of stg"]
version:
  description: Number of the version in the target; empty where only a run without check mode makes it.
  returned: success
  type: str
tags:
  description: The tags of that version.
  returned: success
  type: dict
"""

from contextlib import ExitStack

from ansible.module_utils.ansible_mlflow import model_promotion, object_store
from ansible.module_utils.ansible_mlflow.access_server import Server
from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.model_version import Side
from ansible.module_utils.ansible_mlflow.registry import Registry, pairs
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, NoServiceError, reach_service
from ansible.module_utils.basic import AnsibleModule

# That of the Service of every environment.
PORT = 5000
TEXT = {"type": "str", "required": True}
ENVIRONMENT = {
    "type": "dict",
    "required": True,
    "options": {
        **CONNECTION_ARGUMENTS,
        "environment": TEXT,
        "url": {"type": "str", "default": ""},
        "host": TEXT,
        "path_prefix": {"type": "str", "default": ""},
        "reach": REACH_ARGUMENT,
        "username": TEXT,
        "password": {**TEXT, "no_log": True},
        "artifact_root": TEXT,
        "endpoint": TEXT,
        "region": {"type": "str", "default": "us-east-1"},
        # The names of keys are no secrets; masked, every message that names one would be unreadable.
        "access_key": {**TEXT, "no_log": False},
        "secret_key": {**TEXT, "no_log": True},
        "object_store_reach": REACH_ARGUMENT,
    },
}
ARGUMENTS = {
    "source": ENVIRONMENT,
    "target": ENVIRONMENT,
    "model": TEXT,
    "version": {"type": "str", "default": ""},
    "version_alias": {"type": "str", "default": ""},
    "alias": {"type": "str", "default": ""},
    "notes": {"type": "dict", "default": {}},
    "progress": {"type": "path"},
}


def open_side(stack: ExitStack, given: dict) -> Side:
    """An environment's server and object store, reached until the stack is left."""
    endpoint = object_store.parse_endpoint(given["endpoint"])
    cluster = Cluster(given["kubeconfig"], given["context"])
    try:
        address = stack.enter_context(reach_service(given["host"], PORT, given["reach"], cluster))
        way = reach_service(endpoint.host, endpoint.port, given["object_store_reach"], cluster)
        store_address = stack.enter_context(way)
    except NoServiceError as error:
        raise Error(f"{given['environment']} does not run: {error}; expected it to be deployed by site.yml") from None
    server = Server(given["host"], PORT, address, given["path_prefix"])
    server.login = (given["username"], given["password"])
    key = (given["access_key"], given["secret_key"])
    store = object_store.Store(endpoint, store_address, given["region"], *key)
    registry = Registry(server, given["environment"])
    url = given["url"] or server.url
    return Side(given["environment"], url, registry, store, given["artifact_root"])


def promote(module: AnsibleModule) -> dict:
    params = module.params

    def say(line: str) -> None:
        if params["progress"]:
            with open(params["progress"], "a", encoding="utf-8") as file:
                file.write(line + "\n")

    names = ("model", "version", "version_alias", "alias", "notes")
    wanted = model_promotion.Wanted(**{name: params[name] for name in names})
    with ExitStack() as stack:
        sides = [open_side(stack, params[side]) for side in ("source", "target")]
        outcome, version = model_promotion.promote(*sides, wanted, module.check_mode, say)
    return {
        "changes": outcome.changes,
        "diff": {"before": outcome.before, "after": outcome.after},
        "version": str(version["version"]) if version else "",
        "tags": pairs((version or {}).get("tags")),
    }


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), promote)


if __name__ == "__main__":
    main()
