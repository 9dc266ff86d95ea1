"""Policies of an S3 server: what MLflow's key may do, and who else may."""

from __future__ import annotations

import json

# What MLflow's S3 client needs and no more: listing also makes S3 answer 404 instead of 403 for an absent object. The
# backup writes down whether the bucket keeps versions. A promotion goes on with an upload in parts that was cut off.
BUCKET_ACTIONS = ["s3:GetBucketVersioning", "s3:ListBucket", "s3:ListBucketMultipartUploads"]
# Who may delete an object may delete its older versions too, at MinIO, unless that is forbidden in so many words.
DENIED_ACTIONS = ["s3:DeleteObjectVersion"]
# MinIO shows the names of the buckets to whoever may list one of them at its root, as a browser does. MLflow lists
# below an experiment's prefix; a listing of everything has no delimiter.
ROOT_LISTING = {"StringEquals": {"s3:delimiter": ["/"], "s3:prefix": [""]}}
OBJECT_ACTIONS = [
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
]


def policy_name(bucket: str, access_key: str) -> str:
    """What the policy of a key on a bucket is called."""
    return f"{bucket}-{access_key}"


def policy_for(bucket: str, append_only: bool = False) -> dict:
    """The policy that allows exactly what MLflow needs on one bucket, or all of it but deleting objects."""
    arn = f"arn:aws:s3:::{bucket}"
    actions = [action for action in OBJECT_ACTIONS if not (append_only and action == "s3:DeleteObject")]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": BUCKET_ACTIONS, "Resource": [arn]},
            {"Effect": "Allow", "Action": actions, "Resource": [f"{arn}/*"]},
            {"Effect": "Deny", "Action": DENIED_ACTIONS, "Resource": [f"{arn}/*"]},
            {"Effect": "Deny", "Action": ["s3:ListBucket"], "Resource": [arn], "Condition": ROOT_LISTING},
        ],
    }


def normalised(policy: dict) -> list:
    """A policy's statements in a form that compares equal whatever their order and spelling."""
    statements = policy.get("Statement") or []
    if isinstance(statements, dict):
        statements = [statements]
    return sorted(
        json.dumps(
            {key: sorted(value) if isinstance(value, list) else ([value] if key != "Effect" else value)
             for key, value in statement.items() if value and key != "Sid"},
            sort_keys=True,
        )
        for statement in statements
    )  # fmt: skip


def allows_anonymous(policy_text: str) -> bool:
    """Whether a bucket policy lets anybody in without a key."""
    statements = json.loads(policy_text or "{}").get("Statement") or []
    for statement in [statements] if isinstance(statements, dict) else statements:
        principal = statement.get("Principal")
        names = principal.get("AWS") if isinstance(principal, dict) else principal
        if statement.get("Effect") == "Allow" and "*" in (names if isinstance(names, list) else [names]):
            return True
    return False
