"""Make the artifacts' bucket if it is missing and the environment's own key may; a container of the hook runs it.

Environment: MLFLOW_BUCKET, MLFLOW_S3_ENDPOINT_URL, and what boto3 reads.
"""

import os
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


def ensure(client, bucket: str, region: str) -> str:
    """Make the bucket unless it is there; the sentence that says what was found.

    :raises ClientError: the server refuses to tell, or to make it.
    """
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if code_of(error) not in ("404", "NoSuchBucket"):
            raise
    else:
        return f"bucket {bucket} is there"
    elsewhere = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    client.create_bucket(Bucket=bucket, **elsewhere)
    return f"made bucket {bucket}; site.yml adds versioning and the rules of its lifecycle"


def refusal(error: ClientError, bucket: str, endpoint: str, key: str) -> str:
    """What a refusal means for the operator."""
    if error.operation_name == "CreateBucket" and code_of(error) in ("403", "AccessDenied"):
        return (
            f"there is no bucket {bucket} at {endpoint}, and access key {key} may not make it: run site.yml, which has "
            f"the administrator's key, or let an administrator make it"
        )
    if error.operation_name == "HeadBucket" and code_of(error) == "403":
        return (
            f"access key {key} may not see bucket {bucket} at {endpoint}: it is somebody else's, or the key is another "
            f"environment's; run site.yml, which has the administrator's key"
        )
    return f"{error.operation_name} of bucket {bucket} at {endpoint} with access key {key} failed: {code_of(error)}"


def code_of(error: ClientError) -> str:
    """S3's word for what went wrong."""
    return str(error.response.get("Error", {}).get("Code", ""))


def main() -> int:
    """Make the bucket; 0 if it is there then."""
    bucket, endpoint = os.environ["MLFLOW_BUCKET"], os.environ["MLFLOW_S3_ENDPOINT_URL"]
    options = {"s3": {"addressing_style": "path"}, "connect_timeout": 5, "read_timeout": 30}
    client = boto3.client("s3", endpoint_url=endpoint, config=Config(retries={"max_attempts": 4}, **options))
    try:
        print(ensure(client, bucket, os.environ["AWS_DEFAULT_REGION"]))
        return 0
    except ClientError as error:
        told = refusal(error, bucket, endpoint, os.environ["AWS_ACCESS_KEY_ID"])
    except BotoCoreError as error:
        told = f"{endpoint} gave no answer about bucket {bucket}: {error}"
    print(told, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
