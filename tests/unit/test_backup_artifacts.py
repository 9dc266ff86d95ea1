"""What the backup keeps besides dumps: encryption, copies of artifacts, and which of it is deleted."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from ansible.module_utils.ansible_mlflow import backups
from ansible.module_utils.ansible_mlflow.errors import Error
from hypothesis import given
from hypothesis import strategies as st
from test_backup_program import artifacts, bucket, filters, manifests, sealed
from test_backup_program import backup as program

KEY = sealed.Cipher(b"k" * 32)
OTHER = sealed.Cipher(b"o" * 32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that short texts reach."""
    monkeypatch.setattr(sealed, "CHUNK", 8)
    monkeypatch.setattr(artifacts, "SMALL", 20)


def encrypt(content: bytes, name: str = "x", cipher: sealed.Cipher = KEY) -> bytes:
    return b"".join(cipher.encrypted([content], name))


def decrypt(content: bytes, name: str = "x", cipher: sealed.Cipher = KEY) -> bytes:
    return b"".join(cipher.decrypted([content], name))


# -- encryption -------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 30))
def test_what_was_encrypted_is_decrypted_however_it_is_cut(blocks, step):
    content = b"".join(KEY.encrypted(blocks, "a"))
    assert len(content) == sealed.encrypted_size(sum(map(len, blocks)))
    cut = [content[at : at + step] for at in range(0, len(content), step)]
    assert b"".join(KEY.decrypted(cut, "a")) == b"".join(blocks)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text[: len(sealed.MAGIC) + sealed.SALT],
        # Without its last chunk, with a chunk after it, and with two in another order.
        lambda text: text[: len(sealed.MAGIC) + sealed.SALT + 24],
        lambda text: text + text[-24:],
        lambda text: text[:48] + text[72:96] + text[48:72] + text[96:],
        lambda text: text[:60] + bytes([text[60] ^ 1]) + text[61:],
        lambda text: b"",
        lambda text: b"plain",
    ],
)
def test_what_was_changed_is_not_decrypted(change):
    content = encrypt(b"0123456789abcdef01234567")
    assert decrypt(content) == b"0123456789abcdef01234567"
    with pytest.raises(bucket.BackupError, match="changed"):
        decrypt(change(content))


def test_another_key_or_another_objects_content_is_not_decrypted():
    for arguments in ({"cipher": OTHER}, {"name": "y"}):
        with pytest.raises(bucket.BackupError, match="cannot be decrypted"):
            decrypt(encrypt(b"text"), **arguments)


def test_the_same_text_is_never_encrypted_alike():
    assert encrypt(b"text") != encrypt(b"text")


@pytest.mark.parametrize(
    ("given_key", "words"),
    [
        (b"k" * 32, ""),
        (b"o" * 32, f"that of backup_encryption_key is {OTHER.fingerprint}"),
        (b"", "there is none"),
        (b"short", "expected 32 bytes in base64"),
    ],
)
def test_a_backup_without_its_key_is_refused(monkeypatch, given_key, words):
    monkeypatch.setenv("MLFLOW_BACKUP_ENCRYPTION_KEY", base64.b64encode(given_key).decode())
    manifest = {"id": "1", "encryption": {"key": KEY.fingerprint}}
    if not words:
        assert sealed.cipher_for(manifest).fingerprint == KEY.fingerprint
        return
    with pytest.raises(bucket.BackupError, match=words):
        sealed.cipher_for(manifest)


def test_a_passphrase_is_known_by_its_fingerprint_alone():
    kept = sealed.passphrase_fingerprint("one passphrase")
    assert "one" not in str(kept)
    assert kept != sealed.passphrase_fingerprint("one passphrase")
    assert sealed.is_passphrase("one passphrase", kept)
    assert not sealed.is_passphrase("another", kept)


# -- copies of artifacts ----------------------------------------------------------------------------------------------


