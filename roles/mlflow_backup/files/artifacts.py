"""Copy the artifacts into the bucket of the backups, each once, and bring them back.

A copy's name is made of the artifact's key, ETag and size, so that one that is there is right, and is never written
again. A backup has their index, artifacts.jsonl.gz, and their names alone for whoever prunes, artifacts.names.gz.
"""

from __future__ import annotations

import bisect
import gzip
import hashlib
import json
import mimetypes
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from bucket import BackupError, Bucket, Exit, Progress, counted, damaged, hashed_by, say

# Up to this size the hash is known before the copy is written, and stands beside it as its metadata.
SMALL = 8 << 20
THREADS = 8
TRIES = 3
# S3's words for an object that is not, or not any more, what was listed.
GONE = ("NoSuchKey", "404", "NotFound")
OTHER = ("PreconditionFailed", "412")
SHOWN = 10


class Copies:
    """The copies of an environment's artifacts in the bucket of the backups."""

    def __init__(self, bucket: Bucket, environment: str, cipher):
        self.bucket, self.prefix, self.cipher = bucket, f"{environment}/artifacts/", cipher

    def name_of(self, key: str, etag: str, size: int) -> str:
        """The name of a copy; another encryption key makes another one."""
        parts = [key, etag, str(size), self.cipher.fingerprint if self.cipher else ""]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def names(self) -> set[str]:
        """The names of what there is."""
        return {entry["Key"][len(self.prefix) :] for entry in self.bucket.objects(self.prefix)}

    def digest(self, name: str, size: int) -> str:
        """The SHA-256 of an artifact that was copied by a backup that did not come to its end."""
        if size > SMALL:
            return b"".join(self.bucket.blocks(f"{self.prefix}{name}.sha256")).decode()
        return (self.bucket.head(self.prefix + name) or {}).get("Metadata", {}).get("sha256", "")

    def write(self, name: str, size: int, blocks: Iterable[bytes]) -> str:
        """Write a copy; the SHA-256 of the artifact."""
        path = self.prefix + name
        digest = hashlib.sha256()
        if size <= SMALL:
            body = b"".join(blocks)
            digest.update(body)
            stored = b"".join(self.cipher.encrypted([body], path)) if self.cipher else body
            self.bucket.put(path, stored, Metadata={"sha256": digest.hexdigest()})
        else:
            hashed = hashed_by(blocks, digest)
            self.bucket.put_stream(path, self.cipher.encrypted(hashed, path) if self.cipher else hashed)
            # It comes last: without it, there is no copy.
            self.bucket.put(f"{path}.sha256", digest.hexdigest().encode())
        return digest.hexdigest()

    def read(self, name: str) -> Iterator[bytes]:
        """An artifact's bytes."""
        path = self.prefix + name
        blocks = self.bucket.blocks(path)
        return self.cipher.decrypted(blocks, path) if self.cipher else blocks


def copy_all(source: Bucket, copies: Copies, known: dict[str, str], locations: list[str]) -> tuple[dict, list[dict]]:
    """Copy what is not copied yet.

    :param source: the artifacts.
    :param known: the SHA-256 by name of copies that an earlier backup has.
    :param locations: where artifacts are that the dumps name.
    :returns: what the manifest says of them, and the index.
    """
    listed = list(source.objects())
    say(f"{len(listed)} artifacts in bucket {source.name}")
    there = copies.names()
    copier = _Copier(source, copies)
    index, todo = [], []
    for item in listed:
        key, etag, size = item["Key"], item["ETag"].strip('"'), item["Size"]
        name = copies.name_of(key, etag, size)
        if name not in there or (size > SMALL and f"{name}.sha256" not in there):
            todo.append(item)
        else:
            index.append({"key": key, "etag": etag, "bytes": size, "sha256": known.get(name), "name": name})
    strangers = [entry for entry in index if not entry["sha256"]]
    digests = in_threads(lambda entry: copies.digest(entry["name"], entry["bytes"]), strangers)
    for entry, digest in zip(strangers, digests):  # noqa: B905 - Python 3.9 has no strict
        entry["sha256"] = digest
    copied, gone = copier.run(todo)
    index = sorted(index + copied, key=lambda entry: entry["key"])
    missing = unbacked(locations, source.name, [entry["key"] for entry in index])
    lost = {entry["name"] for entry in index} - copies.names()
    if lost:
        raise BackupError(
            Exit.RETRYABLE, f"{len(lost)} copies of artifacts were deleted while this backup was made; run it again"
        )
    told = {
        "objects": len(index),
        "bytes": sum(entry["bytes"] for entry in index),
        "copied": len(copied),
        "copied_bytes": sum(entry["bytes"] for entry in copied),
        # What was deleted before it was copied, and models whose artifacts were not there.
        "deleted": len(gone),
        "missing": len(missing),
        "missing_first": missing[:SHOWN],
    }
    for where in told["missing_first"]:
        say(f"missing: the databases name a model in {where}, where bucket {source.name} has nothing")
    return told, index


