"""Encrypts anew what a former key has encrypted: the secrets of MLflow's gateway, and those of its webhooks.

Each database is changed in one transaction. What the present key opens already is left, so that a run which broke off,
or servers that still encrypt with the former key, are put right by another run. MLflow's own `crypto rotate-kek` does
the same with the same functions; but it takes the passphrase as an argument, which a process list shows, and counts a
version up that every server has to be told from then on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from cryptography.fernet import Fernet, InvalidToken

LOCK_TIMEOUT = "20s"


class UnreadableError(Exception):
    """Neither key opens it."""


def gateway_key(former: str, new: str, version: int) -> Callable[[bytes], bytes]:
    """What gives the key of a gateway's secret, wrapped with the new passphrase's, for one of either passphrase's."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.crypto import KEKManager, unwrap_dek, wrap_dek

    former_key, new_key = (KEKManager(passphrase, version).get_kek() for passphrase in (former, new))

    def change(wrapped: bytes) -> bytes:
        try:
            unwrap_dek(wrapped, new_key)
        except MlflowException:
            try:
                return wrap_dek(unwrap_dek(wrapped, former_key), new_key)
            except MlflowException:
                raise UnreadableError from None
        return wrapped

    return change


def webhook_secret(former: str, new: str) -> Callable[[str], str]:
    """What gives a webhook's secret, encrypted with the new key, for one encrypted with either key."""
    former_key, new_key = Fernet(former), Fernet(new)

    def change(secret: str) -> str:
        try:
            new_key.decrypt(secret.encode())
        except InvalidToken:
            try:
                return new_key.encrypt(former_key.decrypt(secret.encode())).decode()
            except InvalidToken:
                raise UnreadableError from None
        return secret

    return change


def encrypt(uri: str, columns: tuple[str, str, str, str], change: Callable) -> dict[str, list[str] | int]:
    """Change one column of one table.

    :param columns: the table, its key, the people's name of a row, and what is encrypted.
    :returns: how many were changed, and the names of those that nobody can read.
    """
    import sqlalchemy

    table, key, name, encrypted = columns
    changed, unreadable = 0, []
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        # Releases before the gateway and the webhooks have no such table.
        if not sqlalchemy.inspect(connection).has_table(table):
            return {"changed": 0, "unreadable": []}
        lock = " FOR UPDATE" if connection.dialect.name == "postgresql" else ""
        query = (
            f"SELECT {key}, {name}, {encrypted} FROM {table} "  # noqa: S608 - constants of this file only
            f"WHERE {encrypted} IS NOT NULL ORDER BY {key}{lock}"
        )
        for identifier, label, value in connection.execute(sqlalchemy.text(query)).all():
            value = bytes(value) if isinstance(value, memoryview) else value
            try:
                anew = change(value)
            except UnreadableError:
                unreadable.append(label)
                continue
            if anew != value:
                statement = f"UPDATE {table} SET {encrypted} = :value WHERE {key} = :identifier"  # noqa: S608 - as above
                connection.execute(sqlalchemy.text(statement), {"value": anew, "identifier": identifier})
                changed += 1
    return {"changed": changed, "unreadable": unreadable}


def main() -> None:
    """Change what the environment gives keys for, and print a report as JSON."""
    given = os.environ
    found = {}
    if given["KEK_PASSPHRASE"]:
        version = int(given["MLFLOW_CRYPTO_KEK_VERSION"])
        change = gateway_key(given["FORMER_KEK_PASSPHRASE"], given["KEK_PASSPHRASE"], version)
        columns = ("secrets", "secret_id", "secret_name", "wrapped_dek")
        found["gateway secrets"] = encrypt(given["MLFLOW_BACKEND_STORE_URI"], columns, change)
    if given["WEBHOOK_KEY"]:
        change = webhook_secret(given["FORMER_WEBHOOK_KEY"], given["WEBHOOK_KEY"])
        columns = ("webhooks", "webhook_id", "name", "secret")
        found["webhooks"] = encrypt(given["MLFLOW_REGISTRY_STORE_URI"], columns, change)
    report = {
        "encrypted": {what: one["changed"] for what, one in found.items() if one["changed"]},
        "unreadable": {what: one["unreadable"] for what, one in found.items() if one["unreadable"]},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    from sqlalchemy.exc import SQLAlchemyError

    try:
        main()
    except SQLAlchemyError as error:
        # Without the statement, whose parameters would be shown.
        sys.exit(f"the database refused: {getattr(error, 'orig', None) or type(error).__name__}")