class FakeBucket:
    """A bucket in memory; what has `changes` is replaced or deleted when it is read for the first time."""

    name, endpoint, key = "mlflow", "http://minio:9000", "key"

    def __init__(self, **content: bytes):
        self.content = dict(content)
        self.metadata: dict[str, dict] = {}
        self.changes: dict[str, bytes | None] = {}
        self.written: list[str] = []

    def etag(self, key: str) -> str:
        return f'"{hashlib.md5(self.content[key], usedforsecurity=False).hexdigest()}"'

    def objects(self, prefix: str = ""):
        for key in sorted(self.content):
            if key.startswith(prefix):
                yield {"Key": key, "Size": len(self.content[key]), "ETag": self.etag(key)}

    def head(self, key: str):
        if key not in self.content:
            return None
        more = {"Metadata": self.metadata.get(key, {}), "ETag": self.etag(key)}
        return {"ContentLength": len(self.content[key]), **more}

    def blocks(self, key: str, **conditions):
        if key in self.changes:
            content = self.changes.pop(key)
            self.content.pop(key)
            self.content.update({key: content} if content is not None else {})
        if key not in self.content:
            raise bucket.BackupError(12, "gone", "NoSuchKey")
        if conditions.get("IfMatch", self.etag(key)) != self.etag(key):
            raise bucket.BackupError(12, "another", "PreconditionFailed")
        yield self.content[key]

    def put(self, key: str, body: bytes, Metadata: dict | None = None, **_more):
        self.content[key] = body
        self.metadata[key] = Metadata or {}
        self.written.append(key)

    def put_stream(self, key: str, blocks, check=None, **more):
        body = b"".join(blocks)
        if check:
            check()
        self.put(key, body, **more)
        return len(body)


CONTENT = {"0/a/model/MLmodel": b"small", "0/b": b"", "1/large": b"0123456789" * 5}


def copy(source: FakeBucket, target: FakeBucket, cipher=None, known=None, locations=()):
    copies = artifacts.Copies(target, "dev", cipher)
    return copies, *artifacts.copy_all(source, copies, known or {}, list(locations))


@pytest.mark.parametrize("cipher", [None, KEY])
def test_artifacts_are_copied_once_and_come_back(cipher):
    source, target = FakeBucket(**CONTENT), FakeBucket()
    copies, told, index = copy(source, target, cipher)
    assert (told["objects"], told["bytes"], told["copied"], told["copied_bytes"]) == (3, 55, 3, 55)
    assert artifacts.unpacked(artifacts.packed(index)) == index
    assert gzip.decompress(artifacts.packed_names(index)).decode().split() == [entry["name"] for entry in index]
    if cipher:
        assert not any(b"small" in content for content in target.content.values())
    target.written.clear()
    _, again, second = copy(source, target, cipher)
    assert (again["objects"], again["copied"], target.written, second) == (3, 0, [], index)

    other = FakeBucket(**{"0/a/model/MLmodel": b"other", "later": b"x"})
    done = artifacts.bring_back(copies, other, index)
    assert other.content == CONTENT | {"later": b"x"}
    assert done == {"artifacts": 3, "artifacts_restored": 3, "artifacts_restored_bytes": 55}
    assert artifacts.bring_back(copies, other, index)["artifacts_restored"] == 0


def test_another_encryption_key_copies_anew():
    source, target = FakeBucket(**CONTENT), FakeBucket()
    copy(source, target)
    assert copy(source, target, KEY)[1]["copied"] == 3


def test_a_large_copy_that_was_cut_off_is_made_again():
    source, target = FakeBucket(**CONTENT), FakeBucket()
    copy(source, target)
    (cut,) = [key for key in target.content if key.endswith(".sha256")]
    del target.content[cut]
    assert copy(source, target)[1]["copied"] == 1


