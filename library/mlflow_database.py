#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_database
short_description: Give MLflow its PostgreSQL roles and databases
description:
  - Ensures two roles that can log in and nothing else, and databases that the migrator owns and nobody but these two
    may enter. The runtime role may create nothing in them, so that no server can change a schema.
  - Restores what somebody revoked or gave away of the rights on the databases and their schema public.
  - A database of the runtime role is given to the migrator with all that is in it, in one transaction, while a server
    uses it. One of another owner is refused and left alone; so is a PostgreSQL older than 15.
  - The runtime role's rights on tables are given with the tables, and by those who make tables.
  - Without an administrator it only sees that both roles can do their work, or says which statements one has to run.
  - A password is sent as a verifier computed on the controller, so it never reaches the server's log.
options:
  host:
    description: Name or address of the server.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    default: 5432
  admin_username:
    description: A superuser, or a role with CREATEROLE and CREATEDB. Empty or left out if there is none.
    type: str
  admin_password:
    description: The administrator's password.
    type: str
  admin_database:
    description: The database that the administrator connects to.
    type: str
    default: postgres
  username:
    description: The runtime role, as which the server logs in.
    type: str
    required: true
  password:
    description: The password of that role.
    type: str
    required: true
  migrator_username:
    description: The role that owns the databases and upgrades them.
    type: str
    required: true
  migrator_password:
    description: The password of that role.
    type: str
    required: true
  databases:
    description: The databases of the tracking store and of the users, and that of the model registry if it is another.
    type: list
    elements: str
    required: true
  environment:
    description: Whose databases they are; kept as their comment. One that is another environment's is refused.
    type: str
    default: ""
  schema:
    description:
      - The schema of each database that MLflow's tables are in. One other than public is made, belongs to the migrator,
        and nobody but these two roles may use it.
      - Where MLflow's tables are in another schema already, this is refused.
    type: str
    default: public
  servers:
    description:
      - The servers that will use them. What PostgreSQL has no room for is refused, with the sum and settings that fit.
      - The room is max_connections less what is reserved or used by others, and the role's and the databases' limits.
    type: dict
    suboptions:
      replicas:
        description: Number of pods.
        type: int
        required: true
      max_replicas:
        description: Number of pods that an autoscaler may make of it.
        type: int
        default: 0
      workers:
        description: Worker processes of a pod.
        type: int
        required: true
      pool_size:
        description: Connections that a worker keeps for each of its stores.
        type: int
        required: true
      max_overflow:
        description: Connections that it opens beyond these.
        type: int
        required: true
      job_execution:
        description: Whether MLflow runs its background jobs.
        type: bool
        default: false
requirements:
  - psycopg >= 3.1
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
  - mlflow.tls
attributes:
  check_mode:
    description: It reads what it would read and writes nothing.
    support: full
  diff_mode:
    description: What differs, without any password.
    support: full
"""

EXAMPLES = r"""
- name: Ensure roles and databases
  mlflow_database:
    host: prod-postgres.pgsql.svc.cluster.local
    port: 5432
    admin_username: postgres
    admin_password: "{{ vault_postgres_admin_password }}"
    username: mlflow
    password: "{{ vault_mlflow_database_password }}"
    migrator_username: mlflow_migrator
    migrator_password: "{{ vault_mlflow_database_migrator_password }}"
    databases: [mlflow, mlflow_auth]
    servers: {replicas: 2, workers: 2, pool_size: 2, max_overflow: 1}

- name: See that the databases which another team made can be used
  mlflow_database:
    host: postgres.example.com
    reach: direct
    tls_mode: verify-full
    ca_certificate: "{{ lookup('ansible.builtin.file', 'ca.crt') }}"
    username: mlflow
    password: "{{ vault_mlflow_database_password }}"
    migrator_username: mlflow_migrator
    migrator_password: "{{ vault_mlflow_database_migrator_password }}"
    databases: [mlflow, mlflow_auth]
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [created role mlflow, created role mlflow_migrator, created database mlflow]
server_version:
  description: Version of PostgreSQL.
  returned: success
  type: str
  sample: "17.6"
revisions:
  description: What the version tables of the databases hold, by database and table, as far as it may be read.
  returned: success
  type: dict
  sample: {mlflow: {alembic_version: [dc11669786a5]}}
artifact_roots:
  description: Number of experiments by the place below which MLflow put their artifacts, as far as it may be read.
  returned: success
  type: dict
  sample: {"s3://mlflow": 12}
sql:
  description: What an administrator has to run in psql, without any password.
  returned: when there is no administrator and something is missing
  type: str
"""

from ansible.module_utils.ansible_mlflow import database
from ansible.module_utils.ansible_mlflow.connections import Load
from ansible.module_utils.ansible_mlflow.database_check import Check
from ansible.module_utils.ansible_mlflow.database_roles import Administration
from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, reach_service
from ansible.module_utils.basic import AnsibleModule

NUMBERS = ("replicas", "workers", "pool_size", "max_overflow")
ARGUMENTS = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5432},
    "reach": REACH_ARGUMENT,
    **CONNECTION_ARGUMENTS,
    "admin_username": {"type": "str"},
    "admin_password": {"type": "str", "no_log": True},
    "admin_database": {"type": "str", "default": "postgres"},
    "username": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "migrator_username": {"type": "str", "required": True},
    "migrator_password": {"type": "str", "required": True, "no_log": True},
    "databases": {"type": "list", "elements": "str", "required": True},
    "environment": {"type": "str", "default": ""},
    "schema": {"type": "str", "default": database.PUBLIC_SCHEMA},
    **database.TLS_ARGUMENTS,
    "servers": {
        "type": "dict",
        "options": {
            **{name: {"type": "int", "required": True} for name in NUMBERS},
            "max_replicas": {"type": "int", "default": 0},
            "job_execution": {"type": "bool", "default": False},
        },
    },
}


def ensure(module: AnsibleModule) -> dict:
    params = module.params
    runtime, migrator = (
        database.Role(f"{prefix}username", secret, params[f"{prefix}username"], params[f"{prefix}password"])
        for prefix, secret in (("", "database_password"), ("migrator_", "database_migrator_password"))
    )
    databases, servers = params["databases"], params["servers"]
    if not databases:
        raise Error("databases: expected at least one, got an empty list")
    tracking, auth, registry = [*databases, *databases[:1] * 2][:3]
    load = Load(**servers, databases=(tracking, registry, auth, tracking)) if servers else None
    # Several stores may be in one database.
    names = list(dict.fromkeys(databases))
    wanted = database.Wanted(runtime, migrator, names, load, params["schema"], params["environment"])
    wanted.check()
    tls = database.Tls(params["tls_mode"], params["ca_certificate"])
    tls.check()
    cluster = Cluster(params["kubeconfig"], params["context"])
    with reach_service(params["host"], params["port"], params["reach"], cluster) as address:
        server = database.Server(params["host"], params["port"], address, tls)
        if params["admin_username"]:
            admin = (params["admin_username"], params["admin_password"] or "", params["admin_database"])
            outcome = Administration(server, admin, wanted, module.check_mode).apply()
        else:
            outcome = Check(server, wanted).apply()
    return {
        "changes": outcome.changes,
        "server_version": outcome.server_version,
        "revisions": outcome.revisions,
        "artifact_roots": dict(outcome.artifact_roots),
        "diff": {"before": outcome.before, "after": outcome.after},
    }


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), ensure)


if __name__ == "__main__":
    main()
