"""The bucket of the backups, as one access key sees it; its errors in words and exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

BLOCK = 1 << 20
PART = 64 << 20
PROGRESS_SECONDS = 10


class Exit:
    """Exit codes, as the schema program has them: 10 may come right by itself, the others want a person."""

    USAGE = 2
    RETRYABLE = 10
    REFUSED = 12
    ACCESS = 13


class BackupError(Exception):
    """One sentence for the operator, and the exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(" ".join(str(message).split())[-4000:])
        self.code = code


def say(sentence: str) -> None:
    """Progress, for the log; standard output is the report's."""
    print(sentence, file=sys.stderr, flush=True)


def needed(variable: str) -> str:
    """A variable of the environment that has to be there."""
    value = os.environ.get(variable, "")
    if not value:
        raise BackupError(Exit.USAGE, f"{variable}: expected a value in the environment, got none")
    return value


# What S3 answers -> (exit code, what it means); {key} and {bucket} are filled in.
REFUSALS = {
    "NoSuchBucket": (Exit.REFUSED, "there is no bucket {bucket}"),
    "AccessDenied": (Exit.ACCESS, "access key {key} may not do that in bucket {bucket}"),
    "403": (Exit.ACCESS, "access key {key} may not do that in bucket {bucket}"),
    "InvalidAccessKeyId": (Exit.ACCESS, "there is no access key {key}"),
    "SignatureDoesNotMatch": (Exit.ACCESS, "the secret key of access key {key} is wrong"),
    "RequestTimeTooSkewed": (Exit.RETRYABLE, "the clocks of this node and of the server differ by over 15 minutes"),
    "PermanentRedirect": (Exit.REFUSED, "bucket {bucket} is in another region or at another endpoint"),
    "AuthorizationHeaderMalformed": (Exit.REFUSED, "the region of bucket {bucket} is another one"),
    "XMinioStorageFull": (Exit.REFUSED, "its disk is full"),
}


def explained(error: BaseException, what: str, bucket: str, key: str) -> BackupError:
    """What an error of boto3 means for the operator.

    :param what: what was tried, at which server.
    """
    # An upload's own error hides the server's answer behind it.
    answer = getattr(error, "response", None) or getattr(error.__context__, "response", None)
    if answer is None:
        return BackupError(Exit.RETRYABLE, f"{what} failed: {type(error).__name__}: {error}")
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in REFUSALS:
        exit_code, words = REFUSALS[code]
        return BackupError(exit_code, f"{what} failed: {words.format(bucket=bucket, key=key)} ({code})")
    exit_code = Exit.RETRYABLE if status >= 500 or status == 429 else Exit.REFUSED
    return BackupError(exit_code, f"{what} failed: {answer.get('Error', {}).get('Message') or code} ({code})")


