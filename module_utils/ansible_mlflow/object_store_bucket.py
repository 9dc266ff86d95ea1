"""What an environment wants of its S3 server: a bucket, its settings, and a key that can use this bucket alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from . import object_store_lifecycle as lifecycle
from .errors import Error, one_line
from .object_store import Refusal, Store
from .object_store_policy import allows_anonymous, normalised, policy_for, policy_name

UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
HOURS = {"h": 1, "m": 1 / 60, "s": 1 / 3600}


@dataclass(frozen=True)
class Wanted:
    """A bucket as it should be.

    Attributes:
        append_only: The key may delete nothing, and what it overwrites is kept as an older version.
        versioning: What is overwritten or deleted is kept as an older version; without, that is left as it is.
        abort_uploads_after_days, expire_versions_after_days: Lifecycle rules of ours; 0 for none.
        lock_days: Days that a new object cannot be deleted for; 0 leaves locks as they are.
        quota: Bytes that the bucket may hold, 0 for any number; None leaves it as it is.
        former_access_key: The key that has to go, with its policy; empty for none.
    """

    bucket: str
    append_only: bool = False
    versioning: bool = False
    abort_uploads_after_days: int = 0
    expire_versions_after_days: int = 0
    lock_days: int = 0
    quota: int | None = None
    former_access_key: str = ""

    @property
    def keeps_versions(self) -> bool:
        """Whether older versions have to be kept, for whatever reason: a bucket with locks has them."""
        return self.versioning or self.append_only or self.lock_days > 0


@dataclass
class Outcome:
    """What was changed, or would be, and how it looked before and after; and what could not be done, and why."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)
    before: dict = field(default_factory=dict)
    after: dict = field(default_factory=dict)

    def note(self, sentence: str, key: str, before, after) -> None:
        """Add a change."""
        self.changes.append(sentence)
        self.before[key], self.after[key] = before, after


def parse_size(text: str) -> int:
    """Bytes from a number with or without Ki, Mi, Gi or Ti.

    :raises Error: it is anything else.
    """
    match = re.fullmatch(r"([0-9]{1,18})(Ki|Mi|Gi|Ti)?", text)
    if not match:
        raise Error(f"quota: expected bytes, or a number with Ki, Mi, Gi or Ti such as 500Gi, got {text!r}")
    return int(match[1]) * UNITS[match[2] or ""]


def ensure_with_own_key(own: Store, anybody: Store, wanted: Wanted, check_mode: bool) -> Outcome:
    """See that the key can use the bucket; make the bucket if it is missing, and set what the key may set.

    :param anybody: the store as somebody without a key sees it.
    :raises Error: the key is refused, or the bucket is there but not for this key.
    """
    outcome = Outcome()
    state = own.look(wanted.bucket)
    if state not in ("present", "absent"):
        raise own.explained(Refusal(state, ""), wanted.bucket)
    _Bucket(own, wanted, state, check_mode, outcome).apply()
    if wanted.quota is not None:
        outcome.not_done.append("the quota: it needs the key of MinIO's administrator")
    if wanted.former_access_key:
        key = wanted.former_access_key
        outcome.not_done.append(f"removing access key {key}: it needs the key of MinIO's administrator")
    if state == "present" and anybody.is_open(wanted.bucket):
        outcome.not_done.append("closing the bucket: it can be listed without any key; whoever made it has to close it")
    return outcome


def ensure_with_admin(admin: Store, own: Store, secret_key: str, wanted: Wanted, check_mode: bool) -> Outcome:
    """Bring bucket, policy and user into the wanted state.

    :param own: the store as MLflow's key sees it; :param secret_key: that key's secret.
    :raises Error: the administrator's key is refused, or the server has no MinIO administration.
    """
    try:
        return _ensure_with_admin(admin, own, secret_key, wanted, check_mode)
    except Refusal as refusal:
        if refusal.is_unknown or refusal.code == "NoSuchBucket":
            raise Error(
                f"{admin.endpoint.url} has no MinIO administration ({refusal.code}); make bucket, policy and key there "
                f"yourself and leave admin_access_key and admin_secret_key out"
            ) from None
        if refusal.code == "AccessDenied":
            who = f"access key {admin.access_key}"
            raise Error(f"{admin.endpoint.url}: {who} is no administrator (AccessDenied)") from None
        raise admin.explained(refusal, wanted.bucket) from None


def _ensure_with_admin(admin: Store, own: Store, secret_key: str, wanted: Wanted, check_mode: bool) -> Outcome:
    if own.access_key == admin.access_key:
        raise Error(f"access_key: {own.access_key} is the administrator's; MLflow needs a key of its own")
    outcome = Outcome()
    state = admin.look(wanted.bucket)
    if state not in ("present", "absent"):
        raise Refusal(state, "")
    # Whether there is a MinIO administration is known before anything is made.
    user = admin.user(own.access_key)
    _Bucket(admin, wanted, state, check_mode, outcome, is_admin=True).apply()
    _ensure_key(admin, own, secret_key, user, wanted, check_mode, outcome)
    if not check_mode and outcome.changes:
        found = own.look(wanted.bucket)
        if found != "present":
            raise own.explained(Refusal(found, "after it was set up"), wanted.bucket)
    if wanted.former_access_key not in ("", own.access_key, admin.access_key):
        _remove_former_key(admin, wanted, check_mode, outcome)
    return outcome


