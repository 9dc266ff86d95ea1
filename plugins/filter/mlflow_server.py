"""Filters that write MLflow's configuration, each value escaped for the layer it ends in."""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlsplit

# MLflow's own defaults for private addresses, by which kubelet and Prometheus call a pod (RFC 1918).
PRIVATE_ADDRESSES = ["10.*", "192.168.*", "172.1[6-9].*", "172.2[0-9].*", "172.3[01].*"]


def database_uri(database: str, *, host: str, port: int, username: str) -> str:
    """The SQLAlchemy URL of a PostgreSQL database, without a password: libpq reads that from PGPASSWORD.

    The driver is named because SQLAlchemy 2.1 takes psycopg 3 for a bare `postgresql://`, and MLflow's image has
    psycopg 2.
    """
    return f"postgresql+psycopg2://{quote(username, safe='')}@{host}:{int(port)}/{quote(database, safe='')}"


def database_environment(schema: str, *, tls_mode: str, ca_file: str) -> dict[str, str]:
    """The environment variables by which libpq finds the schema and protects a connection; none for its defaults.

    They hold for every client in a container, also for those that are given an address without them.

    Args:
        schema: The schema of MLflow's tables; empty for public.
        tls_mode: libpq's sslmode.
        ca_file: Where the container has the authority's certificate.
    """
    found = {"PGSSLMODE": tls_mode} if tls_mode != "prefer" else {}
    if tls_mode in ("verify-ca", "verify-full"):
        found["PGSSLROOTCERT"] = ca_file
    if schema:
        # The server splits options at white space, which a backslash makes part of the option.
        name = re.sub(r"([\\\s])", r"\\\1", schema.replace('"', '""'))
        found["PGOPTIONS"] = f'-csearch_path="{name}"'
    return found


def basic_auth_ini(options: dict[str, Any]) -> str:
    """The text of MLflow's basic_auth.ini, section `mlflow`.

    MLflow reads it with configparser's interpolation, in which a `%` is written `%%`.
    """
    parser = configparser.ConfigParser()
    parser["mlflow"] = {name: str(value).replace("%", "%%") for name, value in options.items()}
    text = io.StringIO()
    parser.write(text)
    return text.getvalue().strip() + "\n"


def variables_from(names: Iterable[str], **source: str) -> list[dict[str, Any]]:
    """A container's environment variables, each from the key of its own name.

    Args:
        names: The variables.
        source: configMap or secret, and the object's name.
    """
    [(kind, name)] = source.items()
    return [{"name": key, "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key}}} for key in sorted(names)]


def allowed_hosts(service: str, *, namespace: str, url: str, extra: list[str] | str) -> str:
    """The Host headers that MLflow answers to (MLFLOW_SERVER_ALLOWED_HOSTS), separated by commas.

    MLflow compares the port too, so that each name is there with and without one. Setting the list replaces MLflow's
    own, so that localhost and the private addresses are in it again.

    Args:
        service: Name of the Service.
        namespace: Its namespace.
        url: The address at which people reach it.
        extra: More names or addresses, as users write them: with a port or without.
    """
    names = ["localhost", "127.0.0.1", "[::1]", service, f"{service}.{namespace}"]
    names += [f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local"]
    names += [re.sub(r":[0-9]+$", "", urlsplit(url).netloc)]
    # Extra variables of the command line are texts, which Ansible accepts for a list as it does for a module's.
    names += extra.split(",") if isinstance(extra, str) else extra
    # In an entry with an asterisk a bracket opens a class of characters, and means itself only in a class of its own.
    hosts = [host for name in names for host in (name, f"{name.replace('[', '[[]')}:*")]
    return ",".join(dict.fromkeys(hosts + PRIVATE_ADDRESSES))


def memory_megabytes(workers: int, *, job_execution: bool) -> int:
    """The memory in MiB that a pod needs: measured figures with room for an upload.

    Measured for MLflow 3.17.2: 367 MB with one worker, 571 with two, 927 with four, and 1.3 GB more for the processes
    of job execution.
    """
    return 512 + 384 * int(workers) + (1536 if job_execution else 0)


def unwanted_objects(
    kinds: list[dict[str, str]], wanted: list[dict[str, Any]], *, name: str, namespace: str
) -> list[dict[str, Any]]:
    """The objects that are not wanted of all those that some settings make, each by its name alone.

    Args:
        kinds: `apiVersion` and `kind` of each, and its `name` where that is not the usual one.
        wanted: The objects that are wanted.
        name: The usual name.
        namespace: The namespace of all of them.
    """
    kept = {(item["kind"], item["metadata"]["name"]) for item in wanted}
    return [
        {
            "apiVersion": kind["apiVersion"],
            "kind": kind["kind"],
            "metadata": {"name": kind.get("name", name), "namespace": namespace},
        }
        for kind in kinds
        if (kind["kind"], kind.get("name", name)) not in kept
    ]


def spread(key: str, *, selector: dict[str, Any]) -> dict[str, Any]:
    """A pod's wish to be where fewest others of its version are, which keeps no pod from starting.

    Args:
        key: The label that tells places apart, such as a node's name.
        selector: The pods that are spread.
    """
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": selector,
        "matchLabelKeys": ["pod-template-hash"],
    }


def labelled(kinds: list[dict[str, str]], *, namespace: str, labels: dict[str, str]) -> list[dict[str, Any]]:
    """All objects of some kinds that have the labels, as the module mlflow_apply removes them.

    Args:
        kinds: `apiVersion` and `kind` of each.
        namespace: Where they are.
        labels: What they are labelled with.
    """
    metadata = {"namespace": namespace, "labels": labels}
    return [{"apiVersion": kind["apiVersion"], "kind": kind["kind"], "metadata": metadata} for kind in kinds]


class FilterModule:
    """Ansible's list of the filters here."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {
            "mlflow_database_uri": database_uri,
            "mlflow_database_environment": database_environment,
            "mlflow_basic_auth_ini": basic_auth_ini,
            "mlflow_variables_from": variables_from,
            "mlflow_allowed_hosts": allowed_hosts,
            "mlflow_memory_megabytes": memory_megabytes,
            "mlflow_labelled": labelled,
            "mlflow_unwanted_objects": unwanted_objects,
            "mlflow_server_spread": spread,
        }
