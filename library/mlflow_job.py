#!/usr/bin/python
# Copyright: the ansible-mlflow authors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: mlflow_job
short_description: Run a Kubernetes Job to its end and return its report
description:
  - Creates a Job from a manifest, waits for its end and returns the last JSON object that it printed.
  - A finished Job of the same name is deleted first, and so is one that cannot start; for a running one it waits.
  - It fails within seconds of the failure, with the pod's own words - an image that cannot be pulled, a wrong
    configuration, a container that ended, a pod that no node can take, a quota that forbids it.
  - Running a Job to look at something is no change, so it always reports C(changed=false).
options:
  namespace:
    description: Namespace of the Job.
    type: str
    required: true
  job:
    description: The manifest of the Job (C(batch/v1)).
    type: dict
    required: true
  timeout:
    description: How many seconds the run may take in all.
    type: int
    default: 600
  keep:
    description:
      - Keep the Job after success. One that ran and failed is always kept, to be looked at; the next run replaces it.
      - One that could not start is always deleted, so that it does not start when nobody watches.
    type: bool
    default: false
extends_documentation_fragment:
  - mlflow
attributes:
  check_mode:
    description: It does nothing in check mode.
    support: full
  diff_mode:
    description: It changes nothing.
    support: none
"""

EXAMPLES = r"""
- name: Verify with a real client
  mlflow_job:
    kubeconfig: "{{ mlflow_environment_kubeconfig }}"
    namespace: mlflow-dev
    job: "{{ lookup('ansible.builtin.template', 'job.yml.j2') | from_yaml }}"
    timeout: 300
  register: verification
"""

RETURN = r"""
report:
  description: The JSON object of the last line of output that is one; empty when there is none.
  returned: always, not in check mode
  type: dict
log:
  description: The last lines of output.
  returned: always, not in check mode
  type: str
seconds:
  description: How long it took.
  returned: success, not in check mode
  type: float
"""

from ansible.module_utils.ansible_mlflow.errors import run
from ansible.module_utils.ansible_mlflow.jobs import JobRun, checked_manifest
from ansible.module_utils.ansible_mlflow.kubernetes import CONNECTION_ARGUMENTS, Cluster
from ansible.module_utils.basic import AnsibleModule

ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "namespace": {"type": "str", "required": True},
    "job": {"type": "dict", "required": True},
    "timeout": {"type": "int", "default": 600},
    "keep": {"type": "bool", "default": False},
}


def run_job(module: AnsibleModule) -> dict:
    params = module.params
    if module.check_mode:
        manifest = checked_manifest(params["job"], params["namespace"])
        name = manifest["metadata"]["name"]
        return {"changed": False, "skipped": True, "msg": f"check mode: Job {params['namespace']}/{name} was not run"}
    cluster = Cluster(params["kubeconfig"], params["context"])
    job = JobRun(cluster, params["namespace"], params["job"], params["timeout"])
    report, log = job.run()
    if not params["keep"]:
        job.delete()
    return {"changed": False, "report": report or {}, "log": log, "seconds": job.seconds}


def main() -> None:
    run(AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True), run_job)


if __name__ == "__main__":
    main()
