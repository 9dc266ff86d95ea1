#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_access
short_description: Bring MLflow's administrator, users, roles and permissions into the wanted state
description:
  - Sees that the administrator can log in, and gives it the wanted password where MLflow still has the former one.
  - Creates users and roles, and gives and changes their permissions, by MLflow's HTTP API, in the workspace
    C(default).
  - Whether a user has the wanted password is asked of MLflow's database, past what the servers remember of logins. It
    costs the server two hashes, a fifth of a second, for each user.
  - The administrator that makes the changes is never demoted, deleted or deprived of anything.
options:
  host:
    description: Name of MLflow's server, one that it answers to.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    default: 5000
  path_prefix:
    description: The path below which the server answers.
    type: str
    default: ""
  admin_username:
    description: The administrator that makes the changes.
    type: str
    required: true
  admin_password:
    description: The password that the administrator should have.
    type: str
    required: true
  former_admin_password:
    description: The password that the administrator had at the last run. Empty or left out if it is not known.
    type: str
  users:
    description: Users besides that administrator.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The user's name.
        type: str
        required: true
      password:
        description: The user's password, of 12 characters or more.
        type: str
        required: true
      administrator:
        description: Whether the user may do everything.
        type: bool
        default: false
      roles:
        description: Names of the user's roles.
        type: list
        elements: str
        default: []
      permissions:
        description: Permissions that the user has without a role.
        type: list
        elements: dict
        default: []
        suboptions: &permission
          resource_type:
            description: Type of the resource, in MLflow's words.
            type: str
            required: true
          resource:
            description:
              - Name of an experiment, or what MLflow's C(resource_pattern) is for another type, such as the name of a
                registered model or prompt; C(*) for every resource of the type.
            type: str
            required: true
          permission:
            description: What may be done, in MLflow's words.
            type: str
            required: true
            choices: [READ, USE, EDIT, MANAGE, DENY]
  roles:
    description: Roles and their permissions.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The role's name.
        type: str
        required: true
      permissions:
        description: The role's permissions.
        type: list
        elements: dict
        default: []
        suboptions: *permission
  prune:
    description:
      - Whether users, roles, memberships and permissions that are not stated are taken away.
      - A user's MANAGE on one named resource stays, since MLflow gives it to whoever makes a resource.
    type: bool
    default: false
requirements:
  - urllib3 >= 2
extends_documentation_fragment:
  - mlflow
  - mlflow.reach
attributes:
  check_mode:
    description:
      - It logs in and reads as it always does, and writes nothing. Where no server runs yet it tells what it will do on
        an empty one.
    support: full
  diff_mode:
    description: The users and roles that differ, without any password.
    support: full
"""

EXAMPLES = r"""
- name: A team that works on one experiment and one model, and somebody who may look
  mlflow_access:
    host: mlflow-prod.mlflow-prod.svc.cluster.local
    admin_username: admin
    admin_password: "{{ vault_mlflow_admin_password }}"
    roles:
      - name: churn-team
        permissions:
          - {resource_type: experiment, resource: churn, permission: EDIT}
          - {resource_type: registered_model, resource: churn, permission: MANAGE}
    users:
      - name: alice
        password: "{{ vault_alice_password }}"
        roles: [churn-team]
      - name: bob
        password: "{{ vault_bob_password }}"
        permissions:
          - {resource_type: experiment, resource: "*", permission: READ}
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [created user alice in MLflow, gave user alice EDIT on experiment churn]
"""

from ansible.module_utils.ansible_mlflow import access, access_server
from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.ansible_mlflow.tunnel import REACH_ARGUMENT, NoServiceError, reach_service
from ansible.module_utils.basic import AnsibleModule

PERMISSIONS = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "resource_type": {"type": "str", "required": True},
        "resource": {"type": "str", "required": True},
        "permission": {"type": "str", "required": True, "choices": ["READ", "USE", "EDIT", "MANAGE", "DENY"]},
    },
}
NAME = {"type": "str", "required": True}
ARGUMENTS = {
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5000},
    "path_prefix": {"type": "str", "default": ""},
    "reach": REACH_ARGUMENT,
    **CONNECTION_ARGUMENTS,
    "admin_username": {"type": "str", "required": True},
    "admin_password": {"type": "str", "required": True, "no_log": True},
    "former_admin_password": {"type": "str", "no_log": True},
    "users": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": NAME,
            "password": {"type": "str", "required": True, "no_log": True},
            "administrator": {"type": "bool", "default": False},
            "roles": {"type": "list", "elements": "str", "default": []},
            "permissions": PERMISSIONS,
        },
    },
    "roles": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": NAME, "permissions": PERMISSIONS},
    },
    "prune": {"type": "bool", "default": False},
}


def stated(permissions: list[dict]) -> dict[access.Resource, str]:
    return {(entry["resource_type"], entry["resource"]): entry["permission"] for entry in permissions}


def ensure(module: AnsibleModule) -> dict:
    params = module.params
    wanted = access_server.Wanted(
        administrator=params["admin_username"],
        password=params["admin_password"],
        former_password=params["former_admin_password"] or "",
        state=access.State(
            {
                user["name"]: access.User(user["administrator"], frozenset(user["roles"]), stated(user["permissions"]))
                for user in params["users"]
            },
            {role["name"]: stated(role["permissions"]) for role in params["roles"]},
        ),
        passwords={user["name"]: user["password"] for user in params["users"]},
        prune=params["prune"],
    )
    cluster = Cluster(params["kubeconfig"], params["context"])
    try:
        with reach_service(params["host"], params["port"], params["reach"], cluster) as address:
            server = access_server.Server(params["host"], params["port"], address, params["path_prefix"])
            outcome = access_server.ensure(server, wanted, module.check_mode)
    except NoServiceError as error:
        if not module.check_mode:
            raise
        outcome = access_server.foreseen(wanted)
        if outcome.changes:
            module.warn(f"{error}: what would change is told as if MLflow had no user but the administrator")
    for warning in outcome.warnings:
        module.warn(warning)
    return {"changes": outcome.changes, "diff": {"before": outcome.before, "after": outcome.after}}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), ensure)


if __name__ == "__main__":
    main()