def _remove_former_key(admin: Store, wanted: Wanted, check_mode: bool, outcome: Outcome) -> None:
    """The key that another one has taken the place of, and its policy on this bucket."""
    key = wanted.former_access_key
    name = policy_name(wanted.bucket, key)
    if admin.user(key) is not None:
        outcome.note(f"removed access key {key}", f"access key {key}", "enabled", "absent")
        if not check_mode:
            admin.remove_user(key)
    if (policy := admin.policy(name)) is not None:
        outcome.note(f"removed policy {name}", f"policy {name}", normalised(policy), "absent")
        if not check_mode:
            admin.remove_policy(name)


def _ensure_key(
    admin: Store, own: Store, secret_key: str, user: dict | None, wanted: Wanted, check_mode: bool, outcome: Outcome
) -> None:
    """The key, its secret, and one policy on it."""
    key, name = own.access_key, policy_name(wanted.bucket, own.access_key)
    policy, right_policy = admin.policy(name), policy_for(wanted.bucket, wanted.append_only)
    if policy is None or normalised(policy) != normalised(right_policy):
        before = "absent" if policy is None else normalised(policy)
        verb = "created" if policy is None else "corrected"
        outcome.note(f"{verb} policy {name}", f"policy {name}", before, normalised(right_policy))
        if not check_mode:
            admin.set_policy(name, right_policy)

    attached = [entry for entry in ((user or {}).get("policyName") or "").split(",") if entry]
    if user is None:
        outcome.note(f"created access key {key}", f"access key {key}", "absent", "enabled")
    elif user.get("status") != "enabled":
        outcome.note(f"enabled access key {key}", f"access key {key}", "disabled", "enabled")
    elif own.look(wanted.bucket) in ("SignatureDoesNotMatch", "InvalidAccessKeyId"):
        sentence = f"set the secret key of access key {key}"
        outcome.note(sentence, f"access key {key}, secret key", "another", "as given")
    else:
        secret_key = ""
    if secret_key and not check_mode:
        admin.set_user(key, secret_key)

    if attached != [name]:
        others = ", ".join(entry for entry in attached if entry != name)
        sentence = f"attached policy {name} to access key {key}"
        if others:
            sentence = f"left access key {key} no policy but {name} (it had {others})"
        outcome.note(sentence, f"access key {key}, policies", attached, [name])
        if not check_mode:
            admin.attach_only(key, name, attached)
    if user and user.get("memberOf"):
        groups = ", ".join(user["memberOf"])
        outcome.warnings.append(f"access key {key} has more rights: it is in the groups {groups}")


