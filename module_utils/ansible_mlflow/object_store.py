"""The S3 side of an environment: its bucket, and an access key that can touch that bucket and nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from .errors import Error, MissingLibraryError, one_line

CONNECT_TIMEOUT = 5
READ_TIMEOUT = 20

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])"
_ENDPOINT = re.compile(rf"(?P<scheme>https?)://(?P<host>{_HOST})(?::(?P<port>[0-9]{{1,5}}))?/?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")

# What MLflow's S3 client needs and no more: listing also makes S3 answer 404 instead of 403 for an absent object. The
# backup writes down whether the bucket keeps versions.
BUCKET_ACTIONS = ["s3:GetBucketVersioning", "s3:ListBucket"]
OBJECT_ACTIONS = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject"]


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


def policy_for(bucket: str, append_only: bool = False) -> dict:
    """The policy that allows exactly what MLflow needs on one bucket, or all of it but deleting objects."""
    arn = f"arn:aws:s3:::{bucket}"
    actions = [action for action in OBJECT_ACTIONS if not (append_only and action == "s3:DeleteObject")]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": BUCKET_ACTIONS, "Resource": [arn]},
            {"Effect": "Allow", "Action": actions, "Resource": [f"{arn}/*"]},
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


@dataclass
class Outcome:
    """What was changed, or would be, and how it looked before and after."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)


