#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_bucket
short_description: Give MLflow its bucket and a key that can use only this
description:
  - With an administrator's key of MinIO it ensures the bucket, the access key with its secret key, and one policy on it
    that allows listing the bucket and reading, writing and deleting its objects.
  - Without, it makes the bucket with MLflow's own key if it is missing; any S3 server will do.
  - A bucket that exists but is refused to the key is an error, never an occasion to create one.
  - Anonymous access to the bucket is taken away where the administrator's key is given.
options:
  endpoint:
    description: C(http://host[:port]) or C(https://host[:port]), without path or bucket.
    type: str
    required: true
  region:
    description: The region to sign for and to create the bucket in.
    type: str
    default: us-east-1
  bucket:
    description: Name of the bucket.
    type: str
    required: true
  access_key:
    description: The access key that MLflow uses.
    type: str
    required: true
  secret_key:
    description: The secret key that MLflow uses.
    type: str
    required: true
  append_only:
    description:
      - For backups - the key may read and add objects and delete none, and the bucket keeps what is overwritten as
        older versions, so that a stolen key can destroy nothing.
      - Without an administrator's key this is for whoever makes bucket and key.
    type: bool
    default: false
  admin_access_key:
    description: An administrator's access key of MinIO. Empty or left out if there is none.
    type: str
  admin_secret_key:
    description: The administrator's secret key.
    type: str
requirements:
  - minio >= 7.2
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
attributes:
  check_mode:
    description: It reads what it would read and writes nothing.
    support: full
  diff_mode:
    description: What differs, without any secret key.
    support: full
"""

EXAMPLES = r"""
- name: Ensure bucket, policy and key in MinIO
  mlflow_bucket:
    endpoint: http://minio-prod.pgsql.svc.cluster.local:9000
    bucket: mlflow
    access_key: mlflow-prod
    secret_key: "{{ vault_mlflow_secret_key }}"
    admin_access_key: "{{ vault_minio_admin_access_key }}"
    admin_secret_key: "{{ vault_minio_admin_secret_key }}"

- name: See that the bucket is there for the key that another team made
  mlflow_bucket:
    endpoint: https://s3.eu-central-1.amazonaws.com
    region: eu-central-1
    reach: direct
    bucket: example-mlflow-prod
    access_key: "{{ vault_mlflow_access_key }}"
    secret_key: "{{ vault_mlflow_secret_key }}"
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [created bucket mlflow]
"""

from ansible.module_utils.ansible_mlflow import object_store
from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, reach_service
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "endpoint": {"type": "str", "required": True},
    "region": {"type": "str", "default": "us-east-1"},
    "reach": REACH_ARGUMENT,
    **CONNECTION_ARGUMENTS,
    "bucket": {"type": "str", "required": True},
    "append_only": {"type": "bool", "default": False},
    # The names of keys are no secrets; masked, every message that names one would be unreadable.
    "access_key": {"type": "str", "required": True, "no_log": False},
    "secret_key": {"type": "str", "required": True, "no_log": True},
    "admin_access_key": {"type": "str", "no_log": False},
    "admin_secret_key": {"type": "str", "no_log": True},
}


def ensure(module: AnsibleModule) -> dict:
    params = module.params
    endpoint = object_store.parse_endpoint(params["endpoint"])
    object_store.check_bucket_name(params["bucket"])
    for option in ("access_key", "secret_key"):
        if not params[option]:
            raise Error(f"{option}: expected the key that MLflow uses, got an empty text")
    if bool(params["admin_access_key"]) != bool(params["admin_secret_key"]):
        raise Error("admin_access_key and admin_secret_key: expected both or neither")
    cluster = Cluster(params["kubeconfig"], params["context"])
    with reach_service(endpoint.host, endpoint.port, params["reach"], cluster) as address:
        key = (params["access_key"], params["secret_key"])
        own = object_store.Store(endpoint, address, params["region"], *key)
        if params["admin_access_key"]:
            admin_key = (params["admin_access_key"], params["admin_secret_key"])
            admin = object_store.Store(endpoint, address, params["region"], *admin_key)
            outcome = object_store.ensure_with_admin(
                admin, own, params["bucket"], key[1], module.check_mode, params["append_only"]
            )
        else:
            outcome = object_store.ensure_with_own_key(own, params["bucket"], module.check_mode)
    for warning in outcome.warnings:
        module.warn(warning)
    result = {"changed": bool(outcome.changes), "changes": outcome.changes}
    if module._diff:
        result["diff"] = {"before": outcome.before, "after": outcome.after}
    return result


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), ensure)


if __name__ == "__main__":
    main()