def test_what_is_replaced_or_deleted_meanwhile_is_told():
    source, target = FakeBucket(**CONTENT), FakeBucket()
    source.changes = {"0/a/model/MLmodel": b"newer", "0/b": None}
    copies, told, index = copy(source, target)
    assert (told["objects"], told["deleted"]) == (2, 1)
    assert b"".join(copies.read(index[0]["name"])) == b"newer"


def test_a_copy_that_was_changed_does_not_come_back():
    source, target = FakeBucket(**CONTENT), FakeBucket()
    copies, _, index = copy(source, target)
    for entry in index:
        target.content[copies.prefix + entry["name"]] += b"!"
        other = FakeBucket()
        with pytest.raises(bucket.BackupError, match="is not what was backed up"):
            artifacts.bring_back(copies, other, index)
        assert entry["key"] not in other.content
        target.content[copies.prefix + entry["name"]] = CONTENT[entry["key"]]


def test_a_restored_artifact_of_another_etag_is_known_by_its_hash():
    source, target = FakeBucket(**CONTENT), FakeBucket()
    copies, _, index = copy(source, target)
    other = FakeBucket()
    artifacts.bring_back(copies, other, index)
    assert artifacts.bring_back(copies, other, [{**entry, "etag": "x-2"} for entry in index])["artifacts_restored"] == 0


@pytest.mark.parametrize(
    ("location", "is_missing"),
    [
        ("s3://mlflow/0/a/model", False),
        ("s3://mlflow/0/a/model/", False),
        ("mlflow-artifacts:/0/a", False),
        ("s3://mlflow/0/b", False),
        ("s3://mlflow/0/a/mod", True),
        ("s3://mlflow/9", True),
        ("s3://other/9", False),
        ("models:/m-1", False),
        ("runs:/x/model", False),
    ],
)
def test_a_model_without_artifacts_is_missing(location, is_missing):
    found = artifacts.unbacked([location, location], "mlflow", sorted(CONTENT))
    assert found == ([location] if is_missing else [])


def test_a_name_that_only_begins_alike_is_not_it():
    assert artifacts.unbacked(["s3://mlflow/1/m"], "mlflow", ["1/m-2/x", "1/m/x", "1/m2"]) == []


# -- what a restore refuses -------------------------------------------------------------------------------------------


def stores(tracking: str = "mlflow", auth: str = "mlflow_auth", revision: str = "r1") -> dict:
    entry = {"revision": revision, "rows": {"public.secrets": 2, "public.runs": 5}}
    return {"stores": {"tracking": {"database": tracking, **entry}, "auth": {"database": auth, **entry}}}


def test_secrets_are_counted_by_their_table():
    assert manifests.encrypted_secrets(stores()) == 2
    assert manifests.encrypted_secrets({"stores": {"tracking": {}}}) == 0
    assert manifests.rows_of("public.runs\t5\npublic.a b\t0\n") == {"public.runs": 5, "public.a b": 0}


@pytest.mark.parametrize(
    ("passphrase", "secrets", "into", "words"),
    [
        ("of then", 2, "", None),
        ("another", 0, "", "so nothing is lost by that"),
        ("another", 2, "stg", "2 secrets of the AI gateway cannot be decrypted, and must be entered anew"),
        ("another", 2, "", "expected the passphrase of then"),
    ],
)
def test_secrets_that_nobody_could_decrypt_are_told_before(monkeypatch, passphrase, secrets, into, words):
    monkeypatch.setenv("MLFLOW_CRYPTO_KEK_PASSPHRASE", passphrase)
    monkeypatch.setenv("MLFLOW_BACKUP_INTO", into)
    kept = stores() | {"kek": sealed.passphrase_fingerprint("of then")}
    kept["stores"]["tracking"]["rows"]["public.secrets"] = secrets
    if secrets and words and not into:
        with pytest.raises(bucket.BackupError, match=words):
            program.check_passphrase(kept)
    else:
        (told,) = program.check_passphrase(kept) or [None]
        assert words in told if words else told is None


