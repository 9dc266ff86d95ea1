#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_manifests
short_description: Write Kubernetes objects into the files of a Git working tree
description:
  - Each folder holds exactly the given objects, a file for each. Files of objects that are no longer given are removed,
    files that this module did not write are left alone.
  - The same objects are always the same bytes, with sorted keys and without a time.
  - M(ansible.builtin.copy) in a loop takes 0.3 s for each file, and removes none.
options:
  directory:
    description: The working tree, which has to be there.
    type: path
    required: true
  folders:
    description: Lists of objects by the path of their folder in the working tree. A Secret is refused.
    type: dict
    required: true
author:
  - ansible-mlflow contributors
attributes:
  check_mode:
    description: Reports what would be written.
    support: full
  diff_mode:
    description: Each file that changes, before and after.
    support: full
"""

EXAMPLES = r"""
- name: Write an environment's objects
  mlflow_manifests:
    directory: ../deployments
    folders:
      environments/dev:
        - apiVersion: v1
          kind: Namespace
          metadata:
            name: mlflow-dev
"""

RETURN = r"""
changes:
  description: What was written, or would be in check mode.
  returned: success
  type: list
  elements: str
  sample: [created environments/dev/namespace-mlflow-dev.yaml]
"""

from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.manifests import write_all
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    "directory": {"type": "path", "required": True},
    "folders": {"type": "dict", "required": True},
}


def write(module: AnsibleModule) -> dict:
    written = write_all(module.params["directory"], module.params["folders"], module.check_mode)
    return {"changes": written.changes, "diff": written.diffs}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), write)


if __name__ == "__main__":
    main()
