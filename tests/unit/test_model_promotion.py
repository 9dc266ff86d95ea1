"""Promotion of models: bad input, places, hashes, and copies that are cut off. MLflow's part is for the cluster."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from ansible.module_utils.ansible_mlflow import access_server, object_store_copy
from ansible.module_utils.ansible_mlflow.errors import Error
from ansible.module_utils.ansible_mlflow.model_promotion import differing
from ansible.module_utils.ansible_mlflow.model_version import Side, inside, manifest
from ansible.module_utils.ansible_mlflow.object_store import Refusal
from ansible.module_utils.ansible_mlflow.object_store_copy import MIB, Copier, File, Place
from ansible.module_utils.ansible_mlflow.registry import few
from conftest import load_filter
from hypothesis import given
from hypothesis import strategies as st

promotion = load_filter("mlflow_model_promotion")
GOOD = {"from": "dev", "to": "stg", "model": "churn", "version": "7", "version_alias": "", "alias": "champion"}
BAD_PROMOTIONS = [
    ({"to": "dev"}, "from and mlflow_model_promotion_to are both dev; expected two environments"),
    ({"from": "qa"}, "from is qa, and this run has no inventory of it; expected -i inventories/qa"),
    ({"to": "prod"}, "to is prod, and this run has no inventory of it; expected -i inventories/prod"),
    ({"model": ""}, "model is empty; expected the name of a registered model"),
    ({"model": "a/b"}, "model is 'a/b'; expected a name without / and :"),
    ({"model": "a'\"b"}, "expected a name without / and : and without both quotes"),
    ({"version": ""}, "version and mlflow_model_promotion_version_alias are both empty; expected one of them"),
    ({"version_alias": "best"}, "version and mlflow_model_promotion_version_alias are both given; expected one of"),
    ({"version": "0"}, "version is '0'; expected a number, such as 7"),
    ({"version": "latest"}, "version is 'latest'; expected a number, such as 7"),
    ({"alias": "v3"}, "alias is 'v3'; expected letters, digits, - and _, and neither latest nor v with a number"),
    ({"alias": "Latest"}, "alias is 'Latest'; expected letters"),
    ({"alias": "a b"}, "alias is 'a b'; expected letters"),
    ({"version": "", "version_alias": "a.b"}, "version_alias is 'a.b'; expected letters"),
]


class FakeS3:
    """A store in memory, and the unfinished uploads of it."""

    endpoint = SimpleNamespace(url="http://fake")
    access_key = "key"

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.refuse_after = 10**9
        self.refusal: Exception = Error("the way there was cut")
        self.sent: list[int] = []
        self._lock = threading.Lock()

    def objects(self, bucket, prefix):
        return [
            SimpleNamespace(object_name=name, size=len(content), etag=etag(content))
            for name, content in self.content.items()
            if name.startswith(prefix)
        ]

    def read(self, bucket, key, offset, length, wanted=""):
        if key not in self.content or (wanted and wanted != etag(self.content[key])):
            raise Refusal("PreconditionFailed", "")
        return self.content[key][offset : offset + length]

    def kind(self, bucket, key):
        return {"Content-Type": "text/plain"}

    def write(self, bucket, key, content, kind):
        assert kind == {"Content-Type": "text/plain"}
        self._send(len(content))
        self.content[key] = content

    def unfinished_upload(self, bucket, key, kind):
        parts = self.uploads.setdefault(key, {})
        return key, {number: etag(part) for number, part in parts.items()}

    def write_part(self, bucket, key, upload, number, content):
        self._send(len(content))
        self.uploads[upload][number] = content
        return etag(content)

    def finish_upload(self, bucket, key, upload, etags):
        parts = self.uploads.pop(upload)
        assert etags == [etag(part) for _, part in sorted(parts.items())]
        self.content[key] = b"".join(part for _, part in sorted(parts.items()))

    def explained(self, refusal, bucket):
        return Error(f"refused: {refusal.code}")

    def _send(self, size):
        if len(self.sent) >= self.refuse_after:
            raise self.refusal
        self.sent.append(size)


def etag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Parts of ten bytes, and no pauses."""
    monkeypatch.setattr(object_store_copy, "PART_BYTES", 10)
    monkeypatch.setattr(object_store_copy, "MIB", 1)
    monkeypatch.setattr(object_store_copy.time, "sleep", lambda seconds: None)


