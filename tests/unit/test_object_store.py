"""The bucket module's decisions against a store that answers from memory, and its parsing."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible.module_utils.ansible_mlflow import object_store_lifecycle as lifecycle
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.object_store import (
    Endpoint,
    Refusal,
    Store,
    check_bucket_name,
    parse_endpoint,
)
from ansible.module_utils.ansible_mlflow.object_store_bucket import (
    Wanted,
    ensure_with_admin,
    ensure_with_own_key,
    parse_size,
)
from ansible.module_utils.ansible_mlflow.object_store_policy import allows_anonymous, normalised, policy_for
from hypothesis import given
from hypothesis import strategies as st

HOST = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?){0,4}", fullmatch=True)


@given(st.sampled_from(["http", "https"]), HOST, st.integers(1, 65535), st.sampled_from(["", "/"]))
def test_an_endpoint_is_taken_apart(scheme, host, port, slash):
    assert parse_endpoint(f"{scheme}://{host}:{port}{slash}") == Endpoint(scheme, host, port)


@pytest.mark.parametrize(
    ("text", "port"),
    [("http://minio", 80), ("https://minio", 443), ("http://[fd00::1]:9000", 9000), ("http://10.0.0.1:9000", 9000)],
)
def test_an_endpoint_has_its_schemes_port(text, port):
    assert parse_endpoint(text).port == port


@pytest.mark.parametrize(
    "text",
    [
        "",
        "minio:9000",
        "s3://mlflow",
        "ftp://minio",
        "http://",
        "http://minio:0",
        "http://minio:65536",
        "http://minio:x",
        "http://minio/mlflow",
        "http://minio?x=1",
        "http://minio#x",
        "http://a..b",
        "http://minio\n",
        " http://minio",
        "http://mi nio",
        "HTTP://minio",
    ],
)
def test_everything_else_is_refused(text):
    with pytest.raises(Error, match=r"endpoint: expected http://host\[:port\]"):
        parse_endpoint(text)


def test_a_password_in_an_endpoint_is_refused_and_not_repeated():
    with pytest.raises(Error) as caught:
        parse_endpoint("http://user:hunter2@minio:9000")
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=80))
def test_any_text_is_refused_in_one_line(text):
    # Random text is no endpoint; the message shows it, whatever characters it has.
    with pytest.raises(Error) as caught:
        parse_endpoint(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["mlflow", "a-b.c", "123", "a" * 63])
def test_a_bucket_name_of_s3_is_taken(name):
    check_bucket_name(name)


@pytest.mark.parametrize(
    "name", ["", "ab", "a" * 64, "Mlflow", "my_bucket", "a..b", "10.0.0.1", "-ab", "ab-", "xn--a", "a/b"]
)
def test_any_other_is_refused(name):
    with pytest.raises(Error, match="bucket: expected"):
        check_bucket_name(name)


def test_the_policy_allows_what_mlflow_needs_on_one_bucket_and_nothing_else():
    statements = policy_for("mlflow")["Statement"]
    assert {resource for entry in statements for resource in entry["Resource"]} == {
        "arn:aws:s3:::mlflow",
        "arn:aws:s3:::mlflow/*",
    }
    assert {action for entry in statements if entry["Effect"] == "Deny" for action in entry["Action"]} == {
        "s3:DeleteObjectVersion",
        "s3:ListBucket",
    }
    # Denied is the listing of the root alone, without which MinIO would name the buckets.
    [condition] = [entry["Condition"] for entry in statements if "Condition" in entry]
    assert condition == {"StringEquals": {"s3:prefix": [""], "s3:delimiter": ["/"]}}
    assert {action for entry in statements if entry["Effect"] == "Allow" for action in entry["Action"]} == {
        "s3:ListBucket",
        "s3:GetBucketVersioning",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
        "s3:ListBucketMultipartUploads",
        "s3:ListMultipartUploadParts",
    }


def test_a_policy_to_add_only_lacks_deleting_and_nothing_else():
    full, less = policy_for("mlflow")["Statement"], policy_for("mlflow", append_only=True)["Statement"]
    assert less[0] == full[0]
    assert set(full[1]["Action"]) - set(less[1]["Action"]) == {"s3:DeleteObject"}
    assert {**less[1], "Action": full[1]["Action"]} == full[1]


def test_policies_are_compared_by_meaning():
    wanted = policy_for("mlflow")
    reordered = {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": "", **entry, "Action": entry["Action"][::-1], "Resource": entry["Resource"][0]}
            for entry in wanted["Statement"][::-1]
        ],
    }
    assert normalised(reordered) == normalised(wanted)
    for change in ({"Effect": "Deny"}, {"Action": ["s3:*"]}, {"Resource": ["*"]}, {"Condition": {"Bool": {"a": "b"}}}):
        other = {"Statement": [{**wanted["Statement"][0], **change}, *wanted["Statement"][1:]]}
        assert normalised(other) != normalised(wanted)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ({"Effect": "Allow", "Principal": "*"}, True),
        ({"Effect": "Allow", "Principal": {"AWS": ["*"]}}, True),
        ({"Effect": "Allow", "Principal": {"AWS": "*"}}, True),
        ({"Effect": "Deny", "Principal": "*"}, False),
        ({"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam::1:user/a"]}}, False),
    ],
)
def test_anonymous_access_is_recognised(statement, expected):
    assert allows_anonymous(json.dumps({"Statement": [statement]})) is expected
    assert allows_anonymous("") is False


class Memory:
    """An S3 server in memory: buckets with their settings, users with their secret, status and policies.

    Attributes:
        refused: What the server answers to a method, instead of doing it.
        forgets: Whether it takes lifecycle rules and keeps none.
    """

    def __init__(self):
        self.buckets, self.users, self.policies, self.anonymous, self.writes = {}, {}, {}, {}, []
        self.refused, self.forgets, self.stale_uploads = {}, False, "24h"

    def view(self, access_key: str, secret_key: str) -> View:
        return View(self, access_key, secret_key)


def setting(name: str, default=None):
    """A reading method of a bucket's setting."""

    def method(self, bucket):
        self.answer(name)
        return self.memory.buckets[bucket].get(name, default)

    return method