def test_users_of_another_environment_stay_where_they_can_be_told_apart():
    named = stores()["stores"]
    less, targets = manifests.without_users(stores(), named)
    assert (set(less["stores"]), set(targets)) == ({"tracking"}, {"tracking"})
    with pytest.raises(bucket.BackupError, match="in the backup the users are in the database of the tracking store"):
        manifests.without_users(stores(auth="mlflow"), named)
    with pytest.raises(bucket.BackupError, match="in the inventory the users are"):
        manifests.without_users(stores(), stores(auth="mlflow")["stores"])


def test_a_backup_of_another_release_is_not_put_under_running_servers():
    less, _ = manifests.without_users(stores(), stores()["stores"])
    manifests.check_revisions(less, {"tracking": "r1"})
    for present in ({"tracking": "r2"}, {}):
        with pytest.raises(bucket.BackupError, match="expected the release of MLflow that the backup is of"):
            manifests.check_revisions(less, present)


# -- which are kept ---------------------------------------------------------------------------------------------------

DAY = 86400


def backup(name: str, days: float, complete: bool = True) -> backups.Backup:
    return backups.Backup(name, 1000 * DAY - days * DAY, complete=complete)


@pytest.mark.parametrize(
    ("found", "newest", "deleted"),
    [
        ([backup("1", 40), backup("2", 31), backup("3", 29)], 1, ["1", "2"]),
        ([backup("1", 40), backup("2", 31), backup("3", 29)], 2, ["1"]),
        ([backup("1", 40), backup("2", 39)], 5, []),
        # One that was cut off is none of the newest.
        ([backup("1", 40), backup("2", 2, False), backup("3", 0.5, False)], 1, ["2"]),
        ([], 1, []),
    ],
)
def test_what_is_old_goes_but_for_the_newest(found, newest, deleted):
    decided = backups.decide(found, 30, newest, 1000 * DAY)
    assert sorted(decided.deleted) == deleted
    assert sorted([*decided.deleted, *decided.kept]) == [entry.name for entry in found]


@dataclass
class Item:
    object_name: str
    size: int = 10
    version_id: str = "v"
    is_latest: str = "true"
    is_delete_marker: bool = False


class FakeStore:
    """An S3 server with one bucket, as the administrator sees it."""

    endpoint = SimpleNamespace(url="http://minio:9000")

    def __init__(self, content: dict[str, bytes]):
        self.content, self.refused = content, []

    def look(self, bucket: str) -> str:
        return "present"

    def versions(self, bucket: str, prefix: str):
        yield from [Item(name) for name in self.content if name.startswith(prefix)]

    def read(self, bucket: str, name: str) -> bytes:
        return self.content[name]

    def delete_versions(self, bucket: str, items) -> list[str]:
        for item in items:
            del self.content[item.object_name]
        return self.refused


OLD, NEW, MAKING = "20260101T000000Z-aaaa", "20261125T000000Z-bbbb", "20261126T120000Z-cccc"
NOW = 1795737600  # 2026-11-27


def content(**more: bytes) -> dict[str, bytes]:
    manifest = json.dumps({"artifacts": {"objects": 1}}).encode()
    return {
        f"dev/{OLD}/manifest.json": manifest,
        f"dev/{OLD}/tracking.dump": b"x",
        f"dev/{OLD}/artifacts.names.gz": gzip.compress(b"old\nboth\n"),
        f"dev/{NEW}/manifest.json": manifest,
        f"dev/{NEW}/artifacts.names.gz": gzip.compress(b"both\n"),
        "dev/artifacts/old": b"x",
        "dev/artifacts/old.sha256": b"x",
        "dev/artifacts/both": b"x",
        "dev/somebody's": b"x",
        "prod/artifacts/other": b"x",
        **more,
    }


