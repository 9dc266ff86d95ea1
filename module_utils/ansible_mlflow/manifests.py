"""Kubernetes objects as files of a Git working tree: the same objects are always the same bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from .errors import Error

# What tells a file of ours from one that somebody has put beside it.
HEADER = "# Written by playbooks/render.yml of ansible-mlflow, which overwrites what is changed here.\n"
SUFFIX = ".yaml"


@dataclass
class Written:
    """What writing did: sentences for people, and a diff for each file that changed."""

    changes: list[str] = field(default_factory=list)
    diffs: list[dict] = field(default_factory=list)


def write_all(directory: str, folders: dict[str, list[dict]], check_mode: bool) -> Written:
    """Make each folder hold exactly the given objects, a file for each, besides files that are not ours.

    :param directory: the working tree.
    :param folders: objects by the path of their folder in it.
    :raises Error: the working tree is not there, a file is not ours or cannot be written, or an object is a Secret.
    """
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise Error(f"{directory} is no directory; expected a Git working tree")
    written = Written()
    try:
        for folder, objects in sorted(folders.items()):
            write_folder(root, folder, {file_name(item): text_of(item) for item in objects}, written, check_mode)
    except OSError as error:
        raise Error(f"{error.filename}: {error.strerror}") from None
    return written


def write_folder(root: Path, folder: str, wanted: dict[str, str], written: Written, check_mode: bool) -> None:
    """Make one folder hold the wanted files, and none of ours besides."""
    present = {path.name: path.read_text("utf-8") for path in sorted((root / folder).glob(f"*{SUFFIX}"))}
    for name in sorted({*wanted, *present}):
        before, after = present.get(name, ""), wanted.get(name, "")
        is_ours = not before or before.startswith(HEADER)
        if before == after or (not after and not is_ours):
            continue
        path = f"{folder}/{name}"
        if not is_ours:
            raise Error(
                f"{root / path} is not a file of this role (its first line is another); expected none of its name"
            )
        verb = "created" if not before else "updated" if after else "removed"
        written.changes.append(f"{verb} {path}")
        written.diffs.append({"before_header": path, "after_header": path, "before": before, "after": after})
        if check_mode:
            continue
        if after:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / path).write_text(after, "utf-8")
        else:
            (root / path).unlink()


def file_name(item: dict) -> str:
    """The name of an object's file: its kind and name, which Kubernetes lets have no slash."""
    kind, name = item["kind"].lower(), item["metadata"]["name"]
    if item["kind"] == "Secret":
        raise Error(f"Secret {name} is not written into a file: no secret belongs into Git")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", name):
        raise Error(f"{item['kind']} {name!r}: expected a name of lower case letters, digits, hyphens and dots")
    return f"{kind}-{name}{SUFFIX}"


def text_of(item: dict) -> str:
    """An object as YAML with sorted keys. Programs and certificates stand in it as people wrote them, line by line."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """PyYAML's own in Python, whose output is the same with and without libyaml."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    def represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, represent)
    return HEADER + yaml.dump(item, Dumper=Dumper, sort_keys=True, width=120, allow_unicode=False)
