#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_database_login
short_description: Give MLflow's servers a second login while their password changes
description:
  - PostgreSQL knows one password for a role. So that servers with the former one and servers with the new one can both
    connect, it makes a role of its own with the new password and the rights of the servers' role, and tries it.
  - The role's name is that of the servers' role with C(_rotation) behind it.
options:
  username:
    description: The servers' role.
    type: str
    required: true
  password:
    description: The password that it is to have, and that the second login gets.
    type: str
    required: true
  databases:
    description: The databases in which the login is tried.
    type: list
    elements: str
    required: true
  state:
    description:
      - Whether there is such a login. With V(present), it is not made where O(username) has O(password) already.
    type: str
    choices: [present, absent]
    default: present
requirements:
  - psycopg[binary]
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
  - mlflow.tls
  - mlflow.database_admin
attributes:
  check_mode:
    description: It reads what it would read and writes nothing, so that it does not try the login either.
    support: full
  diff_mode:
    description: The role, without its password.
    support: full
"""

EXAMPLES = r"""
- name: Let the servers log in with their next password
  mlflow_database_login:
    host: postgres-prod.pgsql.svc.cluster.local
    admin_username: postgres
    admin_password: "{{ vault_postgres_admin_password }}"
    username: mlflow
    password: "{{ vault_mlflow_next_database_password }}"
    databases: [mlflow, mlflow_auth]
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: ["created role mlflow_rotation, for the time being"]
username:
  description: Who can log in with the password - the second login, or O(username) where that has it already.
  returned: success
  type: str
  sample: mlflow_rotation
"""

from ansible.module_utils.ansible_mlflow import administrators, database
from ansible.module_utils.ansible_mlflow.database_rotation import SecondLogin
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **administrators.DATABASE_ARGUMENTS,
    "username": {"type": "str", "required": True},
    "password": {"type": "str", "required": True, "no_log": True},
    "databases": {"type": "list", "elements": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def ensure(module: AnsibleModule) -> dict:
    params = module.params
    runtime = database.Role("username", "database_password", params["username"], params["password"])
    # Nothing here concerns the other role.
    wanted = database.Wanted(runtime, runtime, list(dict.fromkeys(params["databases"])))
    with administrators.database_server(params) as (server, admin):
        login = SecondLogin(server, admin, wanted, module.check_mode)
        if params["state"] == "absent":
            outcome, is_needed = login.drop(), False
        else:
            outcome, is_needed = login.ensure()
    username = login.role.username if is_needed else params["username"]
    diff = {"before": outcome.before, "after": outcome.after}
    return {"changes": outcome.changes, "username": username, "diff": diff}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), ensure)


if __name__ == "__main__":
    main()