class Refusal(Exception):
    """An answer of the S3 server: ``code`` is S3's word for it, ``message`` its sentence."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Store:
    """An S3 server as one key sees it.

    :param address: the (host, port) to connect to, which differs from the endpoint's behind a tunnel.
    """

    def __init__(self, endpoint: Endpoint, address: tuple[str, int], region: str, access_key: str, secret_key: str):
        try:
            import minio
            import minio.minioadmin
            import urllib3
            from minio.credentials import StaticProvider
        except ImportError as error:
            raise MissingLibraryError("minio", str(error)) from None
        self.endpoint, self.region, self.access_key = endpoint, region, access_key
        # With the library's own client a server that does not answer would be asked for half an hour.
        options = {
            "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT),
            "retries": urllib3.Retry(total=2, backoff_factor=0.5, status_forcelist=[500, 502, 503, 504], redirect=0),
        }
        if endpoint.secure:
            # The certificate is for the endpoint's name, also when a tunnel leads there.
            options |= {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_bundle()}
            options |= {"server_hostname": endpoint.host, "assert_hostname": endpoint.host}
        netloc = f"{address[0]}:{address[1]}"
        self._client = minio.Minio(
            netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=endpoint.secure,
            region=region,
            http_client=urllib3.PoolManager(**options),
        )
        self._admin = minio.minioadmin.MinioAdmin(
            endpoint=netloc,
            credentials=StaticProvider(access_key, secret_key),
            secure=endpoint.secure,
            region=region,
            http_client=urllib3.PoolManager(**options),
        )

    def ask(self, function, *args, **kwargs):
        """Call the library.

        :raises Refusal: the server answered with an error. :raises Error: it did not answer, or not as S3 does.
        """
        import urllib3
        from minio.error import MinioAdminException, MinioException, S3Error

        try:
            return function(*args, **kwargs)
        except S3Error as error:
            raise Refusal(error.code or "Unknown", error.message or "") from None
        except MinioAdminException as error:
            raise _admin_refusal(error) from None
        except MinioException as error:
            raise Error(f"{self.endpoint.url} does not answer as an S3 server does: {one_line(error, 300)}") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Error(f"{self.endpoint.url} cannot be reached: {_connection_words(error)}") from None

    def look(self, bucket: str) -> str:
        """``present``, ``absent``, or S3's code of the refusal; asks as the key that MLflow uses would."""
        # A prefix that no artifact has keeps the answer short, however full the bucket is.
        objects = self._client.list_objects(bucket, prefix="\x7fansible-mlflow/")
        try:
            self.ask(lambda: next(iter(objects), None))
        except Refusal as refusal:
            if refusal.code == "NoSuchBucket":
                return "absent"
            if refusal.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                return refusal.code
            raise self.explained(refusal, bucket) from None
        return "present"

    def make_bucket(self, bucket: str) -> None:
        """Create a bucket; a bucket that the key owns already is fine.

        :raises Error: somebody else has a bucket of that name, or the key may not create one.
        """
        try:
            self.ask(self._client.make_bucket, bucket, location=self.region)
        except Refusal as refusal:
            if refusal.code != "BucketAlreadyOwnedByYou":
                raise self.explained(refusal, bucket) from None

    def explained(self, refusal: Refusal, bucket: str) -> Error:
        """What a refusal means for the operator."""
        where, key = self.endpoint.url, self.access_key
        table = {
            "AccessDenied": f"access key {key} may neither use nor create bucket {bucket}",
            "InvalidAccessKeyId": f"there is no access key {key}",
            "SignatureDoesNotMatch": f"the secret key of access key {key} is wrong",
            "RequestTimeTooSkewed": "the clocks of this machine and of the server differ by more than 15 minutes",
            "BucketAlreadyExists": f"the name {bucket} is taken by another owner; choose another bucket",
            "PermanentRedirect": f"bucket {bucket} is in another region or at another endpoint (region: {self.region})",
            "AuthorizationHeaderMalformed": f"its region is not {self.region}: {refusal.message}",
            "InvalidRegion": f"its region is not {self.region}: {refusal.message}",
            "OperationAborted": f"bucket {bucket} is being created or deleted at this moment; run again",
            "XMinioServerNotInitialized": "it is starting up",
        }
        return Error(f"{where}: {table.get(refusal.code) or one_line(refusal, 300)} ({refusal.code})")

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

    def bucket_policy(self, bucket: str) -> str:
        """The bucket's own policy as JSON text, empty without one."""
        try:
            return self.ask(self._client.get_bucket_policy, bucket)
        except Refusal as refusal:
            if refusal.code in ("NoSuchBucketPolicy", "NoSuchBucket"):
                return ""
            raise

    def delete_bucket_policy(self, bucket: str) -> None:
        self.ask(self._client.delete_bucket_policy, bucket)

    def keeps_versions(self, bucket: str) -> bool:
        """Whether what is overwritten in a bucket is kept as an older version."""
        try:
            return self.ask(self._client.get_bucket_versioning, bucket).status == "Enabled"
        except Refusal as refusal:
            if refusal.code == "NoSuchBucket":
                return False
            raise

    def keep_versions(self, bucket: str) -> None:
        from minio.versioningconfig import ENABLED, VersioningConfig

        self.ask(self._client.set_bucket_versioning, bucket, VersioningConfig(ENABLED))


def ca_bundle() -> str:
    """The certificates to trust: those the environment names, else the library's."""
    import os

    import certifi

    return os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where()


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


def ensure_with_own_key(own: Store, bucket: str, check_mode: bool) -> Outcome:
    """See that the key can use the bucket; make the bucket if it is missing.

    :raises Error: the key is refused, or the bucket is there but not for this key.
    """
    outcome = Outcome()
    state = own.look(bucket)
    if state == "absent":
        _note(outcome, f"created bucket {bucket}", f"bucket {bucket}", "absent", "present")
        if not check_mode:
            own.make_bucket(bucket)
    elif state != "present":
        raise own.explained(Refusal(state, ""), bucket)
    return outcome


def ensure_with_admin(
    admin: Store, own: Store, bucket: str, secret_key: str, check_mode: bool, append_only: bool = False
) -> Outcome:
    """Bring bucket, policy and user into the wanted state.

    :param own: the store as MLflow's key sees it; :param secret_key: that key's secret.
    :param append_only: the key may delete nothing, and what it overwrites is kept as an older version.
    :raises Error: the administrator's key is refused, or the server has no MinIO administration.
    """
    try:
        return _ensure_with_admin(admin, own, bucket, secret_key, check_mode, append_only)
    except Refusal as refusal:
        if refusal.code.startswith("HTTP ") or refusal.code in ("MethodNotAllowed", "NotImplemented", "NoSuchBucket"):
            raise Error(
                f"{admin.endpoint.url} has no MinIO administration ({refusal.code}); make bucket, policy and key there "
                f"yourself and leave admin_access_key and admin_secret_key out"
            ) from None
        if refusal.code == "AccessDenied":
            who = f"access key {admin.access_key}"
            raise Error(f"{admin.endpoint.url}: {who} is no administrator (AccessDenied)") from None
        raise admin.explained(refusal, bucket) from None


