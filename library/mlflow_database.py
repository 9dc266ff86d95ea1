#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_database
short_description: Give MLflow its PostgreSQL role and databases
description:
  - Ensures a role that can log in and nothing else, and databases that it owns and nobody else may enter.
  - Restores the owner's rights on the databases, their schema public and its tables when somebody revoked them.
  - A database of another owner is refused and left alone; so is a PostgreSQL older than 15.
  - Without an administrator it only sees that the role can log in to each database and create tables there, and else
    says which statements an administrator has to run.
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
    description: The role of MLflow.
    type: str
    required: true
  password:
    description: The password of that role.
    type: str
    required: true
  databases:
    description: The databases that the role owns.
    type: list
    elements: str
    required: true
requirements:
  - psycopg >= 3.1
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
attributes:
  check_mode:
    description: It reads what it would read and writes nothing.
    support: full
  diff_mode:
    description: What differs, without any password.
    support: full
"""

EXAMPLES = r"""
- name: Ensure role and databases
  mlflow_database:
    host: prod-postgres.pgsql.svc.cluster.local
    port: 5432
    admin_username: postgres
    admin_password: "{{ vault_postgres_admin_password }}"
    username: mlflow
    password: "{{ vault_mlflow_database_password }}"
    databases: [mlflow, mlflow_auth]

- name: See that the databases which another team made can be used
  mlflow_database:
    host: postgres.example.com
    reach: direct
    username: mlflow
    password: "{{ vault_mlflow_database_password }}"
    databases: [mlflow, mlflow_auth]
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [created role mlflow, created database mlflow]
server_version:
  description: Version of PostgreSQL.
  returned: success
  type: str
  sample: "17.6"
"""

from ansible.module_utils.ansible_mlflow import database
from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, reach_service
from ansible.module_utils.basic import AnsibleModule

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
    "databases": {"type": "list", "elements": "str", "required": True},
}


def ensure(module: AnsibleModule) -> dict:
    params = module.params
    # The tracking and the auth database may be one.
    names = list(dict.fromkeys(params["databases"]))
    wanted = database.Wanted(params["username"], params["password"], names)
    database.check_identifier(wanted.username, "username")
    for name in wanted.databases:
        database.check_identifier(name, "databases")
    if not wanted.password:
        raise Error("password: expected the password of the role, got an empty text")
    cluster = Cluster(params["kubeconfig"], params["context"])
    with reach_service(params["host"], params["port"], params["reach"], cluster) as address:
        server = database.Server(params["host"], params["port"], address)
        if params["admin_username"]:
            admin = (params["admin_username"], params["admin_password"] or "", params["admin_database"])
            outcome = database.Administration(server, admin, wanted, module.check_mode).apply()
        else:
            outcome = database.check_as_role(server, wanted)
    result = {
        "changed": bool(outcome.changes),
        "changes": outcome.changes,
        "server_version": outcome.server_version,
    }
    if module._diff:
        result["diff"] = {"before": outcome.before, "after": outcome.after}
    return result


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), ensure)


if __name__ == "__main__":
    main()
