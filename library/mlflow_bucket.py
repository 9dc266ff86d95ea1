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
  - Without, it makes the bucket with MLflow's own key if it is missing; any S3 server will do. It sets what this key
    may set, and says what it could not do.
  - A bucket that exists but is refused to the key is an error, never an occasion to create one.
  - Anonymous access to the bucket is taken away where the administrator's key is given.
  - Of the lifecycle rules it touches its own, whose ids begin with C(ansible-mlflow-), and no others.
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
  former_access_key:
    description:
      - An access key that O(access_key) has taken the place of. It is removed with its policy on the bucket.
      - It needs MinIO's administrator.
    type: str
  append_only:
    description:
      - For backups - the key may read and add objects and delete none, and the bucket keeps what is overwritten as
        older versions, so that a stolen key can destroy nothing.
      - Without an administrator's key, what the key may do is for whoever makes it.
    type: bool
    default: false
  versioning:
    description: Whether the bucket has to keep what is overwritten or deleted. V(false) changes nothing.
    type: bool
    default: false
  abort_uploads_after_days:
    description:
      - Days after which an upload in parts that nobody completed is aborted. 0 for no such rule.
      - MinIO has no such rule. It does this after a day, unless its administrator chose another time for all buckets.
    type: int
    default: 0
  expire_versions_after_days:
    description: Days after which an older version is deleted for good. 0 for no such rule.
    type: int
    default: 0
  lock_days:
    description:
      - Days for which no version of a new object can be deleted (object lock in governance mode). V(0) changes nothing.
      - A bucket that exists without object lock cannot have it any more, and is refused.
    type: int
    default: 0
  quota:
    description:
      - How much the bucket may hold, in bytes or with Ki, Mi, Gi or Ti, and V(0) for any amount. Empty or left out, it
        stays as it is.
      - It needs MinIO's administrator.
    type: str
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
    versioning: true
    expire_versions_after_days: 90
    quota: 500Gi
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
not_done:
  description: What was asked for and could not be done, and why; each is a warning, too.
  returned: success
  type: list
  elements: str
  sample: ["the lifecycle rules: access key mlflow-prod may not (AccessDenied)"]
"""

from ansible.module_utils.ansible_mlflow import object_store, object_store_bucket
from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, reach_service
from ansible.module_utils.basic import AnsibleModule

DAYS = ("abort_uploads_after_days", "expire_versions_after_days", "lock_days")
MOST_DAYS = 36500
ARGUMENTS = {
    "endpoint": {"type": "str", "required": True},
    "region": {"type": "str", "default": "us-east-1"},
    "reach": REACH_ARGUMENT,
    **CONNECTION_ARGUMENTS,
    "bucket": {"type": "str", "required": True},
    "append_only": {"type": "bool", "default": False},
    "versioning": {"type": "bool", "default": False},
    "abort_uploads_after_days": {"type": "int", "default": 0},
    "expire_versions_after_days": {"type": "int", "default": 0},
    "lock_days": {"type": "int", "default": 0},
    "quota": {"type": "str"},
    # The names of keys are no secrets; masked, every message that names one would be unreadable.
    "access_key": {"type": "str", "required": True, "no_log": False},
    "secret_key": {"type": "str", "required": True, "no_log": True},
    "former_access_key": {"type": "str", "no_log": False},
    "admin_access_key": {"type": "str", "no_log": False},
    "admin_secret_key": {"type": "str", "no_log": True},
}


def wanted_of(params: dict) -> object_store_bucket.Wanted:
    """What the options ask for. :raises Error: naming the option that cannot be."""
    object_store.check_bucket_name(params["bucket"])
    for option in DAYS:
        if not 0 <= params[option] <= MOST_DAYS:
            raise Error(f"{option}: expected 0 to {MOST_DAYS} days, got {params[option]}")
    quota = object_store_bucket.parse_size(params["quota"]) if params["quota"] else None
    names = ("bucket", "append_only", "versioning", *DAYS)
    former = params["former_access_key"] or ""
    return object_store_bucket.Wanted(**{name: params[name] for name in names}, quota=quota, former_access_key=former)


def ensure(module: AnsibleModule) -> dict:
    params = module.params
    endpoint, wanted = object_store.parse_endpoint(params["endpoint"]), wanted_of(params)
    for option in ("access_key", "secret_key"):
        if not params[option]:
            raise Error(f"{option}: expected the key that MLflow uses, got an empty text")
    if bool(params["admin_access_key"]) != bool(params["admin_secret_key"]):
        raise Error("admin_access_key and admin_secret_key: expected both or neither")
    cluster = Cluster(params["kubeconfig"], params["context"])
    with reach_service(endpoint.host, endpoint.port, params["reach"], cluster) as address:

        def store(*key: str) -> object_store.Store:
            return object_store.Store(endpoint, address, params["region"], *key)

        own = store(params["access_key"], params["secret_key"])
        if params["admin_access_key"]:
            admin = store(params["admin_access_key"], params["admin_secret_key"])
            outcome = object_store_bucket.ensure_with_admin(admin, own, params["secret_key"], wanted, module.check_mode)
        else:
            outcome = object_store_bucket.ensure_with_own_key(own, store(), wanted, module.check_mode)
    for warning in outcome.warnings:
        module.warn(warning)
    for sentence in outcome.not_done:
        module.warn(f"{endpoint.url}, bucket {wanted.bucket}: could not be done: {sentence}")
    diff = {"before": outcome.before, "after": outcome.after}
    return {"changes": outcome.changes, "not_done": outcome.not_done, "diff": diff}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), ensure)


if __name__ == "__main__":
    main()