def _ensure_with_admin(
    admin: Store, own: Store, bucket: str, secret_key: str, check_mode: bool, append_only: bool
) -> Outcome:
    if own.access_key == admin.access_key:
        raise Error(f"access_key: {own.access_key} is the administrator's; MLflow needs a key of its own")
    outcome = Outcome()
    state = admin.look(bucket)
    if state not in ("present", "absent"):
        raise Refusal(state, "")
    user = admin.user(own.access_key)
    name = f"{bucket}-{own.access_key}"
    policy = admin.policy(name)

    if state == "absent":
        _note(outcome, f"created bucket {bucket}", f"bucket {bucket}", "absent", "present")
        if not check_mode:
            admin.make_bucket(bucket)
    elif allows_anonymous(admin.bucket_policy(bucket)):
        sentence = f"closed bucket {bucket} to anonymous access"
        _note(outcome, sentence, f"bucket {bucket}, anonymous", "allowed", "refused")
        if not check_mode:
            admin.delete_bucket_policy(bucket)

    if append_only and not admin.keeps_versions(bucket):
        sentence = f"let bucket {bucket} keep what is overwritten as older versions"
        _note(outcome, sentence, f"bucket {bucket}, versioning", "off", "on")
        if not check_mode:
            admin.keep_versions(bucket)

    wanted = policy_for(bucket, append_only)
    if policy is None or normalised(policy) != normalised(wanted):
        before = "absent" if policy is None else normalised(policy)
        verb = "created" if policy is None else "corrected"
        _note(outcome, f"{verb} policy {name}", f"policy {name}", before, normalised(wanted))
        if not check_mode:
            admin.set_policy(name, wanted)

    attached = [entry for entry in ((user or {}).get("policyName") or "").split(",") if entry]
    if user is None:
        _note(outcome, f"created access key {own.access_key}", f"access key {own.access_key}", "absent", "enabled")
    elif user.get("status") != "enabled":
        _note(outcome, f"enabled access key {own.access_key}", f"access key {own.access_key}", "disabled", "enabled")
    elif own.look(bucket) in ("SignatureDoesNotMatch", "InvalidAccessKeyId"):
        sentence = f"set the secret key of access key {own.access_key}"
        _note(outcome, sentence, f"access key {own.access_key}, secret key", "another", "as given")
    else:
        secret_key = ""
    if secret_key and not check_mode:
        admin.set_user(own.access_key, secret_key)

    if attached != [name]:
        others = ", ".join(entry for entry in attached if entry != name)
        sentence = f"attached policy {name} to access key {own.access_key}"
        if others:
            sentence = f"left access key {own.access_key} no policy but {name} (it had {others})"
        _note(outcome, sentence, f"access key {own.access_key}, policies", attached, [name])
        if not check_mode:
            admin.attach_only(own.access_key, name, attached)
    if user and user.get("memberOf"):
        groups = ", ".join(user["memberOf"])
        outcome.warnings.append(f"access key {own.access_key} has more rights: it is in the groups {groups}")
    if not check_mode and outcome.changes:
        _prove(own, bucket)
    return outcome


def _prove(own: Store, bucket: str) -> None:
    state = own.look(bucket)
    if state != "present":
        raise own.explained(Refusal(state, "after it was set up"), bucket)


def _note(outcome: Outcome, sentence: str, key: str, before, after) -> None:
    outcome.changes.append(sentence)
    outcome.before[key], outcome.after[key] = before, after
