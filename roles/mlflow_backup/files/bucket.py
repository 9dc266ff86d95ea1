"""The bucket of the backups, as one access key sees it; its errors in words and exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

BLOCK = 1 << 20
PART = 64 << 20
PROGRESS_SECONDS = 10
RETRIES = 4


class Exit:
    """Exit codes, as the schema program has them: 10 may come right by itself, the others want a person."""

    USAGE = 2
    RETRYABLE = 10
    REFUSED = 12
    ACCESS = 13


class BackupError(Exception):
    """One sentence for the operator, and the exit code."""

    def __init__(self, code: int, message: str, answer: str = ""):
        super().__init__(" ".join(str(message).split())[-4000:])
        # S3's own word for it, where it was S3 that refused.
        self.code, self.answer = code, answer


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
    answer = getattr(error, "response", None)
    if answer is None:
        return BackupError(Exit.RETRYABLE, f"{what} failed: {type(error).__name__}: {error}")
    code = str(answer.get("Error", {}).get("Code", ""))
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in REFUSALS:
        exit_code, words = REFUSALS[code]
        return BackupError(exit_code, f"{what} failed: {words.format(bucket=bucket, key=key)} ({code})", code)
    exit_code = Exit.RETRYABLE if status >= 500 or status == 429 else Exit.REFUSED
    words = answer.get("Error", {}).get("Message") or code
    return BackupError(exit_code, f"{what} failed: {words} ({code})", code)


def server_time(headers: dict) -> str | None:
    """The Date of an answer as ISO 8601 in UTC, or None."""
    try:
        return parsedate_to_datetime(headers["date"]).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (KeyError, TypeError, ValueError):
        return None


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    for block in blocks_of(path):
        digest.update(block)
    return digest.hexdigest()


def blocks_of(path: Path) -> Iterator[bytes]:
    """The content of a file."""
    with path.open("rb") as file:
        yield from iter(lambda: file.read(BLOCK), b"")


class Progress:
    """Says every few seconds how many bytes have been transferred; several threads may call it."""

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


def counted(blocks: Iterable[bytes], progress: Callable[[int], None]) -> Iterator[bytes]:
    """The same blocks, with progress for each."""
    for block in blocks:
        yield block
        progress(len(block))


def hashed_by(blocks: Iterable[bytes], digest) -> Iterator[bytes]:
    """The same blocks, each of them added to a hash."""
    for block in blocks:
        digest.update(block)
        yield block


def damaged(what: str, found: str, entry: dict) -> BackupError:
    """What to say of an object that is not what was backed up."""
    return BackupError(
        Exit.REFUSED,
        f"{what} is not what was backed up: {found}, expected {entry['bytes']} bytes with SHA-256 {entry['sha256']}; "
        f"it was changed or damaged: restore another backup",
    )


class Bucket:
    """A bucket of an S3 server."""

    def __init__(self, name: str, endpoint: str, region: str, access_key: str, secret_key: str):
        import boto3
        from botocore.config import Config

        self.name, self.endpoint, self.key = name, endpoint, access_key
        # S3 servers have no host name for each bucket, unless they are Amazon's; which checksums are sent is said by
        # the variables AWS_..._CHECKSUM_..., as older versions of boto3 know no other way.
        options = {"s3": {"addressing_style": "path"}, "connect_timeout": 5, "read_timeout": 60}
        options["max_pool_connections"] = 16
        self._client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(signature_version="s3v4", retries={"max_attempts": 4, "mode": "standard"}, **options),
        )

    def ask(self, what: str, operation: str, **arguments):
        """Call boto3.

        :raises BackupError: the server refused, or did not answer.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, operation)(**arguments)
        except (BotoCoreError, ClientError) as error:
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

    def put(self, key: str, body: bytes, **more) -> None:
        """Write a small object."""
        self.ask(f"writing {key}", "put_object", Bucket=self.name, Key=key, Body=body, **more)

    def put_stream(self, key: str, blocks: Iterable[bytes], check: Callable[[], None] | None = None, **more) -> int:
        """Write an object of any size; its number of bytes.

        :param check: called when all blocks have come; if it raises, or they do, there is no object.
        :param more: Metadata, ContentType.
        """
        parts, size, upload = [], 0, ""
        waiting = bytearray()
        where = {"Bucket": self.name, "Key": key}

        def send() -> None:
            nonlocal upload
            upload = upload or self.ask(f"writing {key}", "create_multipart_upload", **where, **more)["UploadId"]
            number = {"PartNumber": len(parts) + 1}
            body = bytes(waiting)
            waiting.clear()
            done = self.ask(f"writing {key}", "upload_part", **where, UploadId=upload, **number, Body=body)
            parts.append({**number, "ETag": done["ETag"]})

        try:
            for block in blocks:
                waiting += block
                size += len(block)
                if len(waiting) >= PART:
                    send()
            if check:
                check()
            if not upload:
                self.put(key, bytes(waiting), **more)
                return size
            if waiting:
                send()
            arguments = {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
            self.ask(f"writing {key}", "complete_multipart_upload", **where, **arguments)
        except BaseException:
            # What is left of it costs space, and nobody would see it.
            if upload:
                self._client.abort_multipart_upload(**where, UploadId=upload)
            raise
        return size

    def blocks(self, key: str, **conditions) -> Iterator[bytes]:
        """The content of an object; after a break it goes on from there.

        :param conditions: IfMatch.
        """
        from botocore.exceptions import BotoCoreError
        from urllib3.exceptions import HTTPError

        done, tries = 0, 0
        while True:
            if done:
                conditions["Range"] = f"bytes={done}-"
            answer = self.ask(f"reading {key}", "get_object", Bucket=self.name, Key=key, **conditions)
            # Whatever comes after a break is of the same object.
            conditions["IfMatch"] = answer["ETag"]
            left = answer["ContentLength"]
            try:
                for block in answer["Body"].iter_chunks(BLOCK):
                    done, left = done + len(block), left - len(block)
                    yield block
                if not left:
                    return
                words = f"it ended {left} bytes too soon"
            except (BotoCoreError, HTTPError, OSError) as error:
                words = f"{type(error).__name__}: {error}"
                if not left:
                    return
            tries += 1
            if tries > RETRIES:
                raise BackupError(Exit.RETRYABLE, f"reading {key} at {self.endpoint} failed: {words}")
            time.sleep(tries)

    def upload(self, path: Path, key: str, cipher) -> dict:
        """Upload a file, encrypted if there is a cipher, and see that it arrived; its ``bytes`` and ``sha256``."""
        size, digest = path.stat().st_size, digest_of(path)
        progress = Progress(f"uploading {key}", size)
        blocks = counted(blocks_of(path), progress)
        sent = self.put_stream(key, cipher.encrypted(blocks, key) if cipher else blocks, Metadata={"sha256": digest})
        found = self.head(key) or {}
        if (found.get("ContentLength"), found.get("Metadata", {}).get("sha256")) != (sent, digest):
            raise BackupError(
                Exit.RETRYABLE,
                f"{key} in bucket {self.name} is not what was uploaded: {found.get('ContentLength')} bytes, "
                f"expected {sent}",
            )
        return {"bytes": size, "sha256": digest}

    def download(self, key: str, path: Path, entry: dict, cipher) -> None:
        """Download an object into a file, and refuse anything but what was uploaded.

        :param entry: what :meth:`upload` has returned.
        """
        blocks = counted(self.blocks(key), Progress(f"downloading {key}", entry["bytes"]))
        with path.open("wb") as file:
            for block in cipher.decrypted(blocks, key) if cipher else blocks:
                file.write(block)
        size = path.stat().st_size
        if size != entry["bytes"] or digest_of(path) != entry["sha256"]:
            raise damaged(f"{key} in bucket {self.name}", f"{size} bytes", entry)

    def put_json(self, key: str, content: dict) -> None:
        """Keep a JSON object, and see that it arrived."""
        self.put(key, json.dumps(content, sort_keys=True).encode(), ContentType="application/json")
        if self.get_json(key) != content:
            raise BackupError(Exit.RETRYABLE, f"{key} in bucket {self.name} is not what was written")

    def get_json(self, key: str) -> dict | None:
        """A JSON object, or None where there is none."""
        if self.head(key) is None:
            return None
        body = b"".join(self.blocks(key))
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BackupError(Exit.REFUSED, f"{key} in bucket {self.name} is no JSON object, so it was changed")
        return found

    def folders(self, prefix: str) -> list[str]:
        """The names of what stands below a prefix, up to the next slash."""
        pages = self._pages(prefix, Delimiter="/")
        return [entry["Prefix"][len(prefix) : -1] for page in pages for entry in page.get("CommonPrefixes", [])]

    def objects(self, prefix: str = "") -> Iterator[dict]:
        """``Key``, ``Size`` and ``ETag`` of every object below a prefix."""
        for page in self._pages(prefix):
            yield from page.get("Contents", [])

    def _pages(self, prefix: str, **more) -> Iterator[dict]:
        token = {}
        while True:
            what = f"listing {prefix or self.name}"
            page = self.ask(what, "list_objects_v2", Bucket=self.name, Prefix=prefix, **more, **token)
            yield page
            if not page.get("IsTruncated"):
                return
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
