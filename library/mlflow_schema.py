#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_schema
short_description: Bring MLflow's database schemas to the revision that the image wants
description:
  - Starts a Job in the image of MLflow that upgrades the tracking and the auth database, waits for its end, and keeps
    in a ConfigMap which revisions the image wants.
  - When that record is of the same image and program, and both databases are at the recorded revisions, it starts none.
  - A database that is ahead of the image or not MLflow's is refused by the program before it changes anything.
options:
  namespace:
    description: Namespace of the Job and of the record.
    type: str
    required: true
  job:
    description:
      - The manifest of the Job; its program prints a report as its last line.
      - Its annotation C(mlflow.ansible/program-digest) names the version of the program.
    type: dict
    required: true
  record:
    description: Name of the ConfigMap that keeps the image, the program's digest and the revisions that they want.
    type: str
    required: true
  image:
    description: The image of MLflow that the Job runs in.
    type: str
    required: true
  database:
    description: Where the databases are.
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
        description: The role of MLflow.
        type: str
        required: true
      password:
        description: The password of that role.
        type: str
        required: true
      name:
        description: The tracking database.
        type: str
        required: true
      auth_name:
        description: The auth database; empty or left out when there is none.
        type: str
  timeout:
    description: How many seconds to wait for the Job. What ends the Job itself is its own deadline.
    type: int
    default: 900
requirements:
  - psycopg >= 3.1
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
attributes:
  check_mode:
    description:
      - It reads the revisions and starts no Job.
      - Which revision an image wants is known only after its first Job; until then it is called the head of the image.
    support: full
  diff_mode:
    description: The revisions before and after.
    support: full
"""

EXAMPLES = r"""
- name: Bring the schemas up to date
  mlflow_schema:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    namespace: mlflow-dev
    job: "{{ lookup('ansible.builtin.template', 'job.yml.j2') | from_yaml }}"
    record: mlflow-schema-dev
    image: ghcr.io/mlflow/mlflow:v3.17.2-full
    database:
      host: dev-postgres.pgsql.svc.cluster.local
      port: 5434
      username: mlflow
      password: "{{ vault_mlflow_database_password }}"
      name: mlflow
      auth_name: mlflow_auth
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [upgraded the tracking database mlflow from bf29a5ff90ea to dc11669786a5]
before:
  description: The revisions before, by store (C(tracking), C(auth)); null for an empty database.
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
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "reach": REACH_ARGUMENT,
    "namespace": {"type": "str", "required": True},
    "job": {"type": "dict", "required": True},
    "record": {"type": "str", "required": True},
    "image": {"type": "str", "required": True},
    "database": {
        "type": "dict",
        "required": True,
        "options": {
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 5432},
            "username": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "name": {"type": "str", "required": True},
            "auth_name": {"type": "str"},
        },
    },
    "timeout": {"type": "int", "default": 900},
}


def bring_up_to_date(module: AnsibleModule) -> dict:
    params, database = module.params, module.params["database"]
    names = {"tracking": database["name"]}
    if database["auth_name"]:
        names["auth"] = database["auth_name"]
    where = (database["host"], database["port"], database["username"], database["password"])
    plan = schema.Plan(
        namespace=params["namespace"],
        manifest=params["job"],
        record=params["record"],
        image=params["image"],
        reach=params["reach"],
        timeout=params["timeout"],
        check_mode=module.check_mode,
    )
    cluster = Cluster(params["kubeconfig"], params["context"])
    done = schema.bring_up_to_date(cluster, plan, schema.Stores(*where, names))
    result = {
        "changed": bool(done.changes),
        "changes": done.changes,
        "before": done.before,
        "after": done.after,
        "job_ran": done.job_ran,
        "report": done.report,
        "log": done.log,
    }
    if module._diff:
        result["diff"] = {"before": done.before, "after": done.after}
    return result


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), bring_up_to_date)


if __name__ == "__main__":
    main()