@pytest.fixture
def stores():
    """A source with files of none to several parts, and an empty target."""
    source, target = FakeS3(), FakeS3()
    for size in (0, 1, 9, 10, 11, 20, 35):
        source.content[f"1/a/f{size}"] = bytes(range(65, 65 + size))
    return Place(source, "mlflow", "1/a"), Place(target, "mlflow", "2/b/")


def copy_all(source, target):
    copier, present = Copier(lambda line: None, 1), target.files()
    hashes = {name: copier.copy(file, target, present.get(name)) for name, file in sorted(source.files().items())}
    return copier, hashes


@pytest.mark.parametrize(("change", "said"), BAD_PROMOTIONS)
def test_bad_input_is_refused_by_the_name_of_its_variable(change, said):
    [problem] = promotion.model_promotion_problems(GOOD | change, ["dev", "stg"])
    assert said in problem
    assert problem.startswith("mlflow_model_promotion_")


@pytest.mark.parametrize("change", [{}, {"version": 7}, {"version": "", "version_alias": "best-one"}, {"alias": ""}])
def test_good_input_is_not(change):
    assert promotion.model_promotion_problems(GOOD | change, ["dev", "stg"]) == []


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://mlflow/1/abc/artifacts", ("mlflow", "1/abc/artifacts")),
        ("s3://other/x/", ("other", "x")),
        ("mlflow-artifacts:/1/abc", ("mlflow", "root/1/abc")),
        ("mlflow-artifacts://host:5000/1/abc", ("mlflow", "root/1/abc")),
    ],
)
def test_an_address_of_artifacts_is_a_place_in_a_bucket(uri, place):
    found = Side("dev", "", None, None, "s3://mlflow/root/").place(uri)
    assert (found.bucket, found.prefix) == place


@pytest.mark.parametrize("uri", ["", "file:///tmp/x", "/tmp/x", "s3://mlflow", "s3:///x", "gs://b/x", "dummy-source"])
def test_another_address_is_refused(uri):
    with pytest.raises(Error, match=r"dev has artifacts at .*; expected s3://<bucket>/<path> or mlflow-artifacts"):
        Side("dev", "", None, None, "s3://mlflow/").place(uri)


@pytest.mark.parametrize(
    ("prefix", "path"), [("1/run", ""), ("1/run/model", "model"), ("1/run/a/b", "a/b"), ("1/runs/x", None), ("2", None)]
)
def test_a_model_is_among_the_artifacts_of_its_run_or_refused(prefix, path):
    root, place = Place(None, "mlflow", "1/run"), Place(None, "mlflow", prefix)
    if path is None:
        with pytest.raises(Error, match="expected them among those of its run, s3://mlflow/1/run"):
            inside(root, place, "version 1")
    else:
        assert inside(root, place, "version 1") == path
    with pytest.raises(Error):
        inside(root, Place(None, "other", prefix), "version 1")


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.sampled_from(["a" * 64, "b" * 64]), max_size=5))
def test_a_manifest_depends_on_names_and_hashes_and_not_on_their_order(digests):
    assert manifest(digests) == manifest(dict(reversed(digests.items())))
    assert manifest(digests) != manifest(digests | {"more than five": "a" * 64})


def test_files_are_copied_with_their_hashes_and_not_twice(stores):
    source, target = stores
    copier, hashes = copy_all(source, target)
    wanted = {key.removeprefix("1/a/"): content for key, content in source.store.content.items()}
    assert {key.removeprefix("2/b/"): content for key, content in target.store.content.items()} == wanted
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in wanted.items()}
    assert copier.sent == sum(map(len, wanted.values()))
    again, same = copy_all(source, target)
    assert (again.sent, same) == (0, hashes)


