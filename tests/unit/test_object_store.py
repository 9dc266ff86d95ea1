"""The bucket module's decisions against a store that answers from memory, and its parsing."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.object_store import (
    Endpoint,
    Refusal,
    Store,
    allows_anonymous,
    check_bucket_name,
    ensure_with_admin,
    ensure_with_own_key,
    normalised,
    parse_endpoint,
    policy_for,
)
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
    assert {action for entry in statements for action in entry["Action"]} == {
        "s3:ListBucket",
        "s3:GetBucketVersioning",
        "s3:GetObject",
        "s3:PutObject",
        "s3:DeleteObject",
        "s3:AbortMultipartUpload",
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
            {"Sid": "", "Effect": "Allow", "Action": entry["Action"][::-1], "Resource": entry["Resource"][0]}
            for entry in wanted["Statement"][::-1]
        ],
    }
    assert normalised(reordered) == normalised(wanted)
    for change in ({"Effect": "Deny"}, {"Action": ["s3:*"]}, {"Resource": ["*"]}, {"Condition": {"Bool": {"a": "b"}}}):
        other = {"Statement": [{**wanted["Statement"][0], **change}, wanted["Statement"][1]]}
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
    """A MinIO in memory: buckets, users with their secret, status and policies."""

    def __init__(self):
        self.buckets, self.users, self.policies, self.anonymous, self.writes = set(), {}, {}, {}, []
        self.versioned = set()

    def view(self, access_key: str, secret_key: str) -> View:
        return View(self, access_key, secret_key)


class View:
    """The server as one key sees it; the same methods as Store."""

    endpoint = Endpoint("http", "minio", 9000)
    region = "us-east-1"
    explained = Store.explained

    def __init__(self, memory, access_key, secret_key):
        self.memory, self.access_key, self.secret_key = memory, access_key, secret_key

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

    def make_bucket(self, bucket):
        self.memory.writes.append("bucket")
        self.memory.buckets.add(bucket)

    def policy(self, name):
        return self.memory.policies.get(name)

    def set_policy(self, name, policy):
        self.memory.writes.append("policy")
        self.memory.policies[name] = policy

    def user(self, access_key):
        return self.memory.users.get(access_key)

    def set_user(self, access_key, secret_key):
        self.memory.writes.append("user")
        old = self.memory.users.get(access_key, {"policyName": ""})
        self.memory.users[access_key] = {**old, "secret": secret_key, "status": "enabled"}

    def attach_only(self, access_key, wanted, attached):
        assert attached == [name for name in self.memory.users[access_key]["policyName"].split(",") if name]
        self.memory.writes.append("attach")
        self.memory.users[access_key]["policyName"] = wanted

    def bucket_policy(self, bucket):
        return self.memory.anonymous.get(bucket, "")

    def delete_bucket_policy(self, bucket):
        self.memory.writes.append("close")
        del self.memory.anonymous[bucket]

    def keeps_versions(self, bucket):
        return bucket in self.memory.versioned

    def keep_versions(self, bucket):
        self.memory.writes.append("versions")
        self.memory.versioned.add(bucket)


@pytest.fixture
def memory() -> Memory:
    """A MinIO in which everything is as wanted."""
    made = Memory()
    ensure(made)
    made.writes.clear()
    return made


def ensure(memory: Memory, check_mode: bool = False, secret: str = "secret-1", append_only: bool = False):
    admin, own = memory.view("root", "r"), memory.view("mlflow-dev", secret)
    return ensure_with_admin(admin, own, "mlflow", secret, check_mode, append_only)


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


def test_from_nothing_everything_is_made_and_then_nothing_is_written():
    memory = Memory()
    assert len(ensure(memory).changes) == 4
    memory.writes.clear()
    assert ensure(memory).changes == []
    assert memory.writes == []


@pytest.mark.parametrize(
    ("damage", "sentences"),
    [
        (drop_bucket, ["created bucket mlflow"]),
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


def test_a_bucket_to_add_to_only_keeps_versions_and_its_key_deletes_nothing(memory):
    changes = ["let bucket mlflow keep what is overwritten as older versions", "corrected policy mlflow-mlflow-dev"]
    assert ensure(memory, check_mode=True, append_only=True).changes == changes
    assert memory.writes == []
    assert ensure(memory, append_only=True).changes == changes
    assert memory.writes == ["versions", "policy"]
    assert memory.policies["mlflow-mlflow-dev"] == policy_for("mlflow", append_only=True)
    assert ensure(memory, append_only=True).changes == []


def test_no_secret_key_stands_in_the_diff(memory):
    change_secret(memory)
    outcome = ensure(memory)
    assert "secret-1" not in json.dumps([outcome.before, outcome.after, outcome.changes])


def test_the_administrators_key_is_not_for_mlflow():
    memory = Memory()
    with pytest.raises(Error, match="needs a key of its own"):
        ensure_with_admin(memory.view("root", "r"), memory.view("root", "r"), "mlflow", "r", False)


def test_a_group_that_gives_more_rights_is_told_of(memory):
    memory.users["mlflow-dev"]["memberOf"] = ["admins"]
    assert "groups admins" in ensure(memory).warnings[0]


@pytest.mark.parametrize(
    ("secret", "has_policy", "exists", "changes", "message"),
    [
        ("secret-1", True, True, [], None),
        ("secret-1", True, False, ["created bucket mlflow"], None),
        ("wrong-one", True, True, None, "the secret key of access key mlflow-dev is wrong"),
        ("secret-1", False, True, None, "may neither use nor create bucket mlflow"),
    ],
)
def test_with_its_own_key_only_an_absent_bucket_is_made(memory, secret, has_policy, exists, changes, message):
    if not has_policy:
        memory.users["mlflow-dev"]["policyName"] = ""
    if not exists:
        drop_bucket(memory)
    own = memory.view("mlflow-dev", secret)
    if message:
        with pytest.raises(Error, match=message):
            ensure_with_own_key(own, "mlflow", False)
    else:
        assert ensure_with_own_key(own, "mlflow", True).changes == changes
        assert memory.writes == []
        assert ensure_with_own_key(own, "mlflow", False).changes == changes
    assert memory.writes == (["bucket"] if changes else [])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("BucketAlreadyExists", "taken by another owner"),
        ("PermanentRedirect", "another region"),
        ("AuthorizationHeaderMalformed", "its region is not us-east-1"),
        ("OperationAborted", "run again"),
        ("SomethingNew", "SomethingNew: said"),
    ],
)
def test_refusals_are_told_apart(code, words):
    view = Memory().view("mlflow-dev", "s")
    assert words in str(view.explained(Refusal(code, "said"), "mlflow"))
