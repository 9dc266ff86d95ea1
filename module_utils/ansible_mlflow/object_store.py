"""An S3 server as one access key sees it, and what its refusals mean."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .errors import Error, MissingLibraryError, one_line

CONNECT_TIMEOUT = 5
READ_TIMEOUT = 20
# A prefix that no artifact has keeps the answer to a list short, however full the bucket is.
ABSENT_PREFIX = "\x7fansible-mlflow/"

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_ENDPOINT = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class Endpoint:
    """An S3 endpoint, taken apart."""

    scheme: str
    host: str
    port: int

    @property
    def secure(self) -> bool:
        return self.scheme == "https"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Take ``http(s)://host[:port]`` apart.

    :raises Error: it is anything else, such as s3://, a path, a bucket, a user.
    """
    match = _ENDPOINT.fullmatch(text or "")
    port = int(match["port"]) if match and match["port"] else None
    if not match or ".." in match["host"] or port == 0 or (port or 0) > 65535:
        # A user part may be a secret, so the text is not repeated when it has one.
        shown = "a URL with a user part" if "@" in (text or "") else repr(text)
        raise Error(f"endpoint: expected http://host[:port] or https://host[:port], got {shown}")
    return Endpoint(match["scheme"], match["host"], port or (443 if match["scheme"] == "https" else 80))


def check_bucket_name(name: str) -> None:
    """Refuse a bucket name that S3 would refuse.

    :raises Error: naming the rule.
    """
    if not _BUCKET.fullmatch(name) or ".." in name or _ADDRESS.fullmatch(name) or name.startswith("xn--"):
        raise Error(
            f"bucket: expected 3 to 63 lower-case letters, digits, dots and hyphens, beginning and ending with a "
            f"letter or digit, got {name!r}"
        )


class Refusal(Exception):
    """An answer of the S3 server.

    Attributes:
        code, message: S3's word for it, and its sentence.
        region: Where the bucket is, if the server says so.
    """

    def __init__(self, code: str, message: str, region: str = ""):
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.region = code, message, region

    @property
    def is_unknown(self) -> bool:
        """Whether the server does not know what it was asked for, rather than refuse it to somebody."""
        return self.code.startswith("HTTP ") or self.code in UNKNOWN


# What servers answer to a request that they have not learned.
UNKNOWN = ("NotImplemented", "MethodNotAllowed", "VersioningNotConfigured")
# What says that a request was sent to the wrong region.
WRONG_REGION = (
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidLocationConstraint",
    "InvalidRegion",
    "PermanentRedirect",
    "TemporaryRedirect",
)


