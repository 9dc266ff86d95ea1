"""Where artifacts are in an S3 server, and how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

LISTS_AT_ONCE = 8
# What the server's own API adds to a path.
PROXY = "/mlflow-artifacts/artifacts/"


@dataclass(frozen=True)
class Place:
    """All objects below a prefix of a bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def ancestors(self) -> Iterator[Place]:
        """The place itself, and each that it is in."""
        parts = self.prefix.split("/")
        for count in range(len(parts), 0, -1):
            yield Place(self.bucket, "/".join(parts[:count]))


@dataclass(frozen=True)
class Size:
    """How much is at a place."""

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.objects + other.objects, self.bytes + other.bytes)

    def __sub__(self, other: Size) -> Size:
        return Size(self.objects - other.objects, self.bytes - other.bytes)


class UnknownPlaceError(Exception):
    """A place that cannot be listed, and why."""


def place_of(uri: str, destination: str) -> Place | None:
    """Where a URI of artifacts leads.

    Args:
        uri: What MLflow has written down: s3://, mlflow-artifacts:/, or the server's own address.
        destination: MLFLOW_ARTIFACTS_DESTINATION, below which the server keeps what is sent through it.

    Returns:
        The place, or None for one that is not in S3, or is a bucket as a whole.
    """
    parts = urlsplit(uri or "")
    if parts.scheme == "s3":
        bucket, path = parts.netloc, parts.path[1:]
    else:
        if parts.scheme == "mlflow-artifacts":
            path = parts.path
        elif parts.scheme in ("http", "https") and PROXY in parts.path:
            path = parts.path.split(PROXY, 1)[1]
        else:
            return None
        root = urlsplit(destination)
        bucket, path = root.netloc if root.scheme == "s3" else "", path.strip("/")
        path = f"{root.path.strip('/')}/{path}".lstrip("/") if path else ""
    prefix = path.rstrip("/")
    # What MLflow would make of these is another place, or everything.
    if not bucket or not prefix or {"", ".", ".."} & set(prefix.split("/")):
        return None
    return Place(bucket, prefix)


def client():
    """A client of the S3 server that the server's own variables name."""
    from boto3.session import Session
    from botocore.config import Config

    options = {"s3": {"addressing_style": "path"}, "connect_timeout": 5, "read_timeout": 60}
    config = Config(
        signature_version="s3v4", max_pool_connections=LISTS_AT_ONCE, retries={"mode": "standard"}, **options
    )
    return Session().client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], config=config)


class Store:
    """Looks into the S3 server, with the servers' key."""

    def __init__(self, s3) -> None:
        self._s3 = s3

    def size(self, place: Place) -> Size:
        """What is below a place, as MLflow would delete it.

        Raises:
            UnknownPlaceError: It cannot be listed.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        found = Size()
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.prefix)
        try:
            for page in pages:
                for item in page.get("Contents", []):
                    # Not those of a neighbour whose name begins alike.
                    if item["Key"] == place.prefix or item["Key"].startswith(f"{place.prefix}/"):
                        found += Size(1, item["Size"])
        except (BotoCoreError, ClientError) as error:
            raise UnknownPlaceError(f"{place} cannot be listed: {' '.join(str(error).split())}") from None
        return found

    def sizes(self, places: Iterable[Place], say: Callable[[int], None]) -> dict[Place, Size | str]:
        """What is below each place, or why it cannot be listed; several are asked at once.

        Args:
            places: The places.
            say: Is told how many are done.
        """
        found: dict[Place, Size | str] = {}

        def look(place: Place) -> Size | str:
            try:
                return self.size(place)
            except UnknownPlaceError as error:
                return str(error)

        wanted = list(dict.fromkeys(places))
        with ThreadPoolExecutor(LISTS_AT_ONCE) as pool:
            for place, size in zip(wanted, pool.map(look, wanted)):  # noqa: B905 - images with Python 3.9
                found[place] = size
                say(len(found))
        return found