def server_time(headers: dict) -> str | None:
    """The Date of an answer as ISO 8601 in UTC, or None."""
    try:
        return parsedate_to_datetime(headers["date"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (KeyError, TypeError, ValueError):
        return None


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


class Progress:
    """Says every few seconds how much of a file has been transferred; boto3 calls it from several threads."""

    def __init__(self, what: str, size: int):
        self._what, self._size, self._done = what, size, 0
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._told >= PROGRESS_SECONDS:
                self._told = time.monotonic()
                say(f"{self._what}: {self._done} of {self._size} bytes")


class Bucket:
    """A bucket of an S3 server."""

    def __init__(self, name: str, endpoint: str, region: str, access_key: str, secret_key: str):
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.name, self.endpoint, self.key = name, endpoint, access_key
        # S3 servers have no host name for each bucket, unless they are Amazon's; which checksums are sent is said by
        # the variables AWS_..._CHECKSUM_..., as older versions of boto3 know no other way.
        options = {"s3": {"addressing_style": "path"}, "connect_timeout": 5, "read_timeout": 60}
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(signature_version="s3v4", retries={"max_attempts": 4, "mode": "standard"}, **options),
        )
        self._transfer = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)

    def ask(self, what: str, operation: str, **arguments):
        """Call boto3.

        :raises BackupError: the server refused, or did not answer.
        """
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(**arguments)
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise explained(error, f"{what} at {self.endpoint}", self.name, self.key) from None

    def head(self, key: str) -> dict | None:
        """Size (``ContentLength``) and ``Metadata`` of an object, or None where there is none."""
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(Bucket=self.name, Key=key)
        except ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchKey", "NotFound"):
                return None
            raise explained(error, f"looking at {key} at {self.endpoint}", self.name, self.key) from None

    def upload(self, path: Path, key: str) -> dict:
        """Upload a file and see that it arrived; its ``bytes`` and ``sha256``."""
        size, digest = path.stat().st_size, digest_of(path)
        self.ask(
            f"uploading {key}",
            "upload_file",
            Filename=str(path),
            Bucket=self.name,
            Key=key,
            ExtraArgs={"Metadata": {"sha256": digest}},
            Callback=Progress(f"uploading {key}", size),
            Config=self._transfer,
        )
        found = self.head(key) or {}
        if (found.get("ContentLength"), found.get("Metadata", {}).get("sha256")) != (size, digest):
            raise BackupError(
                Exit.RETRYABLE,
                f"{key} in bucket {self.name} is not what was uploaded: {found.get('ContentLength')} bytes, "
                f"expected {size}",
            )
        return {"bytes": size, "sha256": digest}

    def download(self, key: str, path: Path, size: int, digest: str) -> None:
        """Download an object into a file, and refuse anything but what was uploaded."""
        self.ask(
            f"downloading {key}",
            "download_file",
            Bucket=self.name,
            Key=key,
            Filename=str(path),
            Callback=Progress(f"downloading {key}", size),
            Config=self._transfer,
        )
        if path.stat().st_size != size or digest_of(path) != digest:
            raise BackupError(
                Exit.REFUSED,
                f"{key} in bucket {self.name} is not what was backed up: {path.stat().st_size} bytes, expected {size} "
                f"with SHA-256 {digest}; it was changed or damaged: restore another backup",
            )

    def put_json(self, key: str, content: dict) -> None:
        """Keep a JSON object, and see that it arrived."""
        body = json.dumps(content, sort_keys=True).encode()
        arguments = {"Bucket": self.name, "Key": key, "Body": body, "ContentType": "application/json"}
        self.ask(f"writing {key}", "put_object", **arguments)
        if self.get_json(key) != content:
            raise BackupError(Exit.RETRYABLE, f"{key} in bucket {self.name} is not what was written")

    def get_json(self, key: str) -> dict | None:
        """A JSON object, or None where there is none."""
        if self.head(key) is None:
            return None
        body = self.ask(f"reading {key}", "get_object", Bucket=self.name, Key=key)["Body"].read()
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BackupError(Exit.REFUSED, f"{key} in bucket {self.name} is no JSON object, so it was changed")
        return found

    def folders(self, prefix: str) -> list[str]:
        """The names of what stands below a prefix, up to the next slash."""
        pages, token = [], {}
        while True:
            page = self.ask(
                f"listing {prefix}", "list_objects_v2", Bucket=self.name, Prefix=prefix, Delimiter="/", **token
            )
            pages += [entry["Prefix"][len(prefix) : -1] for entry in page.get("CommonPrefixes", [])]
            if not page.get("IsTruncated"):
                return pages
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def versioning(self) -> tuple[str, str, str | None]:
        """(``Enabled``, ``Suspended``, ``Off`` or ``unknown``; why it is unknown; the server's own time)."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.get_bucket_versioning(Bucket=self.name)
        except ClientError as error:
            why = explained(error, "asking for its versioning", self.name, self.key)
            return "unknown", str(why), server_time(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
        except BotoCoreError as error:
            return "unknown", f"{self.endpoint}: {type(error).__name__}: {error}", None
        return found.get("Status", "Off"), "", server_time(found["ResponseMetadata"]["HTTPHeaders"])
