#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_schema
short_description: Compare and upgrade the schemas of MLflow's databases
description:
  - Reads the revision of each database and compares it with what the image wants. Where both are known and equal, no
    Job is started.
  - With state C(checked) a Job in the target image says what an upgrade would do, and refuses what must not be tried
    - a database that is newer than the image, another program's, one whose tables a session keeps locked - while the
    present servers work on.
  - With state C(upgraded) it stops the servers, runs the Job that makes the backup and then upgrades, and starts the
    old servers again if the Job fails. Of several runs at once one upgrades, and the others wait and change nothing.
  - It fails within seconds of the failure, with the program's own words. What the Job prints is shown while it runs.
options:
  state:
    description: Only look, or upgrade what is behind.
    type: str
    choices: [checked, upgraded]
    default: upgraded
  namespace:
    description: Namespace of the Job.
    type: str
    required: true
  job:
    description:
      - The manifest of the Job. Its pod runs schema.py in the target image, C(plan) or C(upgrade) by the state.
      - Its annotation C(mlflow.ansible/program-digest) tells when the program has changed.
    type: dict
    required: true
  objects:
    description: Objects that the Job needs, such as the ConfigMap of its program; applied before it starts.
    type: list
    elements: dict
    default: []
  record:
    description: Name of the ConfigMap that keeps which revisions the image wants.
    type: str
    required: true
  image:
    description: The image whose schema is wanted.
    type: str
    required: true
  releases:
    description: Path of the table of MLflow's releases and their heads, for what can be told without a Job.
    type: path
    required: true
  deployment:
    description: Name of the Deployment that uses the databases and is stopped while they change.
    type: str
    required: true
  database:
    description: The databases, and the role that owns them.
    type: dict
    required: true
    suboptions:
      host:
        description: Name or address of the server.
        type: str
        required: true
      port:
        description: Port of the server.
        type: int
        default: 5432
      username:
        description: The role.
        type: str
        required: true
      password:
        description: Its password.
        type: str
        required: true
      names:
        description: The databases by store - C(tracking), C(auth), and C(registry) if it has one of its own.
        type: dict
        required: true
      schema:
        description: The schema of each database that MLflow's tables are in.
        type: str
        default: public
      tls_mode:
        description: How the connection is protected, as libpq's sslmode says it.
        type: str
        choices: [disable, prefer, require, verify-ca, verify-full]
        default: prefer
      ca_certificate:
        description: With verify-ca and verify-full, the certificate of the authority, as PEM text.
        type: str
        default: ""
  timeout:
    description: How many seconds to wait for the Job. What ends the Job itself is its own deadline.
    type: int
    default: 3600
  progress:
    description: Path of a file to write the Job's lines to; the action of the same name gives it.
    type: path
requirements:
  - psycopg >= 3.1
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
attributes:
  check_mode:
    description: It reads the revisions, and starts no Job. What is pending comes from the table of releases.
    support: full
  diff_mode:
    description: The revisions before and after.
    support: full
"""

EXAMPLES = r"""
- name: See what an upgrade would do
  mlflow_schema:
    state: checked
    namespace: mlflow-dev
    job: "{{ lookup('ansible.builtin.template', 'job.yml.j2') | from_yaml }}"
    record: mlflow-schema-record-dev
    image: ghcr.io/mlflow/mlflow:v3.17.2-full
    releases: "{{ role_path }}/files/releases.json"
    deployment: mlflow-dev
    database:
      host: dev-postgres.pgsql.svc.cluster.local
      port: 5434
      username: mlflow_migrator
      password: "{{ vault_mlflow_migrator_password }}"
      names: {tracking: mlflow, auth: mlflow_auth}
"""

RETURN = r"""
pending:
  description: Whether there is something to upgrade.
  returned: success with state C(checked)
  type: bool
plan:
  description: What an upgrade would do, a line for each thing.
  returned: success
  type: list
  elements: str
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [upgraded the tracking database mlflow from bf29a5ff90ea to dc11669786a5]
before:
  description: The revisions before, by store; null for an empty database.
  returned: success
  type: dict
after:
  description: The revisions after, by store.
  returned: success
  type: dict
job_ran:
  description: Whether the Job was started.
  returned: success
  type: bool
stopped_at:
  description: When the servers were stopped, in seconds since 1970; 0 when none ran.
  returned: success with state C(upgraded)
  type: float
report:
  description: The program's report; empty when no Job was started.
  returned: success, or failure of the program
  type: dict
log:
  description: The last lines of the Job's output.
  returned: when the Job ran
  type: str
"""

from ansible.module_utils.ansible_mlflow import schema
from ansible.module_utils.ansible_mlflow.database import PUBLIC_SCHEMA, TLS_ARGUMENTS, Tls
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT
from ansible.module_utils.basic import AnsibleModule

DATABASE = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5432},
    "username": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "names": {"type": "dict", "required": True},
    "schema": {"type": "str", "default": PUBLIC_SCHEMA},
    **TLS_ARGUMENTS,
}
ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "reach": REACH_ARGUMENT,
    "state": {"type": "str", "choices": ["checked", "upgraded"], "default": "upgraded"},
    "namespace": {"type": "str", "required": True},
    "job": {"type": "dict", "required": True},
    "objects": {"type": "list", "elements": "dict", "default": []},
    "record": {"type": "str", "required": True},
    "image": {"type": "str", "required": True},
    "releases": {"type": "path", "required": True},
    "deployment": {"type": "str", "required": True},
    "database": {"type": "dict", "required": True, "options": DATABASE},
    "timeout": {"type": "int", "default": 3600},
    "progress": {"type": "path"},
}


def bring_up_to_date(module: AnsibleModule) -> dict:
    params, database = module.params, module.params["database"]
    names = {store: name for store, name in database["names"].items() if name}
    tls = Tls(database["tls_mode"], database["ca_certificate"])
    tls.check()
    given = (database[name] for name in ("host", "port", "username", "password"))
    stores = schema.Stores(*given, names, tls, database["schema"])

    def say(line: str) -> None:
        if params["progress"]:
            with open(params["progress"], "a", encoding="utf-8") as file:
                file.write(line + "\n")

    given = ("namespace", "objects", "record", "image", "releases", "deployment", "reach", "timeout")
    plan = schema.Plan(
        **{name: params[name] for name in given}, manifest=params["job"], check_mode=module.check_mode, say=say
    )
    work = schema.check if params["state"] == "checked" else schema.upgrade
    done = work(Cluster(params["kubeconfig"], params["context"]), plan, stores)
    result = {
        **{key: getattr(done, key) for key in ("changes", "before", "after", "pending", "plan", "job_ran")},
        **{key: getattr(done, key) for key in ("stopped_at", "report", "log")},
    }
    if done.changes:
        result["diff"] = {"before": done.before, "after": done.after}
    return result


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), bring_up_to_date)


if __name__ == "__main__":
    main()