def change(name: str, method_name: str, value=None):
    """A writing method of it."""

    def method(self, bucket, *arguments):
        self.answer(method_name)
        self.memory.writes.append(name)
        self.memory.buckets[bucket][name] = value(*arguments) if callable(value) else value

    return method


class View:
    """The server as one key sees it; the same methods as Store."""

    endpoint = Endpoint("http", "minio", 9000)
    region = "us-east-1"
    explained = Store.explained

    def __init__(self, memory, access_key, secret_key):
        self.memory, self.access_key, self.secret_key = memory, access_key, secret_key

    def answer(self, method):
        if method in self.memory.refused:
            raise Refusal(self.memory.refused[method], "said")

    def look(self, bucket):
        user = self.memory.users.get(self.access_key)
        if self.access_key != "root":
            if not user or user["status"] != "enabled":
                return "InvalidAccessKeyId"
            if user["secret"] != self.secret_key:
                return "SignatureDoesNotMatch"
            if f"{bucket}-{self.access_key}" not in user["policyName"].split(","):
                return "AccessDenied"
        return "present" if bucket in self.memory.buckets else "absent"

    def is_open(self, bucket):
        return bucket in self.memory.anonymous

    def make_bucket(self, bucket, object_lock=False):
        self.memory.writes.append("bucket")
        self.memory.buckets[bucket] = {"object_lock": ("", 0), "versioning": "Enabled"} if object_lock else {}

    def policy(self, name):
        self.answer("policy")
        return self.memory.policies.get(name)

    def set_policy(self, name, policy):
        self.memory.writes.append("policy")
        self.memory.policies[name] = policy

    def user(self, access_key):
        self.answer("user")
        return self.memory.users.get(access_key)

    def set_user(self, access_key, secret_key):
        self.memory.writes.append("user")
        old = self.memory.users.get(access_key, {"policyName": ""})
        self.memory.users[access_key] = {**old, "secret": secret_key, "status": "enabled"}

    def attach_only(self, access_key, wanted, attached):
        assert attached == [name for name in self.memory.users[access_key]["policyName"].split(",") if name]
        self.memory.writes.append("attach")
        self.memory.users[access_key]["policyName"] = wanted

    def remove_user(self, access_key):
        self.memory.writes.append("remove user")
        del self.memory.users[access_key]

    def remove_policy(self, name):
        # MinIO keeps one that somebody has.
        assert all(name not in user["policyName"].split(",") for user in self.memory.users.values())
        self.memory.writes.append("remove policy")
        del self.memory.policies[name]

    def bucket_policy(self, bucket):
        return self.memory.anonymous.get(bucket, "")

    def delete_bucket_policy(self, bucket):
        self.memory.writes.append("close")
        del self.memory.anonymous[bucket]

    def stale_uploads_expiry(self):
        self.answer("stale_uploads_expiry")
        return self.memory.stale_uploads

    def set_lifecycle(self, bucket, xml):
        self.answer("set_lifecycle")
        if "AbortIncompleteMultipartUpload" in xml:
            self.answer("abort rule")
        self.memory.writes.append("lifecycle")
        self.memory.buckets[bucket]["lifecycle"] = "" if self.memory.forgets else xml

    versioning = setting("versioning", "Off")
    enable_versioning = change("versioning", "enable_versioning", "Enabled")
    lifecycle = setting("lifecycle", "")
    object_lock = setting("object_lock")
    set_object_lock = change("object_lock", "set_object_lock", lambda days: ("GOVERNANCE", days))
    quota = setting("quota", 0)
    set_quota = change("quota", "set_quota", int)