@pytest.mark.parametrize("cut", range(12))
def test_wherever_it_is_cut_off_the_next_run_sends_only_what_is_missing(stores, cut):
    source, target = stores
    target.store.refuse_after = cut
    with pytest.raises(Error, match="was cut"):
        copy_all(source, target)
    target.store.refuse_after = 10**9
    copy_all(source, target)
    assert {len(content) for content in target.store.content.values()} == {0, 1, 9, 10, 11, 20, 35}
    assert sum(target.store.sent) == sum(len(content) for content in source.store.content.values())
    assert target.store.uploads == {}


def test_a_part_that_is_another_one_is_sent_anew(stores):
    source, target = stores
    target.store.uploads["2/b/f35"] = {1: b"0123456789", 2: bytes(range(75, 85))}
    copier, _ = copy_all(source, target)
    assert copier.resumed == 10
    assert target.store.content["2/b/f35"] == source.store.content["1/a/f35"]


def test_a_file_of_the_same_size_with_other_bytes_is_sent_anew(stores):
    source, target = stores
    target.store.content["2/b/f9"] = b"123456789"
    copy_all(source, target)
    assert target.store.content["2/b/f9"] == source.store.content["1/a/f9"]


def test_bytes_that_are_read_back_differently_are_refused(stores, monkeypatch):
    source, target = stores
    write = target.store.write
    monkeypatch.setattr(target.store, "write", lambda *args: write(*args[:2], args[2][::-1], args[3]))
    with pytest.raises(Error, match="is read back with other bytes than were sent"):
        copy_all(source, target)


def test_a_file_that_changes_while_it_is_read_is_refused(stores):
    source, target = stores
    files = source.files()
    source.store.content["1/a/f20"] = b"x" * 20
    with pytest.raises(Error, match="f20 was changed or deleted while it was read"):
        Copier(lambda line: None, 1).copy(files["f20"], target, None)


def test_a_key_that_may_not_is_told_so(stores):
    source, target = stores
    target.store.refuse_after, target.store.refusal = 0, Refusal("AccessDenied", "")
    with pytest.raises(Error, match=r"access key key may not read, write, list or upload in parts in bucket mlflow"):
        copy_all(source, target)


def test_the_largest_object_of_s3_has_no_more_parts_than_s3_takes(monkeypatch):
    monkeypatch.undo()
    size = 5 * 1024 * 1024 * MIB
    step = File(Place(None, "b", "p"), "x", size).part_bytes()
    assert -(-size // step) <= 10_000
    assert step % MIB == 0


def test_progress_is_told_now_and_then(stores):
    source, target = stores
    told, now = [], iter(range(0, 1000, 2))
    copier = Copier(told.append, 86, clock=lambda: next(now))
    for _name, file in sorted(source.files().items()):
        copier.copy(file, target, None)
    assert 0 < len(told) < 8
    assert told[0].startswith("copied 11 of 86 MiB, now f10")


def test_what_differs_and_what_there_is_are_told_in_a_few_names():
    assert differing({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 1}) == "b, c"
    assert differing({name: 1 for name in "abcde"}, {}) == "a, b, c and 2 more"
    assert few([]) == "none, for it has none"
    assert few(list("abcdefg")) == "a, b, c, d, e and 2 more"


class HangsUp(BaseHTTPRequestHandler):
    """A server that has hung up when the second request comes, without telling."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.asked.get(self.client_address):
            self.close_connection = True
            return
        self.server.asked[self.client_address] = True
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args):
        pass


def test_after_a_pause_a_server_is_asked_on_a_new_connection(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(access_server.time, "monotonic", lambda: now[0])
    with ThreadingHTTPServer(("127.0.0.1", 0), HangsUp) as http:
        http.asked, http.daemon_threads = {}, True
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        server = access_server.Server("127.0.0.1", http.server_port, http.server_address)
        assert server.ask("POST", "2.0/mlflow/runs/update") == {}
        now[0] += 3
        assert server.ask("POST", "2.0/mlflow/runs/update") == {}
        with pytest.raises(Error, match="does not answer"):
            server.ask("POST", "2.0/mlflow/runs/update")
        http.shutdown()
