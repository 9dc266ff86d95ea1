#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_vault
short_description: Read secrets out of HashiCorp Vault or OpenBao
description:
  - Logs in and reads secrets of a KV v2 engine, with the connection and the logins of the collection
    C(community.hashi_vault). A server that is sealed, away or refuses is told in one line, within 10 seconds.
  - It returns secrets, so a task that uses it sets C(no_log).
options:
  url:
    description: Address of the server.
    type: str
    required: true
  ca_cert:
    description: File with the CA's certificates. Without it, the system's.
    type: path
  namespace:
    description: Vault's namespace.
    type: str
  auth_method:
    description: How to log in.
    type: str
    choices: [token, approle, kubernetes]
    default: token
  mount_point:
    description: Where the login is mounted below C(auth/); without it, by the name of its method.
    type: str
  token:
    description: For V(token). Without it, that of C(~/.vault-token), which C(vault login) leaves.
    type: str
  role_id:
    description: For V(approle), and the role's name for V(kubernetes).
    type: str
  secret_id:
    description: For V(approle).
    type: str
  jwt_file:
    description: For V(kubernetes), the file with the ServiceAccount's token.
    type: path
  engine:
    description: Where the KV v2 engine is mounted.
    type: str
    required: true
  paths:
    description: The secrets in it. One that is not there is an error.
    type: list
    elements: str
    required: true
author:
  - The ansible-mlflow authors
requirements:
  - hvac
  - the collection community.hashi_vault
attributes:
  check_mode:
    description: It reads only, so it does the same in check mode.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Read the environment's secrets
  mlflow_vault:
    url: https://vault.example.com:8200
    auth_method: approle
    role_id: "{{ mlflow_environment_vault_role_id }}"
    secret_id: "{{ mlflow_environment_vault_secret_id }}"
    engine: secret
    paths: [mlflow/prod, mlflow/prod/users]
  register: vault
  no_log: true
"""

RETURN = r"""
secrets:
  description: The data of the secrets by path.
  returned: success
  type: dict
"""

from ansible.module_utils.ansible_mlflow import vault
from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "ca_cert": {"type": "path"},
    "namespace": {"type": "str"},
    "auth_method": {"type": "str", "choices": ["token", "approle", "kubernetes"], "default": "token"},
    "mount_point": {"type": "str"},
    "token": {"type": "str", "no_log": True},
    "role_id": {"type": "str"},
    "secret_id": {"type": "str", "no_log": True},
    "jwt_file": {"type": "path"},
    "engine": {"type": "str", "required": True},
    "paths": {"type": "list", "elements": "str", "required": True},
}


def read(module: AnsibleModule) -> dict:
    settings = dict(module.params)
    engine, paths, file = settings.pop("engine"), settings.pop("paths"), settings.pop("jwt_file")
    if settings["auth_method"] == "kubernetes":
        settings["jwt"] = service_account_token(file)
    return {"changed": False, "secrets": vault.read(settings, engine, paths)}


def service_account_token(file: str | None) -> str:
    """The token that a pod has in a file.

    :raises Error: naming the file, where there is none to read.
    """
    try:
        with open(file or "", encoding="utf-8") as opened:
            return opened.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(
            f"mlflow_environment_vault_jwt_file: {getattr(error, 'strerror', None) or 'no text'} ({file}); "
            "expected the file with the token of a pod's ServiceAccount"
        ) from None


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), read)


if __name__ == "__main__":
    main()
