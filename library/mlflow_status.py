#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_status
short_description: Look at every part of an environment of MLflow
description:
  - Reads the servers' Deployment and Jobs, the revisions, size and connections of the databases, the bucket, the newest
    backup, the certificate, and what a run of C(site.yml) would change of the server's objects.
  - A part that cannot be looked at is a problem of its own, and hides none of the others.
options:
  environment:
    description: The environment's name.
    type: str
    required: true
  namespace:
    description: Its namespace.
    type: str
    required: true
  url:
    description: Where people reach the server.
    type: str
    required: true
  tls_secret:
    description: The Secret with the certificate of that address; empty where it is not in the cluster.
    type: str
    default: ""
  record:
    description: The ConfigMap that M(mlflow_schema) writes down in what an image wants.
    type: str
    required: true
  releases:
    description: Path of the table of MLflow's releases.
    type: path
    required: true
  database:
    description: The databases, and a role that may read them.
    type: dict
    required: true
    suboptions:
      host:
        description: Host of PostgreSQL.
        type: str
        required: true
      port:
        description: Port of PostgreSQL.
        type: int
        required: true
      reach:
        description: How to reach it.
        type: str
        choices: [auto, direct, tunnel]
        default: auto
      username:
        description: Name of the role.
        type: str
        required: true
      password:
        description: Password of the role.
        type: str
        required: true
      names:
        description: The databases by store.
        type: dict
        required: true
      schema:
        description: The schema that MLflow's tables are in; empty for C(public).
        type: str
        default: ""
      tls_mode:
        description: How the connection is protected, as libpq's sslmode says it.
        type: str
        choices: [disable, prefer, require, verify-ca, verify-full]
        default: prefer
      ca_certificate:
        description: With verify-ca and verify-full, the certificate of the authority, as PEM text.
        type: str
        default: ""
  bucket:
    description: The bucket of the artifacts, and a key that may list it.
    type: dict
    required: true
    suboptions: &bucket
      endpoint:
        description: The S3 server, http(s)://host[:port].
        type: str
        required: true
      reach:
        description: How to reach it.
        type: str
        choices: [auto, direct, tunnel]
        default: auto
      region:
        description: The region that requests are signed for.
        type: str
        required: true
      name:
        description: Name of the bucket.
        type: str
        required: true
      access_key:
        description: The key's name.
        type: str
        required: true
      secret_key:
        description: The key's secret.
        type: str
        required: true
  backups:
    description: The bucket of the backups, and a key that may list it; none where there are no backups.
    type: dict
    suboptions: *bucket
  backup_hours:
    description: Age of the newest backup, in hours, from which on it is a problem; 0 for never.
    type: int
    required: true
  certificate_days:
    description: Days before its end from which on a certificate is a problem.
    type: int
    required: true
  objects:
    description: The server's objects, as they should be.
    type: list
    elements: dict
    required: true
  unwanted:
    description: Objects that must not be there, as O(mlflow_apply#module:removed) has them.
    type: list
    elements: dict
    default: []
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
- name: Look at dev
  mlflow_status:
    environment: dev
    namespace: mlflow-dev
    url: http://localhost:30502
    record: mlflow-schema-record-dev
    releases: roles/mlflow_schema/files/releases.json
    database:
      host: dev-postgres.pgsql.svc.cluster.local
      port: 5434
      username: mlflow
      password: "{{ mlflow_environment_secret_values.database_password }}"
      names: {tracking: mlflow, auth: mlflow_auth}
    bucket:
      endpoint: http://minio-dev.pgsql.svc.cluster.local:9000
      region: us-east-1
      name: mlflow
      access_key: mlflow-dev
      secret_key: "{{ mlflow_environment_secret_values.object_store_secret_key }}"
    backup_hours: 168
    certificate_days: 21
    objects: "{{ mlflow_server_objects }}"
  register: status
"""

RETURN = r"""
parts:
  description:
    - What was found, by part - C(release), C(schema), C(replicas), C(database), C(bucket), C(backup), C(certificate),
      C(drift) and C(unfinished), each with its values and its C(problems); and C(seconds), how long it took.
  returned: success
  type: dict
  sample: {replicas: {ready: 1, wanted: 1, problems: []}, seconds: 2.1}
"""

from ansible.module_utils.ansible_mlflow.database import TLS_ARGUMENTS
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.status import Limits, environment_of, look
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT
from ansible.module_utils.basic import AnsibleModule

TEXT = {"type": "str", "required": True}
COUNT = {"type": "int", "required": True}
SECRET = {"type": "str", "required": True, "no_log": True}
DATABASE = {
    "host": TEXT,
    "port": COUNT,
    "reach": REACH_ARGUMENT,
    "username": TEXT,
    "password": SECRET,
    "names": {"type": "dict", "required": True},
    "schema": {"type": "str", "default": ""},
    **TLS_ARGUMENTS,
}
# The names of keys are no secrets; masked, every message that names one would be unreadable.
BUCKET = {
    "endpoint": TEXT,
    "reach": REACH_ARGUMENT,
    "region": TEXT,
    "name": TEXT,
    "access_key": {**TEXT, "no_log": False},
    "secret_key": SECRET,
}
ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "environment": TEXT,
    "namespace": TEXT,
    "url": TEXT,
    "tls_secret": {"type": "str", "default": "", "no_log": False},
    "record": TEXT,
    "releases": {"type": "path", "required": True},
    "database": {"type": "dict", "required": True, "options": DATABASE},
    "bucket": {"type": "dict", "required": True, "options": BUCKET},
    "backups": {"type": "dict", "options": BUCKET},
    "backup_hours": COUNT,
    "certificate_days": COUNT,
    "objects": {"type": "list", "elements": "dict", "required": True},
    "unwanted": {"type": "list", "elements": "dict", "default": []},
}


def status(module: AnsibleModule) -> dict:
    params = module.params
    limits = Limits(params["backup_hours"], params["certificate_days"])
    cluster = Cluster(params["kubeconfig"], params["context"])
    return {"parts": look(cluster, environment_of(params), limits)}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), status)


if __name__ == "__main__":
    main()