class _Copier:
    """Copies artifacts, the small ones several at a time."""

    def __init__(self, source: Bucket, copies: Copies):
        self.source, self.copies = source, copies

    def run(self, todo: list[dict]) -> tuple[list[dict], list[str]]:
        """Their entries of the index, and the keys of those that were deleted meanwhile."""
        total = sum(item["Size"] for item in todo)
        say(f"copying {len(todo)} artifacts, {total} bytes")
        self.progress = Progress("copying artifacts", total)
        small = [item for item in todo if item["Size"] <= SMALL]
        done = in_threads(self.copy, small)
        done += [self.copy(item) for item in todo if item["Size"] > SMALL]
        keys = [item["Key"] for item in small] + [item["Key"] for item in todo if item["Size"] > SMALL]
        gone = [key for key, entry in zip(keys, done) if entry is None]  # noqa: B905 - Python 3.9 has no strict
        return [entry for entry in done if entry], gone

    def copy(self, item: dict) -> dict | None:
        """Copy one; None if it is not there any more. One that was replaced is copied as it is now."""
        key, etag, size = item["Key"], item["ETag"], item["Size"]
        for _ in range(TRIES):
            name = self.copies.name_of(key, etag.strip('"'), size)
            try:
                blocks = counted(self.source.blocks(key, IfMatch=etag), self.progress)
                digest = self.copies.write(name, size, blocks)
                return {"key": key, "etag": etag.strip('"'), "bytes": size, "sha256": digest, "name": name}
            except BackupError as error:
                if error.answer not in (*GONE, *OTHER):
                    raise
            found = self.source.head(key)
            if found is None:
                return None
            etag, size = found["ETag"], found["ContentLength"]
        raise BackupError(Exit.RETRYABLE, f"{key} in bucket {self.source.name} is replaced over and over; run again")


def in_threads(function, items: list) -> list:
    """The function of each; the first error ends it."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def unbacked(locations: list[str], bucket: str, keys: list[str]) -> list[str]:
    """The locations in this bucket that have no artifact.

    :param keys: what there is, sorted.
    """
    missing = []
    for location in sorted(set(locations)):
        for root in (f"s3://{bucket}/", "mlflow-artifacts:/"):
            if location.startswith(root):
                prefix = location[len(root) :].strip("/")
                place = bisect.bisect_left(keys, prefix)
                # What begins with it follows; a name that only begins alike may be between.
                while place < len(keys) and keys[place].startswith(prefix):
                    if keys[place] == prefix or keys[place].startswith(prefix + "/"):
                        break
                    place += 1
                else:
                    missing.append(location)
                break
    return missing


def packed(index: list[dict]) -> bytes:
    """An index as it is kept."""
    return gzip.compress("".join(json.dumps(entry) + "\n" for entry in index).encode(), mtime=0)


def packed_names(index: list[dict]) -> bytes:
    """The names of an index as they are kept, for whoever prunes and cannot decrypt."""
    return gzip.compress("".join(entry["name"] + "\n" for entry in index).encode(), mtime=0)


def unpacked(content: bytes) -> list[dict]:
    """An index that was kept."""
    return [json.loads(line) for line in gzip.decompress(content).decode().splitlines()]


def bring_back(copies: Copies, target: Bucket, index: list[dict]) -> dict:
    """Write the artifacts of a backup that the bucket does not have, or has otherwise; others in it stay.

    :returns: what was done, in numbers.
    """
    there = {item["Key"]: item for item in target.objects()}
    doubtful = [entry for entry in index if not is_same(there.get(entry["key"]), entry)]
    # One that was brought back before has another ETag if it came in parts, and says its hash.
    same = in_threads(lambda entry: says_hash(target, there, entry), doubtful)
    todo = [entry for entry, is_there in zip(doubtful, same) if not is_there]  # noqa: B905 - Python 3.9
    total = sum(entry["bytes"] for entry in todo)
    say(f"bringing back {len(todo)} of {len(index)} artifacts, {total} bytes")
    progress = Progress("bringing back artifacts", total)

    def write(entry: dict) -> None:
        digest, size = hashlib.sha256(), 0

        def hashed() -> Iterator[bytes]:
            nonlocal size
            for block in copies.read(entry["name"]):
                digest.update(block)
                size += len(block)
                yield block

        def check() -> None:
            if (size, digest.hexdigest()) != (entry["bytes"], entry["sha256"]):
                raise damaged(f"the copy of {entry['key']} in bucket {copies.bucket.name}", f"{size} bytes", entry)

        # As MLflow's own client writes it.
        kind = mimetypes.guess_type(entry["key"])[0]
        more = {"ContentType": kind} if kind else {}
        blocks = counted(hashed(), progress)
        target.put_stream(entry["key"], blocks, check, Metadata={"sha256": entry["sha256"]}, **more)

    in_threads(write, [entry for entry in todo if entry["bytes"] <= SMALL])
    for entry in todo:
        if entry["bytes"] > SMALL:
            write(entry)
    return {"artifacts": len(index), "artifacts_restored": len(todo), "artifacts_restored_bytes": total}


def is_same(item: dict | None, entry: dict) -> bool:
    """Whether an object is the artifact that was backed up, by what a listing says."""
    return item is not None and (item["ETag"].strip('"'), item["Size"]) == (entry["etag"], entry["bytes"])


def says_hash(target: Bucket, there: dict[str, dict], entry: dict) -> bool:
    """Whether an object is an artifact that was brought back."""
    item = there.get(entry["key"])
    if item is None or item["Size"] != entry["bytes"]:
        return False
    return (target.head(entry["key"]) or {}).get("Metadata", {}).get("sha256") == entry["sha256"]