SETTINGS = Wanted(
    "mlflow", versioning=True, abort_uploads_after_days=7, expire_versions_after_days=90, quota=parse_size("1Gi")
)
NOTHING = Wanted("mlflow")


@pytest.fixture
def memory() -> Memory:
    """A MinIO in which everything is as wanted."""
    made = Memory()
    ensure(made)
    made.writes.clear()
    return made


def ensure(memory: Memory, check_mode: bool = False, secret: str = "secret-1", wanted: Wanted = SETTINGS):
    admin, own = memory.view("root", "r"), memory.view("mlflow-dev", secret)
    return ensure_with_admin(admin, own, secret, wanted, check_mode)


def ensure_own(memory: Memory, check_mode: bool = False, wanted: Wanted = SETTINGS, key=("root", "r")):
    """As with a key of an S3 server that has no administration; root may do everything here, too."""
    return ensure_with_own_key(memory.view(*key), memory.view("", ""), wanted, check_mode)


OPEN = json.dumps({"Statement": [{"Effect": "Allow", "Principal": "*"}]})


def drop_bucket(memory):
    memory.buckets.clear()


def drop_user(memory):
    memory.users.clear()


def disable_user(memory):
    memory.users["mlflow-dev"]["status"] = "disabled"


def change_secret(memory):
    memory.users["mlflow-dev"]["secret"] = "other"