class _Bucket:
    """Brings one bucket into the wanted state, as far as the key may and the server can.

    :param state: ``present`` or ``absent``.
    """

    def __init__(
        self, store: Store, wanted: Wanted, state: str, check_mode: bool, outcome: Outcome, is_admin: bool = False
    ):
        self.store, self.wanted, self.name = store, wanted, wanted.bucket
        self.check_mode, self.outcome, self.is_admin = check_mode, outcome, is_admin
        self.is_new = state == "absent"
        # In check mode, a bucket that would be made cannot be looked at: it would be as servers make it.
        self.is_there = not (self.is_new and check_mode)

    def apply(self) -> None:
        """Everything, in this order."""
        lock = self._read_lock()
        if self.is_new:
            self.outcome.note(f"created bucket {self.name}", f"bucket {self.name}", "absent", "present")
            if not self.check_mode:
                self.store.make_bucket(self.name, object_lock=self.wanted.lock_days > 0)
        elif self.is_admin:
            self._close()
        if self.wanted.keeps_versions:
            self._keep_versions()
        if self.wanted.lock_days:
            self._lock(lock)
        self._lifecycle()
        if self.is_admin and self.wanted.quota is not None:
            self._quota(self.wanted.quota)

    def _ask(self, what: str, function, *arguments, missing=None):
        """The answer; None, and ``what`` among what could not be done, where the server or the key does not allow it.

        :param missing: the answer of a bucket that is not there yet.
        """
        if not self.is_there:
            return missing
        try:
            return function(self.name, *arguments)
        except Refusal as refusal:
            self.outcome.not_done.append(f"{what}: {self._reason(refusal)}")
            return None

    def _reason(self, refusal: Refusal) -> str:
        if refusal.code == "AccessDenied":
            return f"access key {self.store.access_key} may not ({refusal.code})"
        # What is sent is well formed; a server says otherwise of what it does not know in it.
        if refusal.is_unknown or refusal.code in ("MalformedXML", "InvalidArgument"):
            return f"the server cannot ({refusal.code})"
        return f"{one_line(refusal.message, 200)} ({refusal.code})"

    def _set(self, what: str, function, *arguments) -> bool:
        """Change something; False, and ``what`` among what could not be done, if that was refused."""
        if self.check_mode:
            return True
        known = len(self.outcome.not_done)
        self._ask(what, function, *arguments)
        return len(self.outcome.not_done) == known

    def _close(self) -> None:
        if allows_anonymous(self.store.bucket_policy(self.name)):
            sentence = f"closed bucket {self.name} to anonymous access"
            self.outcome.note(sentence, f"bucket {self.name}, anonymous", "allowed", "refused")
            if not self.check_mode:
                self.store.delete_bucket_policy(self.name)

    def _keep_versions(self) -> None:
        what = "keeping older versions"
        found = self._ask(what, self.store.versioning, missing="Enabled" if self.wanted.lock_days else "Off")
        if found in ("Off", "Suspended") and self._set(what, self.store.enable_versioning):
            sentence = f"let bucket {self.name} keep what is overwritten as older versions"
            self.outcome.note(sentence, f"bucket {self.name}, versioning", found.lower(), "enabled")

    def _read_lock(self) -> tuple[str, int]:
        """The retention there is.

        :raises Error: the bucket cannot have one any more; nothing has been changed then.
        """
        if self.wanted.lock_days == 0 or self.is_new:
            return "", 0
        try:
            found = self.store.object_lock(self.name)
        except Refusal as refusal:
            raise Error(f"lock_days: bucket {self.name}, object lock: {self._reason(refusal)}") from None
        if found is None:
            raise Error(
                f"lock_days: bucket {self.name} exists without object lock, which a bucket gets when it is made or "
                f"never; expected 0, or the name of a new bucket"
            )
        return found

    def _lock(self, found: tuple[str, int]) -> None:
        mode, days = found
        # Compliance is the stricter mode: not even an administrator can delete sooner.
        if days == self.wanted.lock_days or (mode == "COMPLIANCE" and days > self.wanted.lock_days):
            return
        if self._set("locking new objects", self.store.set_object_lock, self.wanted.lock_days):
            sentence = f"locked new objects of bucket {self.name} for {self.wanted.lock_days} days"
            self.outcome.note(sentence, f"bucket {self.name}, days of object lock", days, self.wanted.lock_days)

    def _lifecycle(self) -> None:
        """Rule by rule, since a server refuses all together when it cannot have one of them."""
        wanted = lifecycle.wanted_rules(self.wanted.abort_uploads_after_days, self.wanted.expire_versions_after_days)
        if self.is_admin and self.wanted.abort_uploads_after_days:
            wanted[lifecycle.ABORT_UPLOADS] = {}
            self._check_stale_uploads(self.wanted.abort_uploads_after_days)
        known = len(self.outcome.not_done)
        xml = self._ask("the lifecycle rules", self.store.lifecycle, missing="")
        if xml is None:
            if not any(wanted.values()):
                # There is nothing to set, and only rules of ours to take away, of which this key can have made none.
                del self.outcome.not_done[known:]
            return
        for name, settings in wanted.items():
            xml = self._rule(xml, name, settings)

    def _rule(self, xml: str, name: str, settings: lifecycle.Settings) -> str:
        """Set one rule; the rules that there are then."""
        before = lifecycle.our_rules(xml)[name]
        if before == settings:
            return xml
        changed = lifecycle.with_rule(xml, name, settings)
        what = f"lifecycle rule {name}"
        if not self._set(what, self.store.set_lifecycle, changed):
            return xml
        if not self.check_mode:
            changed = self.store.lifecycle(self.name)
            if lifecycle.our_rules(changed)[name] != settings:
                self.outcome.not_done.append(f"{what}: the server took it and did not keep it")
                return changed
        verb = "removed" if not settings else "corrected" if before else "set"
        key = f"bucket {self.name}, {what}"
        self.outcome.note(f"{verb} {what} of bucket {self.name}", key, before or "absent", settings or "absent")
        return changed

    def _check_stale_uploads(self, days: int) -> None:
        """MinIO has no such rule; it aborts uploads after a time that is one for all of its buckets."""
        what = f"aborting uploads after {days} days"
        try:
            expiry = self.store.stale_uploads_expiry()
        except Refusal as refusal:
            self.outcome.not_done.append(f"{what}: {self._reason(refusal)}")
            return
        hours = sum(float(amount) * HOURS[unit] for amount, unit in re.findall(r"([0-9.]+)([hms])", expiry))
        if hours > days * 24 or not hours:
            self.outcome.not_done.append(
                f"{what}: MinIO has no rule for it, and aborts them after {expiry or 'no known time'} everywhere (its "
                f"setting api stale_uploads_expiry)"
            )

    def _quota(self, size: int) -> None:
        found = self._ask("the quota", self.store.quota, missing=0)
        if found is not None and found != size and self._set("the quota", self.store.set_quota, size):
            sentence = f"limited bucket {self.name} to {size} bytes" if size else f"removed the quota of {self.name}"
            self.outcome.note(sentence, f"bucket {self.name}, quota in bytes", found, size)
