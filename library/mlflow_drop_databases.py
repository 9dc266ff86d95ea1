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
  databases:
    description: The databases.
    type: list
    elements: str
    required: true
  roles:
    description:
      - The roles. The second logins that M(mlflow_database_login) has made for them go too, where a rotation broke off.
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
  - mlflow.database_admin
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

from ansible.module_utils.ansible_mlflow import administrators, database_drop
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **administrators.DATABASE_ARGUMENTS,
    "databases": {"type": "list", "elements": "str", "required": True},
    "roles": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "str", "required": True},
}


def drop(module: AnsibleModule) -> dict:
    params = module.params
    what = (params["databases"], params["roles"], params["environment"])
    with administrators.database_server(params) as (server, admin):
        outcome = database_drop.drop(server, admin, *what, module.check_mode)
    return {"changes": outcome.changes, "diff": {"before": outcome.before, "after": outcome.after}}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), drop)


if __name__ == "__main__":
    main()