def widen_policy(memory):
    memory.policies["mlflow-mlflow-dev"] = {"Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}]}


def drop_policy(memory):
    memory.policies.clear()


def attach_more(memory):
    memory.users["mlflow-dev"]["policyName"] += ",readwrite"


def open_to_all(memory):
    memory.anonymous["mlflow"] = OPEN


def suspend_versioning(memory):
    memory.buckets["mlflow"]["versioning"] = "Suspended"


def drop_rules(memory):
    memory.buckets["mlflow"]["lifecycle"] = ""


def shorten_rule(memory):
    xml = memory.buckets["mlflow"]["lifecycle"]
    memory.buckets["mlflow"]["lifecycle"] = xml.replace(">90<", ">1<")


def raise_quota(memory):
    memory.buckets["mlflow"]["quota"] = 1 << 40


def test_from_nothing_everything_is_made_and_then_nothing_is_written():
    memory = Memory()
    would = ensure(memory, check_mode=True)
    assert memory.writes == []
    done = ensure(memory)
    assert len(done.changes) == 7
    assert (would.changes, would.before, would.after) == (done.changes, done.before, done.after)
    memory.writes.clear()
    assert ensure(memory).changes == []
    assert memory.writes == []


@pytest.mark.parametrize(
    ("damage", "sentences"),
    [
        (suspend_versioning, ["let bucket mlflow keep what is overwritten as older versions"]),
        (drop_rules, ["set lifecycle rule ansible-mlflow-expire-versions of bucket mlflow"]),
        (shorten_rule, ["corrected lifecycle rule ansible-mlflow-expire-versions of bucket mlflow"]),
        (raise_quota, ["limited bucket mlflow to 1073741824 bytes"]),
        (drop_user, ["created access key mlflow-dev", "attached policy mlflow-mlflow-dev to access key mlflow-dev"]),
        (disable_user, ["enabled access key mlflow-dev"]),
        (change_secret, ["set the secret key of access key mlflow-dev"]),
        (widen_policy, ["corrected policy mlflow-mlflow-dev"]),
        (drop_policy, ["created policy mlflow-mlflow-dev"]),
        (attach_more, ["left access key mlflow-dev no policy but mlflow-mlflow-dev (it had readwrite)"]),
        (open_to_all, ["closed bucket mlflow to anonymous access"]),
    ],
)
def test_exactly_what_was_damaged_is_restored(memory, damage, sentences):
    damage(memory)
    would = ensure(memory, check_mode=True)
    assert memory.writes == []
    done = ensure(memory)
    assert would.changes == done.changes == sentences
    assert (would.before, would.after) == (done.before, done.after)
    assert len(memory.writes) == len(sentences)
    assert ensure(memory).changes == []


def test_a_bucket_that_is_gone_is_made_with_all_its_settings(memory):
    drop_bucket(memory)
    assert [change.split()[0] for change in ensure(memory).changes] == ["created", "let", "set", "limited"]
    assert ensure(memory).changes == []


def test_a_bucket_to_add_to_only_keeps_versions_and_its_key_deletes_nothing(memory):
    changes = ["let bucket mlflow keep what is overwritten as older versions", "corrected policy mlflow-mlflow-dev"]
    memory.buckets["mlflow"]["versioning"] = "Off"
    wanted = Wanted("mlflow", append_only=True, expire_versions_after_days=90)
    assert ensure(memory, check_mode=True, wanted=wanted).changes == changes
    assert memory.writes == []
    assert ensure(memory, wanted=wanted).changes == changes
    assert memory.writes == ["versioning", "policy"]
    assert memory.policies["mlflow-mlflow-dev"] == policy_for("mlflow", append_only=True)
    assert ensure(memory, wanted=wanted).changes == []


def test_a_former_key_goes_with_its_policy_once_another_has_taken_its_place(memory):
    def ensure_next(check_mode: bool = False, former: str = ""):
        admin, own = memory.view("root", "r"), memory.view("mlflow-dev-2", "secret-2")
        return ensure_with_admin(admin, own, "secret-2", replace(SETTINGS, former_access_key=former), check_mode)

    ensure_next()
    assert set(memory.users) == {"mlflow-dev", "mlflow-dev-2"}
    memory.writes.clear()
    changes = ["removed access key mlflow-dev", "removed policy mlflow-mlflow-dev"]
    assert ensure_next(check_mode=True, former="mlflow-dev").changes == changes
    assert memory.writes == []
    assert ensure_next(former="mlflow-dev").changes == changes
    assert (set(memory.users), set(memory.policies)) == ({"mlflow-dev-2"}, {"mlflow-mlflow-dev-2"})
    assert ensure_next(former="mlflow-dev").changes == []
    # Never the present one, nor the administrator's.
    assert ensure_next(former="mlflow-dev-2").changes == []
    assert ensure_next(former="root").changes == []


def test_without_the_administrator_a_former_key_is_told_of(memory):
    [told] = ensure_own(memory, wanted=replace(NOTHING, former_access_key="mlflow-dev")).not_done
    assert told == "removing access key mlflow-dev: it needs the key of MinIO's administrator"


def test_no_secret_key_stands_in_the_diff(memory):
    change_secret(memory)
    outcome = ensure(memory)
    assert "secret-1" not in json.dumps([outcome.before, outcome.after, outcome.changes])


def test_the_administrators_key_is_not_for_mlflow():
    memory = Memory()
    with pytest.raises(Error, match="needs a key of its own"):
        ensure_with_admin(memory.view("root", "r"), memory.view("root", "r"), "r", NOTHING, False)


def test_a_group_that_gives_more_rights_is_told_of(memory):
    memory.users["mlflow-dev"]["memberOf"] = ["admins"]
    assert "groups admins" in ensure(memory).warnings[0]


@pytest.mark.parametrize(
    ("secret", "has_policy", "exists", "changes", "message"),
    [
        ("secret-1", True, True, [], None),
        ("secret-1", True, False, ["created bucket mlflow"], None),
        ("wrong-one", True, True, None, "the secret key of access key mlflow-dev is wrong"),
        ("secret-1", False, True, None, "may not use bucket mlflow.*not made"),
    ],
)
def test_with_its_own_key_only_an_absent_bucket_is_made(memory, secret, has_policy, exists, changes, message):
    if not has_policy:
        memory.users["mlflow-dev"]["policyName"] = ""
    memory.buckets = {"mlflow": {}} if exists else {}
    key = ("mlflow-dev", secret)
    if message:
        with pytest.raises(Error, match=message):
            ensure_own(memory, wanted=NOTHING, key=key)
    else:
        assert ensure_own(memory, True, NOTHING, key).changes == changes
        assert memory.writes == []
        assert ensure_own(memory, False, NOTHING, key).changes == changes
    assert memory.writes == (["bucket"] if changes else [])


# -- What a server or a key does not allow ---------------------------------------------------------------------------

DENIED, UNKNOWN = "AccessDenied", "NotImplemented"


@pytest.mark.parametrize(
    ("refused", "not_done"),
    [
        ({}, ["the quota: it needs the key of MinIO's administrator"]),
        ({"versioning": UNKNOWN}, ["keeping older versions: the server cannot (NotImplemented)", "the quota"]),
        (
            {"enable_versioning": DENIED},
            ["keeping older versions: access key root may not (AccessDenied)", "the quota"],
        ),
        ({"lifecycle": UNKNOWN}, ["the lifecycle rules: the server cannot (NotImplemented)", "the quota"]),
        (
            {"set_lifecycle": DENIED},
            [
                "lifecycle rule ansible-mlflow-abort-uploads: access key root may not (AccessDenied)",
                "lifecycle rule ansible-mlflow-expire-versions: access key root may not (AccessDenied)",
                "the quota",
            ],
        ),
        (
            {"abort rule": "MalformedXML"},
            ["lifecycle rule ansible-mlflow-abort-uploads: the server cannot (MalformedXML)", "the quota"],
        ),
        (
            {"enable_versioning": "InvalidBucketState"},
            ["keeping older versions: said (InvalidBucketState)", "the quota"],
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_and_is_no_change_of_any_run(refused, not_done):
    memory = Memory()
    memory.refused = refused
    first = ensure_own(memory)
    memory.writes.clear()
    second = ensure_own(memory)
    for outcome in (first, second):
        assert len(outcome.not_done) == len(not_done)
        assert [
            said for said, start in zip(outcome.not_done, not_done, strict=True) if not said.startswith(start)
        ] == []
    assert first.changes[0] == "created bucket mlflow"
    assert (second.changes, second.before, second.after, memory.writes) == ([], {}, {}, [])


def test_a_rule_that_the_server_takes_and_forgets_is_said():
    memory = Memory()
    memory.forgets = True
    wanted = Wanted("mlflow", expire_versions_after_days=90)
    assert ensure_own(memory, wanted=wanted).changes == ["created bucket mlflow"]
    again = ensure_own(memory, wanted=wanted)
    assert again.changes == []
    assert again.not_done == [
        "lifecycle rule ansible-mlflow-expire-versions: the server took it and did not keep it",
    ]


def test_a_key_that_may_not_look_is_not_told_of_where_nothing_is_asked_for(memory):
    memory.refused = {"lifecycle": DENIED, "versioning": DENIED, "object_lock": DENIED}
    outcome = ensure_own(memory, wanted=NOTHING)
    assert (outcome.not_done, outcome.changes) == ([], [])


def test_a_bucket_that_is_open_to_anybody_is_told_of(memory):
    memory.anonymous["mlflow"] = OPEN
    memory.buckets["mlflow"] = {}
    assert "closing the bucket" in ensure_own(memory, wanted=NOTHING).not_done[0]
    assert memory.writes == []


@pytest.mark.parametrize(
    ("expiry", "days", "is_told"),
    [("24h", 7, False), ("24h", 1, False), ("25h", 1, True), ("168h0m0s", 7, False), ("169h", 7, True), ("", 7, True)],
)
def test_minio_aborts_uploads_by_itself_and_is_told_of_where_that_is_too_late(memory, expiry, days, is_told):
    memory.stale_uploads = expiry
    outcome = ensure(memory, wanted=Wanted("mlflow", abort_uploads_after_days=days))
    assert bool(outcome.not_done) is is_told
    assert "ansible-mlflow-abort" not in memory.buckets["mlflow"]["lifecycle"]


@pytest.mark.parametrize("code", ["NotImplemented", "MethodNotAllowed", "HTTP 404", "NoSuchBucket"])
def test_an_administrators_key_of_a_server_without_administration_is_refused_before_anything_is_made(code):
    memory = Memory()
    memory.refused = {"user": code}
    with pytest.raises(Error, match="has no MinIO administration"):
        ensure(memory)
    assert memory.writes == []


def test_an_administrations_own_refusal_is_told_as_it_is():
    memory = Memory()
    memory.refused = {"user": "InvalidArgument"}
    with pytest.raises(Error, match=r"http://minio:9000: InvalidArgument: said \(InvalidArgument\)"):
        ensure(memory)


# -- Locks -----------------------------------------------------------------------------------------------------------

LOCKED = Wanted("mlflow", lock_days=30)


def test_a_bucket_is_made_with_locks():
    memory = Memory()
    would = ensure(memory, check_mode=True, wanted=LOCKED)
    done = ensure(memory, wanted=LOCKED)
    assert would.changes == done.changes
    assert "locked new objects of bucket mlflow for 30 days" in done.changes
    assert memory.buckets["mlflow"]["object_lock"] == ("GOVERNANCE", 30)
    assert ensure(memory, wanted=LOCKED).changes == []


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_bucket_without_locks_is_refused_before_anything_changes(memory, check_mode):
    with pytest.raises(Error, match="bucket mlflow exists without object lock, which a bucket gets when it is made"):
        ensure(memory, check_mode, wanted=LOCKED)
    assert memory.writes == []


@pytest.mark.parametrize(
    ("found", "changes"),
    [(("GOVERNANCE", 30), 0), (("GOVERNANCE", 60), 1), (("COMPLIANCE", 60), 0), (("COMPLIANCE", 10), 1), (("", 0), 1)],
)
def test_a_stricter_lock_of_somebody_else_is_left(memory, found, changes):
    memory.buckets["mlflow"].update(object_lock=found, versioning="Enabled")
    wanted = Wanted("mlflow", lock_days=30, expire_versions_after_days=90)
    assert len(ensure(memory, wanted=wanted).changes) == changes


# -- Lifecycle rules -------------------------------------------------------------------------------------------------

THEIRS = """<?xml version="1.0" encoding="UTF-8"?>
<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule><ID>theirs</ID><Status>Enabled</Status>
<Filter><And><Prefix>tmp/</Prefix><Tag><Key>a</Key><Value>1</Value></Tag><Tag><Key>b</Key><Value>2</Value></Tag>
<ObjectSizeGreaterThan>500</ObjectSizeGreaterThan></And></Filter><Transition><Days>30</Days><StorageClass>A</StorageClass>
</Transition><Transition><Days>90</Days><StorageClass>B</StorageClass></Transition></Rule></LifecycleConfiguration>"""


def rules_of(xml: str) -> list[str]:
    """Each rule as comparable text."""
    root = lifecycle._parse(xml)
    return [lifecycle.ElementTree.tostring(rule, encoding="unicode").strip() for rule in root]


def test_rules_of_others_are_kept_whatever_is_in_them(memory):
    memory.buckets["mlflow"]["lifecycle"] = THEIRS
    ensure(memory)
    after = memory.buckets["mlflow"]["lifecycle"]
    assert rules_of(after)[0] == rules_of(THEIRS)[0]
    assert len(rules_of(after)) == 2
    assert lifecycle.our_rules(after)[lifecycle.EXPIRE_VERSIONS]["NoncurrentVersionExpiration/NoncurrentDays"] == "90"
    memory.writes.clear()
    assert ensure(memory).changes == []
    removed = ensure(memory, wanted=Wanted("mlflow", versioning=True))
    assert removed.changes == ["removed lifecycle rule ansible-mlflow-expire-versions of bucket mlflow"]
    assert rules_of(memory.buckets["mlflow"]["lifecycle"]) == rules_of(THEIRS)


def test_where_no_rule_is_left_none_is_sent(memory):
    assert ensure(memory, wanted=NOTHING).changes
    assert memory.buckets["mlflow"]["lifecycle"] == ""


@pytest.mark.parametrize("spelling", ["as sent", "without namespace", "without the empty filter", "spaces"])
def test_a_rule_is_ours_however_the_server_spells_it(spelling):
    settings = lifecycle.wanted_rules(7, 90)
    xml = ""
    for name, wanted in settings.items():
        xml = lifecycle.with_rule(xml, name, wanted)
    changes = {
        "as sent": ("", ""),
        "without namespace": (f' xmlns="{lifecycle.NAMESPACE}"', ""),
        "without the empty filter": ("<Filter><Prefix /></Filter>", ""),
        "spaces": ("><", ">\n  <"),
    }
    old, new = changes[spelling]
    assert old in xml
    assert lifecycle.our_rules(xml.replace(old, new)) == settings


def test_rules_that_are_no_xml_are_refused():
    with pytest.raises(Error, match="are no XML"):
        lifecycle.our_rules("<a>")


@given(st.integers(0, 10**18 - 1), st.sampled_from([("", 0), ("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40)]))
def test_a_size_is_bytes(number, unit):
    assert parse_size(f"{number}{unit[0]}") == number << unit[1]


@pytest.mark.parametrize("text", ["-1", "1.5Gi", "10G", "1 Gi", "Gi", "10Gi\n", "ten", "٣"])
def test_any_other_size_is_refused(text):
    with pytest.raises(Error, match="quota: expected bytes"):
        parse_size(text)


# -- What a server answers, by a server that answers so --------------------------------------------------------------


class FakeS3(BaseHTTPRequestHandler):
    """Answers every request as the test says, and counts them by their method."""

    def do_GET(self):
        status, headers, body = self.server.answers[self.command]
        self.server.asked.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        for name, value in {"Content-Type": "application/xml", **headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body.encode())

    do_PUT = do_GET

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def server():
    """An HTTP server on this machine."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), FakeS3)
    made.asked, made.answers = [], {}
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


def error(code: str, message: str = "said", more: str = "") -> str:
    return f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>"


ABSENT = (404, {}, error("NoSuchBucket"))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (
            {"GET": (403, {}, error("AccessDenied"))},
            "access key mlflow-dev may not use bucket mlflow. It may be there and",
        ),
        ({"GET": (403, {}, error("InvalidAccessKeyId"))}, "there is no access key mlflow-dev"),
        ({"GET": (403, {}, error("SignatureDoesNotMatch"))}, "the secret key of access key mlflow-dev is wrong"),
        ({"GET": (403, {}, error("RequestTimeTooSkewed"))}, "clocks"),
        ({"GET": (403, {}, error("AllAccessDisabled"))}, "AllAccessDisabled: said"),
        (
            {"GET": (301, {"x-amz-bucket-region": "eu-west-1"}, error("PermanentRedirect"))},
            "region: us-east-1 is not the region of bucket mlflow or of this server; expected eu-west-1",
        ),
        (
            {"GET": (301, {"Location": "http://127.0.0.1:1/"}, error("PermanentRedirect"))},
            "region: us-east-1 is not the region of bucket mlflow or of this server; said",
        ),
        (
            {"GET": (400, {}, error("AuthorizationHeaderMalformed", more="<Region>eu-west-2</Region>"))},
            "expected eu-west-2",
        ),
        (
            {"GET": (400, {}, error("AuthorizationHeaderMalformed", "the region is wrong; expecting 'eu-west-3'."))},
            "expected eu-west-3",
        ),
        ({"GET": (400, {}, error("InvalidRegion"))}, "region: us-east-1 is not the region"),
        ({"GET": (404, {}, "<html>no</html>"), "PUT": (500, {}, "")}, "does not answer as an S3 server does"),
        ({"GET": (404, {"Content-Type": "text/html"}, "<html>no</html>")}, "does not answer as an S3 server does"),
        ({"GET": (301, {"Content-Type": "text/html", "Location": "https://x/"}, "moved")}, "as an S3 server does"),
        ({"GET": (200, {"Content-Type": "text/html"}, "<html>Welcome")}, "does not answer as an S3 server does"),
        ({"GET": ABSENT, "PUT": (403, {}, error("AccessDenied"))}, "access key mlflow-dev may not use bucket mlflow"),
        ({"GET": ABSENT, "PUT": (409, {}, error("BucketAlreadyExists"))}, "the name mlflow is taken by another owner"),
        ({"GET": ABSENT, "PUT": (409, {}, error("OperationAborted"))}, "at this moment; run again"),
        (
            {"GET": ABSENT, "PUT": (400, {}, error("IllegalLocationConstraintException"))},
            "region: us-east-1 is not the region",
        ),
    ],
    ids=str,
)
def test_answers_are_told_apart_and_only_an_absent_bucket_is_made(server, run_module, answers, words):
    server.answers = answers
    result = run_module(
        "mlflow_bucket",
        endpoint=f"http://127.0.0.1:{server.server_port}",
        reach="direct",
        bucket="mlflow",
        access_key="mlflow-dev",
        secret_key="secret-1",
    )
    assert result["failed"]
    assert words in result["msg"]
    assert "\n" not in result["msg"]
    assert ("PUT" in server.asked) is (answers["GET"] == ABSENT)


def test_a_bucket_that_was_made_meanwhile_by_the_same_owner_is_fine(server):
    server.answers = {"PUT": (409, {}, error("BucketAlreadyOwnedByYou"))}
    where = ("127.0.0.1", server.server_port)
    Store(Endpoint("http", *where), where, "us-east-1", "mlflow-dev", "secret-1").make_bucket("mlflow")
    assert server.asked == ["PUT"]
