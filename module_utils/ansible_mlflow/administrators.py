"""How modules that only an administrator can use reach PostgreSQL and the object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import database, object_store
from .kubernetes import CONNECTION_ARGUMENTS, Cluster
from .tunnel import REACH_ARGUMENT, reach_service

# Documented in plugins/doc_fragments/mlflow.py.
DATABASE_ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "host": {"type": "str", "required": True},
    "port": {"type": "int", "default": 5432},
    "reach": REACH_ARGUMENT,
    "admin_username": {"type": "str", "required": True},
    "admin_password": {"type": "str", "required": True, "no_log": True},
    "admin_database": {"type": "str", "default": "postgres"},
    **database.TLS_ARGUMENTS,
}
OBJECT_STORE_ARGUMENTS = {
    **CONNECTION_ARGUMENTS,
    "endpoint": {"type": "str", "required": True},
    "reach": REACH_ARGUMENT,
    "region": {"type": "str", "default": "us-east-1"},
    "bucket": {"type": "str", "required": True},
    # The names of keys are no secrets; masked, every message that names one would be unreadable.
    "admin_access_key": {"type": "str", "required": True, "no_log": False},
    "admin_secret_key": {"type": "str", "required": True, "no_log": True},
}


@contextmanager
def database_server(params: dict) -> Iterator[tuple[database.Server, tuple[str, str, str]]]:
    """PostgreSQL while it is reached, and the administrator: user name, password and the database to connect to.

    :raises Error: it cannot be reached, or the options of TLS cannot be.
    """
    tls = database.Tls(params["tls_mode"], params["ca_certificate"])
    tls.check()
    admin = (params["admin_username"], params["admin_password"], params["admin_database"])
    cluster = Cluster(params["kubeconfig"], params["context"])
    with reach_service(params["host"], params["port"], params["reach"], cluster) as address:
        yield database.Server(params["host"], params["port"], address, tls), admin


@contextmanager
def store(params: dict) -> Iterator[object_store.Store]:
    """The object store as its administrator sees it, while it is reached.

    :raises Error: it cannot be reached, or the endpoint or the bucket's name cannot be.
    """
    endpoint = object_store.parse_endpoint(params["endpoint"])
    object_store.check_bucket_name(params["bucket"])
    cluster = Cluster(params["kubeconfig"], params["context"])
    key = (params["admin_access_key"], params["admin_secret_key"])
    with reach_service(endpoint.host, endpoint.port, params["reach"], cluster) as address:
        yield object_store.Store(endpoint, address, params["region"], *key)
