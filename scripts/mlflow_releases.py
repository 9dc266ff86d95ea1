#!/usr/bin/env python3
"""Writes roles/mlflow_schema/files/releases.json: which schema each release of MLflow has.

The facts come from the published wheels of mlflow, the only place that has them: every wheel carries its migrations,
and the head is the one revision that no other follows. Only the wheel's directory and its migrations are read, by HTTP
range requests; an index that knows no ranges sends whole wheels. The index, its certificate and its login are those
that pip is configured with (pip.conf, PIP_INDEX_URL); it has to answer in JSON (PEP 691). A second run writes the same
bytes.

    .venv/bin/python scripts/mlflow_releases.py            # write the file
    .venv/bin/python scripts/mlflow_releases.py --check    # write nothing; exit 1 if the file is out of date

"releases" has every stable release since 2.0.0, withdrawn ones too, as somebody may run them. "auth" is null before
basic auth had migrations. "revisions" has those of the newest release, each after the ones it follows.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

OUTPUT = Path(__file__).resolve().parents[1] / "roles/mlflow_schema/files/releases.json"
PROJECT = "mlflow"
OLDEST = Version("2.0.0")
FOLDERS = {"tracking": "mlflow/store/db_migrations/", "auth": "mlflow/server/auth/db/migrations/"}
# Read at a time. The migrations are close together: a wheel takes three or four requests.
BLOCK = 128 * 1024

Parents = dict[str, tuple[str, ...]]


class ReleasesError(Exception):
    """What could not be read, with the text a person needs."""


class Index:
    """The package index that pip is configured with."""

    def __init__(self) -> None:
        """Take pip's settings. They are only to be had from its internals."""
        try:
            from pip._internal.commands import create_command

            command = create_command("download")
            options, _ = command.parse_args(["--no-input", "--no-cache-dir"])
            self._url = f"{options.index_url.rstrip('/')}/{PROJECT}/"
            self._session = command._build_session(options)
        except (ImportError, AttributeError, TypeError) as error:
            raise ReleasesError(f"pip's settings: expected a pip that says them, as 23.2 does ({error})") from None

    def get(self, url: str, what: str, **headers: str) -> Any:
        """The answer to a request. Errors name ``what``, as the URL may have a password in it."""
        try:
            answer = self._session.get(url, headers=headers)
        except OSError as error:  # every error of requests is one
            raise ReleasesError(f"{what}: the package index gave no answer ({type(error).__name__})") from None
        if answer.status_code not in (200, 206):
            raise ReleasesError(f"{what}: the package index answered {answer.status_code}")
        return answer

    def wheels(self) -> dict[Version, str]:
        """The URL of each stable release's wheel."""
        answer = self.get(self._url, PROJECT, Accept="application/vnd.pypi.simple.v1+json")
        try:
            return stable_wheels((entry["filename"], entry["url"]) for entry in answer.json()["files"])
        except (ValueError, KeyError, TypeError):
            raise ReleasesError(f"{PROJECT}: the package index does not answer in JSON (PEP 691)") from None

    def wheel(self, release: Version, url: str) -> io.BufferedIOBase:
        """A wheel as a file, of which only those parts are fetched that are read."""
        what = f"the wheel of {PROJECT} {release}"
        answer = self.get(url, what, Range="bytes=0-0")
        if answer.status_code == 200:
            return io.BytesIO(answer.content)
        size = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdigit():
            raise ReleasesError(f"{what}: the package index does not tell its size")

        def read(first: int, last: int) -> bytes:
            content = self.get(url, what, Range=f"bytes={first}-{last}").content
            if len(content) != last - first + 1:
                raise ReleasesError(f"{what}: the package index sent {len(content)} bytes of a range")
            return content

        return io.BufferedReader(Remote(int(size), read), BLOCK)


class Remote(io.RawIOBase):
    """A file that is read by ranges of bytes."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        """Take the size and what reads from one position to another, both included."""
        self._size, self._read, self._position = size, read, 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """Its position can be set."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read as much as the buffer holds, or to the end."""
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        content = self._read(self._position, end - 1)
        buffer[: len(content)] = content
        self._position = end
        return len(content)


def stable_wheels(files: Iterable[tuple[str, str]]) -> dict[Version, str]:
    """The URL of every stable release's wheel since 2.0.0, oldest first, out of (name, URL) of an index's files."""
    found = {}
    for name, url in files:
        try:
            version = parse_wheel_filename(name)[1]
        except InvalidWheelFilename:
            continue
        if version >= OLDEST and not version.is_prerelease:
            found[version] = url
    return dict(sorted(found.items()))


