"""An environment's objects, bucket and access key, taken away for good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import Error
from .object_store import Store
from .object_store_bucket import Outcome
from .object_store_policy import policy_name

SHOWN = 3


def delete(admin: Store, bucket: str, prefix: str, access_key: str, check_mode: bool) -> Outcome:
    """Delete every version of the objects below a prefix, the bucket if it is empty then, and the access key.

    :param admin: the store as its administrator sees it.
    :param prefix: empty for all objects.
    :param access_key: a user of MinIO, with the policy that mlflow_bucket has made; empty to delete none.
    :raises Error: the server keeps some of them.
    """
    outcome = Outcome()
    if admin.look(bucket) != "absent":
        _delete_objects(admin, bucket, prefix, check_mode, outcome)
    if access_key and admin.user(access_key) is not None:
        _note(outcome, f"access key {access_key}")
        if not check_mode:
            admin.remove_user(access_key)
    policy = policy_name(bucket, access_key)
    if access_key and admin.policy(policy) is not None:
        _note(outcome, f"policy {policy}")
        if not check_mode:
            admin.remove_policy(policy)
    return outcome


def _delete_objects(admin: Store, bucket: str, prefix: str, check_mode: bool, outcome: Outcome) -> None:
    count, size, others = 0, 0, 0

    def wanted() -> Iterator[Any]:
        nonlocal count, size, others
        for item in admin.versions(bucket):
            if item.object_name.startswith(prefix):
                count, size = count + 1, size + (item.size or 0)
                yield item
            else:
                others += 1

    if check_mode:
        refused = []
        for _ in wanted():
            pass
    else:
        refused = admin.delete_versions(bucket, wanted())
    if refused:
        more = f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        raise Error(
            f"{admin.endpoint.url}, bucket {bucket}: {count - len(refused)} of {count} versions of objects were "
            f"deleted, and the server keeps the others ({', '.join(refused[:SHOWN])}{more})"
        )
    if count:
        where = f"below {prefix} in bucket {bucket}" if prefix else f"in bucket {bucket}"
        _note(outcome, f"{count} versions of objects {where}, {size} bytes")
    if not others:
        _note(outcome, f"bucket {bucket}")
        if not check_mode:
            admin.remove_bucket(bucket)


def _note(outcome: Outcome, what: str) -> None:
    outcome.note(f"deleted {what}", what, "present", "absent")
