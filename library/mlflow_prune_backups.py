#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_prune_backups
short_description: Delete an environment's backups that are old
description:
  - Deletes, with every version of their objects, the complete backups that are older than O(keep_days) and not among
    the newest O(keep_newest), and those that were cut off more than a day ago.
  - Then it deletes the copies of artifacts that no backup has any more, unless a backup may be in the making.
  - What it does not know is left.
options:
  environment:
    description: The environment whose backups they are. Those of others stay.
    type: str
    required: true
  keep_days:
    description: Days for which a backup is kept, from 1 on.
    type: int
    required: true
  keep_newest:
    description: How many of the newest complete backups are kept, however old they are.
    type: int
    required: true
requirements:
  - minio >= 7.2
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
  - mlflow.object_store_admin
attributes:
  check_mode:
    description: It tells what it would delete, and deletes nothing.
    support: full
  diff_mode:
    description: The backups before and after.
    support: full
"""

EXAMPLES = r"""
- name: Delete backups of dev that are older than a month
  mlflow_prune_backups:
    endpoint: http://minio-dev.pgsql.svc.cluster.local:9000
    bucket: mlflow-backups
    environment: dev
    keep_days: 30
    keep_newest: 5
    admin_access_key: "{{ vault_minio_admin_access_key }}"
    admin_secret_key: "{{ vault_minio_admin_secret_key }}"
"""

RETURN = r"""
deleted:
  description: The backups that were deleted, or would be in check mode, and why.
  returned: success
  type: dict
  sample: {20261001T023000Z-1a2b: 56 days old}
kept:
  description: The others, and why.
  returned: success
  type: dict
artifacts_deleted:
  description: The number of copies of artifacts that were deleted.
  returned: success
  type: int
bytes:
  description: What is deleted in all.
  returned: success
  type: int
"""

import time

from ansible.module_utils.ansible_mlflow import administrators
from ansible.module_utils.ansible_mlflow.backups import prune
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **administrators.OBJECT_STORE_ARGUMENTS,
    "environment": {"type": "str", "required": True},
    "keep_days": {"type": "int", "required": True},
    "keep_newest": {"type": "int", "required": True},
}


def prune_backups(module: AnsibleModule) -> dict:
    params = module.params
    limits = (params["keep_days"], params["keep_newest"], time.time())
    with administrators.store(params) as admin:
        found = prune(admin, params["bucket"], params["environment"], limits, module.check_mode)
    before = {name: "kept" for name in sorted([*found.deleted, *found.kept])}
    return {
        "changed": bool(found.deleted or found.artifacts),
        "deleted": found.deleted,
        "kept": found.kept,
        "artifacts_deleted": found.artifacts,
        "bytes": found.size,
        "diff": {"before": before, "after": {name: "kept" for name in found.kept}},
    }


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), prune_backups)


if __name__ == "__main__":
    main()