def revision_of(source: str) -> tuple[str, tuple[str, ...]] | None:
    """A migration's revision and the ones it follows; None for a file that is no migration."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id in ("revision", "down_revision"):
                found[target.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    if "revision" not in found:
        return None
    before = found.get("down_revision") or ()
    return found["revision"], (before,) if isinstance(before, str) else tuple(before)


def version_table_of(source: str) -> str:
    """The table that keeps the revision, as the program that runs the migrations says; else Alembic's usual one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "version_table" and isinstance(node.value, ast.Constant):
            return str(node.value.value)
    return "alembic_version"


def read_wheel(file: Any) -> tuple[dict[str, Parents], str | None]:
    """The revisions of each schema in a wheel, with the ones each follows, and the version table of auth's."""
    histories: dict[str, Parents] = {}
    with zipfile.ZipFile(file) as wheel:
        for schema, folder in FOLDERS.items():
            pattern = re.compile(re.escape(f"{folder}versions/") + r"[^/]+\.py")
            # In the order of the wheel, so that what is close together is fetched together.
            names = [name for name in wheel.namelist() if pattern.fullmatch(name)]
            histories[schema] = dict(filter(None, (revision_of(wheel.read(name).decode()) for name in names)))
        table = version_table_of(wheel.read(f"{FOLDERS['auth']}env.py").decode()) if histories["auth"] else None
    return histories, table


def head_of(parents: Parents) -> str:
    """The one revision that no other follows."""
    heads = sorted(set(parents) - {before for follows in parents.values() for before in follows})
    if len(heads) != 1:
        raise ReleasesError(f"expected one head, found {len(heads)}: {', '.join(heads)}")
    return heads[0]


def in_order(parents: Parents) -> list[str]:
    """The revisions, each after the ones it follows; of two that could be next, the first by name."""
    ordered: list[str] = []
    while ready := sorted(
        revision for revision, before in parents.items() if revision not in ordered and set(before) <= set(ordered)
    ):
        ordered.append(ready[0])
    if len(ordered) != len(parents):
        raise ReleasesError(f"revisions follow unknown ones: {', '.join(sorted(set(parents) - set(ordered)))}")
    return ordered


def table_of(wheels: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The content of releases.json out of (release, its wheel as a file), oldest first."""
    releases: dict[str, Any] = {}
    histories: dict[str, Parents] = {}
    for release, file in wheels:
        try:
            histories, table = read_wheel(file)
            auth = head_of(histories["auth"]) if histories["auth"] else None
            releases[release] = {"tracking": head_of(histories["tracking"]), "auth": auth, "auth_version_table": table}
        except (ReleasesError, zipfile.BadZipFile, KeyError, SyntaxError, ValueError) as error:
            raise ReleasesError(f"{PROJECT} {release}: {error}") from error
    if not releases:
        raise ReleasesError(f"the package index has no stable release of {PROJECT} since {OLDEST}")
    return {"releases": releases, "revisions": {schema: in_order(parents) for schema, parents in histories.items()}}


def text_of(table: dict[str, Any]) -> str:
    """The table as JSON, one release a line."""
    releases = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table["releases"].items())
    revisions = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table["revisions"].items())
    return f'{{"releases": {{\n{releases}\n}},\n"revisions": {{\n{revisions}\n}}}}\n'


def missing(table: dict[str, Any]) -> list[str]:
    """The releases whose head the newest release does not know: it cannot upgrade their databases."""
    return [
        f"{release}: {schema} {row[schema]}"
        for release, row in table["releases"].items()
        for schema, known in table["revisions"].items()
        if row[schema] is not None and row[schema] not in known
    ]


def main(words: list[str] | None = None) -> int:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the file is out of date")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the file (default: %(default)s)")
    arguments = parser.parse_args(words)
    try:
        index = Index()
        wheels = index.wheels()
        table = table_of((str(release), index.wheel(release, url)) for release, url in wheels.items())
    except ReleasesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in missing(table):
        print(f"not known to the newest release: {line}", file=sys.stderr)
    content = text_of(table).encode()
    present = arguments.output.read_bytes() if arguments.output.exists() else b""
    if content == present:
        print(f"{arguments.output}: up to date, {len(table['releases'])} releases")
        return 0
    if arguments.check:
        print(f"{arguments.output}: out of date; run scripts/mlflow_releases.py", file=sys.stderr)
        return 1
    arguments.output.write_bytes(content)
    print(f"{arguments.output}: {len(table['releases'])} releases, {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
