#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_tfvars
short_description: Write an environment's inventory from a terraform.tfvars
description:
  - Reads a tfvars whose values are all literal, and writes what it says into the inventory of an environment. What the
    inventory says already is not written again, and no file that is there is changed.
  - Secrets go to C(group_vars/<environment>/vault.yml), which is encrypted with the vault password of the run before
    it is written. Only Ansible itself has that password, so that the action plugin of the same name writes the files
    that this module puts together.
  - Everything is looked at before anything is written. No message and no diff has a value of a secret.
options:
  path:
    description: The tfvars.
    type: path
    required: true
  directory:
    description: The folder of the inventories, with C(common/group_vars/all) in it.
    type: path
    required: true
  environment:
    description: The environment's name. Empty where the tfvars says it, as C(environment).
    type: str
    default: ""
  leave_out:
    description: Names in the tfvars that may be left out, since there is no variable for them.
    type: list
    elements: str
    default: []
requirements:
  - python-hcl2
author:
  - ansible-mlflow contributors
attributes:
  check_mode:
    description: Reports what would be written.
    support: full
  diff_mode:
    description: Each file that is written; of secrets, the names.
    support: full
"""

EXAMPLES = r"""
- name: Take over what Terraform was told
  mlflow_tfvars:
    path: terraform/prod.tfvars
    directory: inventories
    environment: prod
    leave_out: [tags]
"""

RETURN = r"""
environment:
  description: The environment's name.
  returned: success
  type: str
  sample: prod
directory:
  description: The folder of its inventory.
  returned: success
  type: str
  sample: inventories/prod
changes:
  description: The files that were written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [inventories/prod/hosts.yml]
problems:
  description: What cannot be taken over, or is in the way.
  returned: when something is
  type: list
  elements: str
  sample: ["line 3: a reference; expected a literal value"]
left_out:
  description: What is in the tfvars and has no variable.
  returned: success
  type: list
  elements: str
  sample: [tags]
"""

from pathlib import Path

from ansible.module_utils.ansible_mlflow.errors import Error, run
from ansible.module_utils.ansible_mlflow.tfvars import files_of, inventory_of
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "path": {"type": "path", "required": True},
    "directory": {"type": "path", "required": True},
    "environment": {"type": "str", "default": ""},
    "leave_out": {"type": "list", "elements": "str", "default": []},
}


def put_together(module: AnsibleModule) -> dict:
    path = module.params["path"]
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Error(f"{path}: {error.strerror}; expected a terraform.tfvars") from None
    except UnicodeDecodeError:
        raise Error(f"{path}: it is no UTF-8; expected a terraform.tfvars") from None
    try:
        found = inventory_of(text, module.params["environment"], module.params["leave_out"])
    except Error as error:
        raise Error(f"{path}: {error}", **error.details) from None
    # The action plugin takes the files out of what this task returns, writes them, and adds what it has changed.
    return {
        "changed": False,
        "environment": found.environment,
        "left_out": found.left_out,
        "files": files_of(found),
    }


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), put_together)


if __name__ == "__main__":
    main()