class Store:
    """An S3 server as one key sees it.

    :param address: the (host, port) to connect to, which differs from the endpoint's behind a tunnel.
    :param access_key, secret_key: empty for somebody without a key.
    """

    def __init__(
        self, endpoint: Endpoint, address: tuple[str, int], region: str, access_key: str = "", secret_key: str = ""
    ):
        try:
            import minio
            import urllib3
        except ImportError as error:
            raise MissingLibraryError("minio", str(error)) from None
        self.endpoint, self.region, self.access_key = endpoint, region, access_key
        # With the library's own client a server that does not answer would be asked for half an hour.
        options = {
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            # A redirect is an answer: it may name the bucket's region.
            "retries": urllib3.Retry(
                total=2, backoff_factor=0.5, status_forcelist=[500, 502, 503, 504], redirect=0, raise_on_redirect=False
            ),
        }
        if endpoint.secure:
            # The certificate is for the endpoint's name, also when a tunnel leads there.
            options |= {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_bundle()}
            options |= {"server_hostname": endpoint.host, "assert_hostname": endpoint.host}
        netloc = f"{address[0]}:{address[1]}"
        self._client = minio.Minio(
            netloc,
            access_key=access_key or None,
            secret_key=secret_key or None,
            secure=endpoint.secure,
            region=region,
            http_client=urllib3.PoolManager(**options),
        )
        self._admin_options = {
            "endpoint": netloc,
            "secure": endpoint.secure,
            "region": region,
            "http_client": urllib3.PoolManager(**options),
        }
        self._secret_key = secret_key

    @functools.cached_property
    def _admin(self):
        # It imports cryptography, which nobody without an administrator needs.
        import minio.minioadmin
        from minio.credentials import StaticProvider

        key = StaticProvider(self.access_key, self._secret_key)
        return minio.minioadmin.MinioAdmin(credentials=key, **self._admin_options)

    def ask(self, function, *args, **kwargs):
        """Call the library.

        :raises Refusal: the server answered with an error. :raises Error: it did not answer, or not as S3 does.
        """
        from xml.etree import ElementTree

        import urllib3
        from minio.error import MinioAdminException, MinioException, S3Error

        try:
            return function(*args, **kwargs)
        except S3Error as error:
            if error.code:
                raise Refusal(error.code, error.message or "", _region_of(error)) from None
            raise self._stranger(one_line(error, 300)) from None
        except MinioAdminException as error:
            raise _admin_refusal(error) from None
        except (MinioException, ElementTree.ParseError, ValueError) as error:
            raise self._stranger(one_line(error, 300)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Error(f"{self.endpoint.url} cannot be reached: {_connection_words(error)}") from None

    def _stranger(self, words: str) -> Error:
        return Error(f"{self.endpoint.url} does not answer as an S3 server does: {words}")

    def look(self, bucket: str) -> str:
        """``present``, ``absent``, or S3's code of the refusal; asks as the key that MLflow uses would."""
        objects = self._client.list_objects(bucket, prefix=ABSENT_PREFIX)
        try:
            self.ask(lambda: next(iter(objects), None))
        except Refusal as refusal:
            if refusal.code == "NoSuchBucket":
                return "absent"
            if refusal.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                return refusal.code
            raise self.explained(refusal, bucket) from None
        return "present"

    def is_open(self, bucket: str) -> bool:
        """Whether a bucket can be listed; asked without a key, whether everybody can."""
        objects = self._client.list_objects(bucket, prefix=ABSENT_PREFIX)
        try:
            self.ask(lambda: next(iter(objects), None))
        except Refusal:
            return False
        return True

    def make_bucket(self, bucket: str, object_lock: bool = False) -> None:
        """Create a bucket; a bucket that the key owns already is fine.

        :raises Error: somebody else has a bucket of that name, or the key may not create one.
        """
        try:
            self.ask(self._client.make_bucket, bucket, location=self.region, object_lock=object_lock)
        except Refusal as refusal:
            if refusal.code != "BucketAlreadyOwnedByYou":
                raise self.explained(refusal, bucket) from None

    def explained(self, refusal: Refusal, bucket: str) -> Error:
        """What a refusal means for the operator."""
        where, key = self.endpoint.url, self.access_key
        table = {
            "AccessDenied": f"access key {key} may not use bucket {bucket}. It may be there and another's, so it "
            f"is not made: give this key its rights, or give the key of an administrator, or choose another bucket",
            "InvalidAccessKeyId": f"there is no access key {key}",
            "SignatureDoesNotMatch": f"the secret key of access key {key} is wrong",
            "RequestTimeTooSkewed": "the clocks of this machine and of the server differ by more than 15 minutes",
            "BucketAlreadyExists": f"the name {bucket} is taken by another owner; choose another bucket",
            "OperationAborted": f"bucket {bucket} is being created or deleted at this moment; run again",
            "XMinioServerNotInitialized": "it is starting up",
        }
        words = table.get(refusal.code) or one_line(refusal, 300)
        if refusal.code in WRONG_REGION:
            right = f"expected {refusal.region}" if refusal.region else one_line(refusal.message, 200)
            words = f"region: {self.region} is not the region of bucket {bucket} or of this server; {right}"
        return Error(f"{where}: {words} ({refusal.code})")

    # -- A bucket's settings ----------------------------------------------------------------------------------------

    def bucket_policy(self, bucket: str) -> str:
        """The bucket's own policy as JSON text, empty without one."""
        try:
            return self.ask(self._client.get_bucket_policy, bucket)
        except Refusal as refusal:
            if refusal.code == "NoSuchBucketPolicy":
                return ""
            raise

    def delete_bucket_policy(self, bucket: str) -> None:
        self.ask(self._client.delete_bucket_policy, bucket)

    def versioning(self, bucket: str) -> str:
        """``Enabled``, ``Suspended`` or ``Off``."""
        return self.ask(self._client.get_bucket_versioning, bucket).status or "Off"

    def enable_versioning(self, bucket: str) -> None:
        from minio.versioningconfig import ENABLED, VersioningConfig

        self.ask(self._client.set_bucket_versioning, bucket, VersioningConfig(ENABLED))

    def lifecycle(self, bucket: str) -> str:
        """The bucket's lifecycle rules as XML, empty without any.

        The library has a model of them too, which would lose what it does not know of other people's rules.
        """
        try:
            answer = self.ask(self._client._execute, "GET", bucket, query_params={"lifecycle": ""})
        except Refusal as refusal:
            if refusal.code == "NoSuchLifecycleConfiguration":
                return ""
            raise
        return answer.data.decode()

    def set_lifecycle(self, bucket: str, xml: str) -> None:
        """Replace all of the bucket's lifecycle rules; an empty text removes them."""
        if not xml:
            return self.ask(self._client.delete_bucket_lifecycle, bucket)
        body = xml.encode()
        headers, query = _content_md5(body), {"lifecycle": ""}
        self.ask(self._client._execute, "PUT", bucket, body=body, headers=headers, query_params=query)

    def object_lock(self, bucket: str) -> tuple[str, int] | None:
        """(mode, days) of the retention that new objects get, ("", 0) without one; None for a bucket without locks."""
        try:
            found = self.ask(self._client.get_object_lock_config, bucket)
        except Refusal as refusal:
            if refusal.code == "ObjectLockConfigurationNotFoundError":
                return None
            raise
        days = (found.duration or 0) * (365 if found.duration_unit == "Years" else 1)
        return found.mode or "", days

    def set_object_lock(self, bucket: str, days: int) -> None:
        from minio.commonconfig import GOVERNANCE
        from minio.objectlockconfig import DAYS, ObjectLockConfig

        self.ask(self._client.set_object_lock_config, bucket, ObjectLockConfig(GOVERNANCE, days, DAYS))

    # -- MinIO's administration -------------------------------------------------------------------------------------

    def policy(self, name: str) -> dict | None:
        """A policy of MinIO by name, or None."""
        try:
            found = json.loads(self.ask(self._admin.policy_info, name))
        except Refusal as refusal:
            if refusal.code == "XMinioAdminNoSuchPolicy":
                return None
            raise
        return found.get("Policy", found)

    def set_policy(self, name: str, policy: dict) -> None:
        self.ask(self._admin.policy_add, name, policy=policy)

    def user(self, access_key: str) -> dict | None:
        """A user of MinIO (``status``, ``policyName``, ``memberOf``), or None."""
        try:
            return json.loads(self.ask(self._admin.user_info, access_key))
        except Refusal as refusal:
            if refusal.code == "XMinioAdminNoSuchUser":
                return None
            raise

    def set_user(self, access_key: str, secret_key: str) -> None:
        self.ask(self._admin.user_add, access_key, secret_key)

    def attach_only(self, access_key: str, wanted: str, attached: list[str]) -> None:
        """Make ``wanted`` the one policy of a user who has ``attached``."""
        others = [name for name in attached if name != wanted]
        if wanted not in attached:
            self.ask(self._admin.attach_policy, [wanted], user=access_key)
        if others:
            self.ask(self._admin.detach_policy, others, user=access_key)

    # -- Objects ----------------------------------------------------------------------------------------------------

    def objects(self, bucket: str, prefix: str) -> Iterator[Any]:
        """The objects whose names begin so."""
        listed = self._client.list_objects(bucket, prefix=prefix, recursive=True)
        while (item := self.ask(next, listed, None)) is not None:
            yield item

    def read(self, bucket: str, key: str, offset: int = 0, length: int = 0, etag: str = "") -> bytes:
        """An object's bytes, or a range of them.

        :param length: 0 for all from the offset on.
        :param etag: empty, or that of the object that is meant; for another one the server answers PreconditionFailed.
        """

        def whole() -> bytes:
            headers = {"If-Match": f'"{etag}"'} if etag else {}
            answer = self._client.get_object(bucket, key, offset, length, request_headers=headers)
            try:
                # As it is stored: with Content-Encoding the library would unpack it.
                return answer.read(decode_content=False)
            finally:
                answer.release_conn()

        return self.ask(whole)

    def kind(self, bucket: str, key: str) -> dict[str, str]:
        """What an object's headers say of what it is."""
        found = self.ask(self._client.stat_object, bucket, key).metadata
        return {name: found[name] for name in ("Content-Type", "Content-Encoding") if found.get(name)}

    def write(self, bucket: str, key: str, content: bytes, kind: dict[str, str]) -> None:
        """Put an object."""
        self.ask(self._client._put_object, bucket, key, content, headers=kind | _content_md5(content))

    def unfinished_upload(self, bucket: str, key: str, kind: dict[str, str]) -> tuple[str, dict[int, str]]:
        """An upload in parts: the newest that nobody completed, else a new one; the ETags of the parts it has."""
        found = self.ask(self._client._list_multipart_uploads, bucket, prefix=key).uploads
        mine = [upload for upload in found if upload.object_name == key]
        if not mine:
            return self.ask(self._client._create_multipart_upload, bucket, key, kind), {}
        newest = max(mine, key=lambda upload: upload.initiated_time)
        parts: dict[int, str] = {}
        while True:
            after = str(max(parts, default=0))
            answer = self.ask(self._client._list_parts, bucket, key, newest.upload_id, part_number_marker=after)
            parts |= {part.part_number: part.etag.strip('"') for part in answer.parts}
            if not answer.is_truncated or not answer.parts:
                return newest.upload_id, parts

    def write_part(self, bucket: str, key: str, upload: str, number: int, content: bytes) -> str:
        """Send a part of an upload; its ETag."""
        headers = _content_md5(content)
        return self.ask(self._client._upload_part, bucket, key, content, headers, upload, number)

    def finish_upload(self, bucket: str, key: str, upload: str, etags: list[str]) -> None:
        """Make an object of an upload's parts."""
        from minio.datatypes import Part

        parts = [Part(number, etag) for number, etag in enumerate(etags, 1)]
        self.ask(self._client._complete_multipart_upload, bucket, key, upload, parts)

    def versions(self, bucket: str, prefix: str = "") -> Iterator[Any]:
        """Every version of every object below a prefix, and every mark of a deletion."""
        listed = self._client.list_objects(bucket, prefix=prefix, recursive=True, include_version=True)
        while (item := self.ask(next, listed, None)) is not None:
            yield item

    def delete_versions(self, bucket: str, versions: Iterable[Any]) -> list[str]:
        """Delete versions for good, a thousand at a time, and also those that are locked in governance mode.

        :returns: what the server refused, an object and a reason each.
        """
        from minio.deleteobjects import DeleteObject

        wanted = (DeleteObject(item.object_name, item.version_id) for item in versions)
        errors = self._client.remove_objects(bucket, wanted, bypass_governance_mode=True)
        return self.ask(lambda: [f"{error.name}: {error.code}" for error in errors])

    def count(self, bucket: str, seconds: float) -> tuple[int, int, bool]:
        """How many objects a bucket has and how large they are, and whether there was time to count all of them."""
        listed, objects, size = self._client.list_objects(bucket, recursive=True), 0, 0
        end = time.monotonic() + seconds
        try:
            while (item := self.ask(next, listed, None)) is not None:
                objects, size = objects + 1, size + (item.size or 0)
                if time.monotonic() > end:
                    return objects, size, False
        except Refusal as refusal:
            raise self.explained(refusal, bucket) from None
        return objects, size, True

    def names(self, bucket: str, prefix: str) -> list[str]:
        """What begins with a prefix, up to the next slash."""
        listed = self._client.list_objects(bucket, prefix=prefix)
        try:
            return self.ask(lambda: [item.object_name for item in listed])
        except Refusal as refusal:
            raise self.explained(refusal, bucket) from None

    def remove_bucket(self, bucket: str) -> None:
        self.ask(self._client.remove_bucket, bucket)

    def remove_user(self, access_key: str) -> None:
        self.ask(self._admin.user_remove, access_key)

    def remove_policy(self, name: str) -> None:
        self.ask(self._admin.policy_remove, name)

    def quota(self, bucket: str) -> int:
        """Bytes that the bucket may hold; 0 for any number."""
        return json.loads(self.ask(self._admin.bucket_quota_get, bucket)).get("quota") or 0

    def set_quota(self, bucket: str, size: int) -> None:
        self.ask(self._admin.bucket_quota_set, bucket, size)

    def stale_uploads_expiry(self) -> str:
        """The time after which MinIO aborts an upload that nobody completes, as it writes it: 24h."""
        found = re.search(r"\bstale_uploads_expiry=(\S+)", self.ask(self._admin.config_get, "api"))
        return found[1] if found else ""


def _content_md5(content: bytes) -> dict[str, str]:
    """The header by which a server refuses other bytes than were sent."""
    return {"Content-MD5": base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()}


def ca_bundle() -> str:
    """The certificates to trust: those the environment names, else the library's."""
    import os

    import certifi

    return os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where()


def _region_of(error) -> str:
    """The region that an answer names: Amazon's header, or what the error's text says."""
    answer = error.response
    body = (answer.data or b"").decode(errors="replace")
    found = re.search(r"<Region>([a-z0-9-]+)</Region>", body) or re.search(
        r"expecting ['\"]?([a-z0-9-]+)", error.message or ""
    )
    return answer.headers.get("x-amz-bucket-region") or (found[1] if found else "")


def _admin_refusal(error) -> Refusal:
    body = getattr(error, "_body", "") or str(error)
    try:
        answer = json.loads(body)
        return Refusal(answer.get("Code") or "Unknown", answer.get("Message") or "")
    except ValueError:
        found = re.search(r"<Code>([^<]+)</Code>", body)
        return Refusal(found[1] if found else f"HTTP {getattr(error, '_code', '?')}", one_line(body, 200))


def _connection_words(error: Exception) -> str:
    from .kubernetes import connection_problem

    text = f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"
    return connection_problem(text).replace("the authority that the kubeconfig names", "an authority trusted here")
