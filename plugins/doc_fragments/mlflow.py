"""The options that several modules of library/ share, documented once."""

from __future__ import annotations


class ModuleDocFragment:
    """Named by `extends_documentation_fragment`: `mlflow` is the first text, `mlflow.reach` the second, and so on."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: Path of the kubeconfig. By default E(KUBECONFIG), C(~/.kube/config) or, in a pod, its service account.
    type: path
  context:
    description: Name of a context in the kubeconfig; its current one by default.
    type: str
requirements:
  - kubernetes >= 30
author:
  - the ansible-mlflow authors
"""

    REACH = r"""
options:
  reach:
    description:
      - How to reach a name like C(<service>.<namespace>.svc.cluster.local).
      - C(direct) connects to it, C(tunnel) goes through the API server of the cluster, C(auto) takes the tunnel if the
        name does not lead there from here. Other names are always connected to directly.
    type: str
    choices: [auto, direct, tunnel]
    default: auto
"""

    TLS = r"""
options:
  tls_mode:
    description:
      - How the connection is protected, as libpq's sslmode says it.
      - What verify-full compares the certificate with is O(host), through a tunnel too.
    type: str
    choices: [disable, prefer, require, verify-ca, verify-full]
    default: prefer
  ca_certificate:
    description: With verify-ca and verify-full, the certificate of the authority, as PEM text.
    type: str
    default: ""
"""

    DATABASE_ADMIN = r"""
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
    description: A superuser, or the role with CREATEROLE and CREATEDB that made the environment's.
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
"""

    OBJECT_STORE_ADMIN = r"""
options:
  endpoint:
    description: C(http://host[:port]) or C(https://host[:port]), without path or bucket.
    type: str
    required: true
  region:
    description: The region to sign for.
    type: str
    default: us-east-1
  bucket:
    description: The bucket.
    type: str
    required: true
  admin_access_key:
    description: An administrator's access key of the object store.
    type: str
    required: true
  admin_secret_key:
    description: The administrator's secret key.
    type: str
    required: true
"""
