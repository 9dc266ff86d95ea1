#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_drop_databases
short_description: Drop an environment's databases and roles in PostgreSQL
description:
  - Drops what M(mlflow_database) has made, with all that is in it, whoever is connected. There is no way back but a
    backup.
  - A database that is not marked as the environment's is refused, and so are roles that hold anything else; nothing is
    dropped then.
  - C(community.postgresql.postgresql_db) drops a database too, but knows nothing of marks and of the way through the
    API server.
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
    description: A superuser, or the role with CREATEROLE and CREATEDB that made them.
    type: str
    required: true
  admin_password:
    description: The administrator's password.
    type: str
    required: true
  admin_database:
    description: The database that the administrator connects to.
    type: str
    default: postgres
  databases:
    description: The databases.
    type: list
    elements: str
    required: true
  roles:
    description: The roles.
    type: list
    elements: str
    default: []
  environment:
    description: The environment whose they are marked as.
    type: str
    required: true
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
  - mlflow.tls
attributes:
  check_mode:
    description: It reads what it would read and drops nothing.
    support: full
  diff_mode:
    description: What would be absent.
    support: full
"""

EXAMPLES = r"""
- name: Drop what was dev's
  mlflow_drop_databases:
    host: dev-postgres.pgsql.svc.cluster.local
    port: 5434
    admin_username: postgres
    admin_password: "{{ vault_postgres_password }}"
    databases: [mlflow, mlflow_auth]
    roles: [mlflow, mlflow_migrator]
    environment: dev
"""

RETURN = r"""
changes:
  description: What was dropped, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [dropped database mlflow]
"""

from ansible.module_utils.ansible_mlflow import database, database_drop
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, reach_service
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5432},
    "reach": REACH_ARGUMENT,
    "admin_username": {"type": "str", "required": True},
    "admin_password": {"type": "str", "required": True, "no_log": True},
    "admin_database": {"type": "str", "default": "postgres"},
    "databases": {"type": "list", "elements": "str", "required": True},
    "roles": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "str", "required": True},
    **database.TLS_ARGUMENTS,
}


def drop(module: AnsibleModule) -> dict:
    params = module.params
    tls = database.Tls(params["tls_mode"], params["ca_certificate"])
    tls.check()
    admin = tuple(params[f"admin_{name}"] for name in ("username", "password", "database"))
    what = (params["databases"], params["roles"], params["environment"])
    cluster = Cluster(params["kubeconfig"], params["context"])
    with reach_service(params["host"], params["port"], params["reach"], cluster) as address:
        server = database.Server(params["host"], params["port"], address, tls)
        outcome = database_drop.drop(server, admin, *what, module.check_mode)
    return {"changes": outcome.changes, "diff": {"before": outcome.before, "after": outcome.after}}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), drop)


if __name__ == "__main__":
    main()