def test_copies_go_with_the_last_backup_that_has_them():
    store = FakeStore(content())
    for check_mode in (True, False):
        found = backups.prune(store, "backups", "dev", (30, 1, NOW), check_mode)
        assert (list(found.deleted), list(found.kept), found.artifacts, found.size) == ([OLD], [NEW], 1, 50)
        assert (len(store.content) == 10) is check_mode
    left = {f"dev/{NEW}/manifest.json", f"dev/{NEW}/artifacts.names.gz", "dev/artifacts/both"}
    assert set(store.content) == left | {"dev/somebody's", "prod/artifacts/other"}
    assert backups.prune(store, "backups", "dev", (30, 1, NOW), False).deleted == {}


def test_copies_stay_while_a_backup_may_be_in_the_making():
    store = FakeStore(content(**{f"dev/{MAKING}/tracking.dump": b"x"}))
    found = backups.prune(store, "backups", "dev", (30, 1, NOW), False)
    assert (list(found.deleted), found.artifacts) == ([OLD], 0)
    assert "dev/artifacts/old" in store.content


def test_copies_stay_when_a_backup_does_not_say_which_it_has():
    store = FakeStore(content(**{f"dev/{NEW}/artifacts.names.gz": b"broken"}))
    with pytest.raises(Error, match="no copy of an artifact is deleted"):
        backups.prune(store, "backups", "dev", (30, 1, NOW), False)
    assert len(store.content) == 10


def test_what_the_server_keeps_is_told():
    store = FakeStore(content())
    store.refused = ["dev/x: AccessDenied"]
    with pytest.raises(Error, match="the server keeps 1 of 5 versions"):
        backups.prune(store, "backups", "dev", (30, 1, NOW), False)


# -- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "days"),
    [
        ("", 7),
        ("30 2 * * *", 2),
        ("*/15 0-6,22 * * *", 2),
        ("0 3 * * 1", 8),
        ("0 3 * * sun,wed", 8),
        ("0 3 1 * *", 32),
        ("0 3 1 1 *", 400),
    ],
)
def test_an_alert_comes_when_a_backup_was_missed(schedule, days):
    assert filters.alert_days(schedule) == days
    assert filters.is_schedule(schedule) is bool(schedule)


@pytest.mark.parametrize(
    "schedule",
    [
        "@daily",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "0 24 * * *",
        "0 0 0 * *",
        "0 0 * 13 *",
        "0 0 * * 7",
        "a b c d e",
    ],
)
def test_what_is_no_schedule_is_known(schedule):
    assert not filters.is_schedule(schedule)


# -- what people read -------------------------------------------------------------------------------------------------


def test_a_backup_is_told_in_one_line_and_what_is_missing_beside_it():
    report = {
        "id": "1", "bytes": 10, "tables": 2, "rows": 3, "checked": True, "encrypted": True,
        "artifacts": {"objects": 4, "bytes": 5, "copied": 1, "copied_bytes": 2, "deleted": 1, "missing": 12,
                      "missing_first": ["s3://mlflow/x"]},
    }  # fmt: skip
    lines = filters.backup_made(report, seconds=7.4)
    assert lines[0] == (
        "backup 1: 10 bytes of databases, 2 tables, 3 rows, 4 artifacts of 5 bytes (1 of 2 bytes copied), in 7 s"
    )
    assert "s3://mlflow/x and 11 more" in lines[-1]
    assert (
        filters.backup_made({**report, "artifacts": {}, "checked": False}, seconds=1)[1] == "not restored for a trial"
    )


def test_what_was_pruned_is_told():
    result = {"deleted": {"1": "40 days old"}, "kept": {"2": "1 days old"}, "artifacts_deleted": 3, "bytes": 2048}
    assert filters.pruned(result, check_mode=True) == [
        "would be deleted: 1, 40 days old",
        "would be deleted: 3 copies of artifacts that no backup has any more",
        "would be deleted: 2.0 KiB in all",
        "kept: 2, 1 days old",
    ]
    nothing = {"deleted": {}, "kept": {}, "artifacts_deleted": 0, "bytes": 0}
    assert filters.pruned(nothing, check_mode=False) == ["there is no backup"]
