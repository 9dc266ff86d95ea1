"""Objects copied from one S3 server to another, part by part, and compared by their hashes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .errors import Error
from .object_store import Refusal, Store

MIB = 1024 * 1024
# A part is in memory, twice at most. S3 takes ten thousand of them.
PART_BYTES = 16 * MIB
MOST_PARTS = 10_000
# How often a part is asked for, or sent, that a server or the way to it has cut off.
ATTEMPTS = 3
SAY_SECONDS = 5


@dataclass(frozen=True)
class Place:
    """What is below a prefix of a bucket."""

    store: Store
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def files(self) -> dict[str, File]:
        """The objects below it, by their names without the prefix.

        :raises Error: the key may not list them, or there is no such bucket.
        """
        prefix = self.prefix.rstrip("/") + "/"
        try:
            found = list(self.store.objects(self.bucket, prefix))
        except Refusal as refusal:
            raise refused(self.store, self.bucket, refusal) from None
        return {
            name: File(self, name, item.size or 0, item.etag)
            for item in found
            # An empty object of the prefix's own name stands for a folder in some browsers.
            if (name := item.object_name.removeprefix(prefix))
        }


@dataclass(frozen=True)
class File:
    """An object, as it was when it was listed.

    Attributes:
        name: Its name below its place.
        size: Bytes.
    """

    place: Place
    name: str
    size: int
    etag: str = ""

    @property
    def key(self) -> str:
        return f"{self.place.prefix.rstrip('/')}/{self.name}"

    def at(self, place: Place) -> File:
        """The same file at another place, where it may not be yet."""
        return File(place, self.name, self.size)

    def part_bytes(self) -> int:
        """How large its parts are; the same in every run, so that one goes on where another was cut off."""
        return max(PART_BYTES, -(-self.size // (MOST_PARTS * MIB)) * MIB)

    def parts(self) -> Iterator[bytes]:
        """Its bytes, part by part; the next part is on its way while one is worked on.

        :raises Error: it has changed since it was listed, or cannot be read.
        """
        step = self.part_bytes()
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._part, 0, step)
            for offset in range(0, max(self.size, 1), step):
                part = coming.result()
                if offset + step < self.size:
                    coming = pool.submit(self._part, offset + step, step)
                yield part

    def _part(self, offset: int, step: int) -> bytes:
        length = min(step, self.size - offset)
        store, bucket = self.place.store, self.place.bucket
        if not length:
            return b""
        try:
            part = again(lambda: store.read(bucket, self.key, offset, length, self.etag))
        except Refusal as refusal:
            if refusal.code in ("PreconditionFailed", "NoSuchKey"):
                raise Error(f"{self.place.url}: {self.name} was changed or deleted while it was read") from None
            raise refused(store, bucket, refusal) from None
        if len(part) != length:
            raise Error(f"{self.place.url}: {self.name} has other bytes than when it was listed; run again")
        return part

    def digest(self) -> str:
        """The SHA-256 of its bytes, in hexadecimal digits."""
        digest = hashlib.sha256()
        for part in self.parts():
            digest.update(part)
        return digest.hexdigest()


class Copier:
    """Copies files, and tells how far it is.

    :param say: takes a line.
    :param total: bytes of all files together.
    """

    def __init__(self, say: Callable[[str], None], total: int, clock: Callable[[], float] = time.monotonic):
        self._say, self._total, self._clock = say, total, clock
        self._done, self._said = 0, clock()
        self.resumed = 0
        self.sent = 0

    def copy(self, source: File, place: Place, present: File | None) -> str:
        """Bring a file to a place, and read it back.

        :param present: what is there already.
        :returns: its SHA-256.
        :raises Error: what is read back are other bytes, or a server refuses.
        """
        if present and present.size == source.size:
            digest, there = digests(source, present)
            if digest == there:
                self._advance(source, source.size)
                return digest
        target = source.at(place)
        digest = self._send(source, target)
        if target.digest() != digest:
            raise Error(f"{place.url}: {source.name} is read back with other bytes than were sent; run again")
        return digest

    def _send(self, source: File, target: File) -> str:
        store, bucket = target.place.store, target.place.bucket
        digest = hashlib.sha256()
        try:
            kind = source.place.store.kind(source.place.bucket, source.key)
            if source.size <= source.part_bytes():
                [part] = source.parts()
                digest.update(part)
                again(lambda: store.write(bucket, target.key, part, kind))
                self._count(source, len(part))
                return digest.hexdigest()
            upload, sent = store.unfinished_upload(bucket, target.key, kind)
            etags = []
            for number, part in enumerate(source.parts(), 1):
                digest.update(part)
                etag = hashlib.md5(part, usedforsecurity=False).hexdigest()
                if sent.get(number) == etag:
                    self.resumed += len(part)
                    self._advance(source, len(part))
                else:
                    etag = again(lambda: store.write_part(bucket, target.key, upload, number, part))  # noqa: B023
                    self._count(source, len(part))
                etags.append(etag)
            again(lambda: store.finish_upload(bucket, target.key, upload, etags))
        except Refusal as refusal:
            raise refused(store, bucket, refusal) from None
        return digest.hexdigest()

    def _count(self, source: File, size: int) -> None:
        self.sent += size
        self._advance(source, size)

    def _advance(self, source: File, size: int) -> None:
        self._done += size
        if self._clock() - self._said >= SAY_SECONDS:
            self._said = self._clock()
            self._say(f"copied {mib(self._done)} of {mib(self._total)} MiB, now {source.name}")


def digests(one: File, other: File) -> list[str]:
    """The SHA-256 of two files, which are on two servers, read at the same time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(File.digest, (one, other)))


def again(function: Callable[[], Any]) -> Any:
    """``function()``, and once more where no answer came: the way to a server may be gone for a moment."""
    for attempt in range(1, ATTEMPTS):
        try:
            return function()
        except Error:
            time.sleep(attempt)
    return function()


def refused(store: Store, bucket: str, refusal: Refusal) -> Error:
    """What a refusal means where objects are copied."""
    if refusal.code != "AccessDenied":
        return store.explained(refusal, bucket)
    return Error(
        f"{store.endpoint.url}: access key {store.access_key} may not read, write, list or upload in parts in bucket "
        f"{bucket}; expected the rights that docs/object-store.md lists, which site.yml gives it at MinIO"
    )


def mib(size: int) -> int:
    return round(size / MIB)
