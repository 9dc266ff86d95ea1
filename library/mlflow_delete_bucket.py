#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_delete_bucket
short_description: Delete an environment's objects, bucket and access key in MinIO
description:
  - Deletes what M(mlflow_bucket) has made, with every version of every object, also those that are locked in governance
    mode. There is no way back.
  - A bucket that has objects of others is kept, without those of the environment.
  - C(community.aws) and C(amazon.aws) delete buckets too, but need boto3, and know no way through the API server.
options:
  prefix:
    description: What the names of the environment's objects begin with; empty for all objects of the bucket.
    type: str
    default: ""
  access_key:
    description: The access key that goes along, with its policy; empty to keep it.
    type: str
    default: ""
requirements:
  - minio >= 7.2
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
  - mlflow.object_store_admin
attributes:
  check_mode:
    description: It counts what it would delete, and deletes nothing.
    support: full
  diff_mode:
    description: What would be absent.
    support: full
"""

EXAMPLES = r"""
- name: Delete dev's artifacts
  mlflow_delete_bucket:
    endpoint: http://minio-dev.pgsql.svc.cluster.local:9000
    bucket: mlflow
    access_key: mlflow-dev
    admin_access_key: "{{ vault_minio_admin_access_key }}"
    admin_secret_key: "{{ vault_minio_admin_secret_key }}"
"""

RETURN = r"""
changes:
  description: What was deleted, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["deleted 1204 versions of objects in bucket mlflow, 73400320 bytes", deleted bucket mlflow]
"""

from ansible.module_utils.ansible_mlflow import administrators, object_store_delete
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **administrators.OBJECT_STORE_ARGUMENTS,
    "prefix": {"type": "str", "default": ""},
    # Its name is no secret; masked, every message that names it would be unreadable.
    "access_key": {"type": "str", "default": "", "no_log": False},
}


def delete(module: AnsibleModule) -> dict:
    params = module.params
    what = (params["bucket"], params["prefix"], params["access_key"])
    with administrators.store(params) as admin:
        outcome = object_store_delete.delete(admin, *what, module.check_mode)
    return {"changes": outcome.changes, "diff": {"before": outcome.before, "after": {}}}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), delete)


if __name__ == "__main__":
    main()
